"""Runs beside TRL 1.16: `GRPOTrainer.training_step` on fixed inputs.

Only where the numbers come from is replaced (sampled ids, the models' log-probs, the reward). Advantages, importance
weights, loss and gradient are the release's own code, on a trainer made with its own configuration.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from tests.parity.group_cases import GRPO_CASES
from tests.parity.group_inputs import INPUTS
from tests.parity.group_recording import write

OPTIONS = [
    "loss_type",
    "scale_rewards",
    "num_generations",
    "beta",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "use_bias_correction_kl",
    "entropy_coef",
    "max_completion_length",
    "mask_truncated_completions",
    "num_iterations",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
]
PAD, END, FIRST = 0, 1, 2
VOCABULARY = 40
LONGEST = 9
"""`max_completion_length`: more than the inputs have, so that it shows where it is in a denominator."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w2 to w39, with a padding and an end token."""
    words = {"<pad>": PAD, "<end>": END, **{f"w{number}": number for number in range(FIRST, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def saved_model(folder: Path) -> GPT2LMHeadModel:
    """Its numbers are never used: the trainer wants a model to train, and loads the reference from its folder."""
    shape = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=END, eos_token_id=END)).save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder)


class ObservedTrainer(GRPOTrainer):
    """Takes ids and log-probs from `arrays`, and keeps what it was trained on."""

    arrays: dict[str, torch.Tensor]
    leaves: dict[str, torch.Tensor]
    tool_mask: bool

    def sample_numbers(self, ids: torch.Tensor) -> torch.Tensor:
        """Which sample each row is: the first token of its completion says so."""
        return ids[:, self.prompt_length] - FIRST

    def _generate(self, prompts: list[Any]) -> Any:
        mask = self.arrays["mask"]
        completions = [[FIRST + row] + [FIRST] * (int(mask[row].sum()) - 1) for row in range(len(mask))]
        if self.mask_truncated_completions:  # of every third sample no end is seen
            completions = [ids if row % 3 == 2 else [*ids[:-1], END] for row, ids in enumerate(completions)]
            completions = [[FIRST + row, *ids[1:]] for row, ids in enumerate(completions)]
        counted = [int(row.sum()) for row in mask]
        holes = [self.arrays["holes"][row, :n].tolist() for row, n in enumerate(counted)] if self.tool_mask else None
        sampled = [self.arrays["sampling_logprobs"][row, :n].tolist() for row, n in enumerate(counted)]
        self.prompt_length = 2
        prompt_ids = [[FIRST, FIRST]] * len(mask)
        return prompt_ids, completions, holes, completions, sampled if self.use_vllm else None, {}, None, None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, *rest: Any, compute_entropy: bool = False, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        rows = self.sample_numbers(input_ids)
        if compute_entropy:
            self.parts.append(rows.tolist())
            return self.leaves["logprobs"][rows], self.leaves["entropies"][rows], None
        return self.arrays["ref_logprobs" if model is self.ref_model else "old_logprobs"][rows], None, None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self.scored = super()._generate_and_score_completions(inputs)
        return self.scored

    def compute_loss(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss = super().compute_loss(*arguments, **named)
        self.losses.append(loss.item())
        return loss


def run(inputs: dict[str, np.ndarray], settings: dict[str, Any]) -> dict[str, Any]:
    """Forward and backward passes over one batch of answers: advantages, loss and gradient by the log-probs."""
    settings = dict(settings)
    correction, low, high = (settings.pop(name, None) for name in ("correction", "clip_min", "clip_max"))
    tool_mask = settings.pop("tool_mask", False)
    rows, size = len(inputs["mask"]), int((inputs["groups"] == 0).sum())
    window = settings.setdefault("gradient_accumulation_steps", 1)
    steps = settings.setdefault("steps_per_generation", window)
    settings.setdefault("num_iterations", 2)  # the log-probs of the start are used, and not taken as those of now
    if correction is not None:
        settings |= {"vllm_importance_sampling_mode": correction}
        settings |= {"vllm_importance_sampling_clip_min": low, "vllm_importance_sampling_clip_max": high}
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=rows // steps,
            num_generations=size, max_completion_length=LONGEST, **settings,
        )  # fmt: skip
        scores = inputs["scores"].tolist()
        trainer = ObservedTrainer(
            saved_model(Path(folder)),
            lambda completions, **rest: list(scores),
            config,
            Dataset.from_dict({"prompt": ["w3 w4"] * rows}),
            processing_class=tokenizer(),
        )
        trainer.use_vllm = correction is not None  # vLLM itself would only sample
        trainer.tool_mask = tool_mask
        trainer.arrays = {name: torch.from_numpy(array) for name, array in inputs.items()}
        trainer.leaves = {name: trainer.arrays[name].clone().requires_grad_() for name in ("logprobs", "entropies")}
        trainer.parts, trainer.losses = [], []
        trainer.current_gradient_accumulation_steps = window
        batch = [{"prompt": "w3 w4"} for _ in range(rows)]
        added = [trainer.training_step(trainer.model, batch, None).item() for _ in range(steps)]
    assert sorted(row for part in trainer.parts for row in part) == list(range(rows))
    assert np.allclose(added, trainer.losses, rtol=1e-6), "the trainer divides a loss once more"
    outputs = {"advantages": trainer.scored["advantages"].numpy()}
    if steps > 1:
        outputs["parts"] = np.array(trainer.parts, dtype=np.int64)
    counted = trainer.scored["completion_mask"] * trainer.scored.get("tool_mask", 1)
    outputs["mask"] = counted.numpy().astype(np.int64)
    outputs["grad_logprobs"] = trainer.leaves["logprobs"].grad.numpy()
    if trainer.leaves["entropies"].grad is not None:
        outputs["grad_entropies"] = trainer.leaves["entropies"].grad.numpy()
    if correction is not None:
        outputs["importance"] = trainer.scored["importance_sampling_ratio"].numpy()
    options = {name: getattr(config, name) for name in OPTIONS}
    options |= {"correction": correction, "clip_min": low, "clip_max": high}
    options["old_logprobs"] = "old_per_token_logps" in trainer.scored
    return {"options": options, "loss": float(np.sum(np.float32(trainer.losses))), "outputs": outputs}


def main(folder: Path) -> None:
    """Run every case and write `group_grpo.npz` and `group_grpo.json`."""
    torch.manual_seed(0)
    versions = {package: version(package) for package in ("trl", "torch", "transformers")}
    write(folder, "grpo", versions, GRPO_CASES, INPUTS, run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
