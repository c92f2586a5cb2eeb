"""What the command line draws on the screen."""
