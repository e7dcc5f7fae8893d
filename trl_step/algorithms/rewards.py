"""Scores of samples: scaled, normalized, clipped; and the reward of every token, from score and KL penalty."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from trl_step.core import ReduceSum, count_mean_squares, in_float64, keep, sum_over_processes

NORMALIZED_EPSILON = 1e-8
"""Added to the deviation that `normalized_scores` divides by."""


class RunningMoments:
    """Mean and standard deviation of all scores seen so far, over all processes.

    Batches are merged by the parallel rule of Chan et al. 1979 (https://doi.org/10.1007/978-3-642-51461-6_3, eq. 2.1).
    `std` is the unbiased one; before the first update mean is 0 and std 1.
    """

    def __init__(self, accelerator: Any = None) -> None:
        """`accelerator`: anything whose `reduce(tensor)` adds over processes, or None for a single process."""
        self.mean = 0.0
        self.std = 1.0
        self.var = 1.0
        self.count = 0.0
        self.accelerator = accelerator

    @torch.no_grad()
    def update(self, xs: torch.Tensor) -> tuple[float, float]:
        """Take in a batch of scores (any shape); returns that batch's own mean and unbiased std.

        Args:
            xs: any shape, real numbers that are finite
        """
        found = count_mean_squares(in_float64(xs), reduce_sum=sum_over_processes(self.accelerator))
        count, batch_mean, squares = (float(x) for x in found)

        all_count = self.count + count
        delta = batch_mean - self.mean
        old_squares = self.var * self.count + delta**2 * self.count * count / all_count
        self.mean += delta * count / all_count
        self.var = (old_squares + squares) / all_count
        # differs from v0.7: the std of a single score is kept at 1 (it was infinite or NaN)
        self.std = ((old_squares + squares) / (all_count - 1)) ** 0.5 if all_count > 1 else 1.0
        self.count = all_count
        return batch_mean, (squares / max(count - 1, 1)) ** 0.5

    def state_dict(self) -> dict[str, float]:
        """Numbers from which `load_state_dict` goes on exactly."""
        return {"mean": self.mean, "std": self.std, "var": self.var, "count": self.count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what `state_dict` gave."""
        self.mean, self.std, self.var, self.count = (state[key] for key in ("mean", "std", "var", "count"))


def normalized_scores(scores: torch.Tensor, most: float, reduce_sum: ReduceSum = keep) -> torch.Tensor:
    """(scores - mean) / (unbiased std + 1e-8), limited to ± `most`: RLOO's `normalize_reward`.

    Args:
        scores: [B]
        most: `reward_clip_range`
        reduce_sum: spans the processes over which mean and deviation are taken
    """
    count, mean, squares = count_mean_squares(in_float64(scores), reduce_sum=reduce_sum)
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    return ((scores - mean.to(scores)) / (deviation.to(scores) + NORMALIZED_EPSILON)).clamp(-most, most)


def sample_totals(scores: torch.Tensor) -> torch.Tensor:
    """The score of each sample [B]: `scores` [B] themselves, or the sums of token scores [B, R]."""
    return scores if scores.dim() == 1 else scores.sum(dim=1)


def shape_scores(
    scores: torch.Tensor,
    moments: RunningMoments,
    use_score_scaling: bool,
    use_score_norm: bool,
    score_clip: float | None,
    mask: torch.Tensor | None = None,
    update: bool = True,
) -> torch.Tensor:
    """Scores as the algorithm uses them: divided by the running std, centred by the running mean, clipped.

    The batch enters the running moments first; they stay untouched when neither scaling nor norm is asked for. The
    norm is centred and scaled, so it implies the scaling.

    Token scores are rewards of single steps, so they are treated as such rewards usually are (`VecNormalize` of
    stable-baselines3 is an example): the moments are those of the samples' totals, every token's score is divided by
    their std, the mean comes off the last counted token, which centres the total, and each token's score is clipped.

    Args:
        scores: [B], or token scores [B, R], 0 where `mask` is 0
        mask: [B, R], 1 on the response tokens that count; needed for token scores only
        update: take the batch in; False uses the moments as they are
    """
    if use_score_scaling or use_score_norm:
        if update:
            moments.update(sample_totals(scores))
        if use_score_norm and mask is not None:
            last = last_counted(mask).unsqueeze(1)
            scores = scores.scatter(1, last, scores.gather(1, last) - moments.mean)
        elif use_score_norm:
            scores = scores - moments.mean
        scores = scores / (moments.std + torch.finfo(scores.dtype).eps)
    if score_clip is not None:
        scores = scores.clamp(-score_clip, score_clip)
    return scores


class TokenRewards(NamedTuple):
    """All [B, T]."""

    rewards: torch.Tensor
    non_score_rewards: torch.Tensor


def last_counted(mask: torch.Tensor) -> torch.Tensor:
    """Index of the last 1 in each row of `mask` [B, T] -> [B] int64; T - 1 if there is none."""
    return mask.shape[-1] - 1 - mask.flip(-1).to(torch.uint8).argmax(dim=-1)


def token_rewards(scores: torch.Tensor, kls: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> TokenRewards:
    """reward_t = -kl_coef * kl_t, plus the token's score; the score of a sample counts at its last counted token.

    Args:
        scores: one per sample [B], or one per token [B, T]
        kls: penalty per token [B, T], in nats
        mask: [B, T], at least one 1 in each row
        kl_coef: reward per nat
    """
    non_score_rewards = -kl_coef * kls
    scores = scores.to(kls.dtype)
    if scores.dim() == 1:
        scores = torch.zeros_like(kls).scatter(1, last_counted(mask).unsqueeze(1), scores.unsqueeze(1))
    return TokenRewards(non_score_rewards + scores, non_score_rewards)
