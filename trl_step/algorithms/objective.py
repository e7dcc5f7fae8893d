"""What a mini-batch is trained on: the losses of its tokens joined to one, their slope for the fused head, statistics.

The loss is written once, as functions of single tokens. The plain path differentiates their mean; the fused head, which
needs the derivative before it lets go of a chunk's logits, gets it from `Objective.slope`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from trl_step.algorithms.losses.tokens import TokenLosses, mean_over
from trl_step.core import masked_moments

TokenLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], TokenLosses]


class Losses(NamedTuple):
    """Of one mini-batch."""

    policy: torch.Tensor
    """0-d, mean over counted tokens"""
    value: torch.Tensor
    """0-d, mean over counted tokens; not yet times `vf_coef`"""
    statistics: dict[str, torch.Tensor]
    """what is logged, without gradients; the formulas are in `algorithms.stats`"""


class Objective(NamedTuple):
    """loss = mean of the policy's losses + vf_coef * mean of the value losses (Schulman et al. 2017, eq. 9)."""

    policy_losses: TokenLoss
    """(logprobs, old_logprobs, advantages), all of one shape -> the losses; differentiable in `logprobs`"""
    value_losses: TokenLoss
    """(vpreds, old_values, returns), all of one shape -> the losses; differentiable in `vpreds`"""
    vf_coef: float

    def total(self, policy: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The loss that is trained, from its two parts."""
        return policy + self.vf_coef * value

    def slope(self, logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """d (sum of the policy's losses) / d logprobs, in the shape of the inputs; also inside `torch.no_grad`."""
        with torch.enable_grad():
            logprobs = logprobs.detach().requires_grad_()
            losses = self.policy_losses(logprobs, old_logprobs, advantages).losses
            return torch.autograd.grad(losses.sum(), logprobs)[0]

    def evaluate(
        self,
        *,
        logprobs: torch.Tensor,
        vpreds: torch.Tensor,
        entropy: torch.Tensor,
        old_logprobs: torch.Tensor,
        old_values: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
        mask: torch.Tensor,
    ) -> Losses:
        """Both losses of a mini-batch and its statistics, from one evaluation.

        Args:
            logprobs, vpreds, entropy: what the model says now, [b, T]
            old_logprobs, old_values, advantages, returns: what was known before, [b, T]
            mask: [b, T], 1 where a token counts
        """
        of_policy = self.policy_losses(logprobs, old_logprobs, advantages)
        of_value = self.value_losses(vpreds, old_values, returns)
        policy, value = mean_over(of_policy.losses, mask), mean_over(of_value.losses, mask)
        with torch.no_grad():
            log_ratio = logprobs - old_logprobs
            return_mean, return_var = masked_moments(returns, mask)
            value_mean, value_var = masked_moments(old_values, mask)
            statistics = {
                "loss/policy": policy.detach(),
                "loss/value": value.detach(),
                "loss/total": self.total(policy, value),
                "policy/entropy": mean_over(entropy, mask),
                "policy/approxkl": 0.5 * mean_over(log_ratio**2, mask),
                "policy/policykl": -mean_over(log_ratio, mask),
                "policy/clipfrac": mean_over(of_policy.clipped, mask),
                "policy/advantages": advantages,
                "policy/advantages_mean": mean_over(advantages, mask),
                "policy/ratio": log_ratio.exp(),
                "returns/mean": return_mean,
                "returns/var": return_var,
                "val/vpred": mean_over(vpreds, mask),
                "val/error": mean_over((vpreds - returns) ** 2, mask),
                "val/clipfrac": mean_over(of_value.clipped, mask),
                "val/mean": value_mean,
                "val/var": value_var,
            }
        return Losses(policy, value, statistics)


def minibatch_weights(own: torch.Tensor, everyone: torch.Tensor, processes: int, normalization: str) -> list[float]:
    """Factor on the token mean of each mini-batch of a backward batch, so that their sum is the loss of the whole.

    Args:
        own: [K, 2], counted tokens and samples of each mini-batch on this process
        everyone: the same, added over processes
        processes: their number; the factor makes up for the mean over processes that follows
        normalization: `tokens`: one mean over all tokens of the backward batch, on all processes.
            `mini_batch`: the mean of the mini-batches' means, each weighted by its samples, so that a smaller last
            mini-batch weighs less; with equal sizes that is 1 / K.
    """
    tokens, samples = everyone[:, 0], everyone[:, 1]
    share = own[:, 0] * processes
    if normalization == "tokens":
        return (share / tokens.sum()).tolist()
    return (share / tokens.clamp(min=1) * samples / samples.sum()).tolist()
