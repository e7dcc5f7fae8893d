"""Weights for samples of another policy, and how far it was, by hand."""

import math

import pytest
import torch

from trl_step.algorithms.importance import BOUNDS, importance_weights, mismatch_statistics

# w = 1, 2, 4, 0.25, 0.5; the old log-probs are powers of two and the sampler's all ln 0.25
W = torch.tensor([[1.0, 2.0, 4.0, 0.25, 0.5]])
OLD = math.log(0.25) + W.log()
SAMPLING = torch.full((1, 5), math.log(0.25))
ONES = torch.ones(1, 5).long()


def weights(correction, bounds=None, old=OLD, sampling=SAMPLING, mask=ONES):
    return importance_weights(old, sampling, mask, correction, bounds)


def test_tis_cuts_at_its_bounds():
    torch.testing.assert_close(weights("tis"), torch.tensor([[1.0, 2.0, 2.0, 0.25, 0.5]]))
    torch.testing.assert_close(weights("tis", (0.4, 3.0)), torch.tensor([[1.0, 2.0, 3.0, 0.4, 0.5]]))


def test_icepop_leaves_out_what_is_beyond():
    torch.testing.assert_close(weights("icepop", (0.4, 3.0)), torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.5]]))
    # 0.5 to 5
    bounds = torch.tensor([[0.49, 0.51, 4.9, 5.1]])
    found = weights("icepop", old=bounds.log(), sampling=torch.zeros(1, 4), mask=torch.ones(1, 4))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.51, 4.9, 0.0]]))


@pytest.mark.parametrize("correction", ["icepop", "sequence_mask", "geometric_mask"])
@pytest.mark.parametrize(("bounds", "kept"), [((1.0, 2.0), 1.0), ((0.5, 1.0), 1.0), ((1.001, 2), 0.0), ((0, 0.999), 0)])
def test_a_weight_at_a_bound_is_kept(correction, bounds, kept):
    """Equal log-probs: w is 1 to the bit."""
    assert weights(correction, bounds, old=SAMPLING).tolist() == [[kept] * 5]


# r: products 2 * 4 * 0.25 = 2 (geometric mean 1.26), 4 * 1 = 4 (2), 0.5 (0.5); the rest is masked
SEQUENCES = torch.tensor([[2.0, 4.0, 0.25], [4.0, 1e9, 1.0], [1e9, 0.5, 1e-9]])
SEQUENCE_MASK = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("correction", "bounds", "kept"),
    [
        ("sequence_mask", None, [1, 0, 1]),  # 0 to 3
        ("sequence_mask", (0.0, 4.1), [1, 1, 1]),
        ("sequence_mask", (0.6, 4.1), [1, 1, 0]),
        ("sequence_mask", (0.0, 1.9), [0, 0, 1]),
        ("geometric_mask", None, [0, 0, 0]),  # 0.99 to 1.01
        ("geometric_mask", (0.4, 1.3), [1, 0, 1]),
        ("geometric_mask", (0.6, 2.1), [1, 1, 0]),
        ("geometric_mask", (1.27, 2.1), [0, 1, 0]),
    ],
)
def test_masks_of_whole_samples(correction, bounds, kept):
    found = weights(correction, bounds, SEQUENCES.log(), torch.zeros(3, 3), SEQUENCE_MASK)
    assert torch.equal(found, SEQUENCE_MASK * torch.tensor(kept).float().unsqueeze(1))


@pytest.mark.parametrize("correction", BOUNDS)
def test_the_bounds_that_are_documented(correction):
    documented = {"tis": (0, 2), "icepop": (0.5, 5), "sequence_mask": (0, 3), "geometric_mask": (0.99, 1.01)}
    assert BOUNDS[correction] == documented[correction]


@pytest.mark.parametrize("correction", BOUNDS)
def test_masked_tokens_may_be_anything(correction):
    old, sampling = torch.full((2, 3), -1.0), torch.full((2, 3), -1.0)
    old[0, 1], sampling[0, 2] = math.nan, -math.inf
    old[1], sampling[1] = math.nan, math.inf  # a sample without a counted token
    mask = torch.tensor([[1, 0, 0], [0, 0, 0]])
    found = weights(correction, None, old, sampling, mask)
    assert found.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("correction", "far_above", "far_below"),
    # exp(-200) and exp(-1000) are 0, which the bounds from 0 on include
    [("tis", 2.0, 0.0), ("icepop", 0.0, 0.0), ("sequence_mask", 0.0, 1.0), ("geometric_mask", 0.0, 0.0)],
)
def test_far_apart_stays_finite(correction, far_above, far_below):
    assert weights(correction, None, SAMPLING + 200).tolist() == [[far_above] * 5]
    assert weights(correction, None, SAMPLING - 200).tolist() == [[far_below] * 5]


def test_an_unknown_correction():
    with pytest.raises(ValueError, match="importance_correction='ppo' is not known; choose one of tis, icepop"):
        weights("ppo")


def test_mismatch_by_hand():
    # old -1, -2, -3; the sampler's half as far from -1, and one token masked: -1, -1.5, -2
    old, sampling = torch.tensor([[-1.0, -2.0], [math.nan, -3.0]]), torch.tensor([[-1.0, -1.5], [7.0, -2.0]])
    mask = torch.tensor([[1, 1], [0, 1]])
    found = {key: float(value) for key, value in mismatch_statistics(old, sampling, mask).items()}
    w = [1.0, math.exp(-0.5), math.exp(-1.0)]
    assert found == {
        "sampling/kl": pytest.approx(0.5),  # (0 + 0.5 + 1) / 3
        "sampling/ratio_max": pytest.approx(1.0),
        # (sum of w)² / (n sum of w²)
        "sampling/ess": pytest.approx(sum(w) ** 2 / (3 * sum(x * x for x in w))),
        # old is off its mean by 1, 0, -1, the sampler's by 0.5, 0, -0.5: (0.5 + 0.5) / (1 + 1)
        "sampling/slope": pytest.approx(0.5),
        "sampling/less_likely": 0.0,
    }


def test_which_tokens_are_less_likely():
    # a thousandth is rounding
    difference = torch.tensor([[0.0, -0.0005, -0.002, 0.5, -1.0]])
    old = torch.tensor([[-1.0, -2.0, -3.0, -4.0, -5.0]])
    found = mismatch_statistics(old, old + difference, ONES)
    assert float(found["sampling/less_likely"]) == pytest.approx(2 / 5)
    assert float(found["sampling/ratio_max"]) == pytest.approx(math.e)


def test_equal_log_probs_everywhere():
    """No deviation has no slope: it is that of agreement."""
    found = mismatch_statistics(SAMPLING, SAMPLING, ONES)
    assert {key: float(value) for key, value in found.items()} == {
        "sampling/kl": 0.0, "sampling/ratio_max": 1.0, "sampling/ess": 1.0, "sampling/slope": 1.0,
        "sampling/less_likely": 0.0,
    }  # fmt: skip


def test_two_processes_are_one_batch():
    torch.manual_seed(0)
    old, sampling, mask = -torch.rand(4, 5), -torch.rand(4, 5), (torch.rand(4, 5) > 0.3).long()
    whole = mismatch_statistics(old, sampling, mask)

    def sums(rows):
        """What a process hands over in its first and second exchange, the first answered by that of all."""
        seen = []

        def reduce_sum(x, answers=()):
            seen.append(x)
            return answers[len(seen) - 1] if len(answers) >= len(seen) else x

        return seen, reduce_sum, (old[rows], sampling[rows], mask[rows])

    parts = [slice(0, 1), slice(1, 4)]
    first = []
    for rows in parts:
        seen, reduce_sum, given = sums(rows)
        mismatch_statistics(*given, reduce_sum)
        first.append(seen[0])
    together = sum(first)
    second = []
    for rows in parts:
        seen, reduce_sum, given = sums(rows)
        mismatch_statistics(*given, lambda x, r=reduce_sum: r(x, (together,)))
        second.append(seen[1])
    answers = (together, sum(second))
    for rows in parts:
        _, reduce_sum, given = sums(rows)
        largest = float(whole["sampling/ratio_max"])
        found = mismatch_statistics(*given, lambda x, r=reduce_sum: r(x, answers), lambda own, most=largest: most)
        torch.testing.assert_close(found, whole)


def test_ratios_beyond_float32_stay_finite():
    old = SAMPLING + torch.tensor([[0.0, 0.0, 200.0, 0.0, 0.0]])
    found = mismatch_statistics(old, SAMPLING, ONES)
    assert float(found["sampling/ratio_max"]) == pytest.approx(math.exp(80))
    assert float(found["sampling/ess"]) == pytest.approx(1 / 5)
