"""`group_ids`, `advantages` and `baseline_scores` of `step`: what is taken, refused and ignored."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import gpt2, tokenizer, weights
from tests.trainer.plain_step import samples
from trl_step import PPOConfig, PPOTrainer
from trl_step.trainer.batches.groups import group_samples, nothing_to_compare, warn_of_mixed_groups

QUERIES = [torch.tensor(q) for q in ([4, 5], [6], [4, 5], [6], [4, 5])]


def groups_of(ids: Any, queries: Any = QUERIES) -> list[int]:
    return group_samples(queries, ids, lambda work: [work()], 0).everyone.tolist()


def test_equal_queries_are_a_group() -> None:
    assert groups_of(None) == [0, 1, 0, 1, 0]


def test_a_query_that_begins_like_another_is_another() -> None:
    queries = [torch.tensor(q) for q in ([4], [4, 5], [4], [5, 4])]
    assert groups_of(None, queries) == [0, 1, 0, 2]


def test_no_query_repeats() -> None:
    error = nothing_to_compare(group_samples(QUERIES[:2], None, lambda work: [work()], 0))
    assert "no query repeats among the 2 samples" in str(error)
    assert nothing_to_compare(group_samples(QUERIES, None, lambda work: [work()], 0)) is None
    ours = trainer(advantage_estimator="grpo")
    with pytest.raises(ValueError, match=r"no query repeats among the 2 samples, .* give\s+step several responses"):
        ours.step(QUERIES[:2], QUERIES[:2], [0.0, 1.0])
    with pytest.warns(UserWarning, match="each of the 2 samples a group of its own, so all advantages are 0"):
        ours.step(QUERIES[:2], QUERIES[:2], [0.0, 1.0], group_ids=["a", "b"])


def told_of_mixture(ids: list[Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warn_of_mixed_groups(QUERIES, ids)
    return [str(warning.message) for warning in seen]


def test_ids_in_another_order_than_the_queries_are_said() -> None:
    (told,) = told_of_mixture([0, 0, 0, 1, 1])
    assert "puts samples 0 and 1, whose queries differ, into one group" in told
    assert "samples 1 and 3, whose queries are equal, into two" in told
    ours = trainer(advantage_estimator="grpo")
    with pytest.warns(UserWarning, match="is it in the order of the queries"):
        ours.step(QUERIES, QUERIES, [0.0, 1.0, 2.0, 3.0, 4.0], group_ids=[0, 0, 0, 1, 1])


@pytest.mark.parametrize("ids", [list("abaca"), list("abcbc"), [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]], ids=str)
def test_groups_that_join_or_part_queries_are_not(ids: list[Any]) -> None:
    """One task may begin with different words, and two tasks with the same."""
    assert not told_of_mixture(ids)


def test_groups_span_processes() -> None:
    found = group_samples(QUERIES[:2], ["b", "c"], lambda work: [["a", "b", "a"], work()], 1)
    assert found.everyone.tolist() == [0, 1, 0, 1, 2]
    assert found.own == slice(3, 5)
    seen = found.gather(torch.tensor([7.0, 8.0]), lambda x: x + torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0]))
    assert seen.tolist() == [1.0, 2.0, 3.0, 7.0, 8.0]


# --- through `step` ----------------------------------------------------------------------------------------------


def trainer(**settings: Any) -> PPOTrainer:
    torch.manual_seed(0)
    options = {"batch_size": 8, "mini_batch_size": 8, "ppo_epochs": 1, "learning_rate": 0.0, **settings}
    return PPOTrainer(PPOConfig(**options), gpt2(), None, tokenizer())


def step(ours: PPOTrainer, **lists: Any) -> dict[str, Any]:
    batch = samples()
    np.random.seed(0)  # the order of the mini-batch, in which advantages are logged
    return ours.step(batch.queries, batch.responses, batch.scores, batch.masks, **lists)


NUMBERS = [0, 1, 0, 2, 1, 0, 2, 2]  # the groups of the queries of `samples`
IDS: dict[str, Any] = {
    "texts": [f"prompt {n}" for n in NUMBERS],
    "tuples": [("a", n) for n in NUMBERS],
    "numbers": NUMBERS,
    "NumPy numbers": [np.int64(n) for n in NUMBERS],
    "torch numbers": [torch.tensor(n) for n in NUMBERS],
    "token ids": [torch.tensor([n, 3]) for n in NUMBERS],
    "a tensor": torch.tensor(NUMBERS),
    "an array": np.array(NUMBERS),
    "a tuple": tuple(NUMBERS),
    "None": None,
}


def test_ids_of_every_kind_make_the_same_groups() -> None:
    ours = trainer(advantage_estimator="rloo")
    expected = step(ours, group_ids=NUMBERS)["ppo/policy/advantages"]
    for name, ids in IDS.items():
        stats = step(ours, group_ids=ids)
        assert stats["ppo/group/count"] == 3, name
        np.testing.assert_array_equal(stats["ppo/policy/advantages"], expected)
    alone = step(ours, group_ids=list(range(8)))
    assert alone["ppo/group/single"] == 8
    assert not np.any(np.asarray(alone["ppo/policy/advantages"]))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "too few ids": ({"advantage_estimator": "grpo"}, {"group_ids": NUMBERS[:7]}, "group_ids 7; sample 7 is the first"),
    "a list as id": ({"advantage_estimator": "grpo"}, {"group_ids": [0, 1, [2], *NUMBERS[3:]]},
                     r"group_ids\[2\] must be a number, .* hashable, got list"),
    "NaN as id": ({"advantage_estimator": "grpo"}, {"group_ids": [0, float("nan"), *NUMBERS[2:]]},
                  r"group_ids\[1\] is nan"),
    "a KL that could not act": ({"advantage_estimator": "grpo"}, {"advantages": [1.0] * 8},
                                r"a KL penalty in the reward \(kl_in='reward', coefficient 0.2\) could not act"),
    "no baselines": ({"advantage_estimator": "remax"}, {}, "baseline_scores are missing"),
    "a NaN baseline": ({"advantage_estimator": "remax"}, {"baseline_scores": [0.0] * 3 + [float("nan")] + [0.0] * 4},
                       r"baseline_scores\[3\] is nan"),
    "too many advantages": ({"advantage_estimator": "grpo", "kl_in": "loss", "kl_penalty": "k3"},
                            {"advantages": [1.0] * 9}, "advantages 9"),
    "a vector that is too long": ({"advantage_estimator": "grpo", "kl_in": "loss", "kl_penalty": "k3"},
                                  {"advantages": [*[1.0] * 6, torch.ones(9), 1.0]}, r"advantages\[6\] .* 8 tokens"),
    "an infinite advantage": ({"advantage_estimator": "grpo", "kl_in": "loss", "kl_penalty": "k3"},
                              {"advantages": [1.0, [0.0, float("inf"), 0.0], *[1.0] * 6]}, r"advantages\[1\]\[1\]"),
    "no sampler": ({"advantage_estimator": "grpo", "importance_correction": "tis"}, {}, "sampling_logprobs are miss"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_sample_and_nothing_moved(name: str) -> None:
    settings, lists, told = REFUSED[name]
    ours = trainer(learning_rate=1e-3, **settings)
    before, stream = weights(ours.model), torch.get_rng_state()
    with pytest.raises(ValueError, match=told):
        step(ours, **lists)
    assert all(torch.equal(value, before[key]) for key, value in weights(ours.model).items())
    assert torch.equal(torch.get_rng_state(), stream)


IN_LOSS: dict[str, Any] = {"advantage_estimator": "grpo", "kl_in": "loss", "kl_penalty": "k3"}


def test_advantages_as_numbers_and_vectors() -> None:
    """A number holds for every counted token; what a vector says of masked tokens does not count."""
    masks, responses = samples().masks, samples().responses
    vectors = [torch.full((len(response),), float(i)) for i, response in enumerate(responses)]
    garbled = [torch.where(mask.bool(), vector, 77.0) for mask, vector in zip(masks, vectors, strict=True)]
    mixed = [0.0, vectors[1], garbled[2].tolist(), np.float32(3), torch.tensor(4), garbled[5].numpy(), 6, vectors[7]]
    ours = trainer(**IN_LOSS)
    expected = step(ours, advantages=list(range(8)))["ppo/policy/advantages"]
    values = np.asarray(expected)
    # the mean over counted tokens of the sample's number: 4, 3, 6, 2, 4, 4, 7, 1 tokens
    assert np.sort(values[values != 0]).tolist() == [1.0] * 3 + [2.0] * 6 + [3.0] * 2 + [4.0] * 4 + [5.0] * 4 + [
        6.0] * 7 + [7.0]  # fmt: skip
    for given in (vectors, garbled, mixed, torch.arange(8.0), np.arange(8.0)):
        np.testing.assert_array_equal(step(ours, advantages=given)["ppo/policy/advantages"], expected)


def test_given_advantages_may_be_whitened() -> None:
    stats = step(trainer(**IN_LOSS, whiten_advantages=True), advantages=list(range(8)))
    # 31 tokens, sum 0*4 + 1*3 + 2*6 + 3*2 + 4*4 + 5*4 + 6*7 + 7 = 106
    numbers = np.repeat(np.arange(8.0), [4, 3, 6, 2, 4, 4, 7, 1])
    expected = (numbers - 106 / 31) / numbers.std(ddof=1)
    seen = np.asarray(stats["ppo/policy/advantages"]).ravel()
    for value in np.unique(expected):
        assert np.isclose(seen, value, rtol=1e-4).sum() == np.isclose(expected, value).sum()
    assert stats["ppo/policy/advantages_mean"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "settings", [{"score_clip": 0.3}, {"use_score_norm": True, "use_score_scaling": True}], ids=str
)
def test_baselines_are_shaped_like_the_scores(settings: dict[str, Any]) -> None:
    """Baselines equal to the scores leave no advantage, whatever is done to the scores."""
    ours = trainer(advantage_estimator="remax", init_kl_coef=0.0, adap_kl_ctrl=False, **settings)
    for _ in range(2):
        stats = step(ours, baseline_scores=samples().scores)
        assert np.abs(np.asarray(stats["ppo/policy/advantages"])).max() < 1e-6
    stats = step(ours, baseline_scores=[0.0] * 8)
    assert np.abs(np.asarray(stats["ppo/policy/advantages"])).max() > 0.1


@pytest.mark.parametrize(
    ("settings", "lists", "told"),
    [
        ({"advantage_estimator": "reinforce_plus_plus"}, {"group_ids": NUMBERS}, "group_ids are ignored: .*reinf"),
        (IN_LOSS, {"group_ids": NUMBERS, "advantages": [1.0] * 8}, "group_ids are ignored"),
        ({"advantage_estimator": "grpo"}, {"baseline_scores": [0.0] * 8}, "baseline_scores are ignored: .*'grpo'"),
    ],
)  # fmt: skip
def test_ignored_lists_are_said_so(settings: dict[str, Any], lists: dict[str, Any], told: str) -> None:
    ours = trainer(**settings)
    with pytest.warns(UserWarning, match=told):
        step(ours, **lists)


def test_what_is_used_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*ignored.*")
        step(trainer(advantage_estimator="grpo"), group_ids=NUMBERS)
        step(trainer(advantage_estimator="remax"), baseline_scores=[0.0] * 8)
