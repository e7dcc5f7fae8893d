"""What the SFT, reward and DPO trainers share."""
