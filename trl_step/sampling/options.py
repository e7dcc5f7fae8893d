"""The settings of `generate`: parsed once for all batches, and checked."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel

from trl_step.models.inner_model import plain_model, pretrained_of, vocabulary_size
from trl_step.models.positions import position_limits
from trl_step.sampling.row_ends import Criterion
from trl_step.sampling.stop_strings import StringStoppingCriteria

NOT_TOKENS = (
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)
"""Settings of transformers' `generate` that ask for more than tokens."""


def setting_in_force(model: Any, generation_kwargs: Mapping[str, Any], name: str) -> Any:
    """A generation setting as `generate` will take it: the call's, else its generation config's, else the model's."""
    if generation_kwargs.get(name) is not None:
        return generation_kwargs[name]
    config = generation_kwargs.get("generation_config") or getattr(pretrained_of(model), "generation_config", None)
    return getattr(config, name, None)


def sampling_temperature(model: Any, generation_kwargs: Mapping[str, Any]) -> float:
    """The temperature that tokens are drawn at; 1 if they are not drawn but chosen."""
    temperature = setting_in_force(model, generation_kwargs, "temperature")
    drawn = setting_in_force(model, generation_kwargs, "do_sample")
    return float(temperature) if drawn and temperature is not None else 1.0


def beams(model: Any, generation_kwargs: Mapping[str, Any]) -> int:
    """Beams of a beam search; 1 for none."""
    return int(setting_in_force(model, generation_kwargs, "num_beams") or 1)


class Options(NamedTuple):
    """The caller's generation settings, parsed once for all batches."""

    config: GenerationConfig | None
    arguments: dict[str, Any]
    criteria: list[Criterion]
    eos_ids: list[int]
    eos_for_model: list[int]

    @classmethod
    def collect(
        cls,
        model: torch.nn.Module,
        eos_token_ids: Collection[int],
        remove_padding: bool,
        generation_kwargs: dict[str, Any],
    ) -> Options:
        # the weights are gathered: transformers would make the processes wait for each other's last token
        arguments = {"synced_gpus": False, **generation_kwargs}
        given = arguments.pop("generation_config", None)
        stop_strings = arguments.pop("stop_strings", None) or getattr(given, "stop_strings", None)
        criteria = list(arguments.pop("stopping_criteria", None) or [])
        if stop_strings:
            criteria.append(_stop_string_criterion(stop_strings, arguments.get("tokenizer")))
        eos_ids = all_eos_ids(model, eos_token_ids, generation_kwargs)
        asked = arguments.pop("eos_token_id", None)
        # with the tail kept, the caller's choice has to reach the model, including "no end" (-1)
        eos_for_model = eos_ids if asked is None or remove_padding else _as_ids(asked) or [-1]
        config = None
        if given is not None:
            # one object without further settings: transformers will refuse the mixture
            config = copy.deepcopy(given)
            config.stop_strings = None
            arguments = config.update(**arguments)
        return cls(config, arguments, criteria, eos_ids, eos_for_model)

    def limits(
        self, queries: Sequence[torch.Tensor], max_new_tokens: Sequence[int] | int | None, is_encoder_decoder: bool
    ) -> list[int] | None:
        """New tokens allowed for each query; None leaves it to the model."""
        length = self.arguments.pop("max_length", None) or getattr(self.config, "max_length", None)
        if max_new_tokens is None:
            max_new_tokens = getattr(self.config, "max_new_tokens", None)
        if self.config is not None:
            self.config.max_length = self.config.max_new_tokens = None
        if max_new_tokens is None and length is not None:
            limits = [length - (1 if is_encoder_decoder else len(query)) for query in queries]
        elif max_new_tokens is None:
            return None
        elif isinstance(max_new_tokens, Iterable):
            limits = [int(limit) for limit in max_new_tokens]
        else:
            limits = [int(max_new_tokens)] * len(queries)
        if len(limits) != len(queries):
            raise ValueError(f"max_new_tokens has {len(limits)} entries for {len(queries)} queries; give one for each")
        for i, limit in enumerate(limits):
            if limit < 1:
                raise ValueError(
                    f"query {i} has {len(queries[i])} tokens and may get {limit} new ones; raise max_new_tokens "
                    "or max_length, or shorten the query"
                )
        return limits


def check_tokens(model: torch.nn.Module, queries: Sequence[torch.Tensor]) -> None:
    """Raise a `ValueError` that names the first query with a token id for which `model` has no embedding."""
    rows = vocabulary_size(model)
    if rows is None or not queries:
        return
    device = queries[0].device
    ranges = torch.stack([torch.stack(query.aminmax()).long().to(device) for query in queries]).tolist()
    for i, (least, most) in enumerate(ranges):
        if least < 0 or most >= rows:
            raise ValueError(
                f"query {i} contains token id {least if least < 0 else most}, outside the model's vocabulary "
                f"0..{rows - 1}; take the model's own tokenizer, or resize its embeddings"
            )


def check_positions(model: torch.nn.Module, lengths: Sequence[int], limits: Sequence[int] | None) -> None:
    """Raise a `ValueError` that names the first query whose answer may need more positions than `model` has learned.

    Args:
        lengths: tokens of each query
        limits: new tokens allowed for each query; None: as the model likes, which stops at its last position
    """
    if not isinstance(plain_model(model), PreTrainedModel):  # something with a `generate`: its limits are not known
        return
    encoder, decoder = position_limits(model)
    for i, length in enumerate(lengths):
        new_tokens = 1 if limits is None else limits[i]
        if plain_model(model).config.is_encoder_decoder:
            sizes = [(f"query {i}", length, encoder), (f"the answer to query {i}", 1 + new_tokens, decoder)]
        else:
            sizes = [(f"query {i} ({length}) and its new tokens ({new_tokens})", length + new_tokens, decoder)]
        for what, size, limit in sizes:
            if limit is not None and size > limit:
                raise ValueError(
                    f"{what}: {size} tokens do not fit into {limit} positions; lower max_new_tokens or cut the query"
                )


def all_eos_ids(
    model: torch.nn.Module | None, eos_token_ids: Collection[int | None], generation_kwargs: Mapping[str, Any]
) -> list[int]:
    """Every id that ends an answer: the tokenizer's `eos_token_ids`, those of the generation config and of the call.

    Each source may be None, or have it in place of an id.
    """
    own = getattr(pretrained_of(model), "generation_config", None)
    given = generation_kwargs.get("generation_config")
    asked = generation_kwargs.get("eos_token_id")
    return _as_ids(eos_token_ids, getattr(own, "eos_token_id", None), getattr(given, "eos_token_id", None), asked)


def padding_id(tokenizer: Any, asked: int | None = None) -> int:
    """The padding id of a batch: the requested one or the tokenizer's; it is masked, so any id works."""
    for token in (asked, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def valid_filler(model: torch.nn.Module, pad_token_id: int) -> int:
    """`pad_token_id`, or 0 if `model` has no embedding for it: the token was added, and the model not resized."""
    rows = vocabulary_size(model)
    return pad_token_id if rows is None or pad_token_id < rows else 0


def _as_ids(*sources: Any) -> list[int]:
    """All non-negative ids in numbers, tensors and (nested) collections of them; None is empty."""
    ids: set[int] = set()
    for source in sources:
        if isinstance(source, torch.Tensor):
            source = source.tolist()
        if isinstance(source, Iterable):
            ids.update(_as_ids(*source))
        elif source is not None and int(source) >= 0:
            ids.add(int(source))
    return sorted(ids)


def _stop_string_criterion(stop_strings: Any, tokenizer: Any) -> Criterion:
    """In place of transformers' own criterion, so that the end of a row is recorded and its padding removed."""
    if tokenizer is None:
        raise ValueError("stop_strings need the tokenizer: pass tokenizer=... as well")
    return StringStoppingCriteria([stop_strings] if isinstance(stop_strings, str) else stop_strings, tokenizer)


def check_arguments(
    queries: Sequence[torch.Tensor], batch_size: int, token_budget: int, generation_kwargs: Mapping[str, Any]
) -> None:
    if batch_size < 1 or token_budget < 1:
        raise ValueError(f"batch_size={batch_size} and token_budget={token_budget} must be at least 1")
    for name in ("input_ids", "attention_mask", "decoder_input_ids"):
        if name in generation_kwargs:
            raise ValueError(f"{name} is built from the queries; call model.generate to pass your own")
    given = generation_kwargs.get("generation_config")
    for name in NOT_TOKENS:
        if generation_kwargs.get(name) or (name not in generation_kwargs and getattr(given, name, None)):
            raise ValueError(
                f"{name}=True is not available: answers come back as tokens alone. PPOTrainer.step computes log-probs "
                "itself; for scores of your own, call model.generate"
            )
    for i, query in enumerate(queries):
        if not isinstance(query, torch.Tensor) or query.is_floating_point() or query.dtype == torch.bool:
            kind = query.dtype if isinstance(query, torch.Tensor) else type(query).__name__
            raise TypeError(f"query {i} must be an integer tensor of token ids, got {kind}")
        if query.dim() != 1 or len(query) == 0:
            raise ValueError(f"query {i} must be a 1-d tensor with at least one token, got shape {tuple(query.shape)}")
