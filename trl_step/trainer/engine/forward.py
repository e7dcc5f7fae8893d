"""How the trainer asks a value-head model about the response tokens of a padded mini-batch.

The output embedding sees the rows that predict a counted token and nothing else; prompts and padding never meet the
vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from trl_step.algorithms.kl import kl_penalty
from trl_step.head.logprobs import (
    Divergence,
    exact_divergence,
    logprobs_of_logits,
    token_logprobs,
)
from trl_step.head.policy_gradient import LogprobGradient, policy_gradient_rows
from trl_step.head.tiles import ChunkBuffers, OutputHead
from trl_step.models.modeling_base import PreTrainedModelWrapper
from trl_step.models.modeling_value_head import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
)
from trl_step.models.output_head import describe_output_head
from trl_step.models.shortcuts.tied_embedding import JoinedGradient, joined_where_tied
from trl_step.trainer.batches.layout import Inputs, Layout
from trl_step.trainer.batches.positions import Chosen

SUPPORTED_ARCHITECTURES = (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead)


class TokenOutputs(NamedTuple):
    """All [b, T], float32; 0 where the mask is 0."""

    logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor | None
    anchor: torch.Tensor | None
    """0-d; its backward carries the policy gradient, if one was asked for"""


class Rows(NamedTuple):
    """What a model says about N positions, before its output embedding if that is a plain product."""

    states: torch.Tensor
    """hidden [N, D], or logits [N, V] if `head` is None"""
    head: OutputHead | None


class _HeadAccess(NamedTuple):
    takes_rows: bool
    """the model's forward knows the argument `rows`"""
    head: OutputHead | None
    """None: the head is no plain product, the model's own code computes the logits"""


class TokenForward:
    """Forward passes over chosen positions, for every model that the trainer knows.

    Args:
        unwrap: takes a model out of what accelerate put around it
        layout: of the batches
        temperature: every log-prob is taken under it
    """

    def __init__(self, unwrap: Callable[[Any], Any], layout: Layout, temperature: float = 1.0) -> None:
        self.unwrap = unwrap
        self.layout = layout
        self.temperature = temperature
        self.buffers = ChunkBuffers()
        self._heads: dict[int, _HeadAccess] = {}

    def register(self, model: PreTrainedModelWrapper) -> None:
        """Find out, once and before any wrapping, how `model` turns hidden rows into logits."""
        takes_rows = "rows" in inspect.signature(type(model).forward).parameters
        head = describe_output_head(model.pretrained_model) if takes_rows else None
        self._heads[id(model)] = _HeadAccess(takes_rows, head)

    def forget_head(self, model: PreTrainedModelWrapper) -> None:
        """Let the model's own code compute the logits: the head's weights are whole only while the head runs."""
        self._heads[id(model)] = self._heads[id(model)]._replace(head=None)

    def _head_access(self, model: Any) -> _HeadAccess:
        unwrapped = self.unwrap(model)
        if id(unwrapped) not in self._heads:
            self.register(unwrapped)
        return self._heads[id(unwrapped)]

    def model_kwargs(self, model: Any, inputs: Inputs, left_padded: bool) -> dict[str, Any]:
        """Arguments of the model's forward.

        A causal model never looks ahead, so padding on the right cannot reach a real token: with nothing masked the
        attention takes its fast causal path. Padding on the left needs the mask, and positions that skip it.
        """
        kwargs: dict[str, Any] = dict(inputs)
        if self.layout.is_encoder_decoder:
            return kwargs
        if not left_padded:
            mask = kwargs.pop("attention_mask")
            if mask.device.type == "cpu":
                # said in so many words, or transformers warns of padding; a GPU would have to wait to look at it
                kwargs["attention_mask"] = torch.ones_like(mask)
        elif not self.layout.exact_v07:  # differs from v0.7: absolute positions counted the padding
            base = self.unwrap(model).pretrained_model
            base = base.get_base_model() if hasattr(base, "get_base_model") else base
            if "position_ids" in inspect.signature(base.forward).parameters:
                kwargs["position_ids"] = (kwargs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return kwargs

    def _run(self, model: Any, inputs: Inputs, left_padded: bool, **options: Any) -> Any:
        return model(**self.model_kwargs(model, inputs, left_padded), **options)

    def everything(
        self, model: Any, inputs: Inputs, left_padded: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The plain path, as release 0.7 had it: log-probs [b, T], logits [b, T, V] and values [b, T], everywhere."""
        logits, _, values = self._run(model, inputs, left_padded)
        ids, _ = self.layout.predicted_ids(inputs)
        logits = logits[:, :-1]
        return logprobs_of_logits(logits, ids[:, 1:], self.temperature), logits, values[:, :-1]

    def chosen(
        self,
        model: Any,
        inputs: Inputs,
        chosen: Chosen,
        left_padded: bool,
        gradient_of: LogprobGradient | None = None,
    ) -> TokenOutputs:
        """Log-probs, values and entropy at the N positions `chosen`.

        Args:
            gradient_of: d loss / d log-prob of some of the N rows, see `policy_gradient_rows`; with it the result has
                an `anchor` that carries the gradient. Without it the log-probs have none.
        """
        labels = self.labels(inputs, chosen)
        access = self._head_access(model)
        if access.head is not None:
            joined = JoinedGradient()
            trains = gradient_of is not None and access.head.weight.requires_grad
            with joined_where_tied(self.unwrap(model).pretrained_model, joined) if trains else nullcontext():
                head = self._head_function(access.head, labels, gradient_of, joined.put)
                result, _, values = self._run(model, inputs, left_padded, rows=chosen.rows, head=head)
            logprobs, entropy, anchor = result
        else:
            logits, values = self._chosen_logits(model, access, inputs, chosen, left_padded)
            logprobs = logprobs_of_logits(logits, labels, self.temperature)
            anchor = entropy = None
            if gradient_of is not None:
                anchor, entropy = _plain_anchor(logprobs, logits, gradient_of, self.temperature)

        return TokenOutputs(
            chosen.spread(logprobs.detach()),
            chosen.spread(values),
            None if entropy is None else chosen.spread(entropy),
            anchor,
        )

    def labels(self, inputs: Inputs, chosen: Chosen) -> torch.Tensor:
        """The tokens [N] that the positions `chosen` predict."""
        return chosen.predicted(self.layout.predicted_ids(inputs)[0])

    def rows(self, model: Any, inputs: Inputs, chosen: Chosen, left_padded: bool) -> tuple[Rows, torch.Tensor]:
        """The rows and the values [N] at the positions `chosen`."""
        access = self._head_access(model)
        if access.head is None:
            logits, values = self._chosen_logits(model, access, inputs, chosen, left_padded)
            return Rows(logits, None), values
        (hidden, *parameters), _, values = self._run(
            model,
            inputs,
            left_padded,
            rows=chosen.rows,
            head=lambda hidden, embedding: (hidden, embedding.weight, embedding.bias),
        )
        return Rows(hidden, _with_parameters(access.head, *parameters)), values

    def divergence(self, rows: Rows, ref_rows: Rows, labels: torch.Tensor) -> Divergence:
        """The exact divergence of two models at N positions; in chunks where both heads are plain products."""
        if rows.head is not None and ref_rows.head is not None:
            heads = rows.head, ref_rows.head
            return exact_divergence(rows.states, ref_rows.states, labels, *heads, self.temperature, self.buffers)
        ours, theirs = (
            torch.log_softmax(
                (r.states if r.head is None else r.head.logits(r.states)).float() / self.temperature, dim=-1
            )
            for r in (rows, ref_rows)
        )
        label = labels.unsqueeze(1)
        return Divergence(
            ours.gather(1, label).squeeze(1), theirs.gather(1, label).squeeze(1), kl_penalty(ours, theirs, "full")
        )

    def _chosen_logits(
        self, model: Any, access: _HeadAccess, inputs: Inputs, chosen: Chosen, left_padded: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, V] and values [N], with gradients, of a model whose head is no plain product."""
        if access.takes_rows:
            logits, _, values = self._run(model, inputs, left_padded, rows=chosen.rows)
            return logits, values
        logits, _, values = self._run(model, inputs, left_padded)
        return tuple(everything.flatten(0, 1).index_select(0, chosen.rows) for everything in (logits, values))

    def _head_function(
        self,
        described: OutputHead,
        labels: torch.Tensor,
        gradient_of: LogprobGradient | None,
        take_gradient: Callable[[torch.Tensor], None],
    ) -> Callable:
        def rows_to_logprobs(hidden: torch.Tensor, embedding: Any) -> tuple[torch.Tensor | None, ...]:
            head = _with_parameters(described, embedding.weight, embedding.bias)
            if gradient_of is None:
                return token_logprobs(hidden, labels, head, self.temperature), None, None
            settings = self.temperature, self.buffers, take_gradient
            rows = policy_gradient_rows(hidden, labels, head, gradient_of, *settings)
            return rows.logprobs, rows.entropy, rows.anchor

        return rows_to_logprobs


def _with_parameters(described: OutputHead, weight: torch.Tensor, bias: torch.Tensor | None) -> OutputHead:
    """The head with the output embedding's parameters of this pass: sharded ones are other tensors each time."""
    return described._replace(weight=weight, bias=described.bias if bias is None else bias)


def _plain_anchor(
    logprobs: torch.Tensor, logits: torch.Tensor, gradient_of: LogprobGradient, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same two things from logits [N, V]: an anchor by the chain rule, and the entropies [N]."""
    with torch.no_grad():
        slope = gradient_of(slice(0, len(logprobs)), logprobs)
        log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
        entropy = -(log_p.exp() * log_p).sum(dim=-1)
    surrogate = (slope * logprobs).sum()
    return surrogate - surrogate.detach(), entropy
