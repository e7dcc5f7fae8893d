"""`OldParts`: private methods of release 0.7's `PPOTrainer` that subclasses call and this package does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch

from trl_step.core import is_list
from trl_step.models.utils import prepare_deepspeed
from trl_step.trainer.batches.checks import Vocabulary, check_step_inputs
from trl_step.trainer.language.parts import LanguageParts


class OldParts(LanguageParts):
    """What a subclass with a `step` of its own, written for release 0.7, makes it of."""

    def _step_safety_checker(
        self,
        batch_size: Optional[int],
        queries: list[torch.Tensor],
        responses: list[torch.Tensor],
        scores: Sequence[Any],
        masks: Optional[list[torch.Tensor]] = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], Optional[list[torch.Tensor]]]:
        """The inputs of a step, checked and on the device.

        Args:
            batch_size: how many samples there must be; None: any number
            queries, responses: token ids, each [Q_i] and [R_i]
            scores: one number per sample
            masks: each [R_i]

        Returns:
            the four; scores are 0-d tensors

        Raises:
            ValueError: an input is wrong; the message names the list and the sample.
        """
        if batch_size is not None:
            for name, items in (("queries", queries), ("responses", responses), ("scores", scores)):
                if (is_list(items) or isinstance(items, torch.Tensor)) and len(items) != batch_size:
                    raise ValueError(f"{name} has {len(items)} entries, but batch_size is {batch_size}")
        vocabulary = Vocabulary.of(self.accelerator.unwrap_model(self.model), self.ref_model)
        given = check_step_inputs(queries, responses, scores, masks, vocabulary, self.current_device)
        if not isinstance(given.scores, torch.Tensor):
            raise ValueError("scores must be one number per sample here; PPOTrainer.step takes one per token, too")
        return given.queries, given.responses, list(given.scores), given.response_masks

    def _filter_kwargs(self, kwargs: dict[str, Any], target_func: Callable[..., Any]) -> dict[str, Any]:
        """Those of `kwargs` that `target_func` has a parameter for."""
        known = inspect.signature(target_func).parameters
        return {name: value for name, value in kwargs.items() if name in known}

    def _show_tokens(self, tokens: torch.Tensor, masks: torch.Tensor) -> None:
        """Print tokens [S], those with a mask [S] of 1 on another ground; needs the package rich."""
        from rich import print as show
        from rich.text import Text

        text = Text()
        for token, mask in zip(tokens.tolist(), masks.tolist(), strict=True):
            text.append(
                self.tokenizer.decode(token), style="black on deep_sky_blue1" if mask == 1 else "black on cyan3"
            )
            text.append(" ")
        show(text)

    def _prepare_deepspeed(self, model: Any) -> Any:
        """A model that does not train, as DeepSpeed's engine; see `prepare_deepspeed`."""
        return prepare_deepspeed(model, self.accelerator)
