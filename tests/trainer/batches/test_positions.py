import numpy as np
import torch

from trl_step.trainer.batches.positions import Chosen, Places

MASK = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]])
ATTENTION = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]])
ENCODER = torch.tensor([[1, 1, 0], [1, 0, 0]])
IDS = torch.arange(12).view(2, 6)


def test_columns_are_those_that_a_sample_uses():
    places = Places.of(MASK, [ENCODER, ATTENTION])
    assert places.columns() == [slice(0, 2), slice(1, 5)]
    assert places.take(np.array([1])).columns() == [slice(0, 1), slice(2, 5)]
    assert places.lengths.tolist() == [3, 3]


def test_padding_in_front_is_that_of_any_sample_in_any_input_of_the_batch():
    right = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert not Places.of(MASK, [right, ENCODER]).left_padded
    for inputs in ([right.flip(1), ENCODER], [ENCODER, torch.tensor([[1, 1, 0], [0, 1, 1]])]):
        places = Places.of(MASK, inputs)
        assert places.left_padded is True
        assert places.take(np.array([0])).left_padded  # a mini-batch is laid out as its batch


def test_chosen_positions_by_hand():
    chosen = Chosen.of(MASK)
    assert chosen.positions.tolist() == [1, 2, 7, 8]
    assert chosen.rows.tolist() == [1, 2, 8, 9]  # in rows of six, one more than is predicted
    assert chosen.predicted(IDS).tolist() == IDS[:, 1:][MASK.bool()].tolist()
    values = torch.randn(2, 5)
    assert torch.equal(chosen.take(values), values[MASK.bool()])
    assert torch.equal(chosen.spread(chosen.take(values)), values * MASK)


def test_chosen_from_the_host_are_those_of_the_mask():
    places = Places.of(MASK, [ATTENTION])
    for predicted in (slice(0, 5), slice(1, 4)):
        ours, theirs = places.chosen(predicted, MASK.device), Chosen.of(MASK[:, predicted])
        assert torch.equal(ours.positions, theirs.positions)
        assert ours.shape == theirs.shape


def test_gradients_come_back_from_where_they_were_spread():
    flat = torch.randn(4, requires_grad=True)
    factors = torch.randn(2, 5)
    (Chosen.of(MASK).spread(flat) * factors).sum().backward()
    assert torch.equal(flat.grad, factors[MASK.bool()])


def test_nothing_chosen():
    chosen = Places.of(torch.zeros_like(MASK), [ATTENTION]).chosen(slice(0, 5), MASK.device)
    assert chosen.spread(torch.zeros(0)).shape == (2, 5)
    assert chosen.predicted(IDS).shape == (0,)
