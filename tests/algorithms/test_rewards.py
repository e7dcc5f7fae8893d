from types import SimpleNamespace

import pytest
import torch

from trl_step.algorithms.rewards import RunningMoments, last_counted, sample_totals, shape_scores, token_rewards
from trl_step.trainer.utils import get_global_statistics


def test_score_lands_on_the_last_counted_token():
    kls = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 0.5, 0.5, 0.5]])
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 1]])
    rewards, non_score = token_rewards(torch.tensor([10.0, -1.0]), kls, mask, kl_coef=0.1)
    torch.testing.assert_close(non_score, -0.1 * kls)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.2, 9.7, -0.4], [-0.05, -0.05, -0.05, -1.05]]))


@pytest.mark.parametrize(("row", "last"), [([1, 0, 0], 0), ([1, 1, 1], 2), ([0, 1, 0], 1)])
def test_last_counted(row, last):
    assert last_counted(torch.tensor([row])).tolist() == [last]


def test_running_moments_are_those_of_all_scores():
    torch.manual_seed(0)
    batches = [torch.randn(n) * 3 + 5 for n in (4, 1, 7)]
    moments = RunningMoments()
    for batch in batches:
        mean, std = moments.update(batch)
        assert mean == pytest.approx(float(batch.mean()), rel=1e-5)
        assert std == pytest.approx(float(batch.std()) if len(batch) > 1 else 0.0, rel=1e-5)
    everything = torch.cat(batches)
    assert moments.count == 12
    assert moments.mean == pytest.approx(float(everything.mean()), rel=1e-6)
    assert moments.std == pytest.approx(float(everything.std()), rel=1e-6)


def test_running_moments_of_one_score_are_finite():
    moments = RunningMoments()
    moments.update(torch.tensor([3.0]))
    assert (moments.mean, moments.std) == (3.0, 1.0)


def test_running_moments_go_on_from_saved_state():
    first, second = RunningMoments(), RunningMoments()
    first.update(torch.tensor([1.0, 2.0, 4.0]))
    second.load_state_dict(first.state_dict())
    for moments in (first, second):
        moments.update(torch.tensor([0.0, 7.0]))
    assert first.state_dict() == second.state_dict()


def twins(connected: bool) -> SimpleNamespace:
    """What the trainers ask of an accelerator: of two processes that hold the same numbers, if `connected`."""
    return SimpleNamespace(use_distributed=connected, reduce=lambda tensor: 2 * tensor, device=torch.device("cpu"))


@pytest.mark.parametrize(("connected", "everything"), [(False, [1.0, 2.0, 6.0]), (True, [1.0, 2.0, 6.0] * 2)])
def test_statistics_are_those_of_all_processes(connected, everything):
    own, joined = torch.tensor([1.0, 2.0, 6.0]), torch.tensor(everything)
    moments = RunningMoments(twins(connected))
    assert moments.update(own) == pytest.approx((3.0, float(joined.std())))
    assert moments.count == len(joined)
    mean, variance, count = get_global_statistics(twins(connected), own)
    assert (float(mean), float(count)) == (3.0, len(joined))
    assert float(variance) == pytest.approx(float(joined.var(correction=0)))
    first_two = get_global_statistics(twins(connected), own, torch.tensor([1, 1, 0]))
    assert [float(number) for number in first_two] == [1.5, 0.25, len(joined) * 2 / 3]


SCORES = torch.tensor([1.0, 2.0, 3.0])  # mean 2, unbiased std 1


@pytest.mark.parametrize(
    ("scaling", "norm", "clip", "expected"),
    [
        (False, False, None, [1.0, 2.0, 3.0]),
        (True, False, None, [1.0, 2.0, 3.0]),  # std 1
        (True, True, None, [-1.0, 0.0, 1.0]),
        (False, True, None, [-1.0, 0.0, 1.0]),  # the norm alone works as well
        (True, True, 0.5, [-0.5, 0.0, 0.5]),
        (False, False, 2.5, [1.0, 2.0, 2.5]),
    ],
)
def test_shape_scores_by_hand(scaling, norm, clip, expected):
    shaped = shape_scores(SCORES, RunningMoments(), scaling, norm, clip)
    torch.testing.assert_close(shaped, torch.tensor(expected))
    assert SCORES.tolist() == [1.0, 2.0, 3.0]


def test_moments_rest_when_nobody_asks_for_them():
    moments = RunningMoments()
    shape_scores(SCORES, moments, False, False, 1.0)
    assert moments.count == 0


TOKEN_SCORES = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 3.0, 0.0], [0.5, 0.5, 2.0]])  # totals 1, 2, 3
MASK = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("scaling", "norm", "clip", "expected"),
    [
        (False, False, None, [[0.0, 1.0, 0.0], [-1.0, 3.0, 0.0], [0.5, 0.5, 2.0]]),
        # the totals 2, 4, 6 have the standard deviation 2
        (True, False, None, [[0.0, 1.0, 0.0], [-1.0, 3.0, 0.0], [0.5, 0.5, 2.0]]),
        # their mean 4 comes off the last counted token, before the division
        (True, True, None, [[0.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.5, 0.5, 0.0]]),
        (False, True, 0.75, [[0.0, -0.75, 0.0], [-0.75, 0.75, 0.0], [0.5, 0.5, 0.0]]),
        (False, False, 0.75, [[0.0, 0.75, 0.0], [-0.75, 0.75, 0.0], [0.5, 0.5, 0.75]]),
    ],
)
def test_shape_token_scores_by_hand(scaling, norm, clip, expected):
    moments = RunningMoments()
    given = TOKEN_SCORES * 2 if scaling or norm else TOKEN_SCORES
    shaped = shape_scores(given, moments, scaling, norm, clip, MASK)
    torch.testing.assert_close(shaped, torch.tensor(expected))
    if scaling or norm:
        assert (moments.mean, moments.std, moments.count) == (4.0, 2.0, 3.0)


def test_totals():
    assert sample_totals(TOKEN_SCORES).tolist() == [1.0, 2.0, 3.0]
    assert sample_totals(SCORES) is SCORES


def test_token_scores_land_on_their_tokens():
    kls = torch.tensor([[1.0, 2.0, 3.0]])
    rewards, non_score = token_rewards(torch.tensor([[0.0, 5.0, -1.0]]), kls, torch.tensor([[0, 1, 1]]), kl_coef=0.1)
    torch.testing.assert_close(non_score, -0.1 * kls)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 4.8, -1.3]]))
