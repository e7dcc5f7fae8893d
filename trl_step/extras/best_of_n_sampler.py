"""Best-of-n sampling: draw several answers to each query and keep those with the highest scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trl_step.core import set_seed
from trl_step.models import PreTrainedModelWrapper
from trl_step.models.critic import PolicyWithCritic
from trl_step.sampling.local import LocalSampler

Query = torch.Tensor | Sequence[int]


class BestOfNSampler:
    """Samples `sample_size` answers per query and returns the `n_candidates` best.

    Args:
        model: a value-head wrapper, a transformers model, or the `model` of a trainer.
        tokenizer: of that model.
        queries_to_scores: called with the `sample_size` texts of one query (for decoder-only models prompt and answer),
            returns one number per text, higher is better.
        length_sampler: called once per query, returns the number of new tokens; None leaves it to the generation
            settings.
        sample_size: answers drawn per query.
        seed: seeds the process when the sampler is built; None leaves all random streams unchanged.
        n_candidates: answers returned per query.
        generation_config: for `model.generate`. Unless it has `do_sample=True`, all answers to a query are equal.

    Raises:
        ValueError: model or tokenizer have the wrong type, or there are more candidates than samples.
    """

    def __init__(
        self,
        model: PreTrainedModelWrapper | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        queries_to_scores: Callable[[list[str]], Sequence[float]],
        length_sampler: Any,
        sample_size: int = 4,
        seed: int | None = None,
        n_candidates: int = 1,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}")
        if not isinstance(model, (PreTrainedModelWrapper, PolicyWithCritic, PreTrainedModel)):
            raise ValueError(f"model must be a value-head wrapper or a transformers model, got {type(model).__name__}")
        if not 1 <= n_candidates <= sample_size:
            raise ValueError(f"n_candidates={n_candidates} must be between 1 and sample_size={sample_size}")
        if seed is not None:
            set_seed(seed)
        self.model = model
        self.tokenizer = tokenizer
        self.queries_to_scores = queries_to_scores
        self.length_sampler = length_sampler
        self.gen_config = generation_config
        self.sample_size = sample_size
        self.n_candidates = n_candidates

    def generate(
        self,
        tokenized_query: Query | Sequence[Query],
        skip_special_tokens: bool = True,
        device: str | torch.device | None = None,
        **generation_kwargs: Any,
    ) -> list[list[str]]:
        """The best texts for each query, the best first.

        Args:
            tokenized_query: ids of one query, as a list or a 1-d tensor, or a list of queries.
            skip_special_tokens: leave special tokens out of the texts.
            device: the inputs' device; None uses the model's.
            generation_kwargs: for `model.generate`, taking precedence over `generation_config`; also `batch_size` and
                `token_budget` of `LocalSampler`.

        Returns:
            One list of `n_candidates` texts per query.

        Raises:
            ValueError: a query has the wrong form, or the scores are not one finite number per text.
        """
        queries = _as_list(tokenized_query)
        answers = self._sample(queries, device, generation_kwargs)
        best = []
        for i in range(len(queries)):
            rows = answers[i * self.sample_size : (i + 1) * self.sample_size]
            texts = [self.tokenizer.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]
            order = _best_first(self.queries_to_scores(texts), len(texts), i)
            best.append([texts[j] for j in order[: self.n_candidates]])
        return best

    def _sample(
        self, queries: list[torch.Tensor], device: str | torch.device | None, generation_kwargs: dict[str, Any]
    ) -> list[torch.Tensor]:
        """`sample_size` answers per query, with the answers to a query next to each other."""
        options = {"generation_config": self.gen_config, **generation_kwargs}
        limits = options.pop("max_new_tokens", None)
        if limits is None and self.length_sampler is not None:
            limits = [length for _ in queries for length in [int(self.length_sampler())] * self.sample_size]
        sampler = LocalSampler(self.model, self.tokenizer, device=device)
        samples = sampler.sample(queries, self.sample_size, max_new_tokens=limits, return_logprobs=False, **options)
        return samples.responses if sampler.is_encoder_decoder else samples.with_queries()


def _as_list(queries: Any) -> list[torch.Tensor]:
    """Tensors [Q_i] from a single query or a list of queries, as tensors or as lists of ids."""
    if isinstance(queries, torch.Tensor):
        if queries.dim() != 1:
            raise ValueError(
                f"a query is a 1-d tensor, got shape {tuple(queries.shape)}; give several as a list, without padding"
            )
        return [queries]
    queries = list(queries)
    if queries and isinstance(queries[0], Integral):
        return [torch.tensor(queries, dtype=torch.long)]
    return [_row(i, torch.as_tensor(query)) for i, query in enumerate(queries)]


def _row(index: int, query: torch.Tensor) -> torch.Tensor:
    """A query [Q] or [1, Q] as [Q]."""
    if query.dim() == 2 and len(query) == 1:
        return query[0]
    if query.dim() != 1:
        raise ValueError(f"query {index} has the shape {tuple(query.shape)}; a query is a list or a 1-d tensor of ids")
    return query


def _best_first(scores: Any, count: int, index: int) -> list[int]:
    """The order of `count` scores from high to low; equal scores keep their order."""
    values = [float(score) for score in scores]
    if len(values) != count:
        raise ValueError(f"queries_to_scores returned {len(values)} scores for the {count} texts of query {index}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"queries_to_scores returned {values} for query {index}; scores must be finite numbers")
    return sorted(range(count), key=lambda j: -values[j])
