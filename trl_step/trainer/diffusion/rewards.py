"""Rewards of images: the user's function, called here or in threads, and what it returned, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from trl_step.core import in_float64
from trl_step.models.notices import described

RewardFunction = Callable[[torch.Tensor, Sequence[str], Sequence[Any]], tuple[Any, Any]]
"""Images [B, 3, height, width], their prompts and their prompts' metadata -> B rewards, and any metadata of them."""
Scored = tuple[torch.Tensor, Any]
"""Rewards [B] float64, and the reward function's own metadata."""
SHOWN = 8
"""Prompts named in a message."""


def scored(
    reward_function: RewardFunction, batches: Sequence[Sequence[Any]], workers: int | None = None
) -> list[Scored]:
    """The rewards of every batch of images.

    Args:
        batches: of each batch images, prompts and metadata of the prompts
        workers: threads; None: one batch after the other, in this thread

    Raises:
        ValueError: the function raised, or did not return one finite number for each image; the prompts are named.
    """
    if workers is None:
        return [_score(reward_function, *batch[:3]) for batch in batches]
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(lambda batch: _score(reward_function, *batch[:3]), batches))


def _score(function: RewardFunction, images: torch.Tensor, prompts: Sequence[str], metadata: Sequence[Any]) -> Scored:
    try:
        returned = function(images, prompts, metadata)
    except Exception as error:
        raise ValueError(f"reward_function failed for the prompts {_named(prompts)}: {described(error)}") from error
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise ValueError(
            f"reward_function must return rewards and metadata, such as (rewards, {{}}); for the prompts "
            f"{_named(prompts)} it returned a {type(returned).__name__}"
        )
    rewards, reward_metadata = returned
    try:
        values = in_float64(torch.as_tensor(rewards).detach()).cpu().flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the rewards of the prompts {_named(prompts)} are no numbers: {described(error)}") from error
    if len(values) != len(prompts):
        raise ValueError(
            f"reward_function returned {len(values)} rewards for {len(prompts)} images; the prompts are "
            f"{_named(prompts)}: return one number for each"
        )
    wrong = [prompt for prompt, finite in zip(prompts, values.isfinite().tolist(), strict=True) if not finite]
    if wrong:
        raise ValueError(f"reward_function returned NaN or infinity for the prompts {_named(wrong)}")
    return values, reward_metadata


def _named(prompts: Sequence[str]) -> str:
    names = ", ".join(map(repr, prompts[:SHOWN]))
    return f"{names} and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else names
