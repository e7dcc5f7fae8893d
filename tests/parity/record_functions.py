"""Calls the pure functions of release 0.7.11 on batches of random numbers. Used by `recorder.py` alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from trl import PPOTrainer, core
from trl.trainer.utils import AdaptiveKLController, FixedKLController, RunningMoments

BATCH, POSITIONS, VOCABULARY = 4, 7, 11

Tensors = dict[str, torch.Tensor]


class CallLog:
    """Collects calls: one entry of the index and its arrays for each."""

    def __init__(self) -> None:
        self.index: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, function: str, inputs: Tensors, options: dict[str, Any], outputs: Tensors) -> None:
        """Keep one call under the key `<function>/<number>`."""
        number = sum(entry["function"] == function for entry in self.index)
        key = f"{function}/{number}"
        for side, tensors in (("inputs", inputs), ("outputs", outputs)):
            for name, tensor in tensors.items():
                self.arrays[f"{key}/{side}/{name}"] = tensor.detach().numpy().copy()
        self.index.append(
            {"function": function, "key": key, "options": options, "inputs": list(inputs), "outputs": list(outputs)}
        )


def record_functions(write_npz: Callable[..., None], write_json: Callable[..., None]) -> None:
    """Record every function and write `functions.npz` and `functions.json`."""
    log = CallLog()
    torch.manual_seed(0)
    _record_core(log)
    _record_rewards(log)
    _record_advantages(log)
    _record_loss(log)
    _record_controllers(log)
    _record_running_moments(log)
    write_npz("functions.npz", log.arrays)
    write_json("functions.json", {"calls": log.index})


def _masks() -> list[torch.Tensor]:
    """Full, ragged on the right, in the middle of the row, with holes: int64 [B, T], no row empty."""
    full = torch.ones(BATCH, POSITIONS, dtype=torch.long)
    lengths = torch.tensor([[7], [1], [4], [6]])
    ragged = (torch.arange(POSITIONS) < lengths).long()
    middle = ((torch.arange(POSITIONS) >= torch.tensor([[0], [3], [2], [5]])) & (ragged.flip(1) == 1)).long()
    middle[:, 5] = 1
    holes = torch.tensor([[1, 0, 1, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0, 1]])
    return [full, ragged, middle, holes]


def _normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(*shape) * scale + shift


def _record_core(log: CallLog) -> None:
    for mask in _masks():
        values = _normal(BATCH, POSITIONS, scale=2.0, shift=0.7)
        given = {"values": values, "mask": mask}
        for axis in (None, 1):
            log.add("masked_mean", given, {"axis": axis}, {"mean": core.masked_mean(**given, axis=axis)})
        for unbiased in (True, False):
            outputs = {"variance": core.masked_var(**given, unbiased=unbiased)}
            log.add("masked_var", given, {"unbiased": unbiased}, outputs)
        for shift_mean in (True, False):
            outputs = {"whitened": core.masked_whiten(**given, shift_mean=shift_mean)}
            log.add("masked_whiten", given, {"shift_mean": shift_mean}, outputs)
    for shift_mean in (True, False):
        values = _normal(BATCH, POSITIONS, scale=3.0, shift=-1.0)
        outputs = {"whitened": core.whiten(values, shift_mean=shift_mean)}
        log.add("whiten", {"values": values}, {"shift_mean": shift_mean}, outputs)
    for scale in (0.1, 1.0, 30.0):
        logits = _normal(BATCH, POSITIONS, VOCABULARY, scale=scale)
        labels = torch.randint(VOCABULARY, (BATCH, POSITIONS))
        log.add("entropy_from_logits", {"logits": logits}, {}, {"entropy": core.entropy_from_logits(logits)})
        for gather in (True, False):
            outputs = {"logprobs": core.logprobs_from_logits(logits, labels, gather=gather)}
            log.add("logprobs_from_logits", {"logits": logits, "labels": labels}, {"gather": gather}, outputs)
    x, center = _normal(BATCH, POSITIONS), _normal(BATCH, POSITIONS)
    given = {"x": x, "tensor_min": center - 0.2, "tensor_max": center + 0.2}
    log.add("clip_by_value", given, {}, {"clipped": core.clip_by_value(**given)})


def _record_rewards(log: CallLog) -> None:
    """`PPOTrainer.compute_rewards`; with the penalty "full" the log-probs are distributions [B, T, V]."""
    for penalty in ("kl", "abs", "mse", "full"):
        for mask in _masks():
            shape = (BATCH, POSITIONS, VOCABULARY) if penalty == "full" else (BATCH, POSITIONS)
            given = {
                "scores": _normal(BATCH),
                "logprobs": torch.log_softmax(_normal(*shape, scale=2.0), -1),
                "ref_logprobs": torch.log_softmax(_normal(*shape, scale=2.0), -1),
                "masks": mask,
            }
            options = {"kl_penalty": penalty, "kl_coef": 0.3}
            trainer = SimpleNamespace(
                config=SimpleNamespace(kl_penalty=penalty), kl_ctl=SimpleNamespace(value=options["kl_coef"])
            )
            trainer._kl_penalty = lambda *args, trainer=trainer: PPOTrainer._kl_penalty(trainer, *args)
            rewards, non_score_rewards, kls = PPOTrainer.compute_rewards(trainer, **given)
            outputs = {"rewards": rewards, "non_score_rewards": non_score_rewards, "kls": kls}
            log.add("compute_rewards", given, options, outputs)


def _record_advantages(log: CallLog) -> None:
    for options in (
        {"gamma": 1.0, "lam": 0.95, "whiten_rewards": False},
        {"gamma": 1.0, "lam": 0.95, "whiten_rewards": True},
        {"gamma": 0.9, "lam": 0.6, "whiten_rewards": False},
    ):
        for mask in _masks():
            given = {"values": _normal(BATCH, POSITIONS), "rewards": _normal(BATCH, POSITIONS), "mask": mask}
            trainer = SimpleNamespace(config=SimpleNamespace(**options))
            values, advantages, returns = PPOTrainer.compute_advantages(trainer, **given)
            outputs = {"values": values, "advantages": advantages, "returns": returns}
            log.add("compute_advantages", given, options, outputs)


def _record_loss(log: CallLog) -> None:
    """`PPOTrainer.loss`: the two losses, every statistic under its key, and the gradients of their sum."""
    common = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1, "ratio_threshold": 10.0}
    for change in ({}, {"cliprange": 0.05, "cliprange_value": 0.05}, {"vf_coef": 0.5}, {"ratio_threshold": 0.5}):
        options = {**common, **change}
        for mask in _masks():
            old_logprobs, values = _normal(BATCH, POSITIONS, shift=-2.0), _normal(BATCH, POSITIONS)
            given = {
                "old_logprobs": old_logprobs,
                "values": values,
                "logits": _normal(BATCH, POSITIONS, VOCABULARY),
                "vpreds": (values + _normal(BATCH, POSITIONS, scale=0.2)).requires_grad_(),
                "logprobs": (old_logprobs + _normal(BATCH, POSITIONS, scale=0.2)).requires_grad_(),
                "mask": mask,
                "advantages": _normal(BATCH, POSITIONS),
                "returns": _normal(BATCH, POSITIONS),
            }
            policy_loss, value_loss, stats = PPOTrainer.loss(
                SimpleNamespace(config=SimpleNamespace(**options)), **given
            )
            (policy_loss + value_loss).backward()
            outputs = {
                "policy_loss": policy_loss,
                "value_loss": value_loss,
                "grad_logprobs": given["logprobs"].grad,
                "grad_vpreds": given["vpreds"].grad,
                **{f"stats:{key}": value for key, value in stats.items()},
            }
            log.add("loss", given, options, outputs)


def _record_controllers(log: CallLog) -> None:
    """The coefficient behind each of a series of updates, float64."""
    currents = torch.tensor([0.0, 2.0, 5.5, 6.0, 6.6, 9.0, 60.0, -3.0], dtype=torch.float64)
    options = {"init_kl_coef": 0.2, "target": 6.0, "horizon": 1000.0, "n_steps": 128}
    adaptive = AdaptiveKLController(options["init_kl_coef"], options["target"], options["horizon"])
    fixed = FixedKLController(0.2)
    for name, controller, kept in (
        ("AdaptiveKLController", adaptive, options),
        ("FixedKLController", fixed, {"kl_coef": 0.2, "n_steps": 128}),
    ):
        series = []
        for current in currents.tolist():
            controller.update(current, options["n_steps"])
            series.append(controller.value)
        log.add(name, {"currents": currents}, kept, {"values": torch.tensor(series, dtype=torch.float64)})


def _record_running_moments(log: CallLog) -> None:
    """Batches [N, B] of scores in turn: what `update` returns and the attributes behind it, each [N]."""
    for scale, shift in ((1.0, 0.0), (5.0, 100.0)):
        batches = _normal(6, 8, scale=scale, shift=shift)
        moments = RunningMoments(SimpleNamespace(use_distributed=False))
        rows = []
        for batch in batches:
            batch_mean, batch_std = moments.update(batch)
            rows.append([batch_mean, batch_std, *(float(getattr(moments, name)) for name in _MOMENTS)])
        columns = torch.tensor(rows, dtype=torch.float64).T
        names = ("batch_mean", "batch_std", *_MOMENTS)
        log.add("RunningMoments", {"batches": batches}, {}, dict(zip(names, columns, strict=True)))


_MOMENTS = ("mean", "std", "var", "count")
