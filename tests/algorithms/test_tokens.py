"""How tokens weigh in a mean loss, by hand, and that a batch that is cut and joined is the whole."""

import pytest
import torch

from trl_step.algorithms.losses.tokens import positive_factors, token_weights, weighted_sum
from trl_step.algorithms.objective import minibatch_weights

# samples of 2, 1, 4 and 3 counted tokens
MASK = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 1, 1], [0, 0, 1, 1, 1]])
NORMALIZATIONS = ("mini_batch", "tokens", "samples", "constant")


def test_weights_by_hand():
    for name in ("mini_batch", "tokens"):
        torch.testing.assert_close(token_weights(MASK, name), MASK / 10)
    # 1 / (4 samples times 2, 1, 4, 3 tokens)
    shares = torch.tensor([[1 / 8], [1 / 4], [1 / 16], [1 / 12]])
    torch.testing.assert_close(token_weights(MASK, "samples"), MASK * shares)
    # 1 / (4 samples times 7), whatever the lengths
    torch.testing.assert_close(token_weights(MASK, "constant", 7), MASK / 28)


def test_the_weights_of_a_mean_add_up_to_one():
    for name in ("mini_batch", "tokens", "samples"):
        torch.testing.assert_close(token_weights(MASK, name).sum(), torch.tensor(1.0))
    # 10 tokens over 4 * 7
    torch.testing.assert_close(token_weights(MASK, "constant", 7).sum(), torch.tensor(10 / 28))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_nothing_counted_weighs_nothing(normalization):
    mask = torch.zeros(2, 3).long()
    assert token_weights(mask, normalization, 7).tolist() == mask.tolist()
    assert positive_factors(mask, torch.tensor([True, True]), normalization, 7).tolist() == mask.tolist()


def test_a_weighted_sum_leaves_out_what_weighs_nothing():
    values = torch.tensor([[1.0, torch.nan, 3.0], [-torch.inf, 2.0, 1.0]], requires_grad=True)
    total = weighted_sum(values, torch.tensor([[0.5, 0.0, 2.0], [0.0, -1.0, 0.0]]))
    assert total.item() == 0.5 + 6.0 - 2.0
    assert torch.autograd.grad(total, values)[0].tolist() == [[0.5, 0.0, 2.0], [0.0, -1.0, 0.0]]


CUTS = {
    "in two": [[0, 1], [2, 3]],
    "unequal": [[0], [1, 2, 3]],
    "out of order": [[3, 1], [2, 0]],
    "one by one": [[0], [1], [2], [3]],
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("normalization", ["tokens", "samples", "constant"])
def test_mini_batches_join_to_the_whole(normalization, cut):
    torch.manual_seed(0)
    losses = torch.randn(4, 5)
    parts = CUTS[cut]
    own = torch.tensor([[float(MASK[part].sum()), len(part)] for part in parts])
    factors = minibatch_weights(own, own, 1, normalization)
    joined = sum(
        factor * weighted_sum(losses[part], token_weights(MASK[part], normalization, 7))
        for factor, part in zip(factors, parts, strict=True)
    )
    torch.testing.assert_close(joined, weighted_sum(losses, token_weights(MASK, normalization, 7)))


@pytest.mark.parametrize("normalization", ["tokens", "samples", "constant"])
def test_processes_join_to_the_whole(normalization):
    """Two processes with two mini-batches each; the gradients of the processes are averaged."""
    torch.manual_seed(0)
    losses = torch.randn(4, 5)
    parts = [[[0], [1]], [[2], [3]]]
    own = [torch.tensor([[float(MASK[part].sum()), len(part)] for part in process]) for process in parts]
    joined = 0.0
    for process, numbers in zip(parts, own, strict=True):
        factors = minibatch_weights(numbers, own[0] + own[1], 2, normalization)
        for factor, part in zip(factors, process, strict=True):
            joined += factor * weighted_sum(losses[part], token_weights(MASK[part], normalization, 7)) / 2
    torch.testing.assert_close(joined, weighted_sum(losses, token_weights(MASK, normalization, 7)))


def test_mini_batch_is_the_mean_of_the_means_by_samples():
    # means over tokens of 3 samples and of 1: weights 3/4 and 1/4
    own = torch.tensor([[7.0, 3.0], [3.0, 1.0]])
    assert minibatch_weights(own, own, 1, "mini_batch") == pytest.approx([3 / 4, 1 / 4])


POSITIVE = torch.tensor([True, False, True, False])


def test_positive_factors_by_hand():
    # tokens: 10 of which 6 are positive; the mean over all, times 10/6, is the mean over the 6
    rows = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    for name in ("mini_batch", "tokens"):
        torch.testing.assert_close(positive_factors(MASK, POSITIVE, name), MASK * rows * 10 / 6)
    # samples: 4 of which 2 are positive
    torch.testing.assert_close(positive_factors(MASK, POSITIVE, "samples"), MASK * rows * 2.0)
    # constant: 4 * 7 over the 6 positive tokens
    torch.testing.assert_close(positive_factors(MASK, POSITIVE, "constant", 7), MASK * rows * 28 / 6)


def test_without_a_positive_sample_there_is_no_term():
    for name in NORMALIZATIONS:
        factors = positive_factors(MASK, torch.zeros(4).bool(), name, 7)
        assert factors.tolist() == torch.zeros(4, 5).tolist()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("normalization", ["tokens", "samples", "constant"])
def test_positive_samples_of_a_cut_batch_are_those_of_the_whole(normalization, cut):
    """Their mean is over the positive samples (of their token means, for `samples`), not over their mini-batch."""
    torch.manual_seed(0)
    losses = torch.randn(4, 5)
    chosen = [losses[i][MASK[i].bool()] for i in (0, 2)]
    expected = torch.cat(chosen).mean() if normalization != "samples" else (chosen[0].mean() + chosen[1].mean()) / 2
    factors = positive_factors(MASK, POSITIVE, normalization, 7)
    parts = CUTS[cut]
    own = torch.tensor([[float(MASK[part].sum()), len(part)] for part in parts])
    joined = sum(
        factor * weighted_sum(losses[part] * factors[part], token_weights(MASK[part], normalization, 7))
        for factor, part in zip(minibatch_weights(own, own, 1, normalization), parts, strict=True)
    )
    torch.testing.assert_close(joined, expected)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_positive_factors_span_processes(normalization):
    whole = positive_factors(MASK, POSITIVE, normalization, 7)
    sums = []
    for rows in (slice(0, 1), slice(1, 4)):
        positive_factors(MASK[rows], POSITIVE[rows], normalization, 7, lambda x: sums.append(x) or x)
    for rows in (slice(0, 1), slice(1, 4)):
        own = positive_factors(MASK[rows], POSITIVE[rows], normalization, 7, lambda x: sums[0] + sums[1])
        torch.testing.assert_close(own, whole[rows])
