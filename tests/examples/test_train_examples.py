"""The examples of RLOO and of PPO with `train()` from end to end, with tiny assets and a few steps."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import datasets
import pytest
from transformers import AutoModelForCausalLM

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODULES = ("posts", "assets", "common", "votes", "rloo", "ppo", "ppo_tldr")
SHORT = ["--total_episodes=8", "--per_device_train_batch_size=4", "--num_mini_batches=1", "--num_ppo_epochs=1",
         "--response_length=6", "--num_sample_generations=1", "--use_cpu=True"]  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The examples' files as modules; their assets are tiny ones."""
    shadowed = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("stack_llama", "rloo", "ppo"):
            patch.syspath_prepend(str(EXAMPLES / folder))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        modules = {name: __import__(name) for name in MODULES}
        settings = modules["assets"].AssetSettings(pairs=100, vocabulary=400, layers=1, width=16, updates=2)
        tiny = modules["assets"].build_assets(settings, tmp_path_factory.mktemp("cache"))
        patch.setattr(modules["assets"], "default_assets", lambda: tiny)
        yield modules
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(shadowed)


@pytest.mark.parametrize("name", ["rloo", "ppo"])
def test_a_reward_function(name: str, example: dict[str, ModuleType], tmp_path: Path) -> None:
    line = example[name].main([f"--output_dir={tmp_path}", *SHORT])
    assert re.fullmatch(rf"mean score -?\d+\.\d\d -> -?\d+\.\d\d in [12] steps; {re.escape(str(tmp_path))}", line)
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_three_stages(example: dict[str, ModuleType], tmp_path: Path) -> None:
    line = example["ppo_tldr"].main([f"--output_dir={tmp_path}", *SHORT], sft_steps=1, reward_steps=1)
    assert re.match(r"reward model accuracy [01]\.\d+; mean score -?\d+\.\d\d -> -?\d+\.\d\d in [12] steps", line)
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
