"""Language models with a value head: one scalar per position in addition to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from trl_step.models.modeling_language import LanguageModelWrapper

DROPOUT = 0.1
INITIALIZER_RANGE = 0.2
HEAD_ARGUMENTS = ("summary_dropout_prob", "v_head_initializer_range", "v_head_init_strategy")


class ValueHead(nn.Module):
    """A linear map from hidden states to one value each.

    Args:
        config: configuration of the language model; its hidden size is the width D. Its attribute
            `summary_dropout_prob`, if any, takes precedence over the argument.
        summary_dropout_prob: dropout before the map (default 0.1).
        v_head_init_strategy, v_head_initializer_range: for the wrapper, which passes all of its arguments on.

    Raises:
        ValueError: another argument; the configuration has no width.
    """

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__()
        if unknown := sorted(set(kwargs) - set(HEAD_ARGUMENTS)):
            raise ValueError(f"ValueHead does not know {', '.join(unknown)}: it takes {', '.join(HEAD_ARGUMENTS)}")
        dropout = getattr(config, "summary_dropout_prob", kwargs.get("summary_dropout_prob", DROPOUT))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.summary = nn.Linear(hidden_width(config), 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Values [..., 1] of hidden states [..., D], in the dtype of the head (float32 unless it was cast)."""
        return self.summary(self.dropout(hidden_states).to(next(self.summary.parameters()).dtype))


def hidden_width(config: Any) -> int:
    """Width of the decoder's last hidden state.

    Raises:
        ValueError: the configuration does not say it, or is a Reformer's.
    """
    text = config.get_text_config(decoder=True)
    if text.model_type == "reformer":
        raise ValueError(
            "Reformer cannot be trained by a step: its layers are reversible, and their backward pass works in train "
            "mode only, in which dropout would make the policy another one than is evaluated. Take another model"
        )
    # OPT projects back to this width after its last layer
    width = getattr(text, "word_embed_proj_dim", None) or getattr(text, "hidden_size", None)
    if width is None:
        raise ValueError(f"{type(text).__name__} has neither hidden_size nor word_embed_proj_dim to size a value head")
    return width


class _ValueHeadModel(LanguageModelWrapper):
    """Common base of the two public classes, which differ in the model that they wrap.

    Args:
        pretrained_model: a transformers model with a language model head, or a PeftModel around one.
        summary_dropout_prob: dropout of the value head (default 0.1).
        v_head_init_strategy: None keeps the initial weights of `nn.Linear`; "normal" draws the weight from a normal
            distribution and sets the bias to 0.
        v_head_initializer_range: its standard deviation (default 0.2).

    Raises:
        ValueError: the model has no language model head, or is of the other class's kind; the strategy is unknown.
    """

    supported_modules = ("v_head",)
    supported_args = HEAD_ARGUMENTS

    def __init__(self, pretrained_model: Any, **kwargs: Any) -> None:
        super().__init__(pretrained_model, **kwargs)
        self._check_kind(pretrained_model.config)
        head_kwargs, _, _ = self._split_kwargs(kwargs)
        self.v_head = ValueHead(pretrained_model.config, **head_kwargs)
        self._init_weights(**head_kwargs)

    def _check_kind(self, config: Any) -> None:
        # differs from v0.7: BART in the causal wrapper trained on logits whose encoder had read the answer
        takes_both_sides = bool(getattr(self, "is_encoder_decoder", False))
        if bool(getattr(config, "is_encoder_decoder", False)) != takes_both_sides:
            kind = "a decoder alone" if takes_both_sides else "an encoder-decoder"
            other = "CausalLM" if takes_both_sides else "Seq2SeqLM"
            raise ValueError(
                f"the model is {kind}, according to its {type(config).__name__}: use AutoModelFor{other}WithValueHead "
                f"in place of {type(self).__name__}"
            )

    def _init_weights(self, **kwargs: Any) -> None:
        strategy = kwargs.get("v_head_init_strategy")
        if strategy not in (None, "normal"):
            raise ValueError(f'v_head_init_strategy={strategy!r} is unknown: it is None or "normal"')
        if strategy == "normal":
            nn.init.normal_(self.v_head.summary.weight, std=kwargs.get("v_head_initializer_range", INITIALIZER_RANGE))
            nn.init.zeros_(self.v_head.summary.bias)

    def _values(self, hidden: torch.Tensor) -> torch.Tensor:
        # a sum, as FSDP must not get a view
        return self.v_head(hidden.to(next(self.v_head.parameters()).device)).sum(dim=-1)

    def post_init(self, state_dict: Mapping[str, torch.Tensor]) -> None:  # type: ignore[override]
        """Load the value head from the names in `state_dict` that have `v_head.` in them, and follow a device map.

        Args:
            state_dict: tensors of a checkpoint; not changed.

        Raises:
            ValueError: half a head, or one of another width; a model that is offloaded to CPU or disk.
        """
        found = {name.split("v_head.", 1)[1]: tensor for name, tensor in state_dict.items() if "v_head." in name}
        if found:
            others = sorted(set(found) - set(self.v_head.state_dict()))
            if others:
                raise ValueError(
                    f"the checkpoint's value head has other layers ({', '.join(others)}) than this model's "
                    f"({', '.join(self.v_head.state_dict())}): make them in the constructor of a subclass, after "
                    "super().__init__(...), so that load_state_dict finds them"
                )
            try:
                self.v_head.load_state_dict(found)
            except RuntimeError as error:
                raise ValueError(f"the checkpoint's value head does not fit this model: {error}") from error
        self._follow_device_map()


class AutoModelForCausalLMWithValueHead(_ValueHeadModel):
    """A causal language model with a value head. Arguments and errors: see `_ValueHeadModel`.

    Class attribute `lm_head_namings`: names that output embeddings may have in release 0.7; here the model is asked.
    """

    transformers_parent_class = AutoModelForCausalLM
    lm_head_namings: ClassVar[list[str]] = ["lm_head", "embed_out"]


class AutoModelForSeq2SeqLMWithValueHead(_ValueHeadModel):
    """An encoder-decoder language model with a value head on the decoder. Arguments and errors: `_ValueHeadModel`."""

    transformers_parent_class = AutoModelForSeq2SeqLM
    lm_head_namings: ClassVar[list[str]] = ["lm_head", "embed_out", "output_projection"]
    is_encoder_decoder = True


SUPPORTED_ARCHITECTURES = (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead)
"""The classes with a value head, as in release 0.7."""
