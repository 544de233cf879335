"""Training and evaluation: the only room that knows policies, environments and rewards."""
