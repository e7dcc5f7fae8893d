"""RewardBench's SkyVLPipeline, which reads scores from a value head; its model and its device are other ones.

The other models of RewardBench, which need transformers 4, are left out.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, BatchEncoding

root = find_spec("rewardbench").submodule_search_locations[0]
for name in ("", ".models"):
    made = sys.modules[f"rewardbench{name}"] = ModuleType(f"rewardbench{name}")
    made.__path__ = [root + name.replace(".", "/")]
from rewardbench.models.skyvl import SkyVLPipeline  # noqa: E402

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
