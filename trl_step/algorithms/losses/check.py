"""Whether a loss of the user's own is what the fused head can differentiate: found out on a few tokens of the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch

Function = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logprobs, old_logprobs, advantages, mask), each [b, T] -> the losses [b, T]"""

MOST_SAMPLES = 8
MOVES = (1e-4, 1e-2)
"""By which log-probs are moved: a clip may hide a move that is larger, rounding one that is smaller."""


def check_policy_losses(function: Function, old_logprobs: torch.Tensor, mask: torch.Tensor, coupled: bool) -> bool:
    """Try a loss function on log-probs near `old_logprobs` and advantages of both signs.

    Args:
        function: of the user
        old_logprobs, mask: [B, T]
        coupled: whether it is said to couple the tokens of a sample

    Returns:
        whether there was a sample with two counted tokens, so that coupling could be seen

    Raises:
        ValueError: the result has another shape, no gradient, or a number that is not finite; a loss depends on other
            tokens of its sample though `coupled` is False, or on other samples.
    """
    old, mask = old_logprobs[:MOST_SAMPLES], mask[:MOST_SAMPLES]
    counted, stream = mask.bool(), torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(old.shape, generator=stream).to(old)

    logprobs, advantages = old + 1e-3 * draw(), draw()
    place = (mask.cumsum(dim=1) - 1) % 2 == 1  # every second counted token of a sample
    second = torch.arange(len(old), device=old.device).unsqueeze(1) % 2 == 1

    def losses(moved: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            found = function(moved.detach().requires_grad_(), old, advantages, mask)
        if not isinstance(found, torch.Tensor) or found.shape != old.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(f"policy_losses must return one loss per token, [b, T] = {tuple(old.shape)}, got {shape}")
        if not found.requires_grad:
            raise ValueError(
                "policy_losses must be differentiable in logprobs, but its result has no gradient; compute it from "
                "logprobs with torch functions, outside of torch.no_grad and without detach"
            )
        found = found.detach()
        if not bool(torch.isfinite(found[counted]).all()):
            raise ValueError(
                f"policy_losses gave losses that are not finite for log-probs within {MOVES[-1]:g} of old_logprobs"
            )
        return found

    here = losses(logprobs)
    scale = float(here[counted].abs().max()) if bool(counted.any()) else 0.0

    def depends(moves: torch.Tensor, stay: torch.Tensor) -> bool:
        """Whether losses where `stay` is true change if log-probs change where `moves` is true."""
        if not bool(stay.any()) or not bool(moves.any()):
            return False
        changes = [(losses(logprobs + size * moves) - here)[stay].abs().max() for size in MOVES]
        return float(max(changes)) > 1e-6 * scale

    if depends(counted & second, counted & ~second):
        raise ValueError(
            "policy_losses gives a sample's tokens losses that depend on other samples (or on chance), so the gradient "
            "would depend on how a mini-batch is cut into parts; use only numbers of the sample itself"
        )
    if not coupled and depends(counted & place, counted & ~place):
        raise ValueError(
            "policy_losses gives tokens losses that depend on other tokens of their sample; say so with the class "
            "attribute couples_tokens = True, or the gradient would be wrong"
        )
    return bool((mask.sum(dim=1) > 1).any())
