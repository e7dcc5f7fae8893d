"""Row B9: reloading our own checkpoints reports no UNEXPECTED value head, and still reports what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from tests.models.tiny_models import lora, wrapped, wrapper_of
from trl_step.models import AutoModelForCausalLMWithValueHead


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What transformers logs, whatever the level that other tests have left."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "t5"])
def test_no_report(tmp_path: Path, reports: list[str], name: str) -> None:
    wrapped(name).save_pretrained(tmp_path)
    wrapper_of(name).from_pretrained(tmp_path)
    assert [message for message in reports if "v_head" in message or "LOAD REPORT" in message] == []


def test_no_report_below_an_adapter(tmp_path: Path, reports: list[str]) -> None:
    wrapped().save_pretrained(tmp_path)
    AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, peft_config=lora())
    assert [message for message in reports if "v_head" in message] == []


def test_what_is_wrong_is_still_reported(tmp_path: Path, reports: list[str]) -> None:
    model = wrapped()
    state = {**model.state_dict(), "stranger.weight": torch.zeros(1)}
    del state["transformer.ln_f.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    text = "\n".join(reports)
    assert "stranger.weight" in text
    assert "ln_f.weight" in text
    assert "v_head" not in text


def test_the_silence_ends_with_the_load(tmp_path: Path, reports: list[str]) -> None:
    """Another loader's report of a head is none of our business."""
    wrapped().save_pretrained(tmp_path)
    before = GPT2LMHeadModel._keys_to_ignore_on_load_unexpected
    AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    with pytest.raises(TypeError):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, no_such_argument=1)
    assert GPT2LMHeadModel._keys_to_ignore_on_load_unexpected == before
    assert "_keys_to_ignore_on_load_unexpected" not in GPT2LMHeadModel.__dict__
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "v_head.summary.weight" in "\n".join(reports)
