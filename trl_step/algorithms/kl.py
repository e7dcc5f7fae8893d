"""The KL penalty per token, and the controllers of its coefficient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

KL_PENALTIES = ("kl", "abs", "mse", "full", "k3")


def kl_penalty(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, kind: str) -> torch.Tensor:
    """How far the policy is from the reference at each position, in nats.

    Args:
        logprobs: of the chosen tokens [..., T]; for `full` of the whole vocabulary [..., T, V].
        ref_logprobs: the same of the reference.
        kind: with d = logprobs - ref_logprobs:
            `kl` d, the unbiased one-sample estimate (k1 in http://joschu.net/blog/kl-approx.html);
            `abs` |d|;
            `mse` d² / 2 (k2 there);
            `k3` exp(-d) + d - 1, unbiased and never below 0;
            `full` the exact divergence, sum over the vocabulary of exp(logprobs) * d.

    Returns:
        [..., T]

    Raises:
        ValueError: an unknown kind.
    """
    difference = logprobs - ref_logprobs
    if kind == "kl":
        return difference
    if kind == "abs":
        return difference.abs()
    if kind == "mse":
        return 0.5 * difference.square()
    if kind == "k3":
        return torch.expm1(-difference) + difference
    if kind == "full":
        # exp(-inf) * inf is 0 in the limit: a token that the policy excludes costs nothing
        return torch.where(logprobs.isneginf(), 0.0, logprobs.exp() * difference).sum(dim=-1)
    raise ValueError(f"kl_penalty={kind!r} is not known; choose one of {', '.join(KL_PENALTIES)}")


class AdaptiveKLController:
    """Moves the coefficient so that the KL per sample approaches `target` (Ziegler et al. 2019, section 2.2).

    error = clip(kl / target - 1, -0.2, 0.2);  value <- value * (1 + error * n_steps / horizon)
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float) -> None:
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current: float, n_steps: int) -> None:
        """`current`: mean KL per sample, in nats; `n_steps`: number of samples in that mean, over all processes."""
        error = min(max(float(current) / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_steps / self.horizon

    def state_dict(self) -> dict[str, float]:
        """The coefficient; target and horizon are settings."""
        return {"kl_coef": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what `state_dict` gave."""
        self.value = state["kl_coef"]


class FixedKLController:
    """A coefficient that never changes."""

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"kl_coef": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what `state_dict` gave."""
        self.value = state["kl_coef"]


def make_kl_controller(
    adaptive: bool, init_kl_coef: Any, target: Any, horizon: Any
) -> AdaptiveKLController | FixedKLController:
    """The controller that `adap_kl_ctrl` asks for; `target` in nats per sample, `horizon` in samples."""
    return AdaptiveKLController(init_kl_coef, target, horizon) if adaptive else FixedKLController(init_kl_coef)
