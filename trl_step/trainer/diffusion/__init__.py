"""What `DDPOTrainer` is made of: its settings for the shared parts, samples, rewards, the parameters that train."""
