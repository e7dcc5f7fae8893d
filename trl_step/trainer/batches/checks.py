"""What a user hands to the trainer and to `step`: checked before anything else happens, and placed on the device.

Every message names the list and the index of the sample. The checks read each list once and touch neither the model
nor any random stream.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_step.core import is_list
from trl_step.import_utils import is_hub_dataset
from trl_step.models import SUPPORTED_ARCHITECTURES
from trl_step.models.inner_model import is_peft_model, vocabulary_size
from trl_step.models.modeling_language import PlainPolicy
from trl_step.trainer.batches.lengths import LengthLimits
from trl_step.trainer.batches.rollout import Precomputed
from trl_step.trainer.batches.scores import (
    Scores,
    ScoresGiven,
    after_decoder_start,
    check_advantages,
    check_numbers,
    check_scores,
)
from trl_step.trainer.ppo_config import PPOConfig


def check_arguments(
    config: Any, model: Any, ref_model: Any, tokenizer: Any, dataset: Any, lr_scheduler: Any, value_model: Any = None
) -> tuple[Any, Any, Any]:
    """`config`, and policy and reference with a wrapper around them, or a `ValueError` that names the first argument of
    a trainer that has the wrong type or does not go with the others."""
    supported = " or ".join(architecture.__name__ for architecture in SUPPORTED_ARCHITECTURES)
    if not isinstance(config, PPOConfig):
        raise ValueError(f"config must be a PPOConfig, got {type(config).__name__}")
    plain = _is_language_model(model)
    if not isinstance(model, (*SUPPORTED_ARCHITECTURES, PlainPolicy)) and not plain:
        raise ValueError(f"model must be an {supported}, got {type(model).__name__}")
    if (plain or isinstance(model, PlainPolicy)) and config.needs_values and value_model is None:
        raise ValueError(
            f'model must be an {supported}, got {type(model).__name__}: advantage_estimator="gae" needs values. Wrap '
            "the model, pass a value_model, or choose an estimator without values, such as advantage_estimator="
            '"grpo"'
        )
    if value_model is not None and not config.needs_values:
        raise ValueError(
            f'value_model is given, but advantage_estimator="{config.advantage_estimator}" needs no values; leave '
            "value_model out"
        )
    if value_model is not None and config.exact_v07:
        raise ValueError("value_model with exact_v07=True: release 0.7 has no separate critic; leave one of them out")
    plain_reference = _is_language_model(ref_model)
    known = (*SUPPORTED_ARCHITECTURES, PlainPolicy, type(None))
    if not isinstance(ref_model, known) and not plain_reference:
        raise ValueError(f"ref_model must be None or an {supported}, got {type(ref_model).__name__}")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}")
    if dataset is not None and not (isinstance(dataset, torch.utils.data.Dataset) or is_hub_dataset(dataset)):
        raise ValueError(f"dataset must be a torch or datasets Dataset, got {type(dataset).__name__}")
    if lr_scheduler is not None and not isinstance(lr_scheduler, torch.optim.lr_scheduler.LRScheduler):
        raise ValueError(f"lr_scheduler must be a torch.optim.lr_scheduler, got {type(lr_scheduler).__name__}")
    return config, PlainPolicy(model) if plain else model, PlainPolicy(ref_model) if plain_reference else ref_model


def _is_language_model(model: Any) -> bool:
    """Whether it is a model of transformers, or a PeftModel around one."""
    return is_peft_model(model) or isinstance(model, PreTrainedModel)


def check_size(dataset: Any, batch_size: int, processes: int) -> None:
    """Raise a `ValueError` for a data set of which no whole batch for each process can be made."""
    needed = batch_size * processes
    try:
        rows = len(dataset)
    except TypeError:  # a stream
        return
    if rows < needed:
        per = f"batch_size={batch_size}" + (f" on each of {processes} processes" if processes > 1 else "")
        raise ValueError(
            f"dataset has {rows} rows, but {needed} make the first batch ({per}), so trainer.dataloader would be empty;"
            " lower batch_size or give more rows"
        )


class Vocabulary(NamedTuple):
    """Numbers of token ids that the models know."""

    policy: int
    reference: int | None = None
    """None: the policy's"""

    @classmethod
    def of(cls, policy: Any, reference: Any = None) -> Vocabulary:
        """Of value-head models."""
        other = None if reference is None else vocabulary_size(reference.pretrained_model)
        return cls(vocabulary_size(policy.pretrained_model) or 0, other)

    @property
    def size(self) -> int:
        """Ids that both know."""
        return self.policy if self.reference is None else min(self.policy, self.reference)


class StepInputs(NamedTuple):
    """What was given to `step`, in one form and on the device."""

    queries: list[torch.Tensor]
    """each [Q_i] int64"""
    responses: list[torch.Tensor]
    """each [R_i] int64"""
    scores: Scores
    response_masks: list[torch.Tensor] | None = None
    """each [R_i] int64"""
    precomputed: Precomputed = Precomputed()
    advantages: list[torch.Tensor] | None = None
    """each [R_i] float32, 0 where a token does not count"""
    baseline_scores: torch.Tensor | None = None
    """[B] float32"""
    group_ids: list[Hashable] | None = None
    """what tells groups of answers apart; None unless they were given"""
    truncated: list[bool] | None = None
    """whether each sample was cut off; None unless it was given"""


class Extras(NamedTuple):
    """What the caller of `step` gives for the algorithm, each with one entry per sample, as it was given."""

    group_ids: Any = None
    advantages: Any = None
    baseline_scores: Any = None
    truncated: Any = None


NO_EXTRAS = Extras()


def checked_for(
    queries: Sequence[torch.Tensor],
    responses: Sequence[torch.Tensor],
    scores: ScoresGiven,
    response_masks: Sequence[torch.Tensor] | None,
    precomputed: Precomputed,
    extras: Extras = NO_EXTRAS,
    *,
    vocabulary: Vocabulary,
    device: torch.device,
    limits: LengthLimits,
    is_encoder_decoder: bool,
    exact_v07: bool,
    decoder_start: int | None,
) -> StepInputs:
    """Inputs of `step` as the model takes them, or a `ValueError` that names the list and the sample.

    Args:
        vocabulary: of both models
        limits: of the lengths
        decoder_start: the id of a decoder's start token, if it has one
    """
    inputs = check_step_inputs(queries, responses, scores, response_masks, vocabulary, device)
    inputs = with_extras(inputs, extras)
    if is_encoder_decoder and exact_v07:
        check_after_first_token(inputs)
    elif is_encoder_decoder:
        inputs = with_decoder_start(inputs, decoder_start)
    limits.check(inputs.queries, inputs.responses)
    if any(tokens is not None for tokens in precomputed):
        given = 1 if is_encoder_decoder else 0  # the decoder's start token, which the model does not predict
        check_precomputed(precomputed, [len(response) - given for response in inputs.responses])
    return inputs._replace(precomputed=precomputed)


def check_step_inputs(
    queries: Sequence[torch.Tensor],
    responses: Sequence[torch.Tensor],
    scores: ScoresGiven,
    response_masks: Sequence[torch.Tensor] | None,
    vocabulary: Vocabulary,
    device: torch.device,
) -> StepInputs:
    """All inputs in one form, or a `ValueError` that names the list, the sample and what to do.

    Args:
        vocabulary: of both models
    """
    scores = _as_list(scores)
    lists = {"queries": queries, "responses": responses, "scores": scores}
    if response_masks is not None:
        lists["response_masks"] = response_masks
    _check_lists(lists)
    checked_queries = _token_lists("queries", queries, vocabulary, device)
    checked_responses = _token_lists("responses", responses, vocabulary, device)
    masks = None if response_masks is None else _masks(response_masks, checked_responses)
    return StepInputs(checked_queries, checked_responses, check_scores(list(scores), checked_responses, masks), masks)


def with_extras(inputs: StepInputs, extras: Extras) -> StepInputs:
    """The inputs with what is given for the algorithm, or a `ValueError` that names the list and the sample."""
    responses, masks = inputs.responses, inputs.response_masks
    extras = Extras(*map(_as_list, extras))
    for name, items in extras._asdict().items():
        if items is not None:
            _check_lists({"responses": responses, name: items})
    advantages = baseline_scores = group_ids = truncated = None
    if extras.advantages is not None:
        advantages = check_advantages(list(extras.advantages), responses, masks)
    if extras.baseline_scores is not None:
        baseline_scores = check_numbers("baseline_scores", list(extras.baseline_scores), responses[0].device)
    if extras.group_ids is not None:
        group_ids = [_group_id(i, given) for i, given in enumerate(extras.group_ids)]
    if extras.truncated is not None:
        truncated = [_flag("truncated", i, given) for i, given in enumerate(extras.truncated)]
    return inputs._replace(
        advantages=advantages, baseline_scores=baseline_scores, group_ids=group_ids, truncated=truncated
    )


def _flag(name: str, i: int, given: Any) -> bool:
    """True or False; a number or a one-element tensor may be 1 or 0."""
    try:
        number = float(given)
    except (TypeError, ValueError, RuntimeError):
        number = -1.0
    if number not in (0.0, 1.0):
        raise ValueError(f"{name}[{i}] must be True or False, got {given!r:.80}")
    return bool(number)


def _group_id(i: int, given: Any) -> Hashable:
    """One id; a tensor or array, which would be equal to nothing but itself, becomes the number or numbers in it."""
    try:
        if isinstance(given, (torch.Tensor, np.ndarray)):
            numbers = given.tolist()
            given = tuple(numbers) if isinstance(numbers, list) else numbers
        hash(given)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"group_ids[{i}] must be a number, a text, a tuple or anything else that is hashable, got "
            f"{type(given).__name__}"
        ) from error
    if isinstance(given, (float, complex)) and given != given:
        raise ValueError(f"group_ids[{i}] is {given}, which is equal to no other id")
    return given  # type: ignore[no-any-return]


def _as_list(items: Any) -> Any:
    """A vector of torch, NumPy, pandas, JAX and others as a list; anything else as it is."""
    if not isinstance(items, torch.Tensor) and not is_list(items) and hasattr(items, "__array__"):
        items = np.asarray(items)
    return list(items) if isinstance(items, (torch.Tensor, np.ndarray)) and items.ndim == 1 else items


def _check_lists(lists: dict[str, Any]) -> None:
    for name, items in lists.items():
        if not is_list(items):
            of_shape = f" of shape {tuple(items.shape)}" if isinstance(items, (torch.Tensor, np.ndarray)) else ""
            of_shape += "; use .squeeze(-1)" * of_shape.endswith(", 1)")
            raise ValueError(f"{name} must be a list with one entry per sample, got {type(items).__name__}{of_shape}")
    lengths = {name: len(items) for name, items in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {n}" for name, n in lengths.items())
        first = min(lengths.values())
        raise ValueError(
            f"the lists must have one entry per sample, but their lengths differ: {counts}; "
            f"sample {first} is the first that is missing in one of them"
        )
    if not min(lengths.values()):
        raise ValueError(
            "queries, responses and scores are empty; a step needs at least one sample (sample 0 is missing)"
        )


def _token_lists(name: str, items: Sequence[Any], vocabulary: Vocabulary, device: torch.device) -> list[torch.Tensor]:
    for i, item in enumerate(items):
        if not isinstance(item, torch.Tensor):
            raise ValueError(f"{name}[{i}] must be a tensor of token ids, got {type(item).__name__}")
        if item.dim() != 1:
            raise ValueError(
                f"{name}[{i}] must have one dimension (its tokens), got shape {tuple(item.shape)}; use .squeeze(0)"
            )
        if item.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise ValueError(f"{name}[{i}] must hold integer token ids, got {item.dtype}")
        if item.layout is not torch.strided or item.device.type == "meta":
            raise ValueError(f"{name}[{i}] must be a dense tensor with data, got {item.layout} on {item.device}")
        if len(item) == 0:
            raise ValueError(
                f"{name}[{i}] is empty; "
                + ("a query needs at least one token, for example BOS" if name == "queries" else "drop the sample")
            )
    tokens = [item.detach().to(device=device, dtype=torch.int64) for item in items]
    flat = torch.cat(tokens)
    size = vocabulary.size
    if bool(((flat < 0) | (flat >= size)).any()):
        i = next(i for i, ids in enumerate(tokens) if int(ids.min()) < 0 or int(ids.max()) >= size)
        bad = next(int(t) for t in tokens[i] if not 0 <= int(t) < size)
        of_reference = 0 <= bad < vocabulary.policy
        whose = "ref_model's" if of_reference else "model's"
        advice = "; load a ref_model with the policy's vocabulary, or resize its embeddings" if of_reference else ""
        last = (size if of_reference else vocabulary.policy) - 1
        raise ValueError(f"{name}[{i}] contains token id {bad}, outside the {whose} vocabulary 0..{last}{advice}")
    return tokens


def _masks(masks: Sequence[Any], responses: list[torch.Tensor]) -> list[torch.Tensor]:
    checked = []
    for i, (mask, response) in enumerate(zip(masks, responses, strict=True)):
        if not isinstance(mask, torch.Tensor):
            raise ValueError(f"response_masks[{i}] must be a tensor, got {type(mask).__name__}")
        if mask.shape != response.shape:
            raise ValueError(
                f"response_masks[{i}] has shape {tuple(mask.shape)}, but responses[{i}] has {tuple(response.shape)}; "
                "a mask has one entry per response token"
            )
        if mask.is_complex() or mask.layout is not torch.strided or mask.device.type == "meta":
            raise ValueError(
                f"response_masks[{i}] must be a dense tensor of 0 and 1, got {mask.dtype} on {mask.device}"
            )
        mask = mask.detach().to(response.device)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"response_masks[{i}] must hold only 0 and 1")
        if not bool(mask.any()):
            raise ValueError(f"response_masks[{i}] masks every token of its response; drop the sample")
        checked.append(mask.to(torch.int64))
    return checked


def check_precomputed(precomputed: Precomputed, counts: Sequence[int]) -> None:
    """Raise a `ValueError` unless each list that is given has one floating-point tensor per sample, of `counts[i]`."""
    for field, items in precomputed._asdict().items():
        name = "values" if field == "old_values" else field
        if items is None:
            continue
        _check_lists({"responses": [None] * len(counts), name: items})
        for i, (item, count) in enumerate(zip(items, counts, strict=True)):
            if not isinstance(item, torch.Tensor) or not item.is_floating_point():
                kind = item.dtype if isinstance(item, torch.Tensor) else type(item).__name__
                raise ValueError(f"{name}[{i}] must be a floating-point tensor, got {kind}")
            if item.layout is not torch.strided or item.device.type == "meta":
                raise ValueError(f"{name}[{i}] must be a dense tensor with data, got {item.layout} on {item.device}")
            if item.shape != (count,):
                raise ValueError(
                    f"{name}[{i}] has shape {tuple(item.shape)}, but the model predicts {count} tokens of "
                    f"responses[{i}]; give one number for each"
                )


def with_decoder_start(inputs: StepInputs, start: int | None) -> StepInputs:
    """Encoder-decoder responses that begin with the decoder's start token, which is neither generated nor counted.

    Raises:
        ValueError: nothing that counts follows it, or it has a score.
    """
    responses = list(inputs.responses)
    masks = None if inputs.response_masks is None else list(inputs.response_masks)
    for i, response in enumerate(responses):
        if start is not None and int(response[0]) != start:
            responses[i] = torch.cat((response.new_tensor([start]), response))
            if masks is not None:
                masks[i] = torch.cat((masks[i].new_zeros(1), masks[i]))
        if len(responses[i]) < 2:
            raise ValueError(f"responses[{i}] holds the decoder start token and nothing else; drop the sample")
        if masks is not None and not bool(masks[i][1:].any()):
            raise ValueError(f"response_masks[{i}] masks every generated token of its response; drop the sample")
    scores, advantages = inputs.scores, inputs.advantages
    if isinstance(scores, list):
        scores = [after_decoder_start(i, vector, len(responses[i])) for i, vector in enumerate(scores)]
    if advantages is not None:
        added = [len(response) - len(own) for response, own in zip(responses, advantages, strict=True)]
        advantages = [torch.cat((own.new_zeros(n), own)) for n, own in zip(added, advantages, strict=True)]
    return inputs._replace(responses=responses, scores=scores, advantages=advantages, response_masks=masks)


def check_after_first_token(inputs: StepInputs) -> None:
    """Raise a `ValueError` for token scores, and for a decoder's response of which release 0.7 would count nothing."""
    if isinstance(inputs.scores, list):
        raise ValueError(
            "scores[0]: with exact_v07 an encoder-decoder model takes one number per sample; release 0.7 counts other "
            "tokens than the masks say, so a score per token cannot be placed"
        )
    for i, response in enumerate(inputs.responses):
        counted = torch.ones_like(response) if inputs.response_masks is None else inputs.response_masks[i]
        if not bool(counted[1:-1].any()):
            raise ValueError(
                f"responses[{i}]: with exact_v07 the decoder start and the token after it do not count, and nothing "
                "else of it does; drop the sample"
            )
