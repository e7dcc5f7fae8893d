"""One batch of prompts through the model's `generate`, without work that no answer needs.

In this file `n` is the number of rows, `W` their padded width and `R` the number of new tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, StoppingCriteriaList

from trl_step.models.inner_model import generation_arguments, plain_model, pretrained_of
from trl_step.sampling.batches import Batch
from trl_step.sampling.options import Options
from trl_step.sampling.prompt_cache import Plan, inputs_of, read_once, selectable
from trl_step.sampling.row_ends import RowEnds, TokenLogprobs


class Written(NamedTuple):
    """What `decode` returns."""

    starts: torch.Tensor
    """int64 [n, 1], the decoder's start tokens; [n, 0] without them"""
    new_tokens: torch.Tensor
    """int64 [n, R], with filler or further tokens after the end of a row"""
    stopped: torch.Tensor
    """int64 [n], new tokens of a row when a stopping criterion ended it; the largest int64 if none did"""
    logprobs: torch.Tensor | None
    """float32 [n, R] of the new tokens before any truncation; meaningless after the end of a row"""


def decode(
    model: Any,
    batch: Batch,
    limits: Sequence[int] | None,
    options: Options,
    *,
    pad_token_id: int,
    is_encoder_decoder: bool,
    owners: Sequence[int],
    plan: Plan,
    keeps_tail: bool = False,
    temperature: float | None = None,
) -> Written:
    """Sample one answer per row.

    Args:
        model: something with a `generate`.
        batch: padded prompts.
        limits: new tokens allowed for each row; None leaves it to the model.
        options: the caller's settings.
        pad_token_id: filler of the answers.
        is_encoder_decoder: of the model.
        owners: for each row the number of its prompt among the different ones; new numbers come in order.
        plan: which shortcuts the settings allow.
        keeps_tail: what the model writes after the end of a row is wanted.
        temperature: return log-probs at this temperature as well.
    """
    rows, width = len(batch.starts), batch.prompt_width
    base = plain_model(pretrained_of(model))
    shares = plan.shares and max(owners) + 1 < rows
    leaves = plan.leaves and not keeps_tail and limits is not None
    if (shares or leaves) and not selectable(base):
        shares = leaves = False
    recorder = None if temperature is None else TokenLogprobs(rows, temperature)
    ends = RowEnds(limits, rows, width, options.criteria, batch.input_ids.device, options.eos_ids, leaves, recorder)
    given: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if shares or (leaves and is_encoder_decoder):
        given |= read_once(model.generate, base, batch, owners, pad_token_id) or {}
    starts = written = batch.input_ids.new_zeros((rows, 0))
    with _seen_by(recorder, base), _masks_are_given(base):
        while len(ends.rows):
            arguments = _arguments(model, options, limits, ends, written.shape[1], pad_token_id, leaves)
            output = model.generate(**given, **arguments)
            sequences = getattr(output, "sequences", output)
            if sequences.shape[0] != len(ends.rows):
                raise ValueError(
                    f"generate returned {sequences.shape[0]} sequences for {len(ends.rows)} queries: a setting of the "
                    "model's own generation config asks for more than one; pass n= for several answers to a query"
                )
            if is_encoder_decoder and not written.shape[1]:
                starts = sequences[:, :width]
            grown = written.new_full((rows, sequences.shape[1] - width), pad_token_id)
            grown[:, : written.shape[1]] = written
            grown[ends.rows] = sequences[:, width:]
            written = grown
            if not leaves:
                break
            places = ends.leave()
            if len(places):
                given = inputs_of(is_encoder_decoder, given, sequences, output.past_key_values, places)
    table = None if recorder is None else recorder.table()[:, : written.shape[1]]
    return Written(starts, written, ends.stopped, table)


def _arguments(
    model: Any,
    options: Options,
    limits: Sequence[int] | None,
    ends: RowEnds,
    done: int,
    pad_token_id: int,
    leaves: bool,
) -> dict[str, Any]:
    """The settings of `generate` for the rows of `ends`, `done` new tokens after their prompt."""
    arguments = dict(options.arguments)
    settings: dict[str, Any] = {"pad_token_id": pad_token_id}
    if options.eos_for_model:
        settings["eos_token_id"] = options.eos_for_model
    if limits is not None:
        settings["max_new_tokens"] = max(limits[row] for row in ends.rows.tolist()) - done
    if leaves:
        settings["return_dict_in_generate"] = True
    if options.config is None:
        arguments.update(settings)
    else:
        arguments["generation_config"] = copy.deepcopy(options.config)
        arguments["generation_config"].update(**settings)
    if ends.acts:
        arguments["stopping_criteria"] = StoppingCriteriaList([ends])
    return generation_arguments(model, arguments) if isinstance(model, PreTrainedModel) else arguments


@contextmanager
def _seen_by(recorder: TokenLogprobs | None, base: Any) -> Iterator[None]:
    """Inside, `recorder` sees the logits of each pass."""
    if recorder is None:
        yield
        return
    handle = base.register_forward_hook(recorder)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _masks_are_given(base: Any) -> Iterator[None]:
    """Inside, transformers does not warn of a missing mask: `generate` itself leaves out one that is all ones, and then
    finds the filler after the end of a row."""
    parts = (
        [part for part in base.modules() if isinstance(part, PreTrainedModel)] if isinstance(base, nn.Module) else []
    )
    name = "warn_if_padding_and_no_attention_mask"
    parts = [part for part in parts if name not in vars(part)]  # those that are silent already stay so
    for part in parts:
        setattr(part, name, lambda *_inputs: None)
    try:
        yield
    finally:
        for part in parts:
            vars(part).pop(name, None)
