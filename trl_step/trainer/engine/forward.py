"""How a value-head model is asked about the response tokens of a padded mini-batch.

The output embedding runs at the positions that predict a counted token: no logits are computed for prompts and
padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

from trl_step.algorithms.kl import kl_penalty
from trl_step.core import entropy_from_logits
from trl_step.head.logprobs import Divergence, exact_divergence, logprobs_of_logits, token_logprobs
from trl_step.head.policy_gradient import LogprobGradient, policy_gradient_rows
from trl_step.head.tiles import ChunkBuffers, OutputHead
from trl_step.models import PreTrainedModelWrapper
from trl_step.models.critic import PolicyWithCritic, wrappers_of
from trl_step.models.inner_model import spans_devices, takes_argument
from trl_step.models.output_head import describe_output_head
from trl_step.models.shortcuts.shared_prompts import RightPadded, RowSupport, row_support, sharing
from trl_step.models.shortcuts.tied_embedding import JoinedGradient, joined_where_tied
from trl_step.trainer.batches.layout import Inputs, Layout
from trl_step.trainer.batches.rollout import Piece


class TokenOutputs(NamedTuple):
    """All [b, T], float32; 0 where the mask is 0."""

    logprobs: torch.Tensor
    values: Any
    """None if the model has none"""
    entropy: Any
    """None unless a gradient was asked for"""
    anchor: Any
    """0-d; its backward carries the policy gradient, if one was asked for, else None"""


class Slopes(NamedTuple):
    """Derivatives of a loss at the N counted positions of a piece."""

    of_rows: LogprobGradient
    """d loss / d log-prob, see `policy_gradient_rows`"""
    of_entropy: torch.Tensor | None = None
    """d loss / d entropy [N]; None if the loss does not depend on entropies"""
    couple_tokens: bool = False
    """`of_rows` needs the log-probs of all N positions at once"""

    def on(self, device: torch.device, home: torch.device) -> Slopes:
        """The same for log-probs on another `device` than `home`, where the rest of the loss is."""
        if device == home:
            return self
        of_entropy = None if self.of_entropy is None else self.of_entropy.to(device)
        return Slopes(lambda rows, found: self.of_rows(rows, found.to(home)).to(device), of_entropy, self.couple_tokens)

    def at(self, logprobs: torch.Tensor) -> LogprobGradient:
        """`of_rows` for given log-probs [N] of all positions."""
        whole = self.of_rows(slice(0, len(logprobs)), logprobs)
        return lambda rows, _: whole[rows]


class CountedStates(NamedTuple):
    """What a model says about N positions, before its output embedding if that is a plain product."""

    states: torch.Tensor
    """hidden [N, D], or logits [N, V] if `head` is None"""
    head: OutputHead | None
    values: Any
    """[N], or None if the model has none"""


class _HeadAccess(NamedTuple):
    takes_rows: bool
    """the model's forward knows the argument `rows`"""
    head: OutputHead | None
    """None: the head is no plain product, the model's own code computes the logits"""


class TokenForward:
    """Forward passes at chosen positions, for every model that the trainer knows.

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

    def register(self, model: PreTrainedModelWrapper) -> _HeadAccess:
        """Find out, once and before any wrapping, how `model` turns hidden states into logits."""
        takes_rows = "rows" in inspect.signature(type(model).forward).parameters
        head = describe_output_head(model.pretrained_model) if takes_rows else None
        self._heads[id(model)] = _HeadAccess(takes_rows, head)
        return self._heads[id(model)]

    def row_support(self, model: Any) -> RowSupport:
        """What `model`, not wrapped yet, supports with all of its parts."""
        takes_rows = (self._heads.get(id(model)) or self.register(model)).takes_rows
        parts = [part.pretrained_model for part in wrappers_of(model)]
        if not takes_rows or any(map(spans_devices, parts)):  # tensors of a packed row lie on one device
            return RowSupport(False, False)
        return RowSupport.of_all(map(row_support, parts))

    def forget_head(self, model: PreTrainedModelWrapper) -> None:
        """Let the model's own code compute the logits: the head's weights are whole only while the head runs."""
        self._heads[id(model)] = self._heads[id(model)]._replace(head=None)

    def run(self, model: Any, inputs: Inputs, left_padded: bool, no_mask: bool = False, **options: Any) -> Any:
        """The model's forward on padded samples.

        A causal model never looks ahead, so padding on the right cannot reach a real token: with nothing masked the
        attention takes its fast causal path. Padding on the left needs the mask, and positions that skip it.

        Args:
            no_mask: attention takes none, see `RightPadded`
        """
        arguments, inner = dict(inputs), self.unwrap(model).pretrained_model
        looks_ahead = self.layout.is_encoder_decoder
        if not looks_ahead and not left_padded:
            mask = arguments.pop("attention_mask")
            if no_mask or mask.device.type == "cpu":
                # an explicit mask, or transformers warns of padding, or looks for packed samples; a GPU would have to
                # wait for either look
                arguments["attention_mask"] = torch.ones_like(mask)
        # differs from v0.7: absolute positions counted the padding
        elif not looks_ahead and not self.layout.exact_v07 and takes_argument(inner, "position_ids"):
            arguments["position_ids"] = (arguments["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return model(**arguments, **options)

    def run_piece(self, model: Any, piece: Piece, with_values: bool, **options: Any) -> Any:
        """The model's forward for the counted positions of a piece, its queries once if the piece says so; inside of
        `sharing`."""
        if isinstance(self.unwrap(model), PolicyWithCritic):
            options["with_values"] = with_values
        rows, row = piece.counted.in_inputs, piece.row
        if row is not None:
            inputs = row.arguments(self.layout.predicted_ids(piece.batch.inputs))
            return model(**inputs, rows=row.of_samples.flatten().index_select(0, rows), **options)
        no_mask, left_padded = isinstance(piece.shared, RightPadded), piece.batch.positions.left_padded
        return self.run(model, piece.batch.inputs, left_padded, no_mask, rows=rows, **options)

    @contextmanager
    def sharing(self, model: Any, piece: Piece) -> Iterator[None]:
        """Around the passes of a model over a piece, and around their backward pass."""
        with ExitStack() as stack:
            for part in wrappers_of(self.unwrap(model)):
                stack.enter_context(sharing(part.pretrained_model, piece.shared))
            yield

    def everything(
        self, model: Any, inputs: Inputs, left_padded: bool, size: int
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """The plain path of release 0.7: log-probs [B, T], logits [B, T, V] and values [B, T] at every position, `size`
        samples at a time in the batch's own order, with gradients if they are on. A model without values gives None."""
        ids = self.layout.predicted_ids(inputs)
        found: list[tuple[torch.Tensor, ...]] = []
        for start in range(0, len(ids), size):
            part = {key: value[start : start + size] for key, value in inputs.items()}
            logits, _, values = self.run(model, part, left_padded)
            # of layers on several devices, the last may be on any
            logits, labels = logits[:, :-1].to(ids.device), ids[start : start + size, 1:]
            known = (logprobs_of_logits(logits, labels, self.temperature), logits)
            found.append(known if values is None else (*known, values[:, :-1].float().to(ids.device)))
        logprobs, logits, *rest = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        return logprobs, logits, rest[0] if rest else None

    def counted(self, model: Any, piece: Piece, slopes: Slopes | None = None, with_values: bool = True) -> TokenOutputs:
        """Log-probs, values and entropy at the N counted positions of a piece, on its device, wherever the layers of
        the model are.

        Args:
            with_values: run a separate critic
            slopes: of the loss; with them the result has an `anchor` that carries the gradient. Without them the
                log-probs have none.
        """
        inner, labels, home = self.unwrap(model), piece.labels, piece.labels.device
        described = (self._heads.get(id(inner)) or self.register(inner)).head
        entropy = anchor = None
        if described is None:
            logits, _, values = self.states(model, piece, with_values)
            logprobs = logprobs_of_logits(logits, labels, self.temperature)
            if slopes is not None:
                anchor, entropy = _plain_anchor(logprobs, logits, slopes, self.temperature)
        else:
            joined = JoinedGradient()
            trains = slopes is not None and described.weight.requires_grad

            def head(hidden: torch.Tensor, embedding: Any) -> tuple[torch.Tensor | None, ...]:
                own = _with_parameters(described, embedding.weight, embedding.bias)
                there = own.weight.device
                hidden, targets = hidden.to(there), labels.to(there)
                if slopes is None:
                    return token_logprobs(hidden, targets, own, self.temperature), None, None
                moved = slopes.on(there, home)
                gradient_of = moved.of_rows
                if moved.couple_tokens:  # all log-probs of a sample come first: one product with the head more
                    gradient_of = moved.at(token_logprobs(hidden.detach(), targets, own, self.temperature))
                settings = self.temperature, self.buffers, joined.put, moved.of_entropy
                found = policy_gradient_rows(hidden, targets, own, gradient_of, *settings)
                return found.logprobs, found.entropy, found.anchor

            with joined_where_tied(inner.pretrained_model, joined) if trains else nullcontext():
                found, _, values = self.run_piece(model, piece, with_values, head=head)
            logprobs, entropy, anchor = found
        return TokenOutputs(
            piece.counted.spread(logprobs.detach().to(home)),
            None if values is None else piece.counted.spread(values.to(home)),
            None if entropy is None else piece.counted.spread(entropy.to(home)),
            None if anchor is None else anchor.to(home),
        )

    def states(self, model: Any, piece: Piece, with_values: bool = True) -> CountedStates:
        """Hidden states, or logits if the head is no plain product, and values at the counted positions, with
        gradients if they are on; the head has none."""
        inner, rows, home = self.unwrap(model), piece.counted.in_inputs, piece.labels.device
        access = self._heads.get(id(inner)) or self.register(inner)
        if access.head is not None:
            (hidden, *parameters), _, values = self.run_piece(
                model,
                piece,
                with_values,
                # detached, the weights outlive a reference's time on the device
                head=lambda hidden, embedding: (
                    hidden,
                    embedding.weight.detach(),
                    None if embedding.bias is None else embedding.bias.detach(),
                ),
            )
            own = _with_parameters(access.head, *parameters)
            return CountedStates(hidden.to(own.weight.device), own, None if values is None else values.to(home))
        if access.takes_rows:
            logits, _, values = self.run_piece(model, piece, with_values)
        else:
            everywhere = self.run(model, piece.batch.inputs, piece.batch.positions.left_padded)
            logits, values = (
                None if x is None else x.flatten(0, 1).index_select(0, rows.to(x.device))
                for x in (everywhere[0], everywhere[2])
            )
        return CountedStates(logits.to(home), None, None if values is None else values.to(home))  # type: ignore[union-attr]

    def divergence(self, ours: CountedStates, theirs: CountedStates, labels: torch.Tensor) -> Divergence:
        """The exact divergence of two models at N positions; in chunks if both heads are plain products."""
        home = labels.device
        if ours.head is not None and theirs.head is not None:
            heads, there = (ours.head, _moved(theirs.head, ours.states.device)), ours.states.device
            states, targets = (ours.states, theirs.states.to(there)), labels.to(there)
            found = exact_divergence(*states, targets, *heads, self.temperature, self.buffers)
            return Divergence(*(each.to(home) for each in found))
        own, other = (
            torch.log_softmax(
                (x.states if x.head is None else x.head.logits(x.states)).float().to(home) / self.temperature, dim=-1
            )
            for x in (ours, theirs)
        )
        label = labels.unsqueeze(1)
        return Divergence(
            own.gather(1, label).squeeze(1), other.gather(1, label).squeeze(1), kl_penalty(own, other, "full")
        )


def _with_parameters(described: OutputHead, weight: torch.Tensor, bias: torch.Tensor | None) -> OutputHead:
    """The head with the output embedding's parameters of this pass: sharded ones are other tensors each time."""
    return _moved(described._replace(weight=weight, bias=described.bias if bias is None else bias), weight.device)


def _moved(head: OutputHead, device: torch.device) -> OutputHead:
    """The head on a device."""
    bias = None if head.bias is None else head.bias.to(device)
    return head._replace(weight=head.weight.to(device), bias=bias)


def _plain_anchor(
    logprobs: torch.Tensor, logits: torch.Tensor, slopes: Slopes, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The anchor and the entropies [N] from logits [N, V], by the chain rule."""
    with torch.no_grad():
        slope = slopes.of_rows(slice(0, len(logprobs)), logprobs)
    with nullcontext() if slopes.of_entropy is not None else torch.no_grad():
        entropy = entropy_from_logits(logits.float() / temperature)
    surrogate = (slope * logprobs).sum()
    if slopes.of_entropy is not None:
        surrogate = surrogate + (slopes.of_entropy * entropy).sum()
    return surrogate - surrogate.detach(), entropy.detach()
