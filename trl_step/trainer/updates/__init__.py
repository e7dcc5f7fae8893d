"""How weights move: epochs of mini-batches, the optimizer's steps."""
