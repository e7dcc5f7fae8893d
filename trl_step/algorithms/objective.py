"""What a mini-batch is trained on: the losses of its tokens as one, their slope for the fused head, statistics.

The loss is written once, as functions of log-probs and values. The plain path differentiates their mean; the fused
head, which needs the derivative before it lets go of a chunk's logits, gets it from `Objective.slope`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from trl_step.algorithms.kl import kl_penalty
from trl_step.algorithms.losses.policy import COUPLED, configured_policy_losses
from trl_step.algorithms.losses.tokens import TokenLosses, mean_over, weighted_sum
from trl_step.algorithms.losses.value import clipped_value_losses
from trl_step.core import masked_moments

ValueLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], TokenLosses]


class Minibatch(NamedTuple):
    """What is known of a mini-batch before its forward pass. Tensors [b, T]; None if nothing needs them."""

    mask: torch.Tensor
    """1 where a token counts"""
    weights: torch.Tensor
    """of each token in the mean loss, see `token_weights`"""
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    ref_logprobs: Any = None
    sampling_logprobs: Any = None
    importance: Any = None
    """factor on each policy loss, see `importance_weights`"""
    positive: Any = None
    """factor on each log-prob in the term of samples with a positive score"""
    old_values: Any = None
    returns: Any = None


class TokenTerms(NamedTuple):
    """What is trained through log-probs, [b, T] each; None for terms that are not asked for."""

    total: torch.Tensor
    own: TokenLosses
    """the policy's losses alone, times their importance"""
    kls: Any = None
    """KL penalty, not yet times its coefficient"""
    positive_nll: Any = None
    """negative log-probs of positive samples, not yet times their coefficient"""


PolicyLosses = Callable[[torch.Tensor, Minibatch], TokenLosses]


class Losses(NamedTuple):
    """Of one mini-batch."""

    policy: torch.Tensor
    """0-d: everything that is trained but the value loss"""
    value: Any
    """0-d, not yet times `vf_coef`; None without values"""
    statistics: dict[str, torch.Tensor]
    """what is logged, without gradients; the formulas are in `algorithms.stats`"""


class Objective(NamedTuple):
    """loss = mean of (w policy loss + kl_coef KL - nll_coef positive logprob - entropy_coef H) + vf_coef value loss.

    Means are taken with `Minibatch.weights`. With the defaults of the second part it is eq. 9 of Schulman et al. 2017
    without the entropy bonus.
    """

    policy_losses: PolicyLosses
    """(logprobs [b, T], mini-batch) -> the losses; differentiable in `logprobs`"""
    value_losses: ValueLoss | None
    """(vpreds, old_values, returns), all of one shape -> the losses, differentiable in `vpreds`; None: no values"""
    vf_coef: float
    couples_tokens: bool = False
    """whether the loss of a token depends on the log-probs of other tokens of its sample"""
    kl_kind: str = "k3"
    """of the KL penalty in the loss, see `kl_penalty`"""
    kl_coef: float = 0.0
    """of the KL penalty in the loss"""
    nll_coef: float = 0.0
    entropy_coef: float = 0.0
    policy_coef: float = 1.0
    """on everything but the value loss; 0 trains values alone"""

    def token_losses(self, logprobs: torch.Tensor, batch: Minibatch) -> TokenTerms:
        """All that is trained through log-probs, for each token.

        Args:
            logprobs: now, [b, T]
            batch: what was known before
        """
        own = self.policy_losses(logprobs, batch)
        losses = own.losses
        if batch.importance is not None:
            losses = torch.where(batch.importance != 0, losses, 0.0) * batch.importance
        own = own._replace(losses=losses)
        kls = nll = None
        if self.kl_coef:
            kls = kl_penalty(logprobs, batch.ref_logprobs, self.kl_kind)
            losses = losses + self.kl_coef * kls
        if self.nll_coef:
            nll = -batch.positive * logprobs
            losses = losses + self.nll_coef * nll
        return TokenTerms(losses, own, kls, nll)

    def slope(self, logprobs: torch.Tensor, batch: Minibatch) -> torch.Tensor:
        """d (weighted sum of `token_losses`) / d logprobs, [b, T]; also inside `torch.no_grad`."""
        with torch.enable_grad():
            logprobs = logprobs.detach().requires_grad_()
            total = self.policy_coef * weighted_sum(self.token_losses(logprobs, batch).total, batch.weights)
            return torch.autograd.grad(total, logprobs)[0]

    def evaluate(
        self, batch: Minibatch, *, logprobs: torch.Tensor, entropy: torch.Tensor, vpreds: torch.Tensor | None
    ) -> Losses:
        """The losses of a mini-batch and its statistics, from one evaluation.

        Args:
            batch: what was known before
            logprobs, entropy, vpreds: what the model says now, [b, T]; `vpreds` is None without values
        """
        mask, weights = batch.mask, batch.weights
        losses, own, kls, nll = self.token_losses(logprobs, batch)
        if self.entropy_coef:
            losses = losses - self.entropy_coef * entropy
        policy = self.policy_coef * weighted_sum(losses, weights)
        with torch.no_grad():
            log_ratio = logprobs - batch.old_logprobs
            statistics = {
                "loss/policy": weighted_sum(own.losses, weights),
                "loss/total": policy.detach(),
                "policy/entropy": mean_over(entropy, mask),
                "policy/approxkl": 0.5 * mean_over(log_ratio**2, mask),
                "policy/policykl": -mean_over(log_ratio, mask),
                "policy/advantages": batch.advantages,
                "policy/advantages_mean": mean_over(batch.advantages, mask),
                "policy/ratio": log_ratio.exp(),
                "policy/ratio_mean": mean_over(log_ratio.exp(), mask),
            }
            if own.clipped is not None:
                statistics["policy/clipfrac"] = mean_over(own.clipped, mask)
            if kls is not None:
                statistics["loss/kl"] = weighted_sum(kls, weights)
            if nll is not None:
                statistics["loss/positive_nll"] = weighted_sum(nll, weights)
        if self.value_losses is None:
            return Losses(policy, None, statistics)
        of_value = self.value_losses(vpreds, batch.old_values, batch.returns)  # type: ignore[arg-type]
        value = weighted_sum(of_value.losses, weights)
        with torch.no_grad():
            return_mean, return_var = masked_moments(batch.returns, mask)
            value_mean, value_var = masked_moments(batch.old_values, mask)
            statistics |= {
                "loss/value": value.detach(),
                "loss/total": policy + self.vf_coef * value,
                "returns/mean": return_mean,
                "returns/var": return_var,
                "val/vpred": mean_over(vpreds, mask),  # type: ignore[arg-type]
                "val/error": mean_over((vpreds - batch.returns) ** 2, mask),
                "val/clipfrac": mean_over(of_value.clipped, mask),  # type: ignore[arg-type]
                "val/mean": value_mean,
                "val/var": value_var,
            }
        return Losses(policy, value, statistics)


def configured_objective(settings: Any, with_values: bool) -> Objective:
    """What `settings` (a `PPOConfig`) ask for, without a KL penalty, whose coefficient changes on the way.

    Args:
        with_values: values train as well
    """
    return Objective(
        configured_policy_losses(settings),
        partial(clipped_value_losses, cliprange_value=settings.cliprange_value) if with_values else None,
        settings.vf_coef,
        couples_tokens=settings.policy_loss in COUPLED,
        kl_kind=settings.kl_penalty,
        nll_coef=settings.positive_nll_coef,
        entropy_coef=settings.entropy_coef,
    )


def minibatch_weights(own: torch.Tensor, everyone: torch.Tensor, processes: int, normalization: str) -> list[float]:
    """Factor on the mean loss of each mini-batch of a backward batch, so that their sum is the loss of the whole.

    Args:
        own: [K, 2], counted tokens and samples of each mini-batch on this process
        everyone: the same, added over processes
        processes: their number; the factor makes up for the mean over processes that follows
        normalization: `tokens`: one mean over all tokens of the backward batch, on all processes.
            `samples`, `constant`: the same over its samples.
            `mini_batch`: the mean of the mini-batches' means, each weighted by its samples, so that a smaller last
            mini-batch weighs less; with equal sizes that is 1 / K.
    """
    tokens, samples = everyone[:, 0], everyone[:, 1]
    if normalization in ("samples", "constant"):
        return (own[:, 1] * processes / samples.sum()).tolist()
    share = own[:, 0] * processes
    if normalization == "tokens":
        return (share / tokens.sum()).tolist()
    return (share / tokens.clamp(min=1) * samples / samples.sum()).tolist()
