"""Fast passes: how a batch is evaluated, and a mini-batch trained on."""
