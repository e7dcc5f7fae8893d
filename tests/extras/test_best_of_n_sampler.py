"""`BestOfNSampler` on a real tiny model, and with sampling that is known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from tests import tiny
from trl_step import BestOfNSampler
from trl_step.core import LengthSampler


class Sampled(LogitsProcessor):
    """The token behind a row's last one is that plus one, plus the row's number in the batch at the first step."""

    def __call__(self, input_ids, scores):
        follow = input_ids[:, -1] + 1
        if input_ids.shape[1] == 1:
            follow = follow + torch.arange(len(input_ids))
        return torch.nn.functional.one_hot(follow % tiny.VOCABULARY, tiny.VOCABULARY).float()


def last_word(texts: list[str]) -> list[float]:
    return [float(text.split()[-1][1:]) for text in texts]


def sampler(scores=last_word, length_sampler=lambda: 2, **settings) -> BestOfNSampler:
    return BestOfNSampler(tiny.gpt2(), tiny.tokenizer(), scores, length_sampler, **settings)


def test_the_best_comes_first() -> None:
    best = sampler(n_candidates=3).generate([10], logits_processor=[Sampled()])
    assert best == [["w10 w14 w15", "w10 w13 w14", "w10 w12 w13"]]


def test_equal_scores_keep_their_order() -> None:
    best = sampler(lambda texts: [1, 2, 2, 1], n_candidates=4).generate([10], logits_processor=[Sampled()])
    assert [text.split()[-1] for text in best[0]] == ["w13", "w14", "w12", "w15"]


@pytest.mark.parametrize(
    ("queries", "count"),
    [
        ([4, 5, 6], 1),
        (torch.tensor([4, 5, 6]), 1),
        ([[4, 5, 6], [7]], 2),
        ([torch.tensor([4, 5, 6]), torch.tensor([[7, 8]])], 2),
        ([np.array([4, 5]), (6, 7, 8)], 2),
        ([], 0),
    ],
)
def test_forms_of_queries(queries, count: int) -> None:
    best = sampler(lambda texts: [0.0] * len(texts)).generate(queries, do_sample=True)
    assert len(best) == count
    assert all(len(texts) == 1 for texts in best)
    if count:
        assert best[0][0].startswith("w4 w5")


@pytest.mark.parametrize(("sample_size", "n_candidates"), [(1, 1), (4, 4), (6, 2)])
def test_sample_size_and_candidates(sample_size: int, n_candidates: int) -> None:
    seen = []
    sampling = sampler(
        lambda texts: seen.append(len(texts)) or torch.arange(len(texts)),
        sample_size=sample_size,
        n_candidates=n_candidates,
    )
    best = sampling.generate([[4, 5], [6]], do_sample=True)
    assert seen == [sample_size] * 2
    assert [len(texts) for texts in best] == [n_candidates] * 2


def test_one_length_per_query() -> None:
    lengths = iter([1, 3])
    best = sampler(length_sampler=lambda: next(lengths), n_candidates=4).generate(
        [[10], [20]], eos_token_id=-1, logits_processor=[Sampled()]
    )
    assert [{len(text.split()) for text in texts} for texts in best] == [{2}, {4}]


def test_no_length_sampler_leaves_it_to_the_configuration() -> None:
    config = GenerationConfig(max_new_tokens=3, do_sample=False)
    sampling = sampler(length_sampler=None, generation_config=config)
    assert sampling.generate([10], logits_processor=[Sampled()]) == [["w10 w14 w15 w16"]]
    assert sampling.generate([10], max_new_tokens=1, logits_processor=[Sampled()]) == [["w10 w14"]]


def test_generation_config_and_arguments_reach_the_model() -> None:
    sampling = sampler(generation_config=GenerationConfig(do_sample=False, eos_token_id=14), n_candidates=4)
    best = sampling.generate([10], pad_token_id=5, batch_size=4, logits_processor=[Sampled()])
    assert sorted(best[0]) == ["w10 w11 w12", "w10 w12 w13", "w10 w13 w14", "w10 w14"]


def test_special_tokens() -> None:
    sampling = sampler(lambda texts: [0.0] * len(texts))
    assert sampling.generate([58], logits_processor=[Sampled()]) == [["w58 w59"]]
    assert sampling.generate([58], skip_special_tokens=False, logits_processor=[Sampled()]) == [["w58 w59 w0"]]


def test_seed() -> None:
    def draw() -> list[list[str]]:
        model = tiny.with_value_head("gpt2")
        sampling = BestOfNSampler(
            model, tiny.tokenizer(), last_word, LengthSampler(2, 9), seed=3, n_candidates=4,
            generation_config=GenerationConfig(do_sample=True, top_k=0),
        )  # fmt: skip
        return sampling.generate([[4, 5], [6]], skip_special_tokens=False)

    assert draw() == draw()


def test_encoder_decoder() -> None:
    model = tiny.with_value_head("bart")
    sampling = BestOfNSampler(model, tiny.tokenizer(), lambda texts: [0.0] * len(texts), lambda: 3)
    best = sampling.generate([[4, 5], [6]], skip_special_tokens=False, do_sample=True)
    assert all(1 < len(texts[0].split()) <= 4 and texts[0].startswith("w1 ") for texts in best)


# --- bad input -----------------------------------------------------------------------------------------------------


def test_wrong_kinds() -> None:
    with pytest.raises(ValueError, match="tokenizer must be"):
        BestOfNSampler(tiny.gpt2(), "tokenizer", last_word, None)
    with pytest.raises(ValueError, match="model must be"):
        BestOfNSampler("model", tiny.tokenizer(), last_word, None)
    with pytest.raises(ValueError, match="n_candidates=5"):
        sampler(n_candidates=5)
    with pytest.raises(ValueError, match="give several as a list"):
        sampler().generate(torch.ones(2, 2, dtype=torch.long))


@pytest.mark.parametrize("scores", [[1.0], [1.0, 2.0, 3.0, math.nan]])
def test_bad_scores_name_the_query(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="query 0"):
        sampler(lambda texts: scores).generate([10])


@pytest.mark.parametrize("query", [torch.tensor([[4, 5], [6, 7]]), torch.tensor(4)])
def test_a_query_of_a_list_is_one_row(query: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="query 1 has the shape"):
        sampler().generate([[4, 5], query])
