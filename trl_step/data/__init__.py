"""Layer 3: texts, conversations and pairs to the batches that the trainers take."""
