"""Networks as a web service: a page for people, JSON for programs."""
