"""Answers that a `DPOTrainer` samples from policy and reference during evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trl_step.models.shortcuts.modes import eval_mode


def sampled_answers(
    model: Any, batch: Mapping[str, Any], tokenizer: Any, max_length: int, with_prompt: bool = True
) -> list[str]:
    """A model's answers to the batch's prompts, as texts; prompt and answer have at most `max_length` tokens.

    A decoder's begin with the prompt, unless `with_prompt` is False.
    """
    with eval_mode(model):
        tokens = model.generate(
            input_ids=batch["prompt_input_ids"],
            attention_mask=batch["prompt_attention_mask"],
            max_length=max_length,
            do_sample=True,
            pad_token_id=tokenizer.pad_token_id,
        )
    if not with_prompt and not model.config.is_encoder_decoder:
        tokens = tokens[:, batch["prompt_input_ids"].shape[1] :]
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def table_of_answers(dataset: Any, rows: int, answers_to: Callable[[list[Any]], Iterable[list[str]]]) -> Any:
    """Answers of policy and reference to some random prompts, as a wandb table.

    Args:
        dataset: rows with a "prompt"
        rows: how many of them
        answers_to: what the two models answer to some rows, a list of texts of each, without the prompts
    """
    import wandb

    chosen = [dataset[row] for row in random.sample(range(len(dataset)), k=min(rows, len(dataset)))]
    # differs from v0.7: answers are cut at tokens, there at the characters of the prompt, which decoding changes
    table = [[row["prompt"], *texts] for row, *texts in zip(chosen, *answers_to(chosen), strict=True)]
    return wandb.Table(columns=["Prompt", "Policy", "Ref Model"], data=table)
