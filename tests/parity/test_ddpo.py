"""`DDPOTrainer` gives the numbers of release 0.7.11: single denoising steps, losses, and how far the weights move.

Tolerances are relative to the largest number of an array, and above what was measured by a factor of 5 to 10: two
releases of diffusers order the arithmetic of the network differently.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trl_step
from tests.parity import ddpo_runs
from tests.parity.ddpo_runs import CASES, NEGATIVE, SAMPLES, STEPS
from trl_step.models import modeling_sd_base
from trl_step.trainer.diffusion.samples import DenoisingSamples

STEP = 2e-5
"""Of single steps, for which float32 has 6e-8; a variance is the difference of numbers near 1."""
LIMITS = {
    "advantages": 1e-6,
    "clipfrac": 0.0,  # no ratio of the recorded runs is near the edge of a clip
    "loss": 2e-4,  # measured: 3e-5
    "approx_kl": 5e-3,  # measured: 1e-3; half the square of a difference near 1e-3 of log-probs near 1
    "moved": 1e-3,  # measured: 1e-4; Adam divides a gradient by its own size
}
DATA = Path(__file__).parent / "data" / "ddpo.npz"


@cache
def recorded(case: str) -> dict[str, np.ndarray]:
    with np.load(DATA) as arrays:
        return {name.removeprefix(f"{case}/"): arrays[name] for name in arrays if name.startswith(f"{case}/")}


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest number."""
    assert np.shape(found) == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def fed_by(case: str) -> ddpo_runs.Feed:
    """The samples that the release drew, in place of the trainer's own."""

    def feed(trainer: Any, own: Callable[..., Any], epoch: int) -> Callable[..., Any]:
        arrays = {name: torch.from_numpy(recorded(case)[f"{epoch}/{name}"]) for name in (*SAMPLES, NEGATIVE)}
        trainer.neg_prompt_embed = arrays[NEGATIVE]
        trainer.sd_pipeline.scheduler.set_timesteps(arrays["timesteps"].shape[1])
        embeds, latents, count = arrays["prompt_embeds"], arrays["latents"], len(arrays["latents"])
        ids = torch.zeros(embeds.shape[:2], dtype=torch.int64)
        samples = DenoisingSamples(
            ids, embeds, arrays["timesteps"], latents[:, :-1], latents[:, 1:], arrays["log_probs"]
        )
        size = trainer.config.sample_batch_size
        prompts = [trainer.prompt_fn()[0] for _ in range(count)]
        images = [[None, tuple(prompts[i : i + size]), ({},) * size] for i in range(0, count, size)]
        return lambda *given, **named: ([samples], images)

    return feed


@pytest.mark.parametrize("case", STEPS)
def test_a_denoising_step_is_that_of_the_release(case: str) -> None:
    found = ddpo_runs.run_step(modeling_sd_base, case)
    assert {name: distance(found[name], array) for name, array in recorded(f"step-{case}").items()} == pytest.approx(
        dict.fromkeys(found, 0.0), abs=STEP
    )


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_that_of_the_release(case: str) -> None:
    expected, found = recorded(case), ddpo_runs.run(trl_step, case, fed_by(case))
    far = {name: distance(found[name], expected[name]) for name in LIMITS}
    assert not {name: by for name, by in far.items() if by > LIMITS[name]}


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("plain", "full")])
def test_every_setting_shows_in_the_weights(case: str) -> None:
    plain, here = recorded("plain")["moved"], recorded(case)["moved"]
    assert distance(here, plain) > 10 * LIMITS["moved"]


def test_first_ratios_of_an_epoch_are_1_and_later_ones_are_clipped() -> None:
    """The recorded runs reach both sides of the clip."""
    clipped = recorded("plain")["clipfrac"]
    assert clipped[0] == 0
    assert clipped[-4:].max() == 1
    assert recorded("wide-clip")["clipfrac"].max() < 1
