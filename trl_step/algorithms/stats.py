"""The one table of every logged key, and the functions that compute and reduce them.

`STATS` is what docs/logging.md prints and what the tests compare a step's output with. A mean over mini-batches counts
each of them once. `m` is the response mask, sums run over counted tokens unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from trl_step.core import ReduceSum, count_mean_squares, in_float64, keep

Reduction = Literal["samples", "tokens", "variance", "same", "local", "sum"]
"""How a value is joined over processes: a mean over all samples, a mean over all tokens, the variance of all tokens,
equal everywhere by construction, left as it is on each process, or a sum."""


class Stat(NamedTuple):
    """One logged key: what it is, in symbols; its shape; how processes are joined; when it is there."""

    key: str
    formula: str
    shape: str = "scalar"
    reduction: Reduction = "same"
    when: str = ""
    """settings or inputs with which the key is there; always, if it is empty"""


WITH_VALUES = "values"
WITH_GROUPS = "`grpo`, `rloo`"
WITH_SAMPLING = "`sampling_logprobs`"


STATS: tuple[Stat, ...] = (
    Stat("objective/kl", "mean over samples of Σ_t kl_t, with kl_t the penalty of `kl_penalty`", reduction="samples"),
    Stat("objective/kl_dist", "Σ_t kl_t of each sample", "[B]", "local"),
    Stat("objective/logprobs", "old log-probs of the response tokens, 0 elsewhere", "[B, T]", "local"),
    Stat("objective/ref_logprobs", "the reference's log-probs of the same tokens", "[B, T]", "local"),
    Stat("objective/kl_coef", "β, the KL coefficient that this step used"),
    Stat("objective/entropy", "mean over samples of Σ_t -old_logprob_t", reduction="samples"),
    Stat("objective/token_surprise",
         "mean over tokens of -old_logprob; near `ppo/policy/entropy` if the policy itself sampled",
         reduction="tokens"),
    Stat("ppo/mean_non_score_reward", "mean over tokens of -β kl_t", reduction="tokens"),
    Stat("ppo/mean_scores", "mean of the scores after scaling, norm and clip (of token scores each sample's sum)",
         reduction="samples"),
    Stat("ppo/std_scores", "their unbiased standard deviation (0 for one sample)", reduction="samples"),
    Stat("ppo/loss/policy",
         "mean of max(-A r, -A clip(r, 1 ± cliprange)), r = exp(logprob - old_logprob), or of another `policy_loss`; "
         "times the importance weights, if there are any", reduction="tokens"),
    Stat("ppo/loss/value", "mean of max((v - R)², (clip(v, v_old ± cliprange_value) - R)²) / 2", reduction="tokens",
         when=WITH_VALUES),
    Stat("ppo/loss/kl", "mean of the KL penalty of logprob and ref_logprob", reduction="tokens",
         when='`kl_in="loss"`'),
    Stat("ppo/loss/positive_nll", "mean of -logprob over the samples with a score above 0", reduction="tokens",
         when="`positive_nll_coef`"),
    Stat("ppo/loss/total",
         "policy + vf_coef · value; with their settings + β kl - entropy_coef · entropy + positive_nll_coef · "
         "positive_nll", reduction="tokens"),
    Stat("ppo/policy/entropy", "mean entropy of the policy's distribution over the vocabulary, nats",
         reduction="tokens"),
    Stat("ppo/policy/approxkl", "mean of (logprob - old_logprob)² / 2", reduction="tokens"),
    Stat("ppo/policy/policykl", "mean of old_logprob - logprob; early stopping looks at it", reduction="tokens"),
    Stat("ppo/policy/clipfrac", "share of tokens where the policy clip decided", reduction="tokens",
         when="a `policy_loss` that clips"),
    Stat("ppo/policy/advantages", "whitened advantages of every mini-batch, -1 as filler", "[n]", "local"),
    Stat("ppo/policy/advantages_mean", "mean whitened advantage", reduction="tokens"),
    Stat("ppo/policy/ratio", "r of every mini-batch, -1 as filler", "[n]", "local"),
    Stat("ppo/policy/ratio_mean", "mean r of a mini-batch's tokens", reduction="tokens"),
    Stat("ppo/policy/ratio_var", "unbiased variance of that mean over the step's mini-batches; 0 if there is one",
         reduction="tokens"),
    Stat("ppo/policy/ratio_error", "mean of |r - 1| in the first mini-batch, before any update: 0 but for rounding",
         reduction="tokens"),
    Stat("ppo/policy/skipped", "mini-batches left out because their mean r exceeded `ratio_threshold`"),
    Stat("ppo/returns/mean", "mean return R = A + v_old (before whitening)", reduction="tokens", when=WITH_VALUES),
    Stat("ppo/returns/var", "unbiased variance of R", reduction="variance", when=WITH_VALUES),
    Stat("ppo/val/vpred", "mean value prediction v", reduction="tokens", when=WITH_VALUES),
    Stat("ppo/val/error", "mean of (v - R)²", reduction="tokens", when=WITH_VALUES),
    Stat("ppo/val/clipfrac", "share of tokens where the value clip decided", reduction="tokens", when=WITH_VALUES),
    Stat("ppo/val/mean", "mean of v_old", reduction="tokens", when=WITH_VALUES),
    Stat("ppo/val/var", "unbiased variance of v_old", reduction="variance", when=WITH_VALUES),
    Stat("ppo/val/var_explained", "1 - val/error / returns/var (0 if the returns do not vary)", when=WITH_VALUES),
    Stat("ppo/learning_rate", "learning rate that this step used"),
    Stat("ppo/group/count", "groups of answers to one prompt, on all processes", when=WITH_GROUPS),
    Stat("ppo/group/single", "groups of one answer, whose advantage is 0", when=WITH_GROUPS),
    Stat("ppo/group/flat", "groups of several answers with equal rewards, whose advantage is 0", when=WITH_GROUPS),
    Stat("ppo/sampling/kl", "mean over tokens of sampling_logprob - old_logprob", when=WITH_SAMPLING),
    Stat("ppo/sampling/ratio_max", "largest w = exp(old_logprob - sampling_logprob) of a token", when=WITH_SAMPLING),
    Stat("ppo/sampling/ess", "effective share of the n tokens, (Σ w)² / (n Σ w²)", when=WITH_SAMPLING),
    Stat("ppo/sampling/slope", "least-squares slope of sampling_logprob over old_logprob; another temperature moves it "
         "away from 1", when=WITH_SAMPLING),
    Stat("ppo/sampling/less_likely", "share of tokens with sampling_logprob < old_logprob - 0.001; 0 if the sampler "
         "gave log-probs after truncation", when=WITH_SAMPLING),
    Stat("tokens/queries_len_mean", "mean query length", reduction="samples"),
    Stat("tokens/queries_len_std", "its unbiased standard deviation", reduction="samples"),
    Stat("tokens/queries_dist", "query lengths", "[B]", "local"),
    Stat("tokens/responses_len_mean", "mean response length", reduction="samples"),
    Stat("tokens/responses_len_std", "its unbiased standard deviation", reduction="samples"),
    Stat("tokens/responses_dist", "response lengths", "[B]", "local"),
    Stat("tokens/responses_ended", "share of responses whose last token is an end-of-sequence token",
         reduction="samples"),
    Stat("time/ppo/forward_pass", "seconds: log-probs and values of policy and reference", reduction="local"),
    Stat("time/ppo/compute_rewards", "seconds: per-token rewards", reduction="local"),
    Stat("time/ppo/compute_advantages", "seconds: advantages and returns", reduction="local"),
    Stat("time/ppo/optimize_step", "seconds: all PPO epochs", reduction="local"),
    Stat("time/ppo/calc_stats", "seconds: these statistics", reduction="local"),
    Stat("time/ppo/total", "seconds: the whole step", reduction="local"),
)  # fmt: skip

LOGGED_BY_LOG_STATS: tuple[Stat, ...] = (
    Stat("env/reward_mean", "mean of the rewards given to `log_stats`", reduction="samples"),
    Stat("env/reward_std", "their unbiased standard deviation", reduction="samples"),
    Stat("env/reward_dist", "the rewards of all processes", "[all samples]"),
)

DDPO_STATS: tuple[Stat, ...] = (
    Stat("reward", "the rewards of the epoch", "[all samples]"),
    Stat("reward_mean", "their mean", reduction="samples"),
    Stat("reward_std", "their standard deviation, over n", reduction="samples"),
    Stat("loss", "mean of max(-A r, -A clip(r, 1 ± train_clip_range)), r = exp(log_prob - log_prob then), A clipped to "
         "± train_adv_clip_max, over the denoising steps of an update", reduction="samples"),
    Stat("approx_kl", "mean of (log_prob - log_prob then)² / 2", reduction="samples"),
    Stat("clipfrac", "share of denoising steps with |r - 1| > train_clip_range", reduction="samples"),
    Stat("epoch", "number of the epoch, from 0"),
    Stat("inner_epoch", "number of the pass over its samples, from 0"),
)  # fmt: skip
"""What `DDPOTrainer` logs: the rewards once an epoch, the rest at every update."""

PER_TOKEN = ("objective/logprobs", "objective/ref_logprobs", "ppo/policy/advantages", "ppo/policy/ratio")
"""Keys with a value per token. `step` returns them as tensors; they are logged on request only."""
LOGGED_ARRAYS = frozenset(stat.key for stat in STATS if stat.shape != "scalar")
"""Keys that are no scalars, even for a single sample."""


def explain(key: str) -> str:
    """What a logged key is, with its formula.

    Raises:
        KeyError: nothing of that name is logged.
    """
    return {stat.key: stat.formula for stat in (*STATS, *LOGGED_BY_LOG_STATS)}[key]


VARIANCES = {"returns/var": "returns/mean", "val/var": "val/mean"}
"""Training statistics that are variances of tokens, and the mean that belongs to each."""
ARRAYS = ("policy/advantages", "policy/ratio")
"""Training statistics with a value per token."""


def join_minibatch_statistics(
    stacked: dict[str, torch.Tensor],
    tokens: torch.Tensor,
    reduce_sum: ReduceSum,
    loss_shares: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The statistics of each mini-batch as if all processes' shares of it had been one.

    Args:
        stacked: each [M, 1], one row per mini-batch; means over this process's tokens, and variances of them.
        tokens: counted tokens of this process in each mini-batch [M].
        reduce_sum: adds over processes; it is called once.
        loss_shares: how many the losses are means over in each mini-batch [M]; None: those tokens.
    """
    names = [name for name in stacked if name not in ARRAYS]
    n = in_float64(tokens)
    shares = n if loss_shares is None else in_float64(loss_shares)
    sums = {}
    for name in names:
        value = in_float64(stacked[name].flatten())
        if name in VARIANCES:  # sum of squares from unbiased variance and mean
            value = value * (n - 1).clamp(min=0) + n * in_float64(stacked[VARIANCES[name]].flatten()) ** 2
        else:
            value = value * (shares if name.startswith("loss/") else n)
        sums[name] = value
    packed = reduce_sum(torch.stack([n, shares, *sums.values()]))
    n, shares, joined = packed[0], packed[1], dict(zip(names, packed[2:], strict=True))
    means = {name: value / (shares if name.startswith("loss/") else n).clamp(min=1) for name, value in joined.items()}
    for name, mean_name in VARIANCES.items():
        if name in joined:
            means[name] = (joined[name] - n * means[mean_name] ** 2).clamp(min=0) / (n - 1).clamp(min=1)
    return {**stacked, **{name: value.float().unsqueeze(1) for name, value in means.items()}}


def training_statistics(stacked: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything in `STATS` that comes from the mini-batches, each [1], or [n] for what has a value per token.

    Args:
        stacked: [M, 1], one row per mini-batch; what has a value per token [1, n]
    """
    stats = {f"ppo/{key}": value.float().mean(dim=0) for key, value in stacked.items()}
    means = stacked.get("policy/ratio_mean")
    if means is not None:
        stats["ppo/policy/ratio_var"] = means.float().var(dim=0) if len(means) > 1 else torch.zeros_like(means[0])
    if "ppo/val/error" in stats:
        error, variance = stats["ppo/val/error"], stats["ppo/returns/var"]
        # differs from v0.7: it was NaN or infinite if the returns do not vary
        stats["ppo/val/var_explained"] = torch.where(variance > 0, 1 - error / variance, torch.zeros_like(error))
    return stats


def readable(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars as floats, small arrays as NumPy; what holds a value per token stays a tensor until it is read."""
    found: dict[str, Any] = {}
    for key, value in stats.items():
        if isinstance(value, torch.Tensor):
            value = value.detach()
            if key not in PER_TOKEN:
                value = value.cpu().float().numpy() if value.dtype == torch.bfloat16 else value.cpu().numpy()
                # an array of one sample is an array still
                value = value.item() if value.shape in ((), (1,)) and key not in LOGGED_ARRAYS else value
        found[key] = float(value) if isinstance(value, (int, float, np.number)) else value
    return found


def mean_and_std(values: torch.Tensor, reduce_sum: ReduceSum = keep) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased standard deviation over all processes; the deviation of a single number is 0.

    Args:
        values: [B], any real dtype -> two 0-d float32 tensors
        reduce_sum: adds over processes; it is called twice
    """
    count, mean, squares = count_mean_squares(in_float64(values), reduce_sum=reduce_sum)
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    return mean.float().to(values.device), deviation.float().to(values.device)


def rollout_statistics(
    *,
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    non_score_reward: torch.Tensor,
    kls: torch.Tensor,
    masks: torch.Tensor,
    queries: Sequence[torch.Tensor],
    responses: Sequence[torch.Tensor],
    kl_coef: float,
    end_tokens: Collection[int] = (),
    reduce_sum: ReduceSum = keep,
) -> dict[str, Any]:
    """Everything in `STATS` that is known before the first update.

    Args:
        scores: [B]
        logprobs, ref_logprobs, non_score_reward, kls, masks: [B, T]
        queries, responses: token ids, each [Q_i] and [R_i]
        kl_coef: the coefficient that the step used
        end_tokens: ids that end a response
    """
    kl_list = (kls * masks).sum(dim=-1)
    surprises = (-logprobs * masks).sum(dim=-1)
    mean_scores, std_scores = mean_and_std(scores, reduce_sum)
    penalty, surprise, tokens = reduce_sum(
        torch.stack(((non_score_reward * masks).sum(), surprises.sum(), masks.sum().to(surprises.dtype)))
    )
    ends = torch.stack([response[-1] for response in responses])
    ended = torch.isin(ends.long(), torch.tensor(sorted(end_tokens), dtype=torch.int64, device=ends.device))
    stats = {
        "objective/kl": mean_and_std(kl_list, reduce_sum)[0],
        "objective/kl_dist": kl_list,
        "objective/logprobs": logprobs,
        "objective/ref_logprobs": ref_logprobs,
        "objective/kl_coef": kl_coef,
        "objective/entropy": mean_and_std(surprises, reduce_sum)[0],
        "objective/token_surprise": surprise / tokens,
        "ppo/mean_non_score_reward": penalty / tokens,
        "ppo/mean_scores": mean_scores,
        "ppo/std_scores": std_scores,
        "tokens/responses_ended": mean_and_std(ended, reduce_sum)[0],
    }
    for name, sequences in (("queries", queries), ("responses", responses)):
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.float32, device=masks.device)
        mean, std = mean_and_std(lengths, reduce_sum)
        stats |= {
            f"tokens/{name}_len_mean": mean,
            f"tokens/{name}_len_std": std,
            f"tokens/{name}_dist": lengths,
        }
    return stats
