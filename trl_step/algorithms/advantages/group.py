"""Advantages from several answers to one prompt: no value head is needed.

Groups may have different sizes and lie in any order, as they go by numbers and never by layout. A group of one answer,
and one whose answers all have the same reward, say nothing about what was better: their advantage is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from trl_step.core import ReduceSum, count_mean_squares, in_float64, keep

STD_EPSILON = 1e-4
NORMALIZED_EPSILON = 1e-8
"""Added to the deviation that `normalized_advantages` divides by."""
FLAT = 1e-6
"""A group whose rewards differ by less, relative to the largest of them and to 1, has no variance: rounding of a KL
penalty must not become an advantage."""


class Groups(NamedTuple):
    """Groups of answers to one prompt. On several processes a group may lie on any of them."""

    everyone: torch.Tensor
    """int64 [all samples], number of each sample's group, process by process"""
    own: slice
    """the samples of this process among them"""

    def gather(self, values: torch.Tensor, reduce_sum: ReduceSum) -> torch.Tensor:
        """Values [B] of this process -> [all samples]; every process calls it."""
        whole = values.new_zeros(len(self.everyone))
        whole[self.own] = values
        return reduce_sum(whole)


class GroupStatistics(NamedTuple):
    """Of each sample's group, each [B]."""

    size: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    """unbiased (ddof 1); 0 for a group of one"""
    flat: torch.Tensor
    """bool: one answer alone, or no variance"""


def group_statistics(totals: torch.Tensor, groups: torch.Tensor) -> GroupStatistics:
    """Statistics of each sample's group.

    Args:
        totals: reward of each sample, [B]
        groups: number of its group, int64 [B], from 0
    """
    number = int(groups.max()) + 1 if len(groups) else 0

    def add(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(number).index_add(0, groups, values)

    size = add(torch.ones_like(totals))
    mean = add(totals) / size.clamp(min=1)
    centred = totals - mean[groups]
    farthest = totals.new_ones(number).scatter_reduce(0, groups, centred.abs(), "amax")  # its square may be no float
    squares = add((centred / farthest[groups]).square())
    std = farthest * (squares / (size - 1).clamp(min=1)).sqrt()
    highest = totals.new_full((number,), -torch.inf).scatter_reduce(0, groups, totals, "amax")
    lowest = totals.new_full((number,), torch.inf).scatter_reduce(0, groups, totals, "amin")
    largest = torch.maximum(highest.abs(), lowest.abs()).clamp(min=1)
    flat = (size < 2) | (highest - lowest <= FLAT * largest)
    return GroupStatistics(size[groups], mean[groups], std[groups], flat[groups])


def grpo_advantages(totals: torch.Tensor, groups: torch.Tensor, scale: str = "std") -> torch.Tensor:
    """A = (R - mean of the group) / (deviation + 1e-4), [B].

    Shao et al. 2024, https://arxiv.org/abs/2402.03300, eq. 3 and 4. Deviations are unbiased (ddof 1).

    Args:
        totals: reward R of each sample, [B]
        groups: number of its group, int64 [B]
        scale: the deviation: `std` of the group; `batch` of all samples; `none` divides by nothing (Liu et al. 2025,
            https://arxiv.org/abs/2503.20783)
    """
    found = group_statistics(totals, groups)
    centred = totals - found.mean
    if scale == "std":
        centred = centred / (found.std + STD_EPSILON)
    elif scale == "batch":
        everyone = totals.std() if len(totals) > 1 else torch.zeros_like(totals[0])
        centred = centred / (everyone + STD_EPSILON)
    return centred.masked_fill(found.flat, 0.0)


def rloo_advantages(totals: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """A = R - mean reward of the other answers of the group, [B].

    Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740.

    Args:
        totals: reward R of each sample, [B]
        groups: number of its group, int64 [B]
    """
    found = group_statistics(totals, groups)
    # R - (n mean - R) / (n - 1)
    leave_one_out = (totals - found.mean) * (found.size / (found.size - 1).clamp(min=1))
    return leave_one_out.masked_fill(found.flat, 0.0)


def normalized_advantages(advantages: torch.Tensor, mask: torch.Tensor, reduce_sum: ReduceSum = keep) -> torch.Tensor:
    """(A - mean) / (unbiased std + 1e-8) over samples, where each has one advantage for all of its tokens: [B, T].

    Args:
        advantages: [B, T], the same for all counted tokens of a sample and 0 elsewhere
        mask: [B, T]
        reduce_sum: spans the processes over which mean and deviation are taken
    """
    of_samples = (advantages * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    count, mean, squares = count_mean_squares(in_float64(of_samples), reduce_sum=reduce_sum)
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    return (advantages - mean.to(advantages)) / (deviation.to(advantages) + NORMALIZED_EPSILON) * mask


def group_counts(totals: torch.Tensor, groups: torch.Tensor) -> dict[str, float]:
    """How many groups there are, how many have one answer, and how many have several but no variance.

    Args:
        totals: reward of each sample, [B]
        groups: number of its group, int64 [B]
    """
    found = group_statistics(totals, groups)
    share = 1 / found.size  # of each sample in its group
    alone = found.size < 2
    return {
        "group/count": round(float(share.sum())),
        "group/single": round(float(share[alone].sum())),
        "group/flat": round(float(share[found.flat & ~alone].sum())),
    }
