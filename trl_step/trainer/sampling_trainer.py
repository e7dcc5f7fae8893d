"""`SamplingTrainer`: a `StepTrainer` that draws responses, with its policy or with a sampler elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, Optional, Union, overload

import torch
from torch.nn.utils.rnn import pad_sequence

from trl_step.models.notices import warn_user
from trl_step.sampling.local import LocalSampler, several
from trl_step.sampling.sampler import Sampler, Samples, Weights
from trl_step.trainer.batches.layout import Layout
from trl_step.trainer.processes.policy_weights import PolicyWeights
from trl_step.trainer.reports.watch import SamplingWatch
from trl_step.trainer.step_trainer import StepTrainer


class SamplingTrainer(StepTrainer):
    """What `generate`, `sample` and the samplers of a trainer of a language model have in common.

    Subclasses set the attributes below.
    """

    model: Any
    tokenizer: Any
    is_encoder_decoder: bool
    optional_peft_ctx: Callable
    _layout: Layout
    _reference: Any

    _sampler: Optional[Sampler] = None

    @cached_property
    def _sampling(self) -> SamplingWatch:
        return SamplingWatch(self.config.temperature)

    @property
    def processing_class(self) -> Any:
        """The newer name of `tokenizer`."""
        return self.tokenizer

    @processing_class.setter
    def processing_class(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @overload
    def generate(
        self,
        query_tensor: list[torch.Tensor],
        length_sampler: Optional[Callable[[], int]] = ...,
        batch_size: int = ...,
        return_prompt: bool = ...,
        generate_ref_response: Literal[False] = ...,
        *,
        n: int = ...,
        return_logprobs: Literal[False] = ...,
        **generation_kwargs: Any,
    ) -> list[torch.Tensor]: ...

    @overload
    def generate(
        self,
        query_tensor: torch.Tensor,
        length_sampler: Optional[Callable[[], int]] = ...,
        batch_size: int = ...,
        return_prompt: bool = ...,
        generate_ref_response: Literal[False] = ...,
        *,
        n: int = ...,
        return_logprobs: Literal[False] = ...,
        **generation_kwargs: Any,
    ) -> torch.Tensor: ...

    @overload
    def generate(
        self,
        query_tensor: Union[torch.Tensor, list[torch.Tensor]],
        length_sampler: Optional[Callable[[], int]] = ...,
        batch_size: int = ...,
        return_prompt: bool = ...,
        generate_ref_response: bool = ...,
        *,
        n: int = ...,
        return_logprobs: bool = ...,
        **generation_kwargs: Any,
    ) -> Any: ...

    def generate(
        self,
        query_tensor: Union[torch.Tensor, list[torch.Tensor]],
        length_sampler: Optional[Callable[[], int]] = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        *,
        n: int = 1,
        return_logprobs: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Sample responses with the policy, in eval mode.

        Args:
            query_tensor: one query [Q] int64, or a list of them of any lengths
            length_sampler: called once per response, gives its number of new tokens
            batch_size: prompts that run together at least; more do while `config.generation_tokens` allows. If padding
                changes what the model says (MiniMax, BartForCausalLM), only prompts of one length do; if other rows
                do (RWKV), each runs alone
            return_prompt: put the query before the response (decoder-only models)
            generate_ref_response: sample from the reference as well
            n: responses per query, also named `num_return_sequences`; the query is read once
            return_logprobs: return the log-probs of the response tokens too, each [R_i] float32 (of an encoder-decoder
                model [R_i - 1]), at the temperature of sampling and before any truncation
            generation_kwargs: for `model.generate`; `remove_padding=False` and `pad_to_multiple_of` are taken too

        Returns:
            for a list: a list of responses [R_i] in the same order, each ending after its first end-of-sequence
            token, with `n` the `n` of the first query, then those of the second; for a single query [n, R], padded
            on the right. With `return_logprobs` a pair of responses and a list of log-probs. With
            `generate_ref_response` a pair of what policy and reference give.

        Raises:
            ValueError: a query that is not one-dimensional or empty, one that with its new tokens is longer than the
                model's positions, or a setting that asks for more than tokens, such as `output_scores`.
        """
        queries = [query_tensor] if isinstance(query_tensor, torch.Tensor) else query_tensor
        for i, query in enumerate(queries):
            if not isinstance(query, torch.Tensor) or query.dim() != 1 or len(query) == 0:
                shape = tuple(query.shape) if isinstance(query, torch.Tensor) else type(query).__name__
                raise ValueError(f"query_tensor[{i}] must be a tensor of token ids with one dimension, got {shape}")
        n = several(n, generation_kwargs)
        if length_sampler is not None:
            if generation_kwargs.get("max_new_tokens") is not None:
                warn_user(f"max_new_tokens={generation_kwargs['max_new_tokens']} is ignored: a length_sampler is given")
            generation_kwargs["max_new_tokens"] = [int(length_sampler()) for _ in range(n * len(queries))]
        self._sampling.saw_generate(self.accelerator.unwrap_model(self.model), generation_kwargs)
        settings = {"batch_size": batch_size, "return_logprobs": return_logprobs, **generation_kwargs}

        def sample(sampler: Sampler) -> Any:
            with self.model_lock:
                samples = sampler.sample(queries, n, **settings)
                self._sampling.saw_samples(samples.version, self.weights.version)
            responses: Any = self._responses_of(samples, return_prompt)
            if isinstance(query_tensor, torch.Tensor):
                responses = pad_sequence(responses, batch_first=True, padding_value=self._layout.pad_token_id)
            return (responses, samples.logprobs) if return_logprobs else responses

        response = sample(self.sampler)
        if not generate_ref_response:
            return response
        with self.model_lock, self.optional_peft_ctx():
            return response, sample(self._local_sampler(self._reference))

    def _generate_batched(
        self,
        model: Any,
        query_tensors: Sequence[torch.Tensor],
        length_sampler: Optional[Callable[[], int]] = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        pad_to_multiple_of: Optional[int] = None,
        remove_padding: bool = True,
        **generation_kwargs: Any,
    ) -> list[torch.Tensor]:
        """What a subclass with a `generate` of its own calls in release 0.7: one response of `model` per query."""
        if length_sampler is not None:
            generation_kwargs["max_new_tokens"] = [int(length_sampler()) for _ in query_tensors]
        samples = (self.sampler if model is self.model else self._local_sampler(model)).sample(
            query_tensors,
            batch_size=batch_size,
            pad_to_multiple_of=pad_to_multiple_of,
            remove_padding=remove_padding,
            return_logprobs=False,
            **generation_kwargs,
        )
        return self._responses_of(samples, return_prompt)

    def _responses_of(self, samples: Samples, return_prompt: bool) -> list[torch.Tensor]:
        """The responses, each after its query if asked for and the model is no encoder-decoder."""
        return samples.with_queries() if return_prompt and not self.is_encoder_decoder else samples.responses

    def sample(self, queries: Sequence[torch.Tensor], n: int = 1, **settings: Any) -> Samples:
        """Draw `n` responses to each query with `self.sampler`; see `Sampler.sample`.

        Args:
            queries: token ids, each [Q_i], any integer dtype
            n: answers per query
            settings: those of `generate`

        Raises:
            ValueError, TypeError: a query or a setting is not possible.
            RuntimeError: a server could not be reached; nothing is lost, call again.
        """
        self._sampling.saw_generate(self.accelerator.unwrap_model(self.model), settings)
        with self.model_lock:
            samples = self.sampler.sample(queries, n, **settings)
            self._sampling.saw_samples(samples.version, self.weights.version)
        return samples

    @property
    def sampler(self) -> Sampler:
        """What draws responses: the policy in this process, or what was assigned, such as a server.

        An assigned sampler follows this trainer's weights, if it does not follow others.
        """
        return self._local_sampler(self.model) if self._sampler is None else self._sampler

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None:
        if sampler.weights is None:
            sampler.weights = self.weights
        self._sampler = sampler

    def _forget(self) -> None:
        super()._forget()
        if self._sampler is not None:
            self._sampler.version = None  # it takes over the weights before it samples again

    @property
    def weights(self) -> Weights:
        """The policy's weights, for samplers elsewhere."""
        return PolicyWeights(lambda: self.accelerator.unwrap_model(self.model), self._processes, self._counters)

    def _local_sampler(self, model: Any) -> LocalSampler:
        return LocalSampler(
            self.accelerator.unwrap_model(model),
            self.tokenizer,
            device=self.current_device,
            token_budget=self.config.generation_tokens,
            autocast=self.accelerator.autocast,
            weights=self.weights,
        )
