"""The clipped policy loss and the clipped value loss, token by token, and the statistics of a mini-batch."""

from __future__ import annotations

from typing import NamedTuple

import torch

from trl_step.core import masked_moments


class TokenLosses(NamedTuple):
    """`losses` and `clipped` (1.0 where the clip decided), both shaped as the input."""

    losses: torch.Tensor
    clipped: torch.Tensor


def policy_losses(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> TokenLosses:
    """max(-A r, -A clip(r, 1 - c, 1 + c)) with r = exp(logprobs - old_logprobs) (Schulman et al. 2017, eq. 7)."""
    ratio = torch.exp(logprobs - old_logprobs)
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return TokenLosses(torch.maximum(free, clipped), (clipped > free).float())


def policy_loss_gradient(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """d `policy_losses` / d logprobs: -A r, or 0 where the clip decided. Same shape."""
    ratio = torch.exp(logprobs - old_logprobs)
    decided = ((advantages > 0) & (ratio > 1.0 + cliprange)) | ((advantages < 0) & (ratio < 1.0 - cliprange))
    return torch.where(decided, 0.0, -advantages * ratio)


def value_losses(
    vpreds: torch.Tensor, values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> TokenLosses:
    """max((v - R)², (clip(v, v_old - c, v_old + c) - R)²) / 2; `values` are v_old, `vpreds` v."""
    near = torch.clamp(vpreds, values - cliprange_value, values + cliprange_value)
    free, clipped = (vpreds - returns) ** 2, (near - returns) ** 2
    return TokenLosses(0.5 * torch.maximum(free, clipped), (clipped > free).float())


def mean_over(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean where `mask` is 1, and 0 for a mini-batch without a counted token; what is masked may be NaN."""
    return torch.where(mask.bool(), values, 0.0).sum() / mask.sum().clamp(min=1)


@torch.no_grad()
def minibatch_statistics(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    vpreds: torch.Tensor,
    values: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    entropy: torch.Tensor,
    cliprange: float,
    cliprange_value: float,
    vf_coef: float,
) -> dict[str, torch.Tensor]:
    """What is logged of a mini-batch; the formulas are in `algorithms.stats`. All inputs [b, T]; 0-d results.

    `policy/advantages` and `policy/ratio` are the exceptions: [b, T].
    """
    log_ratio = logprobs - old_logprobs
    policy = policy_losses(logprobs, old_logprobs, advantages, cliprange)
    value = value_losses(vpreds, values, returns, cliprange_value)
    policy_loss, value_loss = mean_over(policy.losses, mask), mean_over(value.losses, mask)
    return_mean, return_var = masked_moments(returns, mask)
    value_mean, value_var = masked_moments(values, mask)
    return {
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "loss/total": policy_loss + vf_coef * value_loss,
        "policy/entropy": mean_over(entropy, mask),
        "policy/approxkl": 0.5 * mean_over(log_ratio**2, mask),
        "policy/policykl": -mean_over(log_ratio, mask),
        "policy/clipfrac": mean_over(policy.clipped, mask),
        "policy/advantages": advantages,
        "policy/advantages_mean": mean_over(advantages, mask),
        "policy/ratio": log_ratio.exp(),
        "returns/mean": return_mean,
        "returns/var": return_var,
        "val/vpred": mean_over(vpreds, mask),
        "val/error": mean_over((vpreds - returns) ** 2, mask),
        "val/clipfrac": mean_over(value.clipped, mask),
        "val/mean": value_mean,
        "val/var": value_var,
    }


def minibatch_weights(own: torch.Tensor, everyone: torch.Tensor, processes: int, normalization: str) -> list[float]:
    """Factor on the token mean of each mini-batch of a backward batch, so that their sum is the loss of the whole.

    Args:
        own: [K, 2], counted tokens and samples of each mini-batch on this process
        everyone: the same, added over processes
        processes: their number; the mean over processes that follows is made up for
        normalization: `tokens`: one mean over all tokens of the backward batch, on all processes.
            `mini_batch`: the mean of the mini-batches' means, each counted by its samples, so that a smaller last
            mini-batch weighs less; with equal sizes that is 1 / K.
    """
    tokens, samples = everyone[:, 0], everyone[:, 1]
    share = own[:, 0] * processes
    if normalization == "tokens":
        return (share / tokens.sum()).tolist()
    return (share / tokens.clamp(min=1) * samples / samples.sum()).tolist()
