"""The inputs of the recorded group algorithms, from NumPy's legacy random stream, which no release changes.

NumPy only. Every array has one row per sample. Where a token does not count, log-probs hold other numbers than padding
would, so that a mean which takes them in is seen.
"""

from __future__ import annotations

import numpy as np

TOKENS = 6
LENGTHS = [6, 2, 4, 5, 1, 6, 3, 6]
"""Tokens of a response, in turn."""


def grouped_rows(groups: int, size: int, by_round: bool) -> np.ndarray:
    """Group number of each row, int64 [groups * size].

    `by_round`: 0 1 2 .. 0 1 2 .., the order of a batch that is repeated as a whole; otherwise 0 0 .. 1 1 ..
    """
    numbers = np.arange(groups, dtype=np.int64)
    return np.tile(numbers, size) if by_round else np.repeat(numbers, size)


def draw(seed: int, groups: int, size: int, *, by_round: bool) -> dict[str, np.ndarray]:
    """Scores, log-probs and masks of `groups` times `size` samples.

    Returns:
        `groups` int64 [B]; `scores` float32 [B], with one group of equal scores where a group has more than two;
        `mask` int64 [B, T]: a prefix of ones, the longest fills the row; `holes` int64 [B, T]: the same with zeros
        inside; `logprobs`, `old_logprobs`, `ref_logprobs`, `sampling_logprobs`, `entropies` float32 [B, T].
    """
    stream = np.random.RandomState(seed)
    rows = groups * size
    numbers = grouped_rows(groups, size, by_round)
    scores = stream.normal(0.5, 2.0, rows).round(2)
    if size > 2:
        scores[numbers == groups - 1] = 1.25
    lengths = np.resize(LENGTHS, rows)
    mask = (np.arange(TOKENS) < lengths[:, None]).astype(np.int64)
    holes = mask * (stream.uniform(size=mask.shape) > 0.3)
    holes[:, 0] = 1
    old = -stream.gamma(2.0, 0.8, mask.shape)
    arrays = {
        "scores": scores,
        "logprobs": old + stream.normal(0.0, 0.35, mask.shape),
        "old_logprobs": old,
        "ref_logprobs": old + stream.normal(-0.1, 0.4, mask.shape),
        "sampling_logprobs": old + stream.normal(0.0, 0.6, mask.shape),
        "entropies": stream.gamma(3.0, 0.4, mask.shape),
    }
    for shift, name in enumerate(list(arrays)[1:]):
        arrays[name] = np.where(mask == 1, arrays[name], -2.0 - 0.5 * shift)
    floats = {name: array.astype(np.float32) for name, array in arrays.items()}
    return {"groups": numbers, "mask": mask, "holes": holes.astype(np.int64), **floats}


INPUTS = {
    "rounds-of-2": draw(17, 4, 2, by_round=True),
    "rounds-of-4": draw(12, 4, 4, by_round=True),
    "pairs": draw(84, 4, 2, by_round=False),
    "fours": draw(14, 4, 4, by_round=False),
}
