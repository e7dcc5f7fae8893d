"""A separate critic: a second model whose values judge the policy's tokens, with a trunk of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trl_step.models.inner_model import output_embedding, plain_model, takes_argument, vocabulary_size
from trl_step.models.modeling_base import PreTrainedModelWrapper
from trl_step.models.probes import LEAK, PROBE_LENGTH, can_be_asked, ordinary_ids, probing

CRITIC_FOLDER = "value_model"
"""Where `PolicyWithCritic.save_pretrained` writes the critic, inside the folder of the policy."""


class Critic(nn.Module):
    """Values at chosen positions, by a value-head model or by a classifier with one label.

    Args:
        value_model: a value-head wrapper, whose output embedding is frozen unless it is the input embedding too, as no
            logits are computed; or a transformers model (or a PeftModel around one) for sequence or token
            classification with `num_labels=1`, whose score layer reads every position.

    Raises:
        ValueError: it is neither, or a later token changes the value of an earlier position.
    """

    def __init__(self, value_model: Any) -> None:
        super().__init__()
        self.value_model = value_model
        self.is_wrapper = isinstance(value_model, PreTrainedModelWrapper)
        if self.is_wrapper and not value_model.value_parameters():
            raise ValueError("value_model has no value head: wrap it with AutoModelForCausalLMWithValueHead")
        if self.is_wrapper:
            tied = {id(parameter) for parameter in value_model.get_input_embeddings().parameters()}
            for parameter in output_embedding(value_model.pretrained_model).parameters():
                # processes wait for the gradient of every parameter that trains
                parameter.requires_grad_(parameter.requires_grad and id(parameter) in tied)
        else:
            _check_classifier(value_model)
        self._require_causal()

    @property
    def pretrained_model(self) -> Any:
        """The transformers model, or the PeftModel around it."""
        return self.value_model.pretrained_model if self.is_wrapper else self.value_model

    def forward(self, rows: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        """Values float32, [B, S], or [N] with `rows`.

        Args:
            rows: int64 [N], positions in the flattened [B, S].
            **inputs: of the model's forward; arguments that it does not know are left out.
        """
        model = self.pretrained_model
        inputs = {name: value for name, value in inputs.items() if takes_argument(model, name)}
        ids = inputs.get("decoder_input_ids", inputs["input_ids"])
        chosen = torch.arange(ids.numel(), device=ids.device) if rows is None else rows
        if self.is_wrapper:
            values = self.value_model(**inputs, rows=chosen, head=_no_logits)[2]
        else:
            base = plain_model(model)
            hidden = base.base_model(**inputs, **({"use_cache": False} if takes_argument(model, "use_cache") else {}))
            score, states = _score_layer(base), hidden[0].flatten(0, 1).index_select(0, chosen)
            weight = next(score.parameters())
            values = score(states.to(device=weight.device, dtype=weight.dtype)).sum(dim=-1)
        return values.float().view(ids.shape) if rows is None else values.float()

    def _require_causal(self) -> None:
        if not can_be_asked(self.pretrained_model):
            return
        ids = ordinary_ids(self.pretrained_model, PROBE_LENGTH + 1)
        rows = torch.stack((ids[:-1], torch.cat((ids[: PROBE_LENGTH - 1], ids[-1:]))))  # the last token differs
        inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        if plain_model(self.pretrained_model).config.is_encoder_decoder:
            inputs = {"input_ids": rows[:1].expand_as(rows), "decoder_input_ids": rows}
        with probing(self):
            earlier = self(**inputs)[:, :-1]
        if float((earlier[0] - earlier[1]).abs().max()) > LEAK * float(earlier.abs().max()):
            raise ValueError(
                f"value_model ({type(plain_model(self.pretrained_model)).__name__}) is not causal: a later token "
                "changes the value of an earlier position. Take a model that reads from left to right"
            )


class PolicyWithCritic(nn.Module):
    """A policy whose values come from a separate critic. Everything else is the policy's.

    Args:
        policy: a wrapped language model; its own value head, if it has one, is not used.
        value_model: see `Critic`.
    """

    def __init__(self, policy: PreTrainedModelWrapper, value_model: Any) -> None:
        super().__init__()
        self.policy = policy
        self.critic = value_model if isinstance(value_model, Critic) else Critic(value_model)
        sides = [bool(plain_model(part.pretrained_model).config.is_encoder_decoder) for part in (policy, self.critic)]
        if sides[0] != sides[1]:
            own_kind, kind = ("an encoder-decoder" if both else "a decoder alone" for both in sides)
            raise ValueError(
                f"value_model is {kind} and model is {own_kind}, so they read their inputs in different ways: take a "
                "value_model of the policy's kind"
            )
        own, other = (vocabulary_size(part.pretrained_model) or 0 for part in (policy, self.critic))
        if other < own:
            raise ValueError(
                f"value_model knows {other} token ids and model {own}: load a value_model with the policy's "
                "vocabulary, or resize its embeddings"
            )
        shared = {id(p) for p in policy.parameters()} & {id(p) for p in self.critic.parameters()}
        if shared:
            raise ValueError(
                f"value_model shares {len(shared)} parameters with model: give it weights of its own, such as a model "
                "that was loaded separately, or leave value_model out to use a value head on the policy"
            )

    def forward(
        self,
        *args: Any,
        rows: torch.Tensor | None = None,
        head: Any = None,
        with_values: bool = True,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """As `LanguageModelWrapper.forward`, with the critic's values, or `with_values=False` without any."""
        result = self.policy(*args, rows=rows, head=head, **kwargs)
        if not with_values:
            return (*result[:2], None, *result[3:])
        given = dict(zip(("input_ids",), args, strict=False)) | kwargs
        values = self.critic(rows=rows, **given)
        if result[2] is not None:  # processes wait for the gradient of every parameter, those of an unused head too
            values = values + result[2] * 0.0
        return (*result[:2], values, *result[3:])

    def unused_parameters(self) -> list[nn.Parameter]:
        """The parameters of the policy's own value head, if it has one."""
        return self.policy.value_parameters()

    def value_parameters(self) -> list[nn.Parameter]:
        """The critic's parameters."""
        return list(self.critic.parameters())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("policy"), name)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations of both models in the backward pass."""
        self.policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs)
        self.critic.value_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """The policy into the folder, as it would be without a critic, and the critic into `value_model` inside it."""
        state = dict(self.state_dict() if kwargs.get("state_dict") is None else kwargs["state_dict"])
        result = None
        places = (
            ("policy.", self.policy, os.fspath(save_directory)),
            ("critic.value_model.", self.critic.value_model, os.path.join(save_directory, CRITIC_FOLDER)),
        )
        for prefix, part, folder in places:
            own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            written = part.save_pretrained(folder, *args, **{**kwargs, "state_dict": own})
            result = result or written
        return result


def parameters_of_critic(model: Any) -> set[int]:
    """The `id` of each parameter of a separate critic; empty if there is none."""
    return {id(parameter) for parameter in model.critic.parameters()} if isinstance(model, PolicyWithCritic) else set()


def wrappers_of(model: Any) -> Iterator[Any]:
    """The parts of a trainer's policy that have a transformers model of their own."""
    if isinstance(model, PolicyWithCritic):
        yield model.policy
        yield model.critic
    else:
        yield model


def _no_logits(_hidden: torch.Tensor, _embedding: nn.Module) -> None:
    return None


def _score_layer(base: nn.Module) -> Any:
    return getattr(base, "score", None) or getattr(base, "classifier", None)


def _check_classifier(value_model: Any) -> None:
    base = plain_model(value_model)
    config = getattr(base, "config", None)
    if config is None or not hasattr(base, "base_model"):
        raise ValueError(
            f"value_model must be a value-head model or a transformers model with one label, got "
            f"{type(value_model).__name__}"
        )
    layer = _score_layer(base)
    labels = getattr(config, "num_labels", None)
    if layer is None or labels != 1 or config.is_encoder_decoder or layer is base.base_model:
        raise ValueError(
            f"value_model ({type(base).__name__}, {labels} labels) must be a value-head model, or a decoder for "
            "sequence or token classification with num_labels=1, such as "
            "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)"
        )
