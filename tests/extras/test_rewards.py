"""Rewards whose values are known by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, pipeline

from tests import tiny
from tests.trainer.text import text_tools
from trl_step.extras import ClassifierReward, LengthPenalty, MissingEosPenalty, PipelineReward, WeightedRewards

TEXTS = ["a", "b", "c"]
RESPONSES = [torch.tensor([5, 1]), torch.tensor([5, 6, 7, 8]), torch.tensor([9])]
MASKS = [torch.tensor([1, 0]), torch.tensor([1, 1, 0, 1]), torch.tensor([1])]


def test_missing_eos_penalty() -> None:
    assert MissingEosPenalty(1, 2.0)(TEXTS, responses=RESPONSES) == [0.0, -2.0, -2.0]
    assert MissingEosPenalty([1, 9])(TEXTS, responses=RESPONSES, prompt="ignored") == [0.0, -1.0, 0.0]
    assert MissingEosPenalty(1)(TEXTS, responses=RESPONSES, masks=MASKS) == [-1.0, -1.0, -1.0]


def test_length_penalty() -> None:
    assert LengthPenalty(0.5)(TEXTS, responses=RESPONSES) == [-1.0, -2.0, -0.5]
    assert LengthPenalty(0.5, free_tokens=1)(TEXTS, responses=RESPONSES) == [-0.5, -1.5, 0.0]
    assert LengthPenalty(0.5, free_tokens=1, most=0.75)(TEXTS, responses=RESPONSES) == [-0.5, -0.75, 0.0]
    assert LengthPenalty(0.5)(TEXTS, responses=RESPONSES, masks=MASKS) == [-0.5, -1.5, -0.5]


@pytest.mark.parametrize("columns", [{"responses": RESPONSES[:2]}, {"responses": RESPONSES, "masks": MASKS[:1]}])
def test_columns_of_another_length(columns) -> None:
    with pytest.raises(ValueError, match="3 texts, but"):
        LengthPenalty(1.0)(TEXTS, **columns)


def classifier(labels: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=labels, pad_token_id=tiny.PAD, hidden_dropout_prob=0.5, initializer_range=0.5,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def word_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


WORDS = ["w5", "w6 w7 w8 w9 w10", "w11 w12", "w13 w14 w15", "w16"]


def logits_one_by_one(model, texts: list[str]) -> torch.Tensor:
    tokenizer = word_tokenizer()
    model.eval()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


def test_classifier_reward() -> None:
    model = classifier(1)
    want = logits_one_by_one(model, WORDS)[:, 0].tolist()
    model.train()
    got = ClassifierReward(model, word_tokenizer(), batch_size=2)(WORDS, extra=1)
    assert got == pytest.approx(want, abs=1e-5)
    assert model.training
    assert ClassifierReward(model, word_tokenizer())([]) == []


def test_classifier_reward_of_one_label() -> None:
    model = classifier(3)
    want = logits_one_by_one(model, WORDS)[:, 2].tolist()
    assert ClassifierReward(model, word_tokenizer(), label=2)(WORDS) == pytest.approx(want, abs=1e-5)
    assert ClassifierReward(model, word_tokenizer(), label="LABEL_2")(WORDS) == pytest.approx(want, abs=1e-5)


def test_classifier_reward_cuts_long_texts() -> None:
    model = classifier(1)
    want = logits_one_by_one(model, ["w6 w7"])[:, 0].tolist()
    assert ClassifierReward(model, word_tokenizer(), max_length=2)([WORDS[1]]) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    ("label", "words"), [(None, "3 labels"), ("GOOD", "not 'GOOD'"), (3, "label 3"), (-1, "label")]
)
def test_classifier_reward_label_is_checked(label, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassifierReward(classifier(3), word_tokenizer(), label=label)


def test_classifier_reward_needs_a_padding_token() -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="padding token"):
        ClassifierReward(classifier(1), tokenizer)


def test_pipeline_reward() -> None:
    model = classifier(2)
    logits = logits_one_by_one(model, WORDS)
    ready = pipeline("text-classification", model=model, tokenizer=word_tokenizer(), device="cpu")
    got = PipelineReward(ready, "LABEL_1", batch_size=2)(WORDS, extra=1)
    assert got == pytest.approx(logits[:, 1].tolist(), abs=1e-5)
    got = PipelineReward(ready, "LABEL_1", raw=False)(WORDS)
    assert got == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5)
    for label in (None, "GOOD"):
        with pytest.raises(ValueError, match="knows the labels"):
            PipelineReward(ready, label)(WORDS)


def test_pipeline_reward_with_a_single_label() -> None:
    model = classifier(1)
    want = logits_one_by_one(model, WORDS)[:, 0].tolist()
    ready = pipeline("text-classification", model=model, tokenizer=word_tokenizer(), device="cpu")
    assert PipelineReward(ready)(WORDS) == pytest.approx(want, abs=1e-5)


def test_weighted_rewards() -> None:
    reward = WeightedRewards(
        code=(lambda texts, **columns: [ord(text) - ord("a") for text in texts], 2.0),
        short=(LengthPenalty(1.0), 0.5),
        answer=lambda texts, answers, **columns: [float(a == t) for a, t in zip(answers, texts, strict=True)],
    )
    assert reward.stats() == {}
    assert reward(TEXTS, responses=RESPONSES, answers=["a", "x", "c"]) == [0 - 1 + 1, 2 - 2 + 0, 4 - 0.5 + 1]
    assert reward.parts == {"code": [0.0, 1.0, 2.0], "short": [-2.0, -4.0, -1.0], "answer": [1.0, 0.0, 1.0]}
    stats = reward.stats()
    assert stats["reward/code/mean"] == 1.0
    assert stats["reward/code/std"] == pytest.approx(math.sqrt(2 / 3))
    assert reward([], responses=[], answers=[]) == []
    assert reward.stats() == {}
    assert set(stats) == {f"reward/{name}/{kind}" for name in ("code", "short", "answer") for kind in ("mean", "std")}


@pytest.mark.parametrize(
    ("values", "words"),
    [([1.0, 2.0], "'bad' returned 2 numbers for 3 texts"), ([1.0, math.nan, 0.0], "'bad' is nan for text 1")],
)
def test_weighted_rewards_name_the_bad_part(values: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WeightedRewards(bad=lambda texts, **columns: values)(TEXTS)


def test_weighted_rewards_need_a_function() -> None:
    with pytest.raises(ValueError, match="at least one"):
        WeightedRewards()


def test_reward_function_of_an_environment() -> None:
    from tests.environment.environment_tools import environment

    reward = WeightedRewards(length=lambda texts, **columns: [len(text) for text in texts])
    env = environment(lambda text: "<submit>", reward_fn=reward)
    assert env.run(["a", "b"], unused=1)[3] == [8.0, 8.0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_classifiers_reward_does_not_depend_on_the_texts_beside_it(side: str) -> None:
    model, tokenizer = text_tools.classifier().eval(), text_tools.tokenizer(side)
    model.config.pad_token_id = tokenizer.pad_token_id
    reward = ClassifierReward(model, tokenizer)
    assert reward(["w5 w6", "w7 w8 w9 w10 w11"])[0] == pytest.approx(reward(["w5 w6"])[0], abs=1e-6)


@pytest.mark.parametrize("ids", [0.1, None, "</s>", [], [1, "</s>"], [0.5], True, -1])
def test_end_tokens_that_are_none_are_refused_when_the_penalty_is_made(ids: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a token id or several, such as tokenizer\.eos_token_id"):
        MissingEosPenalty(ids)


def test_end_tokens_of_numpy_count() -> None:
    assert MissingEosPenalty(np.int64(1), np.float32(2))(TEXTS, responses=RESPONSES) == [0.0, -2.0, -2.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MissingEosPenalty(1, "2"), "penalty='2' must be a finite number"),
        (lambda: LengthPenalty(math.nan), "per_token=nan must be a finite number"),
        (lambda: LengthPenalty(0.1, None), "free_tokens=None must be a finite number"),
        (lambda: LengthPenalty(0.1, most=math.inf), "most=inf must be a finite number"),
        (lambda: PipelineReward("lvwerra/distilbert-imdb"), "pipeline='lvwerra/distilbert-imdb' must be a pipeline"),
        (lambda: WeightedRewards(kind=("name", 1.0)), "kind='name' must be a function of texts"),
        (lambda: WeightedRewards(kind=(LengthPenalty(1.0), "1")), "the weight of kind='1' must be a finite number"),
    ],
)
def test_rewards_that_cannot_work_are_refused_when_they_are_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
