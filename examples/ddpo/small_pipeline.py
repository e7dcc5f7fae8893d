"""A Stable Diffusion pipeline of a quarter of a million weights, trained from scratch on pictures of discs."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from discs import SIDE, draw_prompt, paint
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

WIDTH = 16
LENGTH = 24
"""tokens of a prompt: one for each letter"""
UNCONDITIONAL = 0.1
"""share of pictures that are learnt without their prompt, for classifier-free guidance"""


@dataclass(frozen=True)
class SmallPipelineSettings:
    """Training of the built-in pipeline."""

    autoencoder_updates: int = 200
    """optimizer steps of the autoencoder"""
    updates: int = 450
    """optimizer steps of the network that predicts the noise, and of the text encoder"""
    batch: int = 32
    """pictures in each of them"""
    seed: int = 0
    """seed of the pictures and of the training"""


def write_pipeline(folder: Path, settings: SmallPipelineSettings) -> None:
    """Train a pipeline and save it into `folder`."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    numbers = random.Random(settings.seed)
    tokenizer = letter_tokenizer(folder)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=SIDE,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2, block_out_channels=(WIDTH, 2 * WIDTH), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=WIDTH, attention_head_dim=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip

    train_autoencoder(autoencoder, settings, numbers)
    train_noise(unet, text_encoder, autoencoder, scheduler, tokenizer, settings, numbers)
    StableDiffusionPipeline(
        unet=unet, vae=autoencoder, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def letter_tokenizer(folder: Path) -> CLIPTokenizer:
    """One token for each letter."""
    letters = string.ascii_lowercase
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8")
    merges.write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=LENGTH)


def train_autoencoder(autoencoder: AutoencoderKL, settings: SmallPipelineSettings, numbers: random.Random) -> None:
    """Pictures to latents and back; latents are scaled to a deviation of 1."""

    def loss() -> torch.Tensor:
        pictures = batch(settings, numbers)[0]
        latents = autoencoder.encode(pictures).latent_dist
        return F.mse_loss(autoencoder.decode(latents.sample()).sample, pictures) + 1e-5 * latents.kl().mean()

    train(list(autoencoder.parameters()), loss, settings.autoencoder_updates, 3e-3, "building the autoencoder")
    with torch.no_grad():
        deviation = autoencoder.encode(batch(settings, numbers)[0]).latent_dist.mean.std()
    autoencoder.register_to_config(scaling_factor=1 / float(deviation))
    autoencoder.requires_grad_(False).eval()


def train_noise(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    autoencoder: AutoencoderKL,
    scheduler: DDIMScheduler,
    tokenizer: CLIPTokenizer,
    settings: SmallPipelineSettings,
    numbers: random.Random,
) -> None:
    """Teach the network to predict the noise that was mixed into the latents of a picture."""

    def loss() -> torch.Tensor:
        pictures, prompts = batch(settings, numbers)
        with torch.no_grad():
            latents = autoencoder.encode(pictures).latent_dist.mean * autoencoder.config.scaling_factor
        prompts = ["" if numbers.random() < UNCONDITIONAL else prompt for prompt in prompts]
        tokens = tokenizer(prompts, return_tensors="pt", padding="max_length", max_length=LENGTH).input_ids
        noise = torch.randn_like(latents)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
        noisy = scheduler.add_noise(latents, noise, times)
        return F.mse_loss(unet(noisy, times, text_encoder(tokens)[0]).sample, noise)

    parameters = [*unet.parameters(), *text_encoder.parameters()]
    train(parameters, loss, settings.updates, 2e-3, "building the network")
    unet.eval()
    text_encoder.eval()


def batch(settings: SmallPipelineSettings, numbers: random.Random) -> tuple[torch.Tensor, list[str]]:
    """Pictures [B, 3, SIDE, SIDE], -1 to 1, and their prompts."""
    prompts = [draw_prompt(numbers) for _ in range(settings.batch)]
    return torch.stack([paint(prompt, numbers) for prompt in prompts]) * 2 - 1, prompts


def train(
    parameters: list[Any], loss_of_a_batch: Callable[[], torch.Tensor], updates: int, rate: float, title: str
) -> None:
    """Adam with one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=updates + 1, pct_start=0.1)
    progress = tqdm(range(updates), desc=title)
    for update in progress:
        loss = loss_of_a_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if update % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
