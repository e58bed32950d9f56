"""`make bench`: what a run with nothing to change costs."""
