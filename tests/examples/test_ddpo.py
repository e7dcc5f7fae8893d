"""The example of `DDPOTrainer` from end to end, with a tiny pipeline and few steps; its pictures and rewards."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.examples.scripts import EXAMPLES, PICTURES


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The example's files as modules, importable as they are for a script that lies beside them."""
    names = ("discs", "small_pipeline", "small_model", "ddpo_discs")
    with pytest.MonkeyPatch.context() as patch:
        for folder in (EXAMPLES, EXAMPLES / "ddpo"):
            patch.syspath_prepend(str(folder))
        yield {name: __import__(name) for name in names}
        for name in (*names, "sentiment.report", "sentiment.building", "sentiment"):
            sys.modules.pop(name, None)


def run(script: ModuleType, folder: Path, *options: str) -> dict[str, Any]:
    """Run the script in a folder of its own; its summary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["script.py", f"--cache_dir={folder / 'cache'}", *options])
        script.main()
    return json.loads((folder / "runs" / "ddpo" / "summary.json").read_text())


@pytest.mark.parametrize("reward", ["brightness", "compressibility"])
def test_the_example_in_short_form(
    reward: str, modules: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(modules["ddpo_discs"], tmp_path, *PICTURES, f"--reward={reward}")
    folder = tmp_path / "runs" / "ddpo"
    assert summary["epochs"] == len(summary["reward_in_training"]) == 2
    for picture in ("samples.png", "curves.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert (folder / "model" / "pytorch_lora_weights.safetensors").is_file()
    first, last = summary["reward_first"], summary["reward_last"]
    assert f"mean {reward}: {first:.3f} -> {last:.3f} (" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_pictures_become_brighter(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    """Slow: it builds a pipeline, from fewer updates than the example's, and trains it, in about a minute."""
    build = ["--small_pipeline.autoencoder_updates=120", "--small_pipeline.updates=200"]
    summary = run(modules["ddpo_discs"], tmp_path, *build, "--num_epochs=8")
    assert summary["reward_last"] > summary["reward_first"] + 0.02


def test_pictures_are_those_of_their_prompts(modules: dict[str, ModuleType]) -> None:
    discs = modules["discs"]
    numbers = random.Random(0)
    for prompt in {discs.draw_prompt(numbers) for _ in range(60)}:
        picture = discs.paint(prompt, numbers)
        assert picture.shape == (3, discs.SIDE, discs.SIDE)
        assert 0 <= picture.min() <= picture.max() <= 1
        _, size, color, _ = prompt.split()
        disc = (picture - 0.05).abs().amax(dim=0) > 0.4
        low, high = discs.SIZES[size]
        assert 3.14 * (low - 0.5) ** 2 < disc.sum() < 3.15 * (high + 0.5) ** 2
        brightest = picture.flatten(1).amax(dim=1)
        assert torch.allclose(brightest, torch.tensor(discs.COLORS[color]), atol=0.02)


def test_rewards_of_pictures(modules: dict[str, ModuleType]) -> None:
    discs = modules["discs"]
    plain, noisy = torch.full((3, 16, 16), 0.25), torch.rand(3, 16, 16)
    images = torch.stack([plain, noisy])
    assert float(discs.brightness(images, None, None)[0][0]) == pytest.approx(0.25)
    one, other = discs.compressibility(images, None, None)[0]
    assert other < one < 0
