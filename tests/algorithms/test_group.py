"""Advantages from groups of answers, by hand."""

import pytest
import torch

from trl_step.algorithms.advantages.group import (
    group_counts,
    group_statistics,
    grpo_advantages,
    rloo_advantages,
)

# groups of three, two and one, in mixed order: {1, 2, 6}, {4, 0}, {5}
TOTALS = torch.tensor([1.0, 4.0, 2.0, 5.0, 0.0, 6.0])
GROUPS = torch.tensor([0, 1, 0, 2, 1, 0])


def test_statistics_by_hand():
    found = group_statistics(TOTALS, GROUPS)
    assert found.size.tolist() == [3, 2, 3, 1, 2, 3]
    # (1 + 2 + 6) / 3 = 3; (4 + 0) / 2 = 2; 5
    assert found.mean.tolist() == [3, 2, 3, 5, 2, 3]
    # ddof 1: sqrt((4 + 1 + 9) / 2) = sqrt 7; sqrt((4 + 4) / 1) = sqrt 8; one answer alone: 0
    expected = torch.tensor([7.0, 8.0, 7.0, 0.0, 8.0, 7.0]).sqrt()
    torch.testing.assert_close(found.std, expected)
    assert found.flat.tolist() == [False, False, False, True, False, False]


def test_grpo_by_the_deviation_of_the_group():
    # (R - m) / (s + 1e-4): -2, -1, 3 over sqrt 7 = 2.6457513; 2, -2 over sqrt 8 = 2.8284271; alone: 0
    a, b = 2.6457513 + 1e-4, 2.8284271 + 1e-4
    expected = torch.tensor([-2 / a, 2 / b, -1 / a, 0.0, -2 / b, 3 / a])
    torch.testing.assert_close(grpo_advantages(TOTALS, GROUPS), expected, rtol=1e-6, atol=0)


def test_the_epsilon_is_added_to_the_deviation():
    # 0 and 2e-4: deviation sqrt(2) 1e-4, so +-1e-4 / (1.41421e-4 + 1e-4) = +-0.414214; without the epsilon +-0.707
    totals = torch.tensor([0.0, 2e-4])
    expected = torch.tensor([-0.4142136, 0.4142136])
    torch.testing.assert_close(grpo_advantages(totals, torch.tensor([0, 0])), expected)


def test_grpo_by_the_deviation_of_the_batch():
    # mean of all 18 / 6 = 3; squares 4 + 1 + 1 + 4 + 9 + 9 = 28; sqrt(28 / 5) = 2.3664319
    s = 2.3664319 + 1e-4
    expected = torch.tensor([-2 / s, 2 / s, -1 / s, 0.0, -2 / s, 3 / s])
    torch.testing.assert_close(grpo_advantages(TOTALS, GROUPS, "batch"), expected, rtol=1e-6, atol=0)


def test_grpo_without_a_scale():
    assert grpo_advantages(TOTALS, GROUPS, "none").tolist() == [-2.0, 2.0, -1.0, 0.0, -2.0, 3.0]


def test_rloo_by_hand():
    # R less the mean of the others: 1 - (2 + 6) / 2 = -3; 4 - 0; 2 - (1 + 6) / 2 = -1.5; alone: 0; 0 - 4;
    # 6 - (1 + 2) / 2 = 4.5
    expected = torch.tensor([-3.0, 4.0, -1.5, 0.0, -4.0, 4.5])
    torch.testing.assert_close(rloo_advantages(TOTALS, GROUPS), expected)


ESTIMATORS = {
    "std": grpo_advantages,
    "batch": lambda totals, groups: grpo_advantages(totals, groups, "batch"),
    "none": lambda totals, groups: grpo_advantages(totals, groups, "none"),
    "rloo": rloo_advantages,
}


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_one_sample_alone_has_no_advantage(kind):
    assert ESTIMATORS[kind](torch.tensor([5.0]), torch.tensor([0])).tolist() == [0.0]


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("level", [0.0, 5.3, -5.3, 1e4])
def test_rounding_is_no_variance(kind, level):
    """Rewards of 5.3 less the same penalty, summed up in another order, differ in the last digit."""
    totals = torch.full((6,), level)
    totals[2] = torch.nextafter(totals[2], torch.tensor(torch.inf))
    totals[4] = torch.nextafter(totals[4], torch.tensor(-torch.inf))
    found = ESTIMATORS[kind](torch.cat((totals, TOTALS)), torch.cat((torch.zeros(6).long(), GROUPS + 1)))
    assert found[:6].tolist() == [0.0] * 6
    assert (found[6:] != 0).sum() == 5


@pytest.mark.parametrize(
    ("totals", "flat"),
    [
        # the largest counts as at least 1: a difference of up to 1e-6
        ([0.0, 0.9e-6], True),
        ([0.0, 1.1e-6], False),
        ([0.5, 0.5 + 0.9e-6], True),
        # relative to the largest, whatever its sign: 1e-6 of 1000 is 0.001
        ([1000.0, 999.9992], True),
        ([1000.0, 999.998], False),
        ([-1000.0, -999.9992], True),
        ([-1000.0, -999.998], False),
    ],
)
def test_what_is_flat(totals, flat):
    found = group_statistics(torch.tensor(totals), torch.tensor([0, 0]))
    assert found.flat.tolist() == [flat, flat]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_order_and_numbers_of_groups_do_not_matter(kind):
    expected = ESTIMATORS[kind](TOTALS, GROUPS)
    order = torch.tensor([5, 3, 0, 4, 2, 1])
    torch.testing.assert_close(ESTIMATORS[kind](TOTALS[order], GROUPS[order]), expected[order])
    renamed = torch.tensor([2, 0, 1])[GROUPS]
    torch.testing.assert_close(ESTIMATORS[kind](TOTALS, renamed), expected)


@pytest.mark.parametrize("kind", ["std", "none", "rloo"])
def test_other_groups_do_not_matter(kind):
    first = GROUPS == 0
    alone = ESTIMATORS[kind](TOTALS[first], torch.zeros(3).long())
    torch.testing.assert_close(ESTIMATORS[kind](TOTALS, GROUPS)[first], alone)


def test_inputs_stay_as_they_are():
    totals, groups = TOTALS.clone(), GROUPS.clone()
    for estimator in ESTIMATORS.values():
        estimator(totals, groups)
    assert torch.equal(totals, TOTALS)
    assert torch.equal(groups, GROUPS)


def test_counts_by_hand():
    assert group_counts(TOTALS, GROUPS) == {"group/count": 3, "group/single": 1, "group/flat": 0}
    # {1, 1}, {2}, {3, 4}, {0}, {7, 7, 7}: two groups of one, two without variance
    totals = torch.tensor([1.0, 2.0, 3.0, 0.0, 7.0, 1.0, 4.0, 7.0, 7.0])
    groups = torch.tensor([0, 1, 2, 3, 4, 0, 2, 4, 4])
    assert group_counts(totals, groups) == {"group/count": 5, "group/single": 2, "group/flat": 2}


def test_counts_of_many_groups_are_whole():
    """Shares of a third and a seventh, summed up in float32."""
    groups = torch.cat((torch.arange(500).repeat(3), 500 + torch.arange(300).repeat(7)))
    assert group_counts(torch.zeros(len(groups)), groups) == {"group/count": 800, "group/single": 0, "group/flat": 800}
