"""Sampling for ragged prompts, shared by `PPOTrainer.generate`, `TextEnvironment` and `BestOfNSampler`.

Prompts are sorted by length and cut into batches by a token budget; answers come back in the caller's order. A model
that padding changes (MiniMax, BartForCausalLM) gets prompts of one length in a batch, and one that mixes its rows
(RWKV) one prompt.
In this file `n` is the number of rows of one such batch and `W` its padded width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList

from trl_step.core import free_device_cache
from trl_step.models.inner_model import generation_arguments, plain_model, vocabulary_size
from trl_step.models.positions import position_limits
from trl_step.models.probes import BatchMates, batch_mates
from trl_step.models.sharding import gathered
from trl_step.models.shortcuts.modes import eval_mode
from trl_step.sampling.row_ends import Criterion, RowEnds
from trl_step.sampling.stop_strings import StringStoppingCriteria

DEFAULT_NEW_TOKENS = 20
"""New tokens that transformers generates if no length is given; used to estimate the size of a batch."""
NOT_TOKENS = (
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)
"""Settings of transformers' `generate` that ask for more than tokens."""


@contextmanager
def sampling_mode(model: torch.nn.Module) -> Iterator[None]:
    """Inside, dropout and gradients are off; afterwards every submodule is back in its previous mode."""
    # differs from v0.7: it sampled with dropout on after the first training step
    with torch.no_grad(), eval_mode(model):
        yield


def generate_batched(
    model: torch.nn.Module,
    queries: Sequence[torch.Tensor],
    *,
    pad_token_id: int,
    eos_token_ids: Collection[int],
    is_encoder_decoder: bool,
    device: torch.device | str,
    batch_size: int = 4,
    token_budget: int = 16384,
    max_new_tokens: Sequence[int] | int | None = None,
    return_prompt: bool = True,
    remove_padding: bool = True,
    pad_to_multiple_of: int | None = None,
    **generation_kwargs: Any,
) -> list[torch.Tensor]:
    """Sample one answer per query, in eval mode and without gradients.

    Answer `i` ends after the first end-of-sequence id that the model wrote, where a stopping criterion ended row `i`,
    or after `max_new_tokens[i]` tokens. Ids in the prompt and the decoder's start token never end it, and the padding
    of a batch is never part of it. If padding changes what the model says, which it is asked at its first batch, a
    batch holds prompts of one length and no padding; if other rows do, one prompt.

    Args:
        model: a value-head wrapper or a transformers model; parallel wrappers are removed.
        queries: int64 tensors [Q_i] without padding, on any device.
        pad_token_id: pads the batch; any valid id works, as it is masked.
        eos_token_ids: the tokenizer's end-of-sequence ids. Those of the model's generation config and of
            `generation_kwargs` count as well; negative ids mean "none".
        is_encoder_decoder: answers are decoder tokens, including the start token at position 0.
        device: the device of the model's inputs.
        batch_size: minimum number of rows of a batch, if there are that many queries (see above).
        token_budget: a batch grows beyond `batch_size` while (padded prompt + new tokens) * rows stays within it.
        max_new_tokens: one number, or one per query; None leaves the length to `generation_kwargs` and to the
            model's generation config. A `max_length` counts a sample's own prompt, without padding.
        return_prompt: the answers of decoder-only models start with their query.
        remove_padding: False keeps the tokens after the end of an answer, up to the longest of its batch.
        pad_to_multiple_of: the padded width of every batch is a multiple of this.
        generation_kwargs: passed to `model.generate`; never changed.

    Returns:
        int64 tensors [Q_i + R_i], or [R_i] without prompt, or [1 + R_i] of an encoder-decoder model; on `device`.

    Raises:
        ValueError, TypeError: a query is empty or not a 1-d integer tensor, a length leaves no room for a new token,
            query and new tokens do not fit into the model's positions, or the options ask for several answers per
            query or for more than tokens.
        torch.OutOfMemoryError: a single row does not fit. Larger batches are halved first.
    """
    inner = extract_model_from_parallel(model)
    _check_arguments(queries, batch_size, token_budget, generation_kwargs)
    pad_token_id = valid_filler(_pretrained(inner), pad_token_id)
    options = _Options.collect(inner, eos_token_ids, remove_padding, generation_kwargs)
    limits = options.limits(queries, max_new_tokens, is_encoder_decoder)
    # with weights that stay sharded (synced_gpus), every process runs the same number of batches: cut by count alone
    in_step = bool(generation_kwargs.get("synced_gpus"))
    check_tokens(_pretrained(inner), queries)
    check_positions(_pretrained(inner), [len(query) for query in queries], limits)
    frame = _Frame(pad_token_id, is_encoder_decoder, torch.device(device), pad_to_multiple_of)

    def sample(rows: list[int]) -> list[torch.Tensor]:
        batch = frame.pad([queries[i] for i in rows])
        row_limits = None if limits is None else [limits[i] for i in rows]
        sequences, stopped = _sample_batch(inner, batch, row_limits, options, frame)
        ends = _answer_ends(sequences[:, batch.prompt_width :], options.eos_ids if remove_padding else (), row_limits)
        if remove_padding and stopped is not None:
            ends = torch.minimum(ends, stopped)
        # differs from v0.7: it cut at the tokenizer's end id alone, wherever it was, even in prompt and start token
        starts = batch.starts if return_prompt or is_encoder_decoder else [batch.prompt_width] * len(rows)
        return [
            sequences[row, start : batch.prompt_width + end].clone()
            for row, (start, end) in enumerate(zip(starts, ends.tolist(), strict=True))
        ]

    sizes = [(len(query), DEFAULT_NEW_TOKENS if limits is None else limits[i]) for i, query in enumerate(queries)]
    with sampling_mode(inner), ExitStack() if in_step else gathered(inner):
        asked = (len(queries) > 1 or pad_to_multiple_of) and not in_step
        mates = batch_mates(_pretrained(inner), pad_token_id) if asked else BatchMates.ANY
        if mates is not BatchMates.ANY:
            frame = frame._replace(multiple=None)
        budget = 0 if in_step else token_budget
        return _run_batches(sample, sizes, batch_size, budget, may_shrink=not in_step, mates=mates)


def _pretrained(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model or PeftModel, in a value-head wrapper or not."""
    return getattr(model, "pretrained_model", model)


# --- batches ---------------------------------------------------------------------------------------------------


def _run_batches(
    sample: Callable[[list[int]], list[torch.Tensor]],
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    token_budget: int,
    may_shrink: bool = True,
    mates: BatchMates = BatchMates.ANY,
) -> list[torch.Tensor]:
    """`sample(rows)` for batches of rows of similar length; `sizes` are (prompt tokens, new tokens) of each row.

    The longest come first, so that a lack of memory shows at once. A batch that does not fit is halved, and later
    batches have no more rows than that half. `mates` are the prompts that may share a batch.
    """
    waiting = sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True)
    answers: dict[int, torch.Tensor] = {}
    most_rows = len(waiting)
    while waiting:
        count = min(most_rows, _rows_that_fit([sizes[i] for i in waiting], batch_size, token_budget, mates))
        rows = waiting[:count]
        try:
            answers.update(zip(rows, sample(rows), strict=True))
        except (RuntimeError, MemoryError) as error:
            if count == 1 or not may_shrink or not is_out_of_memory(error):
                raise
            most_rows = count // 2
        else:
            waiting = waiting[count:]
            continue
        free_device_cache()  # outside the except clause, in which the error's frames still hold the batch
    return [answers[i] for i in range(len(sizes))]


def _rows_that_fit(
    sizes: Sequence[tuple[int, int]], batch_size: int, token_budget: int, mates: BatchMates = BatchMates.ANY
) -> int:
    """How many of the waiting rows (longest prompt first) go into the next batch."""
    width = sizes[0][0]
    new_tokens = 0
    for count, (length, limit) in enumerate(sizes):
        if (count and mates is BatchMates.NONE) or (length < width and mates is not BatchMates.ANY):
            return count
        new_tokens = max(new_tokens, limit)
        if count >= batch_size and (width + new_tokens) * (count + 1) > token_budget:
            return count
    return len(sizes)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text


class _Batch(NamedTuple):
    input_ids: torch.Tensor  # [n, W] int64
    attention_mask: torch.Tensor  # [n, W] int64
    starts: list[int]  # start of each row in the generated sequences
    prompt_width: int  # number of columns of the generated sequences that the model did not write


class _Frame(NamedTuple):
    """Pad rows to a batch: on the left for decoder-only models, on the right for encoders."""

    pad_token_id: int
    is_encoder_decoder: bool
    device: torch.device
    multiple: int | None

    def pad(self, rows: Sequence[torch.Tensor]) -> _Batch:
        width = max(len(row) for row in rows)
        if self.multiple:
            width = -(-width // self.multiple) * self.multiple
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            span = slice(0, len(row)) if self.is_encoder_decoder else slice(width - len(row), width)
            ids[i, span] = row.to(ids)
            mask[i, span] = 1
        if self.is_encoder_decoder:  # the output holds the decoder's tokens: a start token, then the answer
            starts, prompt_width = [0] * len(rows), 1
        else:
            starts, prompt_width = [width - len(row) for row in rows], width
        return _Batch(ids.to(self.device), mask.to(self.device), starts, prompt_width)


# --- options ---------------------------------------------------------------------------------------------------


class _Options(NamedTuple):
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
    ) -> _Options:
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
    model: torch.nn.Module | None, eos_token_ids: Collection[int], generation_kwargs: Mapping[str, Any]
) -> list[int]:
    """Every id that ends an answer: the tokenizer's `eos_token_ids`, those of the generation config and of the call."""
    own = getattr(getattr(model, "pretrained_model", model), "generation_config", None)
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


def _check_arguments(
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


# --- one batch -------------------------------------------------------------------------------------------------


def _sample_batch(
    model: torch.nn.Module, batch: _Batch, limits: list[int] | None, options: _Options, frame: _Frame
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The sequences [n, W + new] of `model.generate`, and `RowEnds.stopped` if criteria were given."""
    rows = len(batch.starts)
    arguments = dict(options.arguments)
    settings: dict[str, Any] = {"pad_token_id": frame.pad_token_id}
    if options.eos_for_model:
        settings["eos_token_id"] = options.eos_for_model
    if limits is not None:
        settings["max_new_tokens"] = max(limits)
    if options.config is None:
        arguments.update(settings)
    else:
        arguments["generation_config"] = copy.deepcopy(options.config)
        arguments["generation_config"].update(**settings)
    ends = None
    if options.criteria or (limits is not None and min(limits) < max(limits)):
        ends = RowEnds(limits, rows, batch.prompt_width, options.criteria, frame.device)
        arguments["stopping_criteria"] = StoppingCriteriaList([ends])
    if isinstance(model, PreTrainedModel):
        arguments = generation_arguments(model, arguments)
    output = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **arguments)
    sequences = getattr(output, "sequences", output)
    if sequences.shape[0] != rows:
        raise ValueError(
            f"generate returned {sequences.shape[0]} sequences for {rows} queries; repeat a query in the list to get "
            "several answers, and leave num_return_sequences at 1"
        )
    return sequences, ends.stopped if ends is not None and options.criteria else None


def _answer_ends(new_tokens: torch.Tensor, eos_ids: Collection[int], limits: Sequence[int] | None) -> torch.Tensor:
    """Tokens of each row's answer in `new_tokens` [n, R]: up to the first of `eos_ids` (included) or the limit; [n]."""
    rows, width = new_tokens.shape
    ends = torch.full((rows,), width, device=new_tokens.device)
    if eos_ids and width:
        is_end = torch.isin(new_tokens, torch.tensor(sorted(eos_ids), device=new_tokens.device))
        ends = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, ends)
    if limits is not None:
        ends = torch.minimum(ends, torch.tensor(limits, device=ends.device))
    return ends
