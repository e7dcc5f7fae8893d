"""Several processes: accelerate's state, weights in parts."""
