"""Layer 2: the output embedding without logits: log-probs, divergences and policy gradients, tile by tile."""
