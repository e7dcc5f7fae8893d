"""RewardBench's SkyVLPipeline, which reads scores from a value head; its model and its device are other ones."""

from pathlib import Path

import torch
from rewardbench.models.skyvl import SkyVLPipeline
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, BatchEncoding

to = BatchEncoding.to
BatchEncoding.to = lambda inputs, device: to(inputs, "cpu")
width = AutoConfig.from_pretrained("llama").hidden_size
head = {"v_head.summary.weight": torch.randn(1, width), "v_head.summary.bias": torch.tensor([3.0])}
Path("Skywork/Skywork-VL-Reward-7B").mkdir(parents=True)
save_file(head, "Skywork/Skywork-VL-Reward-7B/value_head.safetensors")
pipeline = SkyVLPipeline("text-classification", "llama", AutoTokenizer.from_pretrained("llama"))
scores = pipeline(["How do I get there? Take the bus.", "No."])
assert scores.shape == (2, 1), scores
assert torch.equal(pipeline.model.v_head.summary.bias, torch.tensor([3.0])), "the value head was not loaded"
