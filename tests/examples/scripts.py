"""The scripts in examples/ as modules, and short runs of them as programs.

python -m tests.examples.scripts FOLDER sentiment games     # families of `SHORT_RUNS`; FOLDER takes what they write
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import datasets
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SENTIMENT_ASSETS = {"train_reviews": 40, "test_reviews": 8, "vocabulary": 400, "layers": 1, "width": 16,
                    "model_updates": 2, "classifier_updates": 2}  # fmt: skip
SENTIMENT = [*(f"--assets.{name}={value}" for name, value in SENTIMENT_ASSETS.items()),
             "--batch_size=4", "--mini_batch_size=2", "--steps=8", "--held_out=4", "--max_new_tokens=5"]  # fmt: skip
GAME = ["--small_model.layers=1", "--small_model.width=16", "--small_model.updates=3", "--small_model.batch=4",
        "--batch_size=8", "--mini_batch_size=4", "--steps=16", "--accelerator_kwargs", '{"cpu": true}']  # fmt: skip
PICTURES = ["--small_pipeline.autoencoder_updates=3", "--small_pipeline.updates=3", "--small_pipeline.batch=4",
            "--num_epochs=2", "--sample_num_steps=2", "--sample_batch_size=4", "--train_batch_size=2",
            "--samples=6", "--use_lora"]  # fmt: skip
TRAIN = ["--total_episodes=8", "--per_device_train_batch_size=4", "--num_mini_batches=1", "--num_ppo_epochs=1",
         "--response_length=6", "--num_sample_generations=1", "--use_cpu=True"]  # fmt: skip
STACK_LLAMA = ["--questions=6", "--sft=--max_steps 2 --batch_size 2 --size_valid_set 4",
               "--reward=--train_subset 16 --num_train_epochs 1",
               "--rl=--steps 8 --batch_size 4 --mini_batch_size 2"]  # fmt: skip
LLAMA_ASSETS = {"pairs": 200, "vocabulary": 400, "layers": 1, "width": 16, "updates": 2}
SHORT_RUNS: dict[str, list[tuple[str, Sequence[str]]]] = {
    "sentiment": [
        ("sentiment/ppo_sentiment.py", SENTIMENT),
        ("sentiment/ppo_sentiment.py", [*SENTIMENT, "--use_peft"]),
    ],
    "games": [
        ("calculator/ppo_calculator.py", [*GAME, "--held_out=6", "--max_new_tokens=4"]),
        ("guess_number/ppo_guess_number.py", [*GAME, "--games=1"]),
        ("frozen_lake/group_frozen_lake.py", [*GAME, "--games=4", "--group=4", "--max_turns=3"]),
        ("two_players/self_play.py", GAME),
    ],
    "pictures": [("ddpo/ddpo_discs.py", PICTURES)],
    "train": [("rloo/rloo.py", TRAIN), ("ppo/ppo.py", TRAIN)],
    "stages": [("stack_llama/pipeline.py", STACK_LLAMA)],
}
AROUND_LLAMA = ("train", "stages")
"""Families whose model and posts are those of `stack_llama/assets.py`; the others take a `--cache_dir`."""


@contextmanager
def around_llama(folders: Sequence[str], names: Sequence[str], temporary: Path) -> Iterator[dict[str, ModuleType]]:
    """Modules from some folders of examples/, by name; `assets`, one of them, has a tiny Llama and a few posts."""
    shadowed = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        for folder in folders:
            patch.syspath_prepend(str(EXAMPLES / folder))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", temporary / "datasets")
        modules = {name: __import__(name) for name in names}
        tiny = modules["assets"].build_assets(modules["assets"].AssetSettings(**LLAMA_ASSETS), temporary / "cache")
        patch.setattr(modules["assets"], "default_assets", lambda: tiny)
        yield modules
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(shadowed)


def run_family(family: str, folder: Path) -> None:
    """Run the scripts of a family as `python script.py` does; they write into `folder`."""
    if family in AROUND_LLAMA:
        with around_llama(["stack_llama"], ["assets"], folder):
            _run_all(family, folder)
    else:
        _run_all(family, folder, f"--cache_dir={folder / 'cache'}")


def _run_all(family: str, folder: Path, *words: str) -> None:
    for script, options in SHORT_RUNS[family]:
        path = EXAMPLES / script
        sys.argv = [str(path), *options, *words, f"--output_dir={folder / path.stem}"]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")
        sys.path.remove(str(path.parent))


if __name__ == "__main__":
    for each in sys.argv[2:]:
        run_family(each, Path(sys.argv[1], each))
