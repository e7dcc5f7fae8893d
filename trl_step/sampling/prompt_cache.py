"""A prompt that stands in several rows of a batch is read once, and rows that have ended leave the batch.

Both select rows of the model's cache, through the public arguments of transformers' `generate` (`past_key_values`,
`encoder_outputs`). Whether settings and model allow it is found out here.
In this file `n` is the number of rows, `W` their padded width and `P` the number of different prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from trl_step.models.inner_model import generation_arguments, is_peft_model, plain_model, pretrained_of
from trl_step.models.notices import warn_user
from trl_step.models.probes import ordinary_ids, probing
from trl_step.sampling.batches import Batch
from trl_step.sampling.options import Options
from trl_step.sampling.row_ends import BatchCriterion

LEAST_SHARED = 8
"""Columns of a prompt below which reading it again costs less than a pass of its own."""
RESUMABLE = frozenset(
    (
        "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
        "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "renormalize_logits",
        "remove_invalid_values", "max_length", "max_new_tokens", "min_length", "pad_token_id", "eos_token_id",
        "bos_token_id", "decoder_start_token_id", "tokenizer", "synced_gpus", "transformers_version",
    )
)  # fmt: skip
"""Settings whose effect on a row depends on its tokens alone: `generate` may stop, lose rows and go on."""
CACHED = RESUMABLE | {"min_new_tokens", "prefix_allowed_tokens_fn", "logits_processor", "begin_suppress_tokens"}
"""Settings with which `generate` may begin from a cache of the prompts."""
PROBE_LENGTH = 12

Generate = Callable[..., Any]


class Plan(NamedTuple):
    """Which of the two the settings allow."""

    shares: bool
    leaves: bool

    @classmethod
    def of(cls, model: Any, options: Options) -> Plan:
        """That of a model with these settings, whatever its cache."""
        outer = pretrained_of(model)
        base = plain_model(outer)
        # a `generate` of a script's own is called once for the whole batch
        replaced = any("generate" in vars(part) for part in (model, outer, base))
        if replaced or getattr(type(base), "generate", None) is not GenerationMixin.generate or _learns_prompt(outer):
            return cls(False, False)
        settings: dict[str, Any] = {}
        for config in (base.generation_config, options.config):
            settings |= {} if config is None else config.to_diff_dict()
        settings |= options.arguments
        if settings.pop("use_cache", True) is False:
            return cls(False, False)
        changed = {name for name, value in settings.items() if value is not None and value is not False}
        changed = {name for name in changed if not name.startswith("_")}
        ours = all(isinstance(criterion, BatchCriterion) for criterion in options.criteria)
        return cls(changed <= CACHED, changed <= RESUMABLE and ours)


def _learns_prompt(model: Any) -> bool:
    """Whether an adapter puts tokens or a cache of its own before the prompt."""
    return is_peft_model(model) and any(config.is_prompt_learning for config in model.peft_config.values())


def read_once(
    generate: Generate, base: Any, batch: Batch, owners: Sequence[int], pad_token_id: int
) -> dict[str, Any] | None:
    """What `generate` takes in addition, so that it reads no prompt twice; None: the prompts are too short for that.

    Args:
        generate: the model's.
        base: the transformers model.
        batch: the padded prompts, n rows.
        owners: for each row the number of its prompt, 0 to P - 1; new numbers come in order.
        pad_token_id: filler of the batch.
    """
    where = torch.tensor(owners, device=batch.input_ids.device)
    first = torch.tensor([owners.index(i) for i in range(max(owners) + 1)], device=where.device)
    input_ids, mask = batch.input_ids[first], batch.attention_mask[first]
    if base.config.is_encoder_decoder:
        hidden = base.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden[where])}
    # the last token of each prompt is left to `generate`; one more must be there for the cache
    if batch.prompt_width < LEAST_SHARED or max(batch.starts) > batch.prompt_width - 2:
        return None
    cache = _cache(generate, base, input_ids[:, :-1], mask[:, :-1], pad_token_id)
    cache.batch_select_indices(where)
    return {"past_key_values": cache}


def _cache(generate: Generate, base: Any, input_ids: torch.Tensor, mask: torch.Tensor, pad_token_id: int) -> Any:
    """Keys and values of [n, W] ids, with the positions and the mask that `generate` gives them."""
    settings = GenerationConfig(
        max_new_tokens=1, do_sample=False, use_cache=True, return_dict_in_generate=True, pad_token_id=pad_token_id
    )
    arguments = generation_arguments(base, {"generation_config": settings})
    return generate(input_ids=input_ids, attention_mask=mask, **arguments).past_key_values


def inputs_of(
    is_encoder_decoder: bool, given: Mapping[str, Any], sequences: torch.Tensor, cache: Any, places: torch.Tensor
) -> dict[str, Any]:
    """What `generate` is given to go on with the rows at `places`, from what it was `given` before and what it made.

    Args:
        sequences: int64 [n, W + new] that it returned, for an encoder-decoder model the decoder's
        cache: as it returned it, without the last token
        places: int64 [m]
    """
    cache.batch_select_indices(places)
    mask, sequences = given["attention_mask"][places], sequences[places]
    if is_encoder_decoder:
        hidden = given["encoder_outputs"].last_hidden_state[places]
        return {
            "attention_mask": mask,
            "encoder_outputs": BaseModelOutput(last_hidden_state=hidden),
            "decoder_input_ids": sequences,
            "decoder_attention_mask": torch.ones_like(sequences),
            "past_key_values": cache,
        }
    new = sequences.shape[1] - mask.shape[1]
    mask = torch.cat((mask, mask.new_ones(len(places), new)), dim=1)
    return {"input_ids": sequences, "attention_mask": mask, "past_key_values": cache}


# --- which models can ------------------------------------------------------------------------------------------

_SELECTABLE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Answers of `selectable`, by transformers model."""
_TOLD: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Models of which `tell_if_not_selectable` has told."""


def selectable(base: nn.Module) -> bool:
    """Whether the rows of the model's cache can be repeated and left out, up to rounding.

    Asked once for each model, with a few new tokens for three prompts. Models with a recurrent state (Mamba, RWKV)
    cannot.
    """
    if base not in _SELECTABLE:
        try:
            with probing(base):
                _SELECTABLE[base] = _is_selectable(base)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError):
            _SELECTABLE[base] = False
    return _SELECTABLE[base]


def _is_selectable(base: Any) -> bool:
    """Two new tokens for the rows a, a, b, then one more for a, b: once as they are, once through the cache."""
    *ids, written = ordinary_ids(base, 2 * PROBE_LENGTH + 1).split((PROBE_LENGTH, PROBE_LENGTH, 1))
    owners, filler = [0, 0, 1], int(ids[0][0])
    rows = torch.stack([ids[i] for i in owners])
    batch = Batch(rows, torch.ones_like(rows), [0] * len(rows), 1 if base.config.is_encoder_decoder else rows.shape[1])

    def generate(**arguments: Any) -> Any:
        return type(base).generate(base, **arguments)  # the class's own: a script may have put another on the object

    def write(count: int, given: Mapping[str, Any]) -> Any:
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=count, min_new_tokens=count, output_logits=True, use_cache=True,
            return_dict_in_generate=True, pad_token_id=filler,
        )  # fmt: skip
        arguments = generation_arguments(base, {"generation_config": settings})
        return generate(**given, **arguments, prefix_allowed_tokens_fn=lambda _row, _ids: written.tolist())

    plain = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    expected = torch.stack(write(3, plain).logits, dim=1).float()
    given = plain | (read_once(generate, base, batch, owners, filler) or {})
    begun = write(2, given)
    places = torch.tensor([0, 2], device=rows.device)
    given = inputs_of(base.config.is_encoder_decoder, given, begun.sequences, begun.past_key_values, places)
    last = write(1, given)
    limit = math.sqrt(torch.finfo(base.dtype).eps) * float(expected.abs().max())
    pairs = (torch.stack(begun.logits, dim=1), expected[:, :2]), (last.logits[0], expected[places, 2])
    return all(float((found.float() - right).abs().max()) <= limit for found, right in pairs)


def tell_if_not_selectable(base: nn.Module) -> None:
    """Say, once for each model, if its cache does not let a prompt be read once for all of its answers."""
    if base not in _TOLD and not selectable(base):
        _TOLD[base] = True
        warn_user(
            f"{type(base).__name__} keeps no cache whose rows can be repeated: a prompt is read once for each of its "
            "answers"
        )
