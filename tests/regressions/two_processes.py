"""Training played on two processes, and the same on one process with the joined batch.

`launch(FOLDER, "ddp")` starts two processes of this file; each plays every case and writes what it saw to FOLDER.
`alone(name)` plays a case on this process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from peft import LoraConfig

from tests.limits import HANG
from tests.tiny import batch as samples
from tests.tiny import config, tokenizer, weights, with_value_head
from trl_step import PPOTrainer, create_reference_model
from trl_step.models.sharding import gathered
from trl_step.trainer.updates.epochs import mini_batches

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "examples" / "accelerate_configs"


@dataclass
class Case:
    """`counts`: samples of process 0 and of process 1; `options`: of PPOConfig."""

    counts: tuple[int, int] = (4, 4)
    options: dict[str, Any] = field(default_factory=dict)
    model: str = "gpt2"
    cls: type = PPOTrainer
    steps: int = 2
    masks: bool = False
    shared: int | None = None
    """bottom layers that policy and reference share"""
    token_scores: bool = False
    """every other sample has a score per token; process 1 may have none of them"""
    groups: bool = False
    """four group ids, each of which is on both processes; the sampler's log-probs, and no value head"""
    few_queries: bool = False
    """every sample has one of two long queries"""
    far: bool = False
    """the policy seems to have moved far away from the last sample of process 1: its ratio is infinite"""


class Plain(PPOTrainer):
    """Goes the way of release 0.7, with full logits."""

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().loss(*args, **kwargs)


class StopsEarly(PPOTrainer):
    """Writes down what early stopping looks at."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[float] = []

    def _early_stop(self, policykl: torch.Tensor) -> bool:
        self.seen.append(float(self._processes.mean(policykl)))
        return super()._early_stop(policykl)


CASES = {
    "ragged": Case(options={"mini_batch_size": 2}),
    "accumulation": Case((8, 8), {"mini_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1}),
    "uneven": Case((5, 2), {"mini_batch_size": 2, "gradient_accumulation_steps": 2, "whiten_rewards": True}),
    "tokens": Case((3, 6), {"mini_batch_size": 4, "loss_normalization": "tokens", "use_score_norm": True}),
    "scaling": Case((5, 4), {"mini_batch_size": 4, "use_score_scaling": True, "score_clip": 0.5, "target": 0.1}),
    "masked": Case((4, 3), {"mini_batch_size": 2, "kl_penalty": "full"}, masks=True),
    "token scores": Case((4, 3), {"mini_batch_size": 2, "use_score_norm": True}, masks=True, token_scores=True),
    "some token scores": Case((3, 1), {"mini_batch_size": 2, "use_score_norm": True}, token_scores=True),
    "plain": Case((4, 3), {"mini_batch_size": 2, "gradient_accumulation_steps": 2}, cls=Plain),
    "t5": Case((3, 4), {"mini_batch_size": 2}, model="t5"),
    "lora": Case((3, 4), {"mini_batch_size": 2}, model="lora"),
    "shared": Case((4, 3), {"mini_batch_size": 2, "gradient_checkpointing": True}, shared=1),
    "groups": Case(
        (5, 3),
        {
            "mini_batch_size": 2,
            "advantage_estimator": "grpo",
            "policy_loss": "gspo",
            "cliprange": 0.01,
            "kl_in": "loss",
            "kl_penalty": "k3",
            "loss_normalization": "samples",
            "entropy_coef": 0.01,
            "importance_correction": "tis",
            "positive_nll_coef": 0.1,
            "gradient_accumulation_steps": 2,
        },
        groups=True,
    ),
    "groups with a head": Case(
        (3, 4),
        {
            "mini_batch_size": 2,
            "advantage_estimator": "rloo",
            "loss_normalization": "constant",
            "loss_constant_length": 9,
            "whiten_advantages": True,
        },
        groups=True,
    ),
    "warm-up": Case(
        (4, 3), {"mini_batch_size": 2, "value_warmup_steps": 1, "value_lam": 1.0, "gae_level": "turn"}, masks=True
    ),
    "few queries": Case((4, 3), {"mini_batch_size": 4, "forward_tokens": 60}, few_queries=True),
    "few queries and a critic": Case((3, 4), {"mini_batch_size": 4}, model="critic", few_queries=True),
    "critic": Case((4, 3), {"mini_batch_size": 2, "max_grad_norm": 0.1}, model="critic"),
    "skip": Case((6, 5), {"mini_batch_size": 2, "gradient_accumulation_steps": 2}, far=True),
    "all skipped": Case((2, 2), {"mini_batch_size": 2}, far=True),
    "early stop": Case((5, 2), {"mini_batch_size": 4, "early_stopping": True, "target_kl": 1e-4}, cls=StopsEarly),
}


def joined(orders: list[np.random.RandomState], counts: tuple[int, int]) -> Any:
    """A stand-in for `mini_batches` on one process: each mini-batch is what the two processes have in theirs."""

    def parts(order: np.ndarray, backward_batch_size: int, size: int, at_least: int) -> Iterator[list[np.ndarray]]:
        most = max(counts)
        one, two = (
            mini_batches(orders[rank].permutation(counts[rank]) + offset, backward_batch_size, size, most)
            for rank, offset in ((0, 0), (1, counts[0]))
        )
        for left, right in zip(one, two, strict=True):
            yield [np.concatenate(pair) for pair in zip(left, right, strict=True)]

    return parts


def build(case: Case, **more: Any) -> PPOTrainer:
    """A trainer with a scheduler, and an optimizer that does not blow up gradients which are 0 but for rounding."""
    lora = {"peft_config": LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True)} if case.model == "lora" else {}
    critic = None
    model = with_value_head("gpt2" if lora or case.model == "critic" else case.model, **lora)
    if case.model == "critic":
        critic = with_value_head("llama", seed=1)
    elif case.groups and case.options["advantage_estimator"] == "grpo":
        model = model.pretrained_model
    settings = config(**{"ppo_epochs": 2, "horizon": 50, **case.options, **more})
    reference = create_reference_model(model, num_shared_layers=case.shared) if case.shared else None
    trained = [p for part in (model, critic) if part is not None for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=4)
    return case.cls(
        settings, model, reference, tokenizer(), optimizer=optimizer, lr_scheduler=scheduler, value_model=critic
    )


def play(case: Case, rank: int | None, **more: Any) -> dict[str, Any]:
    """Train `case.steps` steps on the samples of process `rank`, or on all of them."""
    ours = build(case, **more)
    total = sum(case.counts)
    own = {None: slice(0, total), 0: slice(0, case.counts[0]), 1: slice(case.counts[0], total)}[rank]
    seen: dict[str, Any] = {"steps": [], "world": config_numbers(ours), "wrapped": wrapped(ours)}
    for step in range(case.steps):
        queries, responses, scores = samples(total, seed=step)
        if case.few_queries:
            queries = [torch.arange(4, 24) + 20 * (i % 2) for i in range(total)]
        masks = None
        if case.masks:
            masks = [torch.arange(len(r)) % 3 != 1 for r in responses]
        given: list[Any] = list(scores)
        if case.token_scores:
            for i in range(0, total, 2):
                counted = torch.ones(len(responses[i])) if masks is None else masks[i]
                given[i] = scores[i] * torch.arange(1.0, 1 + len(responses[i])) * counted
        old_logprobs = None
        if case.far:
            old_logprobs = [torch.full(r.shape, -300.0 if r is responses[-1] else -4.0) for r in responses]
        groups: dict[str, Any] = {}
        if case.groups:
            noise = [0.1 * torch.sin(torch.arange(len(r)) + i) for i, r in enumerate(responses)]
            groups["sampling_logprobs"] = [own_noise - 4.0 for own_noise in noise][own]
            groups["group_ids"] = [f"prompt {i % 4}" for i in range(total)][own]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "a mini-batch's mean ratio|the KL divergence|sampling_logprobs are")
            stats = ours.step(
                queries[own],
                responses[own],
                given[own],
                masks and masks[own],
                old_logprobs=old_logprobs and old_logprobs[own],
                **groups,
            )
        numbers = {key: value for key, value in stats.items() if isinstance(value, float) and "time/" not in key}
        seen["steps"].append(
            {**numbers, "kl_ctl": ours.kl_ctl.value, "lr": ours.optimizer.param_groups[0]["lr"]}
            | {f"running/{key}": value for key, value in ours.running.state_dict().items()}
        )
    seen["early stop"] = getattr(ours, "seen", [])
    policy = ours.accelerator.unwrap_model(ours.model)
    with gathered(policy):
        seen["weights"] = weights(policy)
    return seen


def config_numbers(ours: PPOTrainer) -> dict[str, Any]:
    return {
        "processes": ours.accelerator.num_processes,
        "rank": ours.accelerator.process_index,
        "device": str(ours.current_device),
        "world_size": ours.config.world_size,
        "global_batch_size": ours.config.global_batch_size,
        "global_backward_batch_size": ours.config.global_backward_batch_size,
    }


def wrapped(ours: PPOTrainer) -> dict[str, str]:
    return {"model": type(ours.model).__name__, "reference": type(ours.ref_model).__name__}


def refuse_one(rank: int) -> dict[str, Any]:
    """Process 1 gets an empty response; then both go on with a good batch."""
    ours = build(Case())
    queries, responses, scores = samples(4)
    if rank == 1:
        responses[2] = responses[2][:0]
    before = weights(ours.model)
    try:
        ours.step(queries, responses, scores)
    except (ValueError, RuntimeError) as error:
        told = f"{type(error).__name__}: {error}"
    same = all(torch.equal(before[name], value) for name, value in weights(ours.model).items())
    return {"told": told, "untouched": same, "stats": ours.step(*samples(4))}


def log_and_save(rank: int, folder: Path) -> dict[str, Any]:
    """Generate, train, fail to push, log to a tracker and save, while both are there."""

    class Tracker:
        name = "list"

        def __init__(self) -> None:
            self.logged: list[dict[str, Any]] = []

        def log(self, values: dict[str, Any], **kwargs: Any) -> None:
            self.logged.append(values)

    ours = build(Case(), push_to_hub_if_best_kwargs={"repo_id": "me/best"})
    tracker = Tracker()
    ours.accelerator.trackers = [tracker]
    queries = samples(4)[0][: 2 + rank]
    responses = ours.generate(queries, return_prompt=False, max_new_tokens=4, do_sample=True, top_k=0)
    with warnings.catch_warnings(record=True) as told, mock.patch("huggingface_hub.HfApi", side_effect=ConnectionError):
        warnings.simplefilter("always")
        stats = ours.step(queries, responses, [float(rank)] * len(queries))
    ours.log_stats(stats, {}, [torch.tensor(float(rank))] * len(queries), columns_to_log=())
    ours.save_pretrained(str(folder / "saved"))
    pushes = [str(warning.message) for warning in told if "the push to" in str(warning.message)]
    return {"pushes": pushes, "stats": stats, "logged": tracker.logged, "files": sorted(os.listdir(folder / "saved"))}


@functools.cache
def alone(name: str) -> dict[str, Any]:
    """The case on this one process, on the joined batch, in joined mini-batches."""
    case = CASES[name]
    orders = [np.random.RandomState(0), np.random.RandomState(0)]
    with mock.patch("trl_step.trainer.updates.epochs.mini_batches", joined(orders, case.counts)):
        return play(case, None)


def launch(folder: Path, configuration: str, script: str = __file__) -> None:
    """Run `script` with `folder` on two processes of this machine, as a user would, and told nothing about the CPU.

    Args:
        configuration: a file of examples/accelerate_configs, without .yaml
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGURATIONS / f"{configuration}.yaml"),
    ]
    options = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", str(port)]
    process = subprocess.Popen(
        [*command, *options, script, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=HANG)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise RuntimeError(f"a process failed:\n{output[-6000:]}")


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    seen: dict[str, Any] = {name: play(case, rank, accelerator_kwargs={}) for name, case in CASES.items()}
    seen["refused"] = refuse_one(rank)
    seen["logged"] = log_and_save(rank, folder)
    torch.save(seen, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
