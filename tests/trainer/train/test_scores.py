"""Rewards: what a function is given, what may come back, and where a model is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests import tiny
from tests.trainer.train import loops
from trl_step.trainer.on_policy.scoring import Answers, Scorer

QUERIES = [torch.tensor(ids) for ids in ([5, 6], [7], [8, 9, 10])]
RESPONSES = [torch.tensor(ids) for ids in ([11, tiny.EOS], [12, 13, 14], [15])]
TEXTS = ["w5 w6 w11", "w7 w12 w13 w14", "w8 w9 w10 w15"]
ANSWERS = Answers(QUERIES, RESPONSES, {"word": ["a", "b", "c"], "right": [1, 2, 3]})


def score(reward: Any, answers: Answers = ANSWERS) -> list[float]:
    return Scorer(reward, tiny.tokenizer(), 2, torch.device("cpu"))(answers)


def test_a_function_of_texts() -> None:
    seen: list[Any] = []
    assert score(lambda texts: seen.append(texts) or [1, 2.5, 3]) == [1.0, 2.5, 3.0]
    assert seen == [TEXTS]


def test_a_function_of_prompts_and_completions() -> None:
    def reward(prompts: list[str], completions: list[str], right: list[int]) -> torch.Tensor:
        assert prompts == ["w5 w6", "w7", "w8 w9 w10"]
        assert completions == ["w11", "w12 w13 w14", "w15"]
        return torch.tensor(right)

    assert score(reward) == [1.0, 2.0, 3.0]


def test_a_function_of_texts_with_columns() -> None:
    def reward(texts: list[str], **columns: Any) -> list[float]:
        assert texts == TEXTS
        assert list(columns) == ["word", "right", "responses"]
        return [float(len(response)) for response in columns["responses"]]

    assert score(reward) == [2.0, 3.0, 1.0]
    assert score(lambda texts, right: right) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_model_is_read_at_the_last_token(kind: str) -> None:
    torch.manual_seed(0)
    model: Any = loops.classifier()
    if kind == "bert":
        sizes = {**tiny.SIZES, "intermediate_size": 64, "num_labels": 1, "pad_token_id": tiny.PAD}
        model = BertForSequenceClassification(BertConfig(**sizes))
    model.train()
    found = score(model)
    assert model.training is False
    for i, (query, response) in enumerate(zip(QUERIES, RESPONSES, strict=True)):
        alone = model(input_ids=torch.cat((query, response)).unsqueeze(0)).logits
        assert found[i] == pytest.approx(alone.item(), abs=1e-6)


def test_an_end_token_that_pads_is_read_as_well() -> None:
    """transformers' own pooling would go to the token before it."""
    model = loops.classifier()
    model.config.pad_token_id = tiny.EOS
    whole = torch.cat((QUERIES[0], RESPONSES[0])).unsqueeze(0)
    states = model.transformer(input_ids=whole).last_hidden_state
    assert score(model)[0] == pytest.approx(model.score(states)[0, -1].item(), abs=1e-6)
    assert score(model)[0] != pytest.approx(model.score(states)[0, -2].item(), abs=1e-3)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda texts: [1.0, 2.0], "reward_model returned 2 scores for 3 answers, to the prompts 'w5 w6', 'w7'"),
        (lambda texts: [1.0, float("nan"), 2.0], "reward_model gave answer 1 the score nan; its prompt is 'w7'"),
        (lambda texts: [1.0, 2.0, float("inf")], "gave answer 2 the score inf; its prompt is 'w8 w9 w10'"),
        (lambda texts: None, "reward_model returned None; it must return one number per answer.* 'w5 w6'"),
        (lambda texts: "abc", "reward_model returned 'abc'"),
        (lambda texts: [1.0, None, 2.0], "must return one number per answer"),
    ],
)
def test_what_is_no_score_names_the_prompts(reward: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(reward)


def test_an_error_in_the_function_names_the_prompts() -> None:
    def broken(texts: list[str]) -> list[float]:
        raise KeyError("lost")

    with pytest.raises(
        RuntimeError, match=r"reward_model raised KeyError: 'lost'; the prompts were 'w5 w6', 'w7'"
    ) as e:
        score(broken)
    assert isinstance(e.value.__cause__, KeyError)


def test_a_failing_reward_leaves_the_weights(tmp_path: Path) -> None:
    calls: list[int] = []

    def fails_once(texts: list[str]) -> list[float]:
        calls.append(1)
        return [float("nan")] * len(texts) if len(calls) == 1 else loops.different_words(texts)

    trainer = loops.rloo(tmp_path, fails_once)
    before = loops.weights(trainer)
    with pytest.raises(ValueError, match="its prompt is 'w"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in loops.weights(trainer).items())
    trainer.train()
    assert trainer.state.global_step == 2


def test_prompts_of_a_padding_collator_are_stripped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def padded(rows: list[dict]) -> dict[str, Any]:
        return tiny.tokenizer("left").pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")

    def without_a_mask(rows: list[dict]) -> dict[str, Any]:
        return {"input_ids": padded(rows)["input_ids"]}

    seen = []
    for collator in (None, padded, without_a_mask):
        trainer = loops.rloo(tmp_path, data_collator=collator)
        steps = loops.kept(monkeypatch, trainer)
        trainer.train()
        seen.append([query.tolist() for (queries, *_), *_ in steps for query in queries])
    assert seen[0] == seen[1] == seen[2]
    assert {len(query) for query in seen[0]} == {1, 2, 3}


def test_columns_reach_a_reward_function(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def reward(prompts: list[str], completions: list[str], word: list[str]) -> list[float]:
        seen.extend(zip(prompts, word, strict=True))
        return loops.different_words(completions)

    trainer = loops.rloo(tmp_path, reward)
    trainer.train()
    rows = loops.prompts()
    texts = dict(zip(rows["word"], tiny.tokenizer().batch_decode(list(rows["input_ids"])), strict=True))
    assert len(seen) == 8
    assert all(texts[word] == prompt for prompt, word in seen)
    assert [word for _, word in seen[::2]] == [word for _, word in seen[1::2]]
