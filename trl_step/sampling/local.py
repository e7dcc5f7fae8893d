"""Sampling with a model of this process, for ragged prompts: `PPOTrainer.generate`, environments and `BestOfNSampler`.

Prompts are sorted by length and cut into batches by a token budget; answers come back in the caller's order. A model
that padding changes (MiniMax, BartForCausalLM) gets prompts of one length in a batch, and one that mixes its rows
(RWKV) one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, Optional

import torch
from accelerate.utils import extract_model_from_parallel

from trl_step.core import numbered
from trl_step.models.inner_model import plain_model, pretrained_of
from trl_step.models.probes import BatchMates, batch_mates
from trl_step.models.sharding import gathered
from trl_step.models.shortcuts.modes import eval_mode
from trl_step.sampling.batches import Frame, run_batches
from trl_step.sampling.decode import Written, decode
from trl_step.sampling.options import (
    Options,
    beams,
    check_arguments,
    check_positions,
    check_tokens,
    padding_id,
    sampling_temperature,
    valid_filler,
)
from trl_step.sampling.prompt_cache import Plan, tell_if_not_selectable
from trl_step.sampling.sampler import Sampler, Samples, Weights, repeated

DEFAULT_NEW_TOKENS = 20
"""New tokens that transformers generates if no length is given; used to estimate the size of a batch."""
DEFAULT_TOKEN_BUDGET = 16384
"""Tokens of a batch, padding and new tokens included."""


@contextmanager
def sampling_mode(model: torch.nn.Module) -> Iterator[None]:
    """Inside, dropout and gradients are off; afterwards every submodule is back in its previous mode."""
    # differs from v0.7: it sampled with dropout on after the first training step
    with torch.no_grad(), eval_mode(model):
        yield


class Answer(NamedTuple):
    """One answer, without its query."""

    tokens: torch.Tensor
    """int64 [R], of an encoder-decoder model with the decoder's start token in front"""
    logprobs: Optional[torch.Tensor]
    """float32 [R], without the start token [R - 1]; None if they were not asked for"""
    ended: bool
    """by an end token or a stopping criterion, and not by its limit"""


class LocalSampler(Sampler):
    """Samples with a model of this process.

    The settings of `sample` are those of transformers' `generate`. Besides, it takes

    - `max_new_tokens`: one number, or one per answer; None leaves the length to the generation config. A `max_length`
      counts a sample's own prompt, without padding.
    - `num_return_sequences`: another name of `n`.
    - `stop_strings`: without `tokenizer=`, the sampler's own is taken.
    - `batch_size`: minimum number of rows of a batch, if there are that many answers; a batch grows beyond it while
      (padded prompt + new tokens) * rows stays within `token_budget`.
    - `remove_padding`: False keeps the tokens after the end of an answer, up to the longest of its batch.
    - `pad_to_multiple_of`: the padded width of every batch is a multiple of this.
    - `return_logprobs`: False leaves `Samples.logprobs` empty, which saves a soft-max per token.

    Answer `i` ends after the first end-of-sequence id that the model wrote, where a stopping criterion ended row `i`,
    or after `max_new_tokens[i]` tokens. Ids in the prompt and the decoder's start token never end it, and the padding
    of a batch is never part of it. A query that stands in several rows of a batch is read once, and rows leave the
    batch once half of it has ended.

    Args:
        model: a value-head wrapper or a transformers model; parallel wrappers are removed.
        tokenizer: of that model.
        device: of the model's inputs; None: the model's.
        token_budget: see above.
        autocast: makes a context for the passes.
        weights: of a trainer whose model this is; for `Samples.version` alone.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        device: torch.device | str | None = None,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        weights: Optional[Weights] = None,
    ) -> None:
        super().__init__(weights)
        self.model = extract_model_from_parallel(model)
        self.tokenizer = tokenizer
        pretrained = pretrained_of(self.model)
        config = getattr(pretrained, "config", None)
        self.is_encoder_decoder = bool(
            getattr(self.model, "is_encoder_decoder", False) or getattr(config, "is_encoder_decoder", False)
        )
        self.device = torch.device(getattr(pretrained, "device", "cpu") if device is None else device)
        self.token_budget = token_budget
        self.autocast = autocast

    def update(self, weights: Weights, version: int) -> None:
        """Nothing to do: the weights are those of the trainer's model."""

    def draw(self, queries: Sequence[torch.Tensor], n: int, settings: dict[str, Any]) -> Samples:
        """See `Sampler.draw`; `settings` are those of transformers' `generate`."""
        n = several(n, settings)
        if n > 1 and beams(self.model, settings) > 1:
            raise ValueError("a beam search gives the same answer n times; sample with num_beams=1, or set n=1")
        settings = {"return_logprobs": beams(self.model, settings) == 1, **settings}
        asked, group_ids = repeated(queries, n)
        answers = self.answers(asked, **settings)
        return Samples(
            asked,
            [answer.tokens for answer in answers],
            [answer.logprobs for answer in answers if answer.logprobs is not None]
            if settings["return_logprobs"]
            else None,
            [answer.ended for answer in answers],
            self.version or 0,
            group_ids,
        )

    def answers(
        self,
        queries: Sequence[torch.Tensor],
        *,
        batch_size: int = 4,
        token_budget: int | None = None,
        max_new_tokens: Sequence[int] | int | None = None,
        remove_padding: bool = True,
        pad_to_multiple_of: int | None = None,
        return_logprobs: bool = False,
        **generation_kwargs: Any,
    ) -> list[Answer]:
        """One answer per query, in eval mode and without gradients.

        Args:
            queries: int64 tensors [Q_i] without padding, on any device.
            others: see the class; `generation_kwargs` are never changed.

        Raises:
            ValueError, TypeError: a query is empty or not a 1-d integer tensor, a length leaves no room for a new
                token, query and new tokens do not fit into the model's positions, or the options ask for more than
                tokens.
            torch.OutOfMemoryError: a single row does not fit. Larger batches are halved first.
        """
        model, inner = self.model, pretrained_of(self.model)
        end = self.tokenizer.eos_token_id
        token_budget = self.token_budget if token_budget is None else token_budget
        settings = dict(generation_kwargs)
        if settings.get("stop_strings"):
            settings.setdefault("tokenizer", self.tokenizer)
        pad_token_id = valid_filler(inner, padding_id(self.tokenizer, settings.pop("pad_token_id", None)))
        if return_logprobs and beams(model, settings) > 1:
            raise ValueError("return_logprobs needs num_beams=1: beams change places. batched_forward_pass has them")
        check_arguments(queries, batch_size, token_budget, settings)
        # the model's own end tokens and the call's join those of the tokenizer
        options = Options.collect(model, [] if end is None else [end], remove_padding, settings)
        limits = options.limits(queries, max_new_tokens, self.is_encoder_decoder)
        # with weights that stay sharded (synced_gpus), all processes run the same number of batches: cut by count alone
        in_step = bool(settings.get("synced_gpus"))
        check_tokens(inner, queries)
        check_positions(inner, [len(query) for query in queries], limits)
        frame = Frame(pad_token_id, self.is_encoder_decoder, self.device, pad_to_multiple_of)
        # processes in step run the same passes, whatever their rows
        plan = Plan(False, False) if in_step else Plan.of(model, options)
        same = numbered(tuple(query.tolist()) for query in queries)

        def sample(rows: list[int]) -> list[Answer]:
            batch = frame.pad([queries[i] for i in rows])
            row_limits = None if limits is None else [limits[i] for i in rows]
            written = decode(
                model,
                batch,
                row_limits,
                options,
                pad_token_id=pad_token_id,
                is_encoder_decoder=self.is_encoder_decoder,
                owners=numbered(same[i] for i in rows),
                keeps_tail=not remove_padding,
                plan=plan,
                temperature=sampling_temperature(model, settings) if return_logprobs else None,
            )
            return _answers(written, row_limits, options.eos_ids, remove_padding)

        sizes = [(len(query), DEFAULT_NEW_TOKENS if limits is None else limits[i]) for i, query in enumerate(queries)]
        with self.autocast(), sampling_mode(model), ExitStack() if in_step else gathered(model):
            asked = (len(queries) > 1 or pad_to_multiple_of) and not in_step
            mates = batch_mates(inner, pad_token_id) if asked else BatchMates.ANY
            if plan.shares and len(set(same)) < len(same):
                tell_if_not_selectable(plain_model(inner))
            if mates is not BatchMates.ANY:
                frame = frame._replace(multiple=None)
            budget = 0 if in_step else token_budget
            return run_batches(sample, sizes, batch_size, budget, may_shrink=not in_step, mates=mates)


def _answers(
    written: Written, limits: Sequence[int] | None, eos_ids: Collection[int], remove_padding: bool
) -> list[Answer]:
    """Each row up to its end: the first of `eos_ids` (included), the place of a stopping criterion, or its limit."""
    # differs from v0.7: it cut at the tokenizer's end id alone, wherever it was, even in prompt and start token
    rows, width = written.new_tokens.shape
    ends = written.stopped
    if eos_ids and width:
        is_end = torch.isin(written.new_tokens, torch.tensor(sorted(eos_ids), device=ends.device))
        ends = torch.where(is_end.any(dim=1), torch.minimum(ends, is_end.int().argmax(dim=1) + 1), ends)
    most = ends.new_full((rows,), width) if limits is None else ends.new_tensor(limits).clamp(max=width)
    ended = (ends <= most).tolist()
    lengths = (torch.minimum(ends, most) if remove_padding else most).tolist()
    answers = []
    for row, length in enumerate(lengths):
        tokens = torch.cat((written.starts[row], written.new_tokens[row, :length]))
        logprobs = None if written.logprobs is None else written.logprobs[row, :length]
        answers.append(Answer(tokens, logprobs, ended[row]))
    return answers


def several(n: int, settings: dict[str, Any]) -> int:
    """Take `num_return_sequences` out of `settings`; it is another name of `n`."""
    asked = settings.pop("num_return_sequences", None)
    if asked is None:
        return n
    if n not in (1, asked):
        raise ValueError(f"n={n} and num_return_sequences={asked} are two names of one setting; give one of them")
    return int(asked)
