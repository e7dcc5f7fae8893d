"""Layer 3: how responses are sampled."""
