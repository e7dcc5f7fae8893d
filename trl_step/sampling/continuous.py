"""`ContinuousBatchingSampler`: transformers' continuous batching, in this process and on the trainer's own model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Optional

import torch
import transformers
from accelerate.utils import extract_model_from_parallel
from transformers import GenerationConfig

from trl_step.head.logprobs import logprobs_of_logits
from trl_step.models.decoder_pass import run_decoder
from trl_step.models.inner_model import plain_model, pretrained_of
from trl_step.models.sharding import gathered
from trl_step.sampling.local import sampling_mode, several
from trl_step.sampling.options import all_eos_ids, check_arguments, check_positions, check_tokens
from trl_step.sampling.sampler import Sampler, Samples, Weights, repeated
from trl_step.sampling.settings import Request, SamplingSettings, requests_for, settings_and_limits

TOKENS_PER_PASS = 4096
"""Of queries and responses, with padding, in one forward pass that computes log-probs."""
PAGE = 256
"""Tokens of a block of the cache, as transformers has it."""
TOKENS_ON_CPU = 1024
"""Tokens of one batch on a CPU, where their attention mask over the whole cache is a tensor."""


class ContinuousBatchingSampler(Sampler):
    """Draws answers with `generate_batch` of transformers: rows that end make room for waiting queries.

    It holds the trainer's model, so there is nothing to send. The log-probs that `generate_batch` reports are those of
    the distribution that it drew from, or of the model's at temperature 1, depending on the release of transformers:
    they are taken over where both are the same (temperature 1, nothing cut off), and computed by a forward pass
    elsewhere.

    Args:
        model: the trainer's `model`, or another decoder-only model
        weights: those of the trainer, for the version
        eos_token_ids: ids that end an answer, beside those of the model's generation config
        memory: share of the free memory of a GPU that the cache may take; None: as transformers likes, most of it
    """

    def __init__(
        self,
        model: torch.nn.Module,
        weights: Optional[Weights] = None,
        *,
        eos_token_ids: Collection[int] = (),
        memory: Optional[float] = None,
    ) -> None:
        super().__init__(weights)
        self.model = model
        self.eos_token_ids = eos_token_ids
        self.memory = memory

    def update(self, weights: Weights, version: int) -> None:
        """Nothing: the model is the trainer's own."""

    def draw(self, queries: Sequence[torch.Tensor], n: int, settings: dict[str, Any]) -> Samples:
        check_arguments(queries, 1, 1, {})
        n, with_logprobs = several(n, settings), settings.pop("return_logprobs", True)
        wanted, limits = settings_and_limits(queries, n, settings)
        _refuse(wanted)
        inner = extract_model_from_parallel(self.model)
        pretrained = pretrained_of(inner)
        model = plain_model(pretrained)
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(model).__name__} is an encoder-decoder model, which generate_batch of transformers cannot run; "
                "sample with trainer.generate"
            )
        check_tokens(pretrained, queries)
        own_limits = [max(limits[i * n : (i + 1) * n]) for i in range(len(queries))]
        check_positions(pretrained, [len(query) for query in queries], own_limits)
        end_ids = wanted.end_ids
        if wanted.engine_ends:
            end_ids = all_eos_ids(inner, [*self.eos_token_ids, *end_ids], {})
        repeated_queries, group_ids = repeated(queries, n)
        answers: dict[int, tuple[list[int], list[float]]] = {}
        with sampling_mode(inner), gathered(inner):
            for asked in _alike(requests_for(queries, n, limits)):
                answers.update(self._answers(model, asked, wanted, end_ids))
            responses = [torch.tensor(answers[place][0]) for place in range(len(repeated_queries))]
            logprobs = None
            if with_logprobs and wanted.temperature in (0.0, 1.0) and not wanted.truncated:
                logprobs = [torch.tensor(answers[place][1]) for place in range(len(responses))]
            elif with_logprobs:
                logprobs = _logprobs(model, repeated_queries, responses, wanted.temperature)
        return Samples(
            queries=repeated_queries,
            responses=[response.to(model.device) for response in responses],
            logprobs=None if logprobs is None else [one.to(model.device) for one in logprobs],
            ended=[int(response[-1]) in end_ids for response in responses],
            version=self.version or 0,
            group_ids=group_ids,
        )

    def _answers(
        self, model: Any, asked: list[Request], wanted: SamplingSettings, end_ids: list[int]
    ) -> dict[int, tuple[list[int], list[float]]]:
        """Ids and log-probs by place, for requests of one limit and one number of answers."""
        count = 1 if wanted.greedy else len(asked[0].places)
        config = GenerationConfig(
            max_new_tokens=asked[0].limit,
            num_return_sequences=count,
            do_sample=not wanted.greedy,
            eos_token_id=end_ids or [-1],
            **(
                {}
                if wanted.greedy
                else {"temperature": wanted.temperature, "top_k": wanted.top_k, "top_p": wanted.top_p}
            ),
        )
        try:
            from transformers import ContinuousBatchingConfig

            batching = ContinuousBatchingConfig(return_logprobs=True, **self._room(asked, count, model.device))
        except (ImportError, TypeError) as error:
            raise RuntimeError(
                f"transformers {transformers.__version__} has no continuous batching with log-probs; install a newer "
                "one"
            ) from error
        what = f"generate_batch of transformers {transformers.__version__} on {model.device}"
        try:
            found = model.generate_batch(
                [request.query for request in asked], generation_config=config, continuous_batching_config=batching
            )
        except Exception as error:
            raise RuntimeError(f"{what} cannot run {type(model).__name__}: {error}") from error
        outputs = list(found.values())
        wrong = [output.error for output in outputs if output.error is not None]
        if wrong or len(outputs) != count * len(asked):
            raise RuntimeError(
                f"{what} gave {len(outputs) - len(wrong)} of {count * len(asked)} answers of {type(model).__name__}: "
                f"{wrong[0] if wrong else 'its own log says why'}"
            )
        answers = {}
        for i, request in enumerate(asked):
            those = outputs[i * count : (i + 1) * count] * (len(request.places) if wanted.greedy else 1)
            for place, output in zip(request.places, those, strict=True):
                answers[place] = (output.generated_tokens, output.logprobs)
        return answers

    def _room(self, asked: Sequence[Request], count: int, device: torch.device) -> dict[str, Any]:
        """How large the cache is made. Without a limit it takes most of the machine's memory on a CPU."""
        if device.type != "cpu":
            return {"max_memory_percent": self.memory}
        prompts = sum(len(request.query) for request in asked)
        pages = sum(-(-(len(request.query) + request.limit) // PAGE) for request in asked)
        return {"num_blocks": count * pages + 1, "max_batch_tokens": min(TOKENS_ON_CPU, max(PAGE, prompts))}


def _refuse(wanted: SamplingSettings) -> None:
    """Raise for what continuous batching leaves out, or may leave out, without an error."""
    for name, value, neutral in (
        ("min_p", wanted.min_p, 0.0),
        ("repetition_penalty", wanted.repetition_penalty, 1.0),
        ("min_new_tokens", wanted.min_new_tokens, 0),
        ("stop_strings", wanted.stop_strings, []),
    ):
        if value != neutral:
            raise ValueError(
                f"{name}={value!r} does not work with generate_batch; leave it out, or use trainer.generate"
            )


def _alike(asked: Sequence[Request]) -> list[list[Request]]:
    """Orders in lists of one limit and one number of answers each."""
    lists: dict[tuple[int, int], list[Request]] = {}
    for request in asked:
        lists.setdefault((request.limit, len(request.places)), []).append(request)
    return list(lists.values())


def _logprobs(
    model: Any, queries: Sequence[torch.Tensor], responses: Sequence[torch.Tensor], temperature: float
) -> list[torch.Tensor]:
    """Log-probs of the responses' tokens at `temperature`, each [R_i] float32; greedy counts as temperature 1."""
    sequences = [torch.cat([query.cpu().long(), response]) for query, response in zip(queries, responses, strict=True)]
    waiting = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
    found: dict[int, torch.Tensor] = {}
    while waiting:
        width = len(sequences[waiting[0]])
        rows, waiting = waiting[: max(1, TOKENS_PER_PASS // width)], waiting[max(1, TOKENS_PER_PASS // width) :]
        ids = torch.nn.utils.rnn.pad_sequence([sequences[i] for i in rows], batch_first=True)
        lengths = torch.tensor([len(sequences[i]) for i in rows])[:, None]
        starts = torch.tensor([len(queries[i]) for i in rows])[:, None]
        columns = torch.arange(width)
        predicting = (columns >= starts - 1) & (columns < lengths - 1)
        inputs = {"input_ids": ids, "attention_mask": (columns < lengths).long()}
        logits = run_decoder(
            model, {name: tensor.to(model.device) for name, tensor in inputs.items()}, predicting.to(model.device)
        ).logits
        labels = ids.roll(-1, dims=1)[predicting].to(logits.device)
        pieces = logprobs_of_logits(logits, labels, temperature or 1.0).split([len(responses[i]) for i in rows])
        found.update(zip(rows, pieces, strict=True))
    return [found[i] for i in range(len(sequences))]
