"""Answers that a `DPOTrainer` samples from policy and reference during evaluation."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trl_step.models.shortcuts.modes import eval_mode

if TYPE_CHECKING:
    from trl_step.trainer.dpo_trainer import DPOTrainer


def sampled_answers(trainer: DPOTrainer, model: Any, batch: Mapping[str, Any]) -> list[str]:
    """A model's answers to the batch's prompts, as texts."""
    model = trainer.accelerator.unwrap_model(model)
    with eval_mode(model):
        tokens = model.generate(
            input_ids=batch["prompt_input_ids"],
            attention_mask=batch["prompt_attention_mask"],
            max_length=trainer.max_length,
            do_sample=True,
            pad_token_id=trainer.tokenizer.pad_token_id,
        )
    return trainer.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def log_answers(trainer: DPOTrainer, dataset: Any) -> None:
    """Answers of policy and reference to one random batch of prompts, as a table in wandb."""
    import wandb

    rows = random.sample(range(len(dataset)), k=min(trainer.args.eval_batch_size, len(dataset)))
    chosen = [dataset[row] for row in rows]
    batch = trainer._prepare_inputs(trainer.data_collator(chosen))
    answers = zip(chosen, *trainer.get_batch_samples(trainer.model, batch), strict=True)
    # a decoder repeats the prompt before its answer
    table = [
        [row["prompt"], *(text if trainer.is_encoder_decoder else text[len(row["prompt"]) :] for text in texts)]
        for row, *texts in answers
    ]
    trainer.log({"game_log": wandb.Table(columns=["Prompt", "Policy", "Ref Model"], data=table)})
    trainer.state.log_history.pop()  # a table cannot be written to the state's JSON
