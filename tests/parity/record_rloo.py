"""Runs beside release 0.15.2 of TRL: `RLOOTrainer.train` on fixed inputs, with what it computed taken from its frame.

Only where the numbers come from is replaced (generation, the models' log-probs, the reward); everything between them
and the gradient is the release's own code.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import RLOOConfig, RLOOTrainer
from trl.trainer import rloo_trainer

from tests.parity.group_cases import RLOO_CASES
from tests.parity.group_inputs import INPUTS
from tests.parity.group_recording import write

OPTIONS = [
    "rloo_k",
    "kl_coef",
    "token_level_kl",
    "normalize_reward",
    "reward_clip_range",
    "normalize_advantage",
    "cliprange",
]
PAD, END = 0, 1
VOCABULARY = 40
PROMPT = 3


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w2 to w39, with a padding and an end token."""
    words = {"<pad>": PAD, "<end>": END, **{f"w{number}": number for number in range(2, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def model() -> GPT2LMHeadModel:
    """Its numbers are never used: the trainer wants a model to train."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=1))


def responses(mask: np.ndarray) -> torch.Tensor:
    """Token ids [B, T]: the row's number plus 2 while it counts, padding after it."""
    numbers = np.arange(len(mask))[:, None] + 2
    return torch.from_numpy(np.where(mask == 1, numbers, PAD))


def run(inputs: dict[str, np.ndarray], options: dict[str, Any]) -> dict[str, Any]:
    """One update by `RLOOTrainer.train`: its advantages, its loss and the gradient by the new log-probs."""
    arrays = {name: torch.from_numpy(array) for name, array in inputs.items()}
    rows = len(arrays["mask"])
    size = int((arrays["groups"] == 0).sum())
    leaf = arrays["logprobs"].clone().requires_grad_()
    found: dict[str, Any] = {}
    np.random.seed(0)  # the trainer shuffles with it, and rounding depends on the order

    def batch_generation(model: Any, queries: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        assert len(queries) == rows
        return torch.cat([queries, responses(inputs["mask"])], dim=1), torch.zeros(*arrays["mask"].shape, VOCABULARY)

    def forward(model: Any, ids: torch.Tensor, pad_token_id: int) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*ids.shape, VOCABULARY))

    def selective_log_softmax(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        caller = sys._getframe(1).f_locals
        if "micro_batch_inds" in caller:
            return leaf[caller["micro_batch_inds"]]
        return arrays["ref_logprobs" if "ref_output" in caller else "old_logprobs"].clone()

    with tempfile.TemporaryDirectory() as folder:
        config = RLOOConfig(
            output_dir=folder, report_to=[], per_device_train_batch_size=rows, gradient_accumulation_steps=1,
            num_mini_batches=1, num_ppo_epochs=1, total_episodes=rows, response_length=inputs["mask"].shape[1],
            local_rollout_forward_batch_size=rows, num_sample_generations=0, save_strategy="no", use_cpu=True,
            rloo_k=size, stop_token_id=END, **options,
        )  # fmt: skip
        prompts = Dataset.from_dict({"input_ids": [[5] * PROMPT] * (rows // size)})
        scores = arrays["scores"].tolist()
        trainer = RLOOTrainer(
            config, tokenizer(), model(), model(), lambda texts: list(scores), prompts, eval_dataset=prompts
        )
        backward = trainer.accelerator.backward

        def observed_backward(loss: torch.Tensor) -> None:
            frame = sys._getframe(1).f_locals
            found.update({name: frame[name].detach().clone() for name in ("advantages", "scores", "padding_mask")})
            found["totals"] = frame["rlhf_reward"].detach().clone().flatten()
            found["order"] = frame["micro_batch_inds"].copy()
            found["loss"] = loss.detach().clone()
            backward(loss)

        trainer.accelerator.backward = observed_backward
        replaced = {
            "batch_generation": batch_generation,
            "forward": forward,
            "selective_log_softmax": selective_log_softmax,
        }
        originals = {name: getattr(rloo_trainer, name) for name in replaced}
        vars(rloo_trainer).update(replaced)
        try:
            trainer.train()
        finally:
            vars(rloo_trainer).update(originals)
    assert sorted(found["order"]) == list(range(rows))
    assert torch.equal(~found["padding_mask"], arrays["mask"].bool())
    outputs = {name: found[name].numpy() for name in ("scores", "totals", "advantages")}
    return {
        "options": {name: getattr(config, name) for name in OPTIONS},
        "loss": found["loss"].item(),
        "outputs": {**outputs, "grad_logprobs": leaf.grad.numpy()},
    }


def main(folder: Path) -> None:
    """Run every case and write `group_rloo.npz` and `group_rloo.json`."""
    torch.manual_seed(0)
    versions = {package: version(package) for package in ("trl", "torch", "transformers")}
    write(folder, "rloo", versions, RLOO_CASES, INPUTS, run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
