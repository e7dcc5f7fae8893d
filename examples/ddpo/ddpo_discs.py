"""Tune a diffusion model with DDPO, so that its pictures become brighter, or compress better.

Without a network, in about two minutes on two cores; the first run builds a small pipeline that paints discs:

    python examples/ddpo/ddpo_discs.py

With Stable Diffusion from the hub (meant for a GPU):

    python examples/ddpo/ddpo_discs.py --model_name stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --use_lora --reward compressibility --mixed_precision bf16 --num_epochs 100 --train_learning_rate 3e-4 \
        --sample_num_steps 50 --sample_guidance_scale 5 --sample_batch_size 8 --sample_num_batches_per_epoch 8

Every setting of DDPOConfig and every field of `Arguments` below is an option; `--help` lists them.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from discs import REWARDS, draw_prompt
from small_pipeline import SmallPipelineSettings, write_pipeline
from tqdm.auto import tqdm
from transformers.utils import logging

from trl_step import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

sys.path.append(str(Path(__file__).resolve().parents[1]))
from sentiment.building import one_line_if_interrupted
from sentiment.report import check_packages, draw_curves, write_summary
from small_model import CACHE, build_once

BUILT_IN = "built-in"
BUILT_IN_SETTINGS: dict[str, Any] = {
    "num_epochs": 20,
    "save_freq": 10,
    "per_prompt_stat_tracking": True,  # a large disc is brighter than a small one, whatever is learnt
    "per_prompt_stat_tracking_min_count": 4,
    "mixed_precision": "no",
    "logdir": "runs/ddpo",
    "sample_num_steps": 5,
    "sample_guidance_scale": 2.0,
    "sample_batch_size": 64,
    "sample_num_batches_per_epoch": 1,
    "train_batch_size": 64,
    "train_learning_rate": 1e-3,
}


@dataclass
class Arguments:
    """Settings of the script."""

    ddpo: Annotated[DDPOConfig, tyro.conf.arg(name="")]
    model_name: str = BUILT_IN
    """folder or hub repository of a Stable Diffusion pipeline"""
    use_lora: bool = False
    """train an adapter, not the whole network"""
    reward: Literal["brightness", "compressibility"] = "brightness"
    """what pictures are rewarded for"""
    small_pipeline: SmallPipelineSettings = field(default_factory=SmallPipelineSettings)
    """what to build if the built-in pipeline is used"""
    cache_dir: Path = CACHE / "ddpo"
    """where it is stored"""
    output_dir: Path = Path("runs/ddpo")
    """folder for summary.json, samples.png, curves.png and the tuned pipeline"""
    samples: int = 32
    """pictures to compare before and after, from the same noise"""


def main() -> None:
    check_packages("matplotlib")
    warnings.filterwarnings("ignore", "without log_with|No image_samples_hook")
    logging.set_verbosity_error()  # transformers recommends torchvision, for images that a pipeline reads
    default = Arguments(DDPOConfig(**BUILT_IN_SETTINGS))
    arguments = tyro.cli(Arguments, default=default, description=__doc__)
    started = time.perf_counter()
    name = arguments.model_name if arguments.model_name != BUILT_IN else str(build_pipeline(arguments))

    numbers = random.Random(arguments.ddpo.seed)
    pipeline = DefaultDDPOStableDiffusionPipeline(name, use_lora=arguments.use_lora)
    trainer = DDPOTrainer(arguments.ddpo, REWARDS[arguments.reward], lambda: (draw_prompt(numbers), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)

    prompts = [draw_prompt(random.Random(i)) for i in range(arguments.samples)]
    before = paint_all(trainer, prompts)
    history = train(trainer)
    after = paint_all(trainer, prompts)

    folder = arguments.output_dir
    trainer.save_pretrained(str(folder / "model"))
    draw_samples(before, after, prompts, folder / "samples.png")
    draw_curves(history, folder / "curves.png", {"reward": arguments.reward, "clipped": "share of steps"})
    first, last = (mean_reward(arguments.reward, images, prompts) for images in (before, after))
    seconds = round(time.perf_counter() - started, 1)
    in_training = [epoch["reward"] for epoch in history]
    summary = {"reward_first": first, "reward_last": last, "reward_in_training": in_training, "seconds": seconds}
    write_summary(folder / "summary.json", {**summary, "epochs": len(history), "seed": arguments.ddpo.seed})
    print(f"mean {arguments.reward}: {first:.3f} -> {last:.3f} ({seconds:.0f} s)")


def train(trainer: DDPOTrainer) -> list[dict[str, float]]:
    """Epochs of sampling and training; returns the values to plot."""
    history: list[dict[str, float]] = []
    progress = tqdm(total=trainer.config.num_epochs, desc="DDPO")

    @trainer.on_step
    def note(report: Any) -> None:
        history.append({"reward": report.stats["reward_mean"], "clipped": report.stats["clipfrac"]})
        progress.set_postfix(reward=f"{history[-1]['reward']:.3f}")
        progress.update()

    trainer.train()
    progress.close()
    return history


def paint_all(trainer: DDPOTrainer, prompts: list[str]) -> torch.Tensor:
    """Pictures of the prompts [B, 3, height, width], 0 to 1, each from noise of its own seed."""
    config = trainer.config
    device = trainer.accelerator.device
    pictures = []
    for start in range(0, len(prompts), config.sample_batch_size):
        part = prompts[start : start + config.sample_batch_size]
        output = trainer.sd_pipeline(
            prompt=part,
            num_inference_steps=config.sample_num_steps,
            guidance_scale=config.sample_guidance_scale,
            eta=config.sample_eta,
            generator=[torch.Generator(device).manual_seed(start + i) for i in range(len(part))],
            output_type="pt",
        )
        pictures.append(output.images.float().cpu())
    return torch.cat(pictures)


def mean_reward(name: str, images: torch.Tensor, prompts: list[str]) -> float:
    return float(torch.as_tensor(REWARDS[name](images, prompts, None)[0]).mean())


def draw_samples(before: torch.Tensor, after: torch.Tensor, prompts: list[str], file: Path, number: int = 8) -> None:
    """Two rows of pictures, before and after, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number = min(number, len(prompts))
    figure = Figure(figsize=(1.5 * number, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, number, squeeze=False)
    for row, (title, images) in zip(panels, (("before", before), ("after", after)), strict=True):
        for panel, image in zip(row, images, strict=False):
            panel.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(title)
    for panel, prompt in zip(panels[0], prompts, strict=False):
        panel.set_title(prompt, fontsize=8)
    figure.savefig(file, dpi=120)


def build_pipeline(arguments: Arguments) -> Path:
    """The folder of a small pipeline that paints discs."""
    here = Path(__file__)
    sources = [here.with_name("small_pipeline.py"), here.with_name("discs.py")]
    settings = arguments.small_pipeline
    return build_once(arguments.cache_dir, settings, sources, lambda folder: write_pipeline(folder, settings))


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
