"""One forward pass of a language model that keeps what training needs, and nothing else.

It keeps the hidden states after the decoder's last layer, and the logits of chosen positions. Hooks take both from the
running model, so that everything its own code does around them (biases, scales, soft caps, dropout) still applies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from trl_step.models.inner_model import decoder_backbone, head_in_decoder, output_embedding, plain_model

HeadFunction = Callable[[torch.Tensor, nn.Module], Any]
"""(hidden rows [N, D] as they enter the output embedding, the output embedding) -> anything"""


class DecoderPass(NamedTuple):
    """The result; with `rows`, one dimension N = number of chosen rows replaces the first two [B, S]."""

    logits: Any
    """[B, S, V] or [N, V]; with a `head`, what that returned"""
    hidden: torch.Tensor
    """[B, S, D] or [N, D], after the decoder's last layer and final norm"""
    loss: torch.Tensor | None
    past_key_values: Any


def run_decoder(
    model: nn.Module,
    inputs: Mapping[str, Any],
    rows: torch.Tensor | None = None,
    head: HeadFunction | None = None,
) -> DecoderPass:
    """Run `model` once.

    Args:
        model: a transformers model with a language model head, or a PeftModel around one.
        inputs: arguments of its forward.
        rows: the positions whose logits and hidden states are needed: bool [B, S] over the decoder's positions, or
            int64 [N], positions in the flattened [B, S], which do not require waiting for a GPU; None for all.
        head: computes a replacement for the logits from the N chosen rows; the model's own head then gets no rows.

    Raises:
        ValueError: `head` without `rows`; `rows` have a wrong shape or dtype, or are combined with `labels`.
    """
    if rows is None:
        if head is not None:
            raise ValueError("head= needs rows=: it is called with the chosen hidden rows")
        return _run_all_rows(model, inputs)
    if (rows.dtype, rows.dim()) not in ((torch.bool, 2), (torch.int64, 1)):
        raise ValueError(f"rows must be bool [B, S] or int64 [N], not {rows.dtype} of shape {tuple(rows.shape)}")
    if inputs.get("labels") is not None:
        raise ValueError("labels= and rows= cannot be combined: the loss would be that of the chosen rows alone")
    return _run_chosen_rows(model, inputs, rows, head)


def _run_all_rows(model: nn.Module, inputs: Mapping[str, Any]) -> DecoderPass:
    with _last_hidden_state(model, inputs) as (arguments, hidden_of):
        output = model(**arguments)
    return DecoderPass(output.logits, hidden_of(output), output.loss, output.get("past_key_values"))


def _run_chosen_rows(
    model: nn.Module, inputs: Mapping[str, Any], rows: torch.Tensor, head: HeadFunction | None
) -> DecoderPass:
    index = rows.flatten().nonzero().squeeze(1) if rows.dim() == 2 else rows
    embedding = output_embedding(model)
    head_results: list[Any] = []
    entered: list[bool] = []
    inside_head = False
    streams = False

    def choose_rows(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal inside_head, streams
        if inside_head:  # the head may call the embedding itself
            return arguments
        entered.append(True)
        if arguments[0].dim() > 3 and head is None:  # ProphetNet: several predictions of each position, one is used
            streams = True
            return arguments
        chosen = take_rows(arguments[0], rows, index)
        if head is not None:
            inside_head = True
            head_results.append(head(chosen, module))
            inside_head = False
            chosen = chosen[:0]
        return (chosen.unsqueeze(0), *arguments[1:])

    with ExitStack() as stack:
        arguments, hidden_of = stack.enter_context(_last_hidden_state(model, inputs))
        handle = embedding.register_forward_pre_hook(choose_rows)
        stack.callback(handle.remove)
        output = model(**arguments)

    if len(entered) != 1:
        raise ValueError(
            f"{type(plain_model(model)).__name__} called its output embedding {len(entered)} times in one forward "
            "pass: rows= needs exactly one call"
        )
    if streams:
        logits = take_rows(output.logits, rows, index)
    else:
        logits = head_results[0] if head is not None else output.logits.squeeze(0)
    hidden = take_rows(hidden_of(output), rows, index)
    return DecoderPass(logits, hidden, None, output.get("past_key_values"))


def take_rows(hidden: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The rows [N, D] of `hidden` [B, S, D] at `index` [N], which was made from `rows`."""
    if rows.dim() == 2 and hidden.shape[:-1] != rows.shape:
        raise ValueError(
            f"rows has shape {tuple(rows.shape)}, but the decoder's positions are {tuple(hidden.shape[:-1])}"
        )
    # an index keeps the backward pass cheap: a boolean mask would sort its positions and wait for the device again
    return hidden.flatten(0, -2).index_select(0, index.to(hidden.device))


@contextmanager
def _last_hidden_state(
    model: nn.Module, inputs: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], Callable[[Any], torch.Tensor]]]:
    """Arguments for the forward pass, and a function from its output to the last hidden state [B, S, D]."""
    backbone = decoder_backbone(model)
    if backbone is None:  # there is nowhere to put a hook: keep all layers and read the last one
        yield {**inputs, "output_hidden_states": True}, _deepest_of_all
        return
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        seen[:] = [output[0]]

    head = head_in_decoder(model)
    if head is None:
        handle = backbone.register_forward_hook(keep)
    else:  # the decoder returns logits; what enters its head is the hidden state
        handle = head.register_forward_pre_hook(lambda _module, arguments: keep(_module, None, arguments))
    try:
        yield dict(inputs), lambda _output: seen[0]
    finally:
        handle.remove()


def _deepest_of_all(output: Any) -> torch.Tensor:
    states = output.get("decoder_hidden_states")
    return (output.hidden_states if states is None else states)[-1]
