"""The examples of RLOO and of PPO with `train()` from end to end, with tiny assets and a few steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModelForCausalLM

from tests.examples.scripts import TRAIN, around_llama

MODULES = ("posts", "assets", "common", "votes", "rloo", "ppo", "ppo_tldr")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The examples' files as modules; their assets are tiny ones."""
    with around_llama(("stack_llama", "rloo", "ppo"), MODULES, tmp_path_factory.mktemp("llama")) as modules:
        yield modules


@pytest.mark.parametrize("name", ["rloo", "ppo"])
def test_a_reward_function(name: str, example: dict[str, ModuleType], tmp_path: Path) -> None:
    line = example[name].main([f"--output_dir={tmp_path}", *TRAIN])
    assert re.fullmatch(rf"mean score -?\d+\.\d\d -> -?\d+\.\d\d in [12] steps; {re.escape(str(tmp_path))}", line)
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_three_stages(example: dict[str, ModuleType], tmp_path: Path) -> None:
    line = example["ppo_tldr"].main([f"--output_dir={tmp_path}", *TRAIN], sft_steps=1, reward_steps=1)
    assert re.match(r"reward model accuracy [01]\.\d+; mean score -?\d+\.\d\d -> -?\d+\.\d\d in [12] steps", line)
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
