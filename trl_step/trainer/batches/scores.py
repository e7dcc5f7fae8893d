"""Scores, one number per sample or per response token: checked and in one form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trl_step.core import in_float64

LARGEST = torch.finfo(torch.float32).max
ScoresGiven = Sequence[Any] | torch.Tensor | np.ndarray
"""What `step` takes: numbers, one-element tensors or vectors of token scores, one for each sample; or one vector."""
Scores = torch.Tensor | list[torch.Tensor]
"""[B] float32; or, if any sample has one per response token, a list of [R_i] float32."""


def check_scores(
    scores: Sequence[Any], responses: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None
) -> Scores:
    """The scores on the device of the responses, or a `ValueError` that names the sample and the token.

    A tensor, an array or a list with more or less than one element is a vector of token scores. A number beside
    vectors becomes the vector with that number on the last token that counts.
    """
    device = responses[0].device
    if not any(_is_vector(score) for score in scores):
        return torch.tensor([_number(i, score) for i, score in enumerate(scores)], dtype=torch.float32, device=device)
    vectors = []
    for i, (score, response) in enumerate(zip(scores, responses, strict=True)):
        mask = torch.ones_like(response) if masks is None else masks[i]
        if _is_vector(score):
            vectors.append(_vector(i, score, mask))
        else:
            vector = torch.zeros(response.shape, dtype=torch.float32, device=device)
            vector[mask.nonzero()[-1]] = _number(i, score)
            vectors.append(vector)
    return vectors


def check_numbers(name: str, numbers: Sequence[Any], device: torch.device) -> torch.Tensor:
    """One finite number per sample as float32 [B], or a `ValueError` that names the list and the sample."""
    return torch.tensor([_number(i, x, name) for i, x in enumerate(numbers)], dtype=torch.float32, device=device)


def check_advantages(
    advantages: Sequence[Any], responses: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None
) -> list[torch.Tensor]:
    """Each [R_i] float32, 0 where a token does not count, or a `ValueError` that names the sample and the token.

    A number holds for every token of its sample.
    """
    vectors = []
    for i, (advantage, response) in enumerate(zip(advantages, responses, strict=True)):
        mask = torch.ones_like(response) if masks is None else masks[i]
        if _is_vector(advantage):
            vectors.append(torch.where(mask.bool(), _numbers(i, advantage, mask, "advantages"), 0.0))
        else:
            vectors.append(mask * torch.tensor(_number(i, advantage, "advantages"), dtype=torch.float32))
    return vectors


def _is_vector(score: Any) -> bool:
    if isinstance(score, torch.Tensor):
        return score.numel() != 1
    if isinstance(score, np.ndarray):
        return score.size != 1
    return isinstance(score, (list, tuple))


def _vector(i: int, score: Any, mask: torch.Tensor) -> torch.Tensor:
    """`score` [R_i] as float32; 0 wherever `mask` [R_i] is 0."""
    vector = _numbers(i, score, mask, "scores")
    total = float(in_float64(vector).sum())
    if not abs(total) <= LARGEST:
        raise ValueError(f"scores[{i}] add up to {total}, more than float32 holds; scale them")
    masked = ((vector != 0) & (mask == 0)).nonzero().flatten().tolist()
    if masked:
        raise ValueError(
            f"scores[{i}][{masked[0]}] is {float(vector[masked[0]])}, but response_masks[{i}] leaves that token out; "
            "put the reward on the last token before it that the policy wrote"
        )
    return vector


def _numbers(i: int, score: Any, mask: torch.Tensor, name: str) -> torch.Tensor:
    """`score` as finite float32 numbers, one for each token of `mask` [R_i]."""
    try:
        vector = torch.as_tensor(score)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{name}[{i}] must be a number, or a vector with one number per response token, got {score!r}"
        ) from error
    if vector.shape != mask.shape:
        raise ValueError(
            f"{name}[{i}] must be one number, or a vector with one for each of the {len(mask)} tokens of "
            f"responses[{i}]; got shape {tuple(vector.shape)}"
        )
    if vector.is_complex() or vector.layout is not torch.strided or vector.device.type == "meta":
        raise ValueError(f"{name}[{i}] must hold real numbers, got {vector.dtype}, {vector.layout} on {vector.device}")
    vector = vector.detach().to(dtype=torch.float32).to(mask.device)
    bad = (~torch.isfinite(vector)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{name}[{i}][{bad[0]}] is {float(vector[bad[0]])}; it must be a finite float32")
    return vector


def _number(i: int, score: Any, name: str = "scores") -> float:
    if isinstance(score, torch.Tensor):
        if score.is_complex() or score.device.type == "meta":
            raise ValueError(f"{name}[{i}] must be one real number, got {score.dtype} on {score.device}")
        if score.numel() != 1:
            raise ValueError(f"{name}[{i}] must be one number, got a tensor of shape {tuple(score.shape)}")
        score = score.detach().item()
    elif isinstance(score, (str, bytes)) or score is None:
        raise ValueError(f"{name}[{i}] must be a number or a one-element tensor, got {score!r}")
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}[{i}] must be a number or a one-element tensor, got {score!r}") from error
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise ValueError(f"{name}[{i}] is {number}; it must be a finite float32")
    return number


def after_decoder_start(i: int, vector: torch.Tensor, length: int) -> torch.Tensor:
    """Token scores [R_i] of a decoder's response with `length` tokens, its start token included: [length].

    Raises:
        ValueError: the start token has a score, though it is given and not generated.
    """
    vector = torch.cat((vector.new_zeros(length - len(vector)), vector))
    if vector[0] != 0:
        raise ValueError(
            f"scores[{i}][0] is {float(vector[0])}, but this is the decoder's start token, which is not generated; "
            "put the reward on a token after it"
        )
    return vector
