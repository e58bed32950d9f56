"""`make bench-fleet`: what clients notice of a rollout and of a lost balancer, and what a fleet costs."""
