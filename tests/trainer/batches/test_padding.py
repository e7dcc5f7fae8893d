import numpy as np
import pytest
import torch

from trl_step.trainer.batches.padding import counted_positions, pad_sequences
from trl_step.trainer.updates.epochs import mini_batches

SEQUENCES = [torch.tensor([5, 6, 7]), torch.tensor([8])]


def test_padding_on_either_side():
    right, left = pad_sequences(SEQUENCES, 0), pad_sequences(SEQUENCES, 0, side="left", length=4)
    assert right.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert right.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert left.input_ids.tolist() == [[0, 5, 6, 7], [0, 0, 0, 8]]
    assert left.attention_mask.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]


def test_padding_to_too_short_a_length_names_the_sample():
    with pytest.raises(ValueError, match="sample 0 is 3 tokens long, more than the fixed length 2"):
        pad_sequences(SEQUENCES, 0, length=2)


def test_counted_positions_by_hand():
    # queries of 2 and 1 tokens, responses of 2 and 3: [q q r r .] and [q r r r .]
    attention = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]])
    assert counted_positions(attention, [1, 0], [2, 3]).tolist() == [[0, 1, 1, 0], [1, 1, 1, 0]]
    masks = [torch.tensor([1, 0]), torch.tensor([False, True, True])]
    assert counted_positions(attention, [1, 0], [2, 3], masks).tolist() == [[0, 1, 0, 0], [0, 1, 1, 0]]


def test_counted_positions_behind_left_padding():
    attention = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert counted_positions(attention, [1, 1], [2, 3]).tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]


def parts(*args, **kwargs):
    return [[part.tolist() for part in backward] for backward in mini_batches(*args, **kwargs)]


def test_mini_batches_of_an_even_batch():
    assert parts(np.arange(8), 4, 2) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_the_last_ones_may_be_smaller():
    assert parts(np.arange(7), 4, 2) == [[[0, 1], [2, 3]], [[4, 5], [6]]]
    assert parts(np.arange(1), 128, 128) == [[[0]]]


def test_processes_with_fewer_samples_go_along_with_empty_ones():
    assert parts(np.arange(3), 4, 2, at_least=7) == [[[0, 1], [2]], [[], []]]
