"""A tiny Stable Diffusion pipeline built from configurations, for tests of `DDPOTrainer`. Nothing needs a network."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trl_step import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

LENGTH = 8
"""Tokens of a prompt, those of its beginning and end included."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ("a cat", "a dog", "a fox")


def tokenizer(length: int = LENGTH) -> CLIPTokenizer:
    """One token for each letter."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=length)


def unet(**options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 4,
            "block_out_channels": (4, 8),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 8,
            "attention_head_dim": 4,
            "norm_num_groups": 2,
            **options,
        }
    )


def scheduler(**options: Any) -> DDIMScheduler:
    """With the noise of Stable Diffusion."""
    return DDIMScheduler(
        **{
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            **options,
        }
    )


def pipeline(
    seed: int = 0, unet_options: Any = None, length: int = LENGTH, width: int = 8, **scheduler_options: Any
) -> StableDiffusionPipeline:
    """Images of 8x8 pixels from latents of 4x4; `width` is that of the text's embeddings."""
    torch.manual_seed(seed)
    words = tokenizer(length)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=length, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        unet=unet(cross_attention_dim=width, **(unet_options or {})),
        vae=AutoencoderKL(
            block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2,
        ),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=words,
        scheduler=scheduler(**scheduler_options),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )  # fmt: skip


def policy(seed: int = 0, use_lora: bool = True, **options: Any) -> DefaultDDPOStableDiffusionPipeline:
    """What a trainer takes."""
    whole = pipeline(seed, **options)
    whole.set_progress_bar_config(disable=True)
    return DefaultDDPOStableDiffusionPipeline(whole, use_lora=use_lora)


def config(folder: Path | str, **options: Any) -> DDPOConfig:
    """Three denoising steps, two batches of four samples an epoch."""
    return DDPOConfig(
        **{
            "mixed_precision": "no",
            "sample_num_steps": 3,
            "sample_batch_size": 4,
            "train_batch_size": 2,
            "train_learning_rate": 1e-2,
            "logdir": str(folder),
            **options,
        }
    )


def brightness(images: torch.Tensor, prompts: Any, metadata: Any) -> tuple[torch.Tensor, dict]:
    """The mean of each image's pixels."""
    return images.mean(dim=(1, 2, 3)), {}


class Prompts:
    """Calls give `PROMPTS` in turn, with the number of the call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> tuple[str, dict]:
        self.calls += 1
        return PROMPTS[self.calls % len(PROMPTS)], {"call": self.calls}


def trainer(folder: Path | str, use_lora: bool = True, seed: int = 0, reward: Any = brightness, hook: Any = None,
            cls: type[DDPOTrainer] = DDPOTrainer, **options: Any) -> DDPOTrainer:  # fmt: skip
    whole = policy(seed, use_lora)
    return cls(config(folder, **options), reward, Prompts(), whole, hook)
