import numpy as np
import torch

from trl_step.trainer.batches.layout import Layout
from trl_step.trainer.batches.rollout import CountedPositions, Rollout, TokenPositions

MASK = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]])
ATTENTION = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]])
ENCODER = torch.tensor([[1, 1, 0], [1, 0, 0]])
IDS = torch.arange(12).view(2, 6)
CPU = torch.device("cpu")


def rollout() -> Rollout:
    """Two samples of an encoder-decoder model, with numbers that tell where they come from."""
    inputs = {
        "input_ids": torch.arange(6).view(2, 3),
        "attention_mask": ENCODER,
        "decoder_input_ids": IDS,
        "decoder_attention_mask": ATTENTION,
    }
    positions = TokenPositions.of(MASK, [ENCODER, ATTENTION])
    return Rollout([], [], inputs, positions, MASK, old_logprobs=torch.arange(10.0).view(2, 5), scores=torch.ones(2))


def test_a_piece_has_the_columns_that_a_sample_uses():
    whole = rollout()._replace(queries=[IDS[0], IDS[1]], responses=[IDS[0], IDS[1]])
    both = Layout(True, 0).piece(whole)
    assert (both.predicted, both.columns, both.samples) == (slice(1, 4), slice(1, 5), slice(None))
    assert both.batch.inputs["input_ids"].tolist() == [[0, 1], [3, 4]]
    assert both.batch.inputs["decoder_input_ids"].tolist() == [[1, 2, 3, 4], [7, 8, 9, 10]]
    assert both.batch.mask.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert both.batch.old_logprobs.tolist() == [[1, 2, 3], [6, 7, 8]]
    assert both.batch.scores.shape == (2,)
    assert both.labels.tolist() == [2, 3, 9, 10]
    second = Layout(True, 0).piece(whole, np.array([1]))
    assert (second.predicted, second.samples.tolist()) == (slice(2, 4), [1])
    assert second.batch.inputs["input_ids"].tolist() == [[3]]
    target = torch.zeros(2, 5)
    second.put(target, torch.ones(1, 2))
    assert target.tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 1, 0]]


def test_a_fixed_length_stays():
    whole = rollout()._replace(queries=[IDS[0], IDS[1]], responses=[IDS[0], IDS[1]])
    assert Layout(True, 0, fixed_length=6).piece(whole).columns == slice(0, 6)
    assert whole.positions.lengths.tolist() == [3, 3]


def test_an_empty_piece_counts_nothing():
    whole = rollout()._replace(queries=[IDS[0], IDS[1]], responses=[IDS[0], IDS[1]])
    filler = Layout(True, 0).piece(whole, np.zeros(0, dtype=np.int64))
    assert (len(filler.batch.mask), int(filler.batch.mask.sum()), len(filler.labels)) == (1, 0, 0)
    target = torch.zeros(2, 5)
    filler.put(target, torch.ones(filler.batch.mask.shape))
    assert not target.any()


def test_padding_on_the_left_is_that_of_any_sample_in_any_input_of_the_batch():
    right = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert not TokenPositions.of(MASK, [right, ENCODER]).left_padded
    for inputs in ([right.flip(1), ENCODER], [ENCODER, torch.tensor([[1, 1, 0], [0, 1, 1]])]):
        positions = TokenPositions.of(MASK, inputs)
        assert positions.left_padded is True
        assert positions.take(np.array([0])).left_padded  # a mini-batch is laid out as its batch


def test_counted_positions_by_hand():
    counted = CountedPositions.of(MASK.numpy().astype(bool), CPU)
    assert counted.flat.tolist() == [1, 2, 7, 8]
    assert counted.in_inputs.tolist() == [1, 2, 8, 9]  # in rows of six, one more than is predicted
    assert IDS.flatten()[counted.in_inputs + 1].tolist() == IDS[:, 1:][MASK.bool()].tolist()
    values = torch.randn(2, 5)
    assert torch.equal(counted.take(values), values[MASK.bool()])
    assert torch.equal(counted.spread(counted.take(values)), values * MASK)


def test_gradients_come_back_from_where_they_were_spread():
    flat = torch.randn(4, requires_grad=True)
    factors = torch.randn(2, 5)
    (CountedPositions.of(MASK.numpy().astype(bool), CPU).spread(flat) * factors).sum().backward()
    assert torch.equal(flat.grad, factors[MASK.bool()])


def test_nothing_counted():
    counted = CountedPositions.of(np.zeros((2, 5), dtype=bool), CPU)
    assert counted.spread(torch.zeros(0)).shape == (2, 5)
    assert counted.in_inputs.shape == (0,)
