"""Common rewards.

A reward function here is called as `reward(texts, **columns)` and returns one float per text. `columns` are the other
columns of the batch: `responses` (ids [R_i]) and `masks` ([R_i], 1 where the model wrote the token) for rewards about
tokens, right answers for your own rewards. Every function gets all columns and uses those that it needs.
`TextEnvironment.run` calls its `reward_fn` in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from trl_step.data.collators import side_of_the_class
from trl_step.sampling.local import sampling_mode

RewardFunction = Callable[..., Sequence[float]]


@dataclass(frozen=True)
class MissingEosPenalty:
    """`-penalty` for a response without an end-of-sequence token, otherwise 0.

    Attributes:
        eos_token_ids: one id, or several, any of which counts.
        penalty: a positive number lowers the score.

    Raises:
        ValueError: no ids, or something else in their place; a penalty that is not a finite number.
    """

    eos_token_ids: int | Collection[int]
    penalty: float = 1.0

    def __post_init__(self) -> None:
        ids = self.eos_token_ids if isinstance(self.eos_token_ids, Collection) else [self.eos_token_ids]
        if not ids or not all(map(_is_token_id, ids)):
            raise ValueError(
                f"eos_token_ids={self.eos_token_ids!r} must be a token id or several, such as tokenizer.eos_token_id: "
                "MissingEosPenalty(eos_token_ids, penalty)"
            )
        _require_number("penalty", self.penalty)

    def __call__(
        self,
        texts: Sequence[str],
        *,
        responses: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One number per response; with `masks` only tokens that the model wrote are checked."""
        ends = set(self.eos_token_ids if isinstance(self.eos_token_ids, Collection) else [self.eos_token_ids])
        return [
            0.0 if not ends.isdisjoint(ids.tolist()) else -self.penalty for ids in _written(texts, responses, masks)
        ]


@dataclass(frozen=True)
class LengthPenalty:
    """`-per_token` for each response token beyond `free_tokens`, down to a total of `-most`.

    Attributes:
        per_token: a positive number lowers the score.
        free_tokens: tokens that cost nothing.
        most: the largest penalty; None for no limit.

    Raises:
        ValueError: one of them is not a finite number.
    """

    per_token: float
    free_tokens: int = 0
    most: float | None = None

    def __post_init__(self) -> None:
        for name in ("per_token", "free_tokens", *(("most",) if self.most is not None else ())):
            _require_number(name, getattr(self, name))

    def __call__(
        self,
        texts: Sequence[str],
        *,
        responses: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One number per response; with `masks` only tokens that the model wrote count."""
        penalties = [self.per_token * max(0, len(ids) - self.free_tokens) for ids in _written(texts, responses, masks)]
        return [-penalty if self.most is None else -min(penalty, self.most) for penalty in penalties]


class PipelineReward:
    """The score of one label from a `transformers` text-classification pipeline.

    Args:
        pipeline: a ready pipeline, such as `pipeline("sentiment-analysis", model=...)`.
        label: the label whose score is the reward; None is for pipelines with a single label.
        raw: use the logit, which is not squashed into 0..1; False uses the pipeline's own score.
        batch_size: texts per forward.
        options: further arguments of the pipeline's call, such as `truncation=True`.

    Raises:
        ValueError: `pipeline` cannot be called, for instance because it is the name of a model.
    """

    def __init__(
        self, pipeline: Any, label: str | None = None, raw: bool = True, batch_size: int = 16, **options: Any
    ) -> None:
        if not callable(pipeline):
            raise ValueError(
                f"pipeline={pipeline!r} must be a pipeline: transformers.pipeline('text-classification', model=...)"
            )
        self.pipeline = pipeline
        self.label = label
        self.options = {"top_k": None, "batch_size": batch_size, **options}
        if raw:
            self.options["function_to_apply"] = "none"

    def __call__(self, texts: Sequence[str], **columns: Any) -> list[float]:
        """One number per text.

        Raises:
            ValueError: the pipeline does not know the label, or knows several and `label` is None.
        """
        return [self._pick(result) for result in self.pipeline(list(texts), **self.options)]

    def _pick(self, result: Any) -> float:
        scores = {entry["label"]: entry["score"] for entry in ([result] if isinstance(result, Mapping) else result)}
        if self.label is None and len(scores) == 1:
            return float(next(iter(scores.values())))
        if self.label not in scores:
            raise ValueError(f"the pipeline knows the labels {sorted(scores)}, not {self.label!r}; set `label`")
        return float(scores[self.label])


class ClassifierReward:
    """The logit of one label from a sequence-classification model (a reward model has a single one).

    Args:
        model: returns `logits` [n, labels].
        tokenizer: of that model; it needs a padding token.
        label: index or name of the label; None takes the only one.
        batch_size: texts per forward pass. Texts are sorted by length first, and padded so that a reward does not
            depend on the other texts of its batch, even if the tokenizer pads on the left to generate.
        max_length: longer texts are cut to this many tokens; None cuts nothing.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        label: int | str | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError("the reward model's tokenizer has no padding token; set tokenizer.pad_token")
        self.model = model
        self.tokenizer = tokenizer
        self.label = _label_index(model.config, label)
        self.batch_size = batch_size
        self.max_length = max_length

    def __call__(self, texts: Sequence[str], **columns: Any) -> list[float]:
        """One number per text."""
        cut = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        encoded = [self.tokenizer(text, **cut) for text in texts]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]), reverse=True)
        rewards = [0.0] * len(encoded)
        device = next(self.model.parameters()).device
        with sampling_mode(self.model):
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                side = side_of_the_class(self.tokenizer)
                inputs = self.tokenizer.pad([encoded[i] for i in rows], padding_side=side, return_tensors="pt")
                logits = self.model(**inputs.to(device)).logits[:, self.label].float()
                for i, value in zip(rows, logits.tolist(), strict=True):
                    rewards[i] = value
        return rewards


class WeightedRewards:
    """The weighted sum of several reward functions, whose parts are kept for the log.

    ```python
    reward = WeightedRewards(kind=(sentiment, 1.0), short=(LengthPenalty(0.01), 0.5))
    scores = reward(texts, responses=responses)
    trainer.log_stats({**stats, **reward.stats()}, batch, scores)
    ```

    Args:
        functions: name = function, or name = (function, weight).

    Raises:
        ValueError: there are none, one cannot be called, or a weight is not a finite number.

    Attributes:
        parts: name -> the unweighted rewards of the last call.
    """

    def __init__(self, **functions: RewardFunction | tuple[RewardFunction, float]) -> None:
        if not functions:
            raise ValueError("WeightedRewards needs at least one function: WeightedRewards(name=(function, weight))")
        pairs = {name: value if isinstance(value, tuple) else (value, 1.0) for name, value in functions.items()}
        for name, (function, weight) in pairs.items():
            if not callable(function):
                raise ValueError(f"{name}={function!r} must be a function of texts, or (function, weight)")
            _require_number(f"the weight of {name}", weight)
        self.functions = {name: function for name, (function, _) in pairs.items()}
        self.weights = {name: float(weight) for name, (_, weight) in pairs.items()}
        self.parts: dict[str, list[float]] = {}

    def __call__(self, texts: Sequence[str], **columns: Any) -> list[float]:
        """One weighted sum per text.

        Raises:
            ValueError: a function returned the wrong number of rewards, or one that is not finite; the error names it.
        """
        parts = {}
        for name, function in self.functions.items():
            parts[name] = [float(reward) for reward in function(texts, **columns)]
            if len(parts[name]) != len(texts):
                raise ValueError(f"reward {name!r} returned {len(parts[name])} numbers for {len(texts)} texts")
            for i, reward in enumerate(parts[name]):
                if not math.isfinite(reward):
                    raise ValueError(f"reward {name!r} is {reward} for text {i}; rewards must be finite")
        self.parts = parts
        return [sum(self.weights[name] * part[i] for name, part in parts.items()) for i in range(len(texts))]

    def stats(self) -> dict[str, float]:
        """`reward/<name>/mean` and `reward/<name>/std` (population) of each part of the last call, unweighted."""
        found = {}
        for name, part in self.parts.items():
            values = torch.tensor(part, dtype=torch.float64)
            if len(values):
                found[f"reward/{name}/mean"] = values.mean().item()
                found[f"reward/{name}/std"] = values.std(correction=0).item()
        return found


def _is_token_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _require_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number")


def _written(
    texts: Sequence[str], responses: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None
) -> list[torch.Tensor]:
    """The ids of each response that the model wrote."""
    if len(responses) != len(texts) or (masks is not None and len(masks) != len(texts)):
        given = f"{len(responses)} responses" + ("" if masks is None else f" and {len(masks)} masks")
        raise ValueError(f"{len(texts)} texts, but {given}; each text needs its own")
    if masks is None:
        return list(responses)
    return [ids[mask.bool()] for ids, mask in zip(responses, masks, strict=True)]


def _label_index(config: Any, label: int | str | None) -> int:
    if isinstance(label, str):
        if label not in config.label2id:
            raise ValueError(f"the model knows the labels {sorted(config.label2id)}, not {label!r}")
        return config.label2id[label]
    if label is None and config.num_labels != 1:
        raise ValueError(f"the model has {config.num_labels} labels; say which one is the reward")
    if label is not None and not 0 <= label < config.num_labels:
        raise ValueError(f"label {label} is not among the model's {config.num_labels}")
    return label or 0
