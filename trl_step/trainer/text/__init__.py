"""Shared code of the SFT, reward and DPO trainers."""
