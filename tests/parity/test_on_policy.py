"""The recorded runs of RLOO (TRL 0.15.2), PPOv2 (0.11.4) and PPO (0.26.2), replayed by `train()` with `exact=True`.

Answers and their prompts are the recorded ones; everything else is computed here. Tolerance: that of `excess`, in whose
units one rounding in the initial weights moves a recorded number by up to 0.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.parity import on_policy_inputs as inputs
from tests.parity.on_policy_cases import CASES
from tests.parity.on_policy_recording import OnPolicyRun, Update, recorded_run, run_names
from tests.parity.recording import excess
from trl_step import PPOv2Config, PPOv2Trainer, RLOOConfig, RLOOTrainer
from trl_step.experimental.ppo import PPOConfig, PPOTrainer
from trl_step.sampling.sampler import Samples

KINDS: dict[str, Any] = {
    "rloo": (RLOOConfig, RLOOTrainer), "ppov2": (PPOv2Config, PPOv2Trainer), "ppo": (PPOConfig, PPOTrainer)
}  # fmt: skip
OWN_WAY = {
    "data-ends": "at the end of a pass over the data the release stops to accumulate gradients",
    "epochs-2-mini-batches-2-accumulation-2": "0.26 accumulates gradients over mini-batches: one update of all",
}
"""Cases that `exact` does not reproduce, and why."""
SETTINGS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches", "num_ppo_epochs",
    "total_episodes", "response_length", "local_rollout_forward_batch_size", "stop_token", "stop_token_id",
    "learning_rate", "adam_epsilon", "adam_beta1", "adam_beta2", "weight_decay", "lr_scheduler_type", "max_grad_norm",
    "kl_coef", "temperature", "missing_eos_penalty", "cliprange", "whiten_rewards", "gamma", "lam", "vf_coef",
    "cliprange_value", "kl_estimator", "rloo_k", "token_level_kl", "normalize_reward", "reward_clip_range",
    "normalize_advantage", "seed",
)  # fmt: skip
RUNS = [(kind, name) for kind in KINDS for name in run_names(kind)]
REPLAYED = [
    (kind, name) for kind, name in RUNS if name not in OWN_WAY or (kind == "ppov2" and name.startswith("epochs"))
]
SAME_LOG = (
    "objective/kl", "objective/non_score_reward", "objective/rlhf_reward", "loss/policy_avg", "lr", "episode", "epoch"
)  # fmt: skip
SAME_LOG_OF_PPO = ("objective/scores", "loss/value_avg", "val/clipfrac_avg")
"""Metrics that need no mean over padding."""


class Replay:
    """One run, played again.

    Attributes:
        trainer: after two updates
        advantages: that `step` computed in each, [B, T]
        masks: which of them count
        stats: what `step` returned
    """

    def __init__(self, run: OnPolicyRun, folder: Path, **changes: Any) -> None:
        config_class, trainer_class = KINDS[run.trainer]
        case = CASES[run.trainer][run.name]
        self.advantages: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []
        self.stats: list[dict[str, Any]] = []
        known = {name: run.options[name] for name in SETTINGS if name in run.options}
        if known["stop_token"]:
            del known["stop_token_id"]  # which the release fills in
        config = config_class(
            str(folder), **{**known, "exact": True, **changes}, use_cpu=True, report_to="none", save_strategy="no",
            num_sample_generations=0, disable_tqdm=True,
        )  # fmt: skip
        reward: Any = inputs.reward_function if case.reward == "function" else inputs.reward_model(case.shape)
        critic = {} if run.trainer == "rloo" else {"value_model": inputs.value_model(case.shape)}
        reference = inputs.reference(case.shape) if case.reference else None
        self.n = config.rloo_k if run.trainer == "rloo" else 1
        rows = Dataset.from_dict({"input_ids": inputs.prompts()[: case.prompts]})
        self.trainer = trainer_class(
            config, inputs.tokenizer(), inputs.policy(case.shape), reference, reward, rows, **critic
        )
        self.updates = iter(run.updates)
        self.now: Update
        self.trainer._rows = self.rows
        self.trainer.draw = self.draw
        self.watch()
        np.random.seed(0)  # as the recorder does
        self.trainer.train()

    def rows(self) -> Any:
        """Batches of the recorded prompts."""
        for update in self.updates:
            self.now = update
            numbers = update.rollout["prompts"]
            yield {"input_ids": [inputs.prompts()[number] for number in numbers[: len(numbers) // self.n]]}

    def draw(self, queries: list[torch.Tensor], n: int) -> Samples:
        """The recorded answers; those to one prompt stand next to each other."""
        rollout, count = self.now.rollout, len(queries)
        raw = list(rollout["query_responses"][:, int(rollout["context_length"]) :])
        if not self.trainer.args.exact:  # a sampler ends there
            raw = [ids[: [*ids.tolist(), inputs.END].index(inputs.END) + 1] for ids in raw]
        order = [copy * count + i for i in range(count) for copy in range(n)]
        return Samples(
            [queries[i] for i in range(count) for _ in range(n)], [raw[row] for row in order], None,
            [False] * len(order), 0, [i for i in range(count) for _ in range(n)],
        )  # fmt: skip

    def watch(self) -> None:
        step = self.trainer.step_trainer
        compute, make = step.compute_advantages, step.step

        def compute_advantages(values: Any, rewards: Any, mask: Any) -> Any:
            found = compute(values, rewards, mask)
            self.masks.append(step._policy_mask(mask) if hasattr(step, "_policy_mask") else mask)
            self.advantages.append(found[1])
            return found

        def make_step(*arguments: Any, **named: Any) -> Any:
            self.stats.append(make(*arguments, **named))
            return self.stats[-1]

        step.compute_advantages, step.step = compute_advantages, make_step

    def weights(self) -> dict[str, torch.Tensor]:
        """Under the names of the recording."""
        policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
        parts = {"policy": getattr(policy, "policy", policy).pretrained_model}
        if self.trainer.algorithm == "ppo":
            parts["value_model"] = policy.critic.value_model
        return {f"{part}.{name}": p.detach() for part, model in parts.items() for name, p in model.named_parameters()}


def differs(ours: torch.Tensor, recorded: torch.Tensor) -> float:
    """In units of the tolerance."""
    return float(np.max(excess(recorded.numpy(), ours.float().numpy()), initial=0.0))


def counted(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The counted numbers row by row."""
    return values[mask.bool()]


@pytest.mark.parametrize(("kind", "name"), REPLAYED, ids=lambda one: one)
def test_exact_reproduces_the_release(kind: str, name: str, tmp_path: Path) -> None:
    run = recorded_run(kind, name)
    replay = Replay(run, tmp_path)
    for update, advantages, mask, stats in zip(run.updates, replay.advantages, replay.masks, replay.stats, strict=True):
        recorded, kept = update.rollout["advantages"], ~update.rollout["padding_mask"].bool()
        assert mask.sum() == kept.sum()
        recorded = recorded.unsqueeze(1).expand_as(kept) if recorded.dim() == 1 else recorded
        assert differs(counted(advantages, mask), counted(recorded, kept)) < 1
        assert differs(torch.tensor(stats["ppo/loss/policy"]), update.losses["pg_loss"].mean()) < 1
        if kind != "rloo":
            assert differs(torch.tensor(stats["ppo/loss/value"]), update.losses["vf_loss"].mean()) < 1
    for row, log in zip(run.updates, replay.trainer.state.log_history, strict=True):
        for key in SAME_LOG + (SAME_LOG_OF_PPO if kind != "rloo" else ()):
            assert differs(torch.tensor(log[key]), torch.tensor(row.log[key])) < 1, key
    ours = replay.weights()
    assert set(run.weights) <= set(ours)
    for parameter, value in run.weights.items():
        assert differs(ours[parameter], value) < 1, parameter


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_one_in_10_000_is_seen(kind: str, tmp_path: Path) -> None:
    run = recorded_run(kind, "plain")
    replay = Replay(run, tmp_path, kl_coef=run.options["kl_coef"] * (1 + 1e-3))
    assert max(differs(replay.weights()[name], value) for name, value in run.weights.items()) > 1


@pytest.mark.parametrize("kind", ["ppov2", "ppo"])
def test_without_exact_the_score_is_at_the_end_token(kind: str, tmp_path: Path) -> None:
    run = recorded_run(kind, "plain")
    replay = Replay(run, tmp_path, exact=False)
    assert max(differs(replay.weights()[name], value) for name, value in run.weights.items()) > 1
