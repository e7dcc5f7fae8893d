"""`trl_step serve`: from a saved policy to an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from openai import BadRequestError, OpenAI

from tests import tiny
from tests.environment.chat_tools import chat_tokenizer
from trl_step import AutoModelForCausalLMWithValueHead
from trl_step.commands import main, saved_policy


def test_a_saved_policy_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = chat_tokenizer("hermes")
    torch.manual_seed(0)
    plain = tiny.llama()
    plain.resize_token_embeddings(len(tokenizer))
    AutoModelForCausalLMWithValueHead.from_pretrained(plain).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    said: list[str] = []

    def ask() -> None:
        printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert set(printed) == {"url", "token", "model"}
        client = OpenAI(base_url=printed["url"], api_key=printed["token"], max_retries=0)
        messages = [{"role": "user", "content": "Hi"}]
        for seed in (1, 1, 2):
            answer = client.chat.completions.create(model="mine", messages=messages, seed=seed, max_tokens=8)
            said.append(answer.choices[0].message.content)
        with pytest.raises(BadRequestError, match="max_length=64"):  # the model's positions
            client.chat.completions.create(model="mine", messages=messages, max_tokens=60)
        raise KeyboardInterrupt

    monkeypatch.setattr(saved_policy, "wait", ask)
    assert main(["serve", str(tmp_path), "--model-name", "mine"]) == 0
    assert said[0] == said[1] != said[2]


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no folder"):
        main(["serve", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="cannot be loaded"):
        main(["serve", str(tmp_path)])
