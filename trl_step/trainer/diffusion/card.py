"""The model card of a diffusion model."""

from __future__ import annotations

from trl_step.trainer.ddpo_config import DDPOConfig
from trl_step.trainer.reports.hub import settings_table, write_readme

MODEL_CARD_TEMPLATE = """---
library_name: diffusers
tags:
- trl-step
- ddpo
- reinforcement-learning
- text-to-image
- stable-diffusion
---

# {model_name}

A Stable Diffusion pipeline tuned with DDPO by [trl_step](https://pypi.org/project/trl-step/): its network was rewarded
for what its images show.
"""
_CODE = """
```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("{place}"){adapter}
```
"""
_ADAPTER = '\npipeline.load_lora_weights("{place}", weight_name="pytorch_lora_weights.safetensors")'
_SHOWN = """
    num_epochs sample_num_steps sample_eta sample_guidance_scale sample_batch_size sample_num_batches_per_epoch
    train_batch_size train_gradient_accumulation_steps train_num_inner_epochs train_learning_rate train_clip_range
    train_adv_clip_max train_cfg train_timestep_fraction per_prompt_stat_tracking mixed_precision seed
"""


def write_model_card(path: str, model_name: str, config: DDPOConfig, with_adapter: bool) -> None:
    """Write `path`/README.md; the folder is made if need be."""

    def text(place: str) -> str:
        code = _CODE.format(place=place, adapter=_ADAPTER.format(place=place) if with_adapter else "")
        head = MODEL_CARD_TEMPLATE.format(model_name=model_name, model_id=place)
        return f"{head}{code}\n{settings_table(config, _SHOWN.split())}"

    write_readme(path, text)
