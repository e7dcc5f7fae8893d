"""Layer 3: samples responses."""
