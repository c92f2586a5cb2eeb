"""Tables, figures and pages of one run or many."""
