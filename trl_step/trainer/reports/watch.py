"""What is known of the sampling of responses, and the warnings that follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trl_step.algorithms.diagnosis.checkup import Checkup
from trl_step.algorithms.diagnosis.findings import Circumstances
from trl_step.algorithms.diagnosis.of_responses import SAMPLING_SETTINGS
from trl_step.models.inner_model import pretrained_of, vocabulary_size
from trl_step.models.notices import warn_user
from trl_step.sampling.options import setting_in_force

DEFAULT_TOP_K = 50
"""transformers' own `top_k` if nobody sets one."""
PADDED_QUERIES = 0.75
"""Share of the queries: with so many that begin or end with the padding token, a batch was padded by hand."""
PADDED_RESPONSES = 0.25
"""Share of the responses that have padding after their end token; those cut by their length have none."""
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
WITHOUT_EFFECT = {
    "num_beams": 1,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
}
"""Settings that rule tokens out or make them rarer, and the value at which they leave the distribution alone."""


def truncated_sampling(model: Any, generation_kwargs: Mapping[str, Any], temperature: float) -> list[str]:
    """The settings under which tokens are drawn from another distribution than the one whose log-probs are trained."""
    if not setting_in_force(model, generation_kwargs, "do_sample"):
        return []
    vocabulary = vocabulary_size(pretrained_of(model))
    sampled_at, top_k = (setting_in_force(model, generation_kwargs, name) for name in ("temperature", "top_k"))
    sampled_at = 1.0 if sampled_at is None else sampled_at
    top_k = DEFAULT_TOP_K if top_k is None else top_k
    problems = []
    if sampled_at != temperature:
        problems.append(f"temperature={sampled_at:g} (PPOConfig.temperature is {temperature:g})")
    if top_k > 0 and (vocabulary is None or top_k < vocabulary):
        problems.append(f"top_k={top_k:g}")
    for name, neutral in WITHOUT_EFFECT.items():
        value = setting_in_force(model, generation_kwargs, name)
        if value is not None and value != neutral and value >= 0:  # old scripts switch min_length off with -1
            problems.append(f"{name}={value:g}")
    for name in ("bad_words_ids", "suppress_tokens"):
        if setting_in_force(model, generation_kwargs, name):
            problems.append(name)
    return problems


def not_sampled(model: Any, generation_kwargs: Mapping[str, Any]) -> list[str]:
    """The settings by which answers are the likeliest ones, and not samples."""
    if setting_in_force(model, generation_kwargs, "do_sample"):
        return []
    beams = setting_in_force(model, generation_kwargs, "num_beams")
    return ["do_sample=False", *([f"num_beams={beams}"] if beams is not None and beams > 1 else [])]


def padded_by_hand(
    queries: Sequence[torch.Tensor],
    responses: Sequence[torch.Tensor],
    pad: int,
    end_tokens: Sequence[int],
    is_special: bool,
) -> tuple[str, ...]:
    """Which lists seem to hold padding, as `Circumstances.padded` says it.

    Args:
        queries, responses: each [Q_i] and [R_i] int64
        pad: the padding id
        end_tokens: ids that end a response
        is_special: whether the padding id begins or ends texts as well; then one of them is no padding, but two are
    """
    # all at once: the host waits for a GPU once
    edges = torch.stack([ids[[0, min(1, len(ids) - 1), -min(2, len(ids)), -1]] for ids in (*queries, *responses)])
    count, rows = len(queries), edges.tolist()
    found = []
    for where, outer, inner in (("queries begin", 0, 1), ("queries end", 3, 2)):
        share = sum(row[outer] == pad for row in rows[:count]) / count
        twice = any(row[outer] == pad == row[inner] for row, ids in zip(rows, queries, strict=False) if len(ids) > 1)
        if share >= PADDED_QUERIES and (twice or not is_special):
            found.append(where)
    ends = {pad, *end_tokens}
    tails = [row for row, ids in zip(rows[count:], responses, strict=True) if len(ids) > 1]
    if sum(row[3] == pad and row[2] in ends for row in tails) >= PADDED_RESPONSES * len(responses):
        found.append("responses end")
    return tuple(found)


def repeats_query(queries: Sequence[torch.Tensor], responses: Sequence[torch.Tensor]) -> bool:
    """Whether at least `PADDED_QUERIES` of the responses go on after the whole of their query, of two tokens or more.

    Args:
        queries, responses: each [Q_i] and [R_i] int64
    """
    long = [(q, r) for q, r in zip(queries, responses, strict=True) if 1 < len(q) < len(r)]
    if len(long) < PADDED_QUERIES * len(queries):
        return False
    same = torch.stack([(r[: len(q)] == q).all() for q, r in long])
    return float(same.sum()) >= PADDED_QUERIES * len(queries)


def fingerprint_of(queries: Sequence[torch.Tensor], responses: Sequence[torch.Tensor]) -> str:
    """A text that is the same for the same lists.

    Args:
        queries, responses: each [Q_i] and [R_i] int64
    """
    sequences = (*queries, *responses)
    lengths = torch.tensor([len(ids) for ids in sequences])
    numbers = torch.cat((lengths, torch.cat(sequences).cpu())).numpy()
    return hashlib.blake2b(numbers.tobytes(), digest_size=16).hexdigest()


class SamplingWatch:
    """What a trainer knows of the responses that reach its `step`, and what it says of them, once each.

    Args:
        temperature: of `PPOConfig`, under which log-probs are taken
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.checkup = Checkup()
        self._warned: set[str] = set()
        self._settings: tuple[str, ...] = ()
        self._sampled = False
        self._likeliest: tuple[str, ...] | None = None
        """why no answer since the last step was drawn; None: there was no call of `generate`"""
        self._updates_behind = 0

    def saw_generate(self, model: Any, generation_kwargs: Mapping[str, Any]) -> None:
        """Remember the settings of a call of `generate`; warn of those that change the distribution of samples."""
        self._sampled = True
        self._settings = tuple(truncated_sampling(model, generation_kwargs, self.temperature))
        likeliest = tuple(not_sampled(model, generation_kwargs))
        # greedy answers for an evaluation, beside the samples of this step, are fine
        self._likeliest = likeliest if self._likeliest is None or not likeliest else self._likeliest
        problems = [problem for problem in self._settings if problem not in self._warned]
        if problems:
            self._warned.update(problems)
            warn_user(
                f"responses are sampled with {', '.join(problems)}, but log-probs are those of the whole distribution "
                f"at temperature {self.temperature:g}: the KL estimate is biased and may turn negative. Sample with "
                "top_k=0, top_p=1.0, the temperature of PPOConfig, and nothing ruled out"
            )

    def saw_samples(self, version: int, latest: int) -> None:
        """Remember that weights of `version` drew responses, where the policy's was `latest`."""
        self._updates_behind = max(self._updates_behind, latest - version)

    def saw_step(self, stats: Mapping[str, Any], circumstances: Circumstances, aloud: bool) -> None:
        """Diagnose a step; if `aloud`, each finding warns."""
        seen = circumstances._replace(
            known=True,
            sampled_by_trainer=self._sampled,
            sampling_settings=self._settings if self._sampled else (),
            likeliest=self._likeliest or (),
            updates_behind=self._updates_behind,
        )
        self._sampled, self._likeliest, self._updates_behind = False, None, 0
        for diagnosis in self.checkup.look(stats, seen):
            if aloud and diagnosis.name != SAMPLING_SETTINGS:
                warn_user(str(diagnosis))


def active_dropout(model: nn.Module) -> float:
    """The highest rate of a dropout module that is in train mode; 0 if there is none."""
    rates = (module.p for module in model.modules() if isinstance(module, DROPOUT) and module.training)
    return max(rates, default=0.0)
