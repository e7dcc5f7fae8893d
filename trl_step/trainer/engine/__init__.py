"""How a forward pass is fast."""
