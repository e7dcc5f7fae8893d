"""Layer 3: turns texts, conversations and pairs into the trainers' batches, and reads the calls in a chat turn."""
