"""How `PPOTrainer` samples responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import torch

from trl_step.sampling.local import generate_batched, padding_id


class GenerationMixin:
    """Methods of `PPOTrainer` that sample; the attributes are those of `PPOTrainer`."""

    def generate(
        self,
        query_tensor: Union[torch.Tensor, list[torch.Tensor]],
        length_sampler: Optional[Callable] = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Sample responses with the policy, in eval mode.

        Args:
            query_tensor: one query [Q] int64, or a list of them of any lengths
            length_sampler: called once per query, gives its number of new tokens
            batch_size: prompts that run together at least; more do while `config.generation_tokens` allows
            return_prompt: keep the query in front of the response (decoder-only models)
            generate_ref_response: sample from the reference as well
            generation_kwargs: for `model.generate`; `remove_padding=False` and `pad_to_multiple_of` are taken too

        Returns:
            for a list: a list of responses [R_i] in the same order, each ending behind its first end-of-sequence
            token; for a single query [1, R]. With `generate_ref_response` a pair of these.

        Raises:
            ValueError: a query that is not one-dimensional or empty.
        """
        queries = query_tensor if isinstance(query_tensor, (list, tuple)) else [query_tensor]
        for i, query in enumerate(queries):
            if not isinstance(query, torch.Tensor) or query.dim() != 1 or len(query) == 0:
                shape = tuple(query.shape) if isinstance(query, torch.Tensor) else type(query).__name__
                raise ValueError(f"query_tensor[{i}] must be a tensor of token ids with one dimension, got {shape}")
        if length_sampler is not None:
            generation_kwargs["max_new_tokens"] = [int(length_sampler()) for _ in queries]
        policy = self.accelerator.unwrap_model(self.model)
        self._sampling.saw_generate(policy, generation_kwargs)

        def sample(model: Any) -> Any:
            responses = self._generate_batched(
                model, queries, batch_size=batch_size, return_prompt=return_prompt, **generation_kwargs
            )
            return responses if isinstance(query_tensor, (list, tuple)) else responses[0].unsqueeze(0)

        response = sample(self.model)
        if not generate_ref_response:
            return response
        with self.optional_peft_ctx():
            return response, sample(self._reference)

    def _generate_batched(
        self,
        model: Any,
        query_tensors: Sequence[torch.Tensor],
        length_sampler: Optional[Callable] = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        pad_to_multiple_of: Optional[int] = None,
        remove_padding: bool = True,
        **generation_kwargs: Any,
    ) -> list[torch.Tensor]:
        if length_sampler is not None:
            generation_kwargs["max_new_tokens"] = [int(length_sampler()) for _ in query_tensors]
        unwrapped, end = self.accelerator.unwrap_model(model), self.tokenizer.eos_token_id
        with self.accelerator.autocast():
            return generate_batched(
                unwrapped,
                query_tensors,
                pad_token_id=padding_id(self.tokenizer, generation_kwargs.pop("pad_token_id", None)),
                eos_token_ids=[] if end is None else [end],  # the model's own and the call's join them
                is_encoder_decoder=self.is_encoder_decoder,
                device=self.current_device,
                batch_size=batch_size,
                token_budget=self.config.generation_tokens,
                max_new_tokens=generation_kwargs.pop("max_new_tokens", None),
                return_prompt=return_prompt,
                remove_padding=remove_padding,
                pad_to_multiple_of=pad_to_multiple_of,
                **generation_kwargs,
            )
