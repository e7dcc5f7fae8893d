"""Runs `DDPOTrainer` of a library on a tiny Stable Diffusion pipeline and gives every number as an array.

The same code runs on release 0.7.11, to record, and on this package, to replay. Weights come from NumPy's legacy random
stream. Images are not needed: rewards are a table. The release samples each epoch; the replay is fed those samples.
"""

from __future__ import annotations

import json
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

Arrays = dict[str, np.ndarray]
Feed = Callable[[Any, Callable[..., Any], int], Callable[..., Any]]
"""(trainer, its own `_generate_samples`, epoch) -> what takes the place of that method in the epoch"""

EPOCHS = 2
PROMPTS = ("a b", "c d", "e f")
LENGTH = 4
SAMPLES = ("prompt_embeds", "timesteps", "latents", "log_probs")
"""Of each sample; here `latents` are those before the first step and after each."""
NEGATIVE = "negative_prompt_embeds"
"""One for all samples."""

DEFAULTS: dict[str, Any] = {
    "num_epochs": EPOCHS,
    "mixed_precision": "no",
    "sample_num_steps": 4,
    "sample_batch_size": 2,
    "sample_num_batches_per_epoch": 2,
    "train_batch_size": 2,
    "train_learning_rate": 1e-3,
    "train_adam_epsilon": 1e-5,
    "save_freq": 1000,
}
"""Of Adam's epsilon: gradients that are 0 but for rounding must not become whole steps."""
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "full": {"use_lora": False},
    "unguided": {"train_cfg": False},
    "eta": {"sample_eta": 0.5},
    "fraction": {"train_timestep_fraction": 0.5},
    "accumulation": {"train_gradient_accumulation_steps": 2},
    "inner-epochs": {"train_num_inner_epochs": 2},
    "wide-clip": {"train_clip_range": 0.1},
    "adv-clip": {"train_adv_clip_max": 0.5},
    "grad-norm": {"train_max_grad_norm": 1e-3},
    "adam": {"train_adam_beta1": 0.5, "train_adam_beta2": 0.9, "train_adam_weight_decay": 0.1},
    "per-prompt": {"per_prompt_stat_tracking": True, "per_prompt_stat_tracking_buffer_size": 3,
                   "per_prompt_stat_tracking_min_count": 2},
}  # fmt: skip
"""Settings of `DDPOConfig`, and `use_lora`."""
STEPS: dict[str, dict[str, Any]] = {
    "epsilon": {},
    "sample": {"prediction_type": "sample"},
    "velocity": {"prediction_type": "v_prediction"},
    "eta": {"eta": 0.3},
    "clipped": {"clip_sample": True, "clip_sample_range": 0.5},
    "clipped-noise": {"clip_sample": True, "clip_sample_range": 0.5, "use_clipped_model_output": True},
    "alpha-to-one": {"set_alpha_to_one": True},
    "linear": {"beta_schedule": "linear"},
}
"""Settings of the scheduler, `eta` and `use_clipped_model_output`, of single denoising steps."""
OF_THE_CALL = ("eta", "use_clipped_model_output")
TIMES = (751, 251, 1)
"""Of 4 steps, the last included."""


def draw(model: torch.nn.Module) -> Any:
    """Fill every parameter, each from a stream of its own name, in a size that keeps activations near 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stream = np.random.RandomState(zlib.crc32(name.encode()))
            noise = torch.from_numpy(stream.standard_normal(tuple(parameter.shape)).astype(np.float32))
            is_norm_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(is_norm_scale + (0.1 if parameter.dim() == 1 else 0.2) * noise)
    return model


def scheduler(**options: Any) -> DDIMScheduler:
    """With the noise of Stable Diffusion."""
    defaults = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    return DDIMScheduler(**{**defaults, **options})


def save_pipeline(folder: Path) -> None:
    """A pipeline with one token for each letter, in the files of diffusers."""
    letters = "abcdef"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    blocks = {"block_out_channels": (4, 8), "norm_num_groups": 2}
    StableDiffusionPipeline(
        unet=draw(
            UNet2DConditionModel(
                sample_size=4, layers_per_block=1, cross_attention_dim=8, attention_head_dim=4, **blocks,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            )
        ),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
        ),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "pipeline")  # fmt: skip


class Table:
    """Prompts in turn, and rewards that depend on the sample's number alone."""

    def __init__(self) -> None:
        self.asked = self.scored = 0

    def prompt(self) -> tuple[str, dict]:
        self.asked += 1
        return PROMPTS[self.asked % len(PROMPTS)], {}

    def reward(self, images: Any, prompts: Any, metadata: Any) -> tuple[torch.Tensor, dict]:
        numbers = np.arange(self.scored, self.scored + len(prompts))
        self.scored += len(prompts)
        return torch.from_numpy(np.sin(numbers * 1.7).astype(np.float32)), {}


def run(library: ModuleType, case: str, feed: Feed) -> Arrays:
    """Two epochs; the numbers of every update, and how far the weights moved.

    Args:
        library: `trl` or `trl_step`
        case: one of `CASES`
    """
    options = dict(CASES[case])
    use_lora = options.pop("use_lora", True)
    table, found, logged = Table(), {}, []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_pipeline(Path(folder))
        pipeline = library.DefaultDDPOStableDiffusionPipeline(f"{folder}/pipeline", use_lora=use_lora)
        config = library.DDPOConfig(**{**DEFAULTS, "logdir": folder, **options})
        trainer = library.DDPOTrainer(config, table.reward, table.prompt, pipeline)
        draw(pipeline.unet)
        before = {name: p.detach().clone() for name, p in pipeline.unet.named_parameters() if p.requires_grad}
        own, observed = trainer._generate_samples, observe_loss(trainer, logged)
        trainer.calculate_loss = observed
        for epoch in range(EPOCHS):
            torch.manual_seed(100 + epoch)
            trainer._generate_samples = seeded_after(feed(trainer, own, epoch), 200 + epoch)
            trainer.step(epoch, 0)
        after = dict(pipeline.unet.named_parameters())
        found["moved"] = np.stack([summary(after[name].detach() - before[name], name) for name in sorted(before)])
    for number, name in enumerate(("loss", "approx_kl", "clipfrac", "advantages")):
        found[name] = np.array([entry[number] for entry in logged])
    return found


def seeded_after(generate: Callable[..., Any], seed: int) -> Callable[..., Any]:
    """So that samples are shuffled in the same way, whether they were drawn or given."""

    def seeded(*given: Any, **named: Any) -> Any:
        found = generate(*given, **named)
        torch.manual_seed(seed)
        return found

    return seeded


def observe_loss(trainer: Any, logged: list[list[Any]]) -> Callable[..., Any]:
    """`trainer.calculate_loss`, which also writes down what it returns, and the advantages that it was given."""
    own = trainer.calculate_loss

    def calculate_loss(*given: Any, **named: Any) -> Any:
        numbers = own(*given, **named)
        logged.append([*(float(number) for number in numbers), given[4].numpy().copy()])
        return numbers

    return calculate_loss


def summary(moved: torch.Tensor, name: str) -> np.ndarray:
    """Eight weighted sums of the numbers: any change of one of them shows, and the file stays small."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    return stream.standard_normal((8, moved.numel())) @ moved.double().flatten().numpy() / moved.numel() ** 0.5


def draw_step(name: str) -> Arrays:
    """Inputs of a single denoising step of three samples, each at another time step."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    shape = (len(TIMES), 4, 4, 4)
    return {key: stream.standard_normal(shape).astype(np.float32) for key in ("prediction", "sample", "noise", "after")}


def run_step(module: ModuleType, case: str) -> Arrays:
    """`scheduler_step` of the library's module `modeling_sd_base`: a step that is made, and one that was made."""
    options = dict(STEPS[case])
    call = {"eta": 1.0, **{name: options.pop(name) for name in OF_THE_CALL if name in options}}
    made = scheduler(**options)
    made.set_timesteps(len(TIMES) + 1)
    inputs = {name: torch.from_numpy(array) for name, array in draw_step(case).items()}
    given = (made, inputs["prediction"], torch.tensor(TIMES), inputs["sample"])
    own = module.randn_tensor
    module.randn_tensor = lambda *shape, **options: inputs["noise"]
    try:
        new = module.scheduler_step(*given, **call)
    finally:
        module.randn_tensor = own
    old = module.scheduler_step(*given, **call, prev_sample=inputs["sample"] + 0.01 * inputs["after"])
    return {
        "latents": new.latents.numpy(),
        "log_probs": new.log_probs.numpy(),
        "log_probs_of_given": old.log_probs.numpy(),
    }
