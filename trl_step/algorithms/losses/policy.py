"""Losses of the policy, token by token, from log-probs now and at the start of the step.

r = exp(logprobs - old_logprobs). All tensors are [b, T]; the losses of single tokens take any shape. Sequence losses
couple the tokens of a sample: every token of it has one ratio, so its slope depends on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from trl_step.algorithms.losses.tokens import TokenLosses

PolicyLoss = Literal["clip", "gspo", "sequence_clip", "cispo", "reinforce", "sapo", "dppo"]
COUPLED = ("gspo", "sequence_clip")
"""Those that couple the tokens of a sample."""
LARGEST_EXPONENT = 80.0
"""exp of it is a finite float32: a product over a long answer is not"""


class Clip(NamedTuple):
    """Where the clipped losses stop to follow the ratio r."""

    low: float
    """r is clipped to 1 - this"""
    high: float | None = None
    """and to 1 + this (Yu et al. 2025, DAPO, https://arxiv.org/abs/2503.14476); None: as low"""
    dual: float | None = None
    """for A < 0 the loss is at most -A times this (Ye et al. 2019, https://arxiv.org/abs/1912.09729); None: no limit"""


def clipped_policy_losses(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip: Clip,
) -> TokenLosses:
    """max(-A r, -A clip(r, 1 - low, 1 + high)) (Schulman et al. 2017, eq. 7).

    Args:
        logprobs, old_logprobs, advantages: of one shape
    """
    return clipped_ratio_losses(torch.exp(logprobs - old_logprobs), advantages, clip)


def clipped_ratio_losses(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    clip: Clip,
) -> TokenLosses:
    """`clipped_policy_losses` from the ratio r itself.

    Args:
        ratio, advantages: of one shape
    """
    free = -advantages * ratio
    near = -advantages * ratio.clamp(1.0 - clip.low, 1.0 + (clip.low if clip.high is None else clip.high))
    losses, clipped = torch.maximum(free, near), near > free
    if clip.dual is not None:
        most = -advantages * clip.dual
        above = (advantages < 0) & (losses > most)
        losses, clipped = torch.where(above, most, losses), clipped | above
    return TokenLosses(losses, clipped.float())


def gspo_losses(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip: Clip,
) -> TokenLosses:
    """The clipped loss with s = exp(mean over the sample's tokens of logprobs - old_logprobs) in place of r (Zheng et
    al. 2025, https://arxiv.org/abs/2507.18071); its clip ranges are near 3e-4.

    Args:
        logprobs, old_logprobs, advantages, mask: [b, T]
    """
    total = _sum_over_sample(logprobs - old_logprobs, mask)
    ratio = (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).exp().expand_as(logprobs)
    return clipped_ratio_losses(ratio, advantages, clip)


def sequence_clip_losses(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip: Clip,
) -> TokenLosses:
    """The clipped loss with the product of the ratios of a sample's tokens in place of r, as TRL's RLOO trainer has it.

    Over a long answer the product leaves any range at once.

    Args:
        logprobs, old_logprobs, advantages, mask: [b, T]
    """
    total = _sum_over_sample(logprobs - old_logprobs, mask)
    ratio = total.clamp(max=LARGEST_EXPONENT).exp().expand_as(logprobs)
    return clipped_ratio_losses(ratio, advantages, clip)


def _sum_over_sample(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[b, T] -> [b, 1]"""
    return torch.where(mask.bool(), values, 0.0).sum(dim=1, keepdim=True)


def cispo_losses(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, bound: float
) -> TokenLosses:
    """-min(r, bound) A logprob, without a gradient through min(r, bound): no token is left out (MiniMax 2025,
    https://arxiv.org/abs/2506.13585).

    Args:
        logprobs, old_logprobs, advantages: of one shape
        bound: the largest weight of a log-prob
    """
    ratio = torch.exp(logprobs.detach() - old_logprobs)
    return TokenLosses(-ratio.clamp(max=bound) * advantages * logprobs, (ratio > bound).float())


def reinforce_losses(logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor) -> TokenLosses:
    """-A r: the policy gradient with importance weights, without a clip.

    Args:
        logprobs, old_logprobs, advantages: of one shape
    """
    return TokenLosses(-advantages * torch.exp(logprobs - old_logprobs))


def sapo_losses(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, temperatures: tuple[float, float]
) -> TokenLosses:
    """-A (4 / tau) sigmoid(tau (r - 1)): a soft clip (Gao et al. 2025, https://arxiv.org/abs/2511.20347).

    Args:
        logprobs, old_logprobs, advantages: of one shape
        temperatures: tau where A > 0, and elsewhere
    """
    for_positive, for_others = temperatures
    tau = torch.where(advantages > 0, for_positive, for_others).to(advantages.dtype)
    ratio = torch.exp(logprobs - old_logprobs)
    return TokenLosses(-advantages * (4 / tau) * torch.sigmoid(tau * (ratio - 1)))


def dppo_losses(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    delta: float,
    sampling_logprobs: torch.Tensor | None = None,
) -> TokenLosses:
    """-A r, and 0 where the token's probability already moved by more than `delta` to the side that A asks for
    (https://arxiv.org/abs/2602.04879).

    Args:
        logprobs, old_logprobs, advantages: of one shape
        delta: from 0 to 1
        sampling_logprobs: of the policy that sampled, from which the move is measured; None: `old_logprobs`
    """
    start = old_logprobs if sampling_logprobs is None else sampling_logprobs
    moved = logprobs.detach().exp() - start.exp()
    left_out = ((advantages > 0) & (moved > delta)) | ((advantages < 0) & (moved < -delta))
    losses = -advantages * torch.exp(logprobs - old_logprobs)
    return TokenLosses(torch.where(left_out, 0.0, losses), left_out.float())


def configured_policy_losses(settings: Any) -> Callable[[torch.Tensor, Any], TokenLosses]:
    """The loss that `settings` (a `PPOConfig`) ask for, as a function of log-probs [b, T] and a `Minibatch`."""
    kind = settings.policy_loss
    clip = Clip(settings.cliprange, settings.cliprange_high, settings.dual_clip)
    if kind in COUPLED:
        coupled: Callable[..., TokenLosses] = gspo_losses if kind == "gspo" else sequence_clip_losses
        coupled = partial(coupled, clip=clip)
        return lambda logprobs, batch: coupled(logprobs, batch.old_logprobs, batch.advantages, batch.mask)
    if kind == "dppo":
        return lambda logprobs, batch: dppo_losses(
            logprobs, batch.old_logprobs, batch.advantages, settings.dppo_delta, batch.sampling_logprobs
        )
    singles: dict[str, Callable[..., TokenLosses]] = {
        "clip": partial(clipped_policy_losses, clip=clip),
        "cispo": partial(cispo_losses, bound=settings.cispo_bound),
        "reinforce": reinforce_losses,
        "sapo": partial(sapo_losses, temperatures=settings.sapo_temperatures),
    }
    single = singles[kind]
    return lambda logprobs, batch: single(logprobs, batch.old_logprobs, batch.advantages)
