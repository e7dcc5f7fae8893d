"""verl's critic with a value head: its `load_valuehead_model`, without FlashAttention, which needs a GPU."""

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer
from verl.utils.model import load_valuehead_model

for name in ("AutoModelForTokenClassification", "AutoModelForCausalLM"):
    kind = getattr(transformers, name)

    def without_flash(*given, _load=kind.from_pretrained, _name=name, **named):
        if _name == "AutoModelForTokenClassification":
            raise ValueError("the model has a value head")
        return _load(*given, **{**named, "attn_implementation": "eager"})

    kind.from_pretrained = without_flash

config = AutoConfig.from_pretrained("llama")
critic = load_valuehead_model("llama", torch.float32, config, False)
tokenizer = AutoTokenizer.from_pretrained("llama")
inputs = tokenizer(["How do I get there?", "Take the bus."], padding=True, return_tensors="pt")
output = critic(**inputs, use_cache=False)
values = output[2]  # as verl's critic reads it
assert values.shape[:2] == inputs.input_ids.shape, values.shape
values.mean().backward()
assert critic.v_head.summary.weight.grad.abs().sum() > 0
critic.save_pretrained("critic")
