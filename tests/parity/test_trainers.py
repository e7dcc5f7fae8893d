"""Every run of the SFT, reward, DPO and iterative trainers gives the numbers of release 0.7.11."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trl_step
from tests.parity.recording import DATA, excess
from tests.parity.trainer_runs import run_all, runs

NAMES = [name for name, _ in runs()]


def recorded(run: str) -> dict[str, np.ndarray]:
    with np.load(DATA / "trainers.npz") as arrays:
        return {name.removeprefix(f"{run}/"): arrays[name] for name in arrays if name.startswith(f"{run}/")}


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_release(name: str) -> None:
    expected, found = recorded(name), run_all(trl_step, only=name)[name]
    assert set(found) == set(expected)
    if name == "completions":
        _leave_out_two_answers_in_a_row(expected, found)
    wrong = {key: difference(found[key], array) for key, array in expected.items()}
    assert not {key: by for key, by in wrong.items() if by is not None}


def _leave_out_two_answers_in_a_row(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    """Labels of "efab#:cd#:efg" (Q A A Q): the release trains the second template and the user's last turn."""
    row = 5
    assert (expected["turns/labels"][row] != -100).sum() > (found["turns/labels"][row] != -100).sum() > 0
    for arrays in (expected, found):
        arrays["turns/labels"] = np.delete(arrays["turns/labels"], row, axis=0)


def difference(found: Any, expected: np.ndarray) -> str | None:
    if np.shape(found) != expected.shape:
        return f"shape {np.shape(found)}, recorded {expected.shape}"
    beyond = excess(found, expected)
    return None if beyond.size == 0 or beyond.max() <= 1 else f"{beyond.max():.3g} x tolerance"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("dpo-") and "sigmoid" not in name])
def test_every_kind_of_loss_moves_the_weights_otherwise(name: str) -> None:
    plain = recorded("dpo-t5-sigmoid" if "t5" in name else "dpo-sigmoid")
    here = recorded(name)
    moved = [key for key in plain if key.startswith("moved/") and key in here]
    if name == "dpo-precomputed":
        assert all(excess(here[key], plain[key]).max() <= 1 for key in moved)
    elif name != "dpo-lora":
        assert any(excess(here[key], plain[key]).max() > 1 for key in moved)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-unclipped") and name.startswith("sft")])
def test_a_loss_of_another_scale_would_be_seen(name: str) -> None:
    """Gradients of the clipped runs are longer than the limit: any multiple of the loss moves the weights alike."""
    clipped, unclipped = recorded(name.removesuffix("-unclipped")), recorded(name)
    rate = 0.02 / 0.05
    moved = [key for key in clipped if key.startswith("moved/")]
    assert any(excess(unclipped[key], clipped[key] * rate).max() > 1 for key in moved)
    assert {"logged", "eval_loss"} <= set(unclipped)


def test_a_prompt_that_merges_into_its_answer_was_recorded() -> None:
    tokens = recorded("dpo-sigmoid")
    joined = tokens["batch/chosen_labels"][1]
    prompt = tokens["batch/prompt_attention_mask"].sum(axis=1)
    # the first answer begins inside a token of the prompt: one token fewer is masked than the prompt has by itself
    assert (joined == -100).sum() - (joined.size - tokens["batch/chosen_attention_mask"][1].sum()) == prompt[1]
