"""Layer 3: turns texts, conversations and pairs into the trainers' batches."""
