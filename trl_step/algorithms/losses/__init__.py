"""The losses, token by token or sample by sample, each with its equation and source."""
