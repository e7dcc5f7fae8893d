"""The loop of RLOO and PPO: data, sampling, updates, metrics, schedule, callbacks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests import tiny
from tests.trainer.train import loops
from trl_step import PPOConfig, PPOTrainer, set_seed
from trl_step.trainer.on_policy.metrics import METRICS

BOTH = pytest.mark.parametrize("make", [loops.rloo, loops.ppo], ids=["rloo", "ppo"])
EQUAL = pytest.mark.parametrize("make", [loops.rloo, loops.ppov2], ids=["rloo", "ppov2"])


@BOTH
def test_every_documented_metric_is_logged(tmp_path: Path, make: Any) -> None:
    trainer = make(tmp_path)
    trainer.train()
    names = [metric.name for metric in METRICS if trainer.algorithm in metric.algorithms]
    assert len(trainer.state.log_history) == 2
    for entry in trainer.state.log_history:
        assert [*names, "epoch", "step"] == list(entry)
        assert all(math.isfinite(value) for value in entry.values())
    assert trainer.state.log_history[-1]["episode"] == 8


@BOTH
def test_metrics_by_hand(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, missing_eos_penalty=2.0, kl_coef=0.5, total_episodes=16)
    steps = loops.kept(monkeypatch, trainer)
    trainer.train()
    decode = trainer.processing_class.batch_decode
    for (queries, responses, scores), _, stats, entry in (
        (*step, log) for step, log in zip(steps, trainer.state.log_history, strict=True)
    ):
        texts = decode([torch.cat(pair) for pair in zip(queries, responses, strict=True)], skip_special_tokens=True)
        ended = [int(response[-1]) == tiny.EOS for response in responses]
        expected = [s - 2.0 * (not end) for s, end in zip(loops.different_words(texts), ended, strict=True)]
        assert [float(score) for score in scores] == pytest.approx(expected, rel=1e-6)
        assert entry["objective/scores"] == pytest.approx(sum(expected) / len(expected), rel=1e-6)
        assert entry["objective/non_score_reward"] == pytest.approx(-0.5 * stats["objective/kl"], rel=1e-6)
        total = entry["objective/scores"] + entry["objective/non_score_reward"]
        assert entry["objective/rlhf_reward"] == pytest.approx(total, rel=1e-6)
        assert entry["val/num_eos_tokens"] == sum(ended)
        # two epochs of one mini-batch: the mean ratio is 1 in the first
        assert entry["val/ratio"] != 1.0
        assert entry["val/ratio_var"] == pytest.approx(2 * (entry["val/ratio"] - 1) ** 2, rel=1e-3)
    assert abs(trainer.state.log_history[-1]["objective/kl"]) > 1e-3
    assert [entry["lr"] for entry in trainer.state.log_history] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


@EQUAL
def test_the_updates_are_those_of_the_step_api(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop written by hand around `PPOTrainer`, with the settings that the documents give, ends at the same bits."""
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_mini_batches": 2}
    trainer = make(tmp_path, total_episodes=16, seed=5, **sizes)
    steps = loops.kept(monkeypatch, trainer)
    trainer.train()
    own = {"advantage_estimator": "rloo", "policy_loss": "sequence_clip", "loss_normalization": "samples"}
    config = PPOConfig(
        batch_size=8, mini_batch_size=2, gradient_accumulation_steps=2, ppo_epochs=2, adap_kl_ctrl=False,
        init_kl_coef=0.05, max_grad_norm=1.0, seed=5, accelerator_kwargs={"cpu": True},
        **(own if trainer.algorithm == "rloo" else {}),
    )  # fmt: skip
    model, critic = loops.policy(), None if trainer.algorithm == "rloo" else loops.classifier(2)
    parameters = [p for part in (model, critic) if part is not None for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(steps))
    ours = PPOTrainer(
        config, model, None, tiny.tokenizer(), None, optimizer, lr_scheduler=scheduler, value_model=critic
    )
    set_seed(5)
    for (queries, responses, scores), named, _ in steps:
        ours.step(queries, responses, [float(score) for score in scores], **named)
    expected = tiny.weights(ours.accelerator.unwrap_model(ours.model))
    start = loops.policy().state_dict()["transformer.wte.weight"]
    for name, value in loops.weights(trainer).items():
        assert torch.equal(value, expected[name]), name
    assert (start - loops.weights(trainer)[next(n for n in expected if n.endswith("wte.weight"))]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"per_device_train_batch_size": 3, "total_episodes": 10}, [6, 4]),
        ({"per_device_train_batch_size": 5, "total_episodes": 13}, [10, 4]),
        ({"per_device_train_batch_size": 4, "total_episodes": None, "num_train_epochs": 2}, [8, 8, 8]),
        ({"max_steps": 3}, [8, 8, 8]),
    ],
)
def test_the_last_batch_is_smaller(
    tmp_path: Path, options: dict, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = loops.rloo(tmp_path, num_mini_batches=2, num_ppo_epochs=1, **options)
    steps = loops.kept(monkeypatch, trainer)
    trainer.train()
    assert [len(arguments[0]) for arguments, *_ in steps] == sizes
    assert trainer.args.num_total_batches == len(sizes)


def test_a_pass_over_the_data_ends_with_a_smaller_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = loops.ppo(tmp_path, train_dataset=loops.prompts(5), total_episodes=10)
    steps = loops.kept(monkeypatch, trainer)
    trainer.train()
    assert [len(arguments[0]) for arguments, *_ in steps] == [4, 1, 4, 1]
    assert trainer.args.num_total_batches == 4


def test_sizes_of_a_batch(tmp_path: Path) -> None:
    sizes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "num_mini_batches": 2}
    rloo, ppo = loops.rloo(tmp_path, **sizes), loops.ppo(tmp_path, **sizes)
    assert (rloo.args.batch_size, rloo.args.mini_batch_size, rloo.args.micro_batch_size) == (24, 12, 3)
    assert (ppo.args.batch_size, ppo.args.mini_batch_size, ppo.args.micro_batch_size) == (12, 6, 3)
    assert rloo.step_trainer.config.backward_batch_size == 12
    assert ppo.step_trainer.config.backward_batch_size == 6


class Watch(transformers.TrainerCallback):
    """The events, and when to stop."""

    def __init__(self, stop_at: int = 100) -> None:
        self.events: list[str] = []
        self.stop_at = stop_at

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def event(args: Any, state: Any, control: Any, **more: Any) -> Any:
            self.events.append(name)
            if name == "on_step_end" and state.global_step == self.stop_at:
                control.should_training_stop = True
            return control

        return event


@BOTH
def test_callbacks_are_called_and_may_stop_the_run(tmp_path: Path, make: Any) -> None:
    watch = Watch(stop_at=2)
    trainer = make(tmp_path, callbacks=[watch], total_episodes=40, save_strategy="steps", save_steps=2)
    trainer.train()
    step = ["on_step_begin", "on_log", "on_step_end"]
    assert watch.events == ["on_init_end"] * 0 + ["on_train_begin", *step, *step, "on_save", "on_train_end"]
    assert trainer.state.global_step == 2


def test_tables_show_the_likeliest_answers_and_draw_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = loops.prompts(6)
    plain = loops.rloo(tmp_path)
    plain.train()
    shown = loops.rloo(tmp_path, eval_dataset=rows, num_sample_generations=2)
    capsys.readouterr()
    shown.train()
    assert capsys.readouterr().out.count("model response") == 2
    assert all(torch.equal(value, loops.weights(shown)[name]) for name, value in loops.weights(plain).items())
    table = shown.generate_completions()
    assert list(table) == ["query", "model response", "score"]
    assert len(table["score"]) == 6
    texts = [f"{query} {answer}" for query, answer in zip(table["query"], table["model response"], strict=True)]
    assert table["score"] == pytest.approx(loops.different_words(texts))


def test_the_mean_score_rises(tmp_path: Path) -> None:
    def ones(texts: list[str]) -> list[float]:
        return [text.split().count("w9") / 5 for text in texts]

    trainer = loops.rloo(tmp_path, ones, per_device_train_batch_size=16, total_episodes=320, rloo_k=4, seed=1)
    trainer.train()
    scores = [entry["objective/scores"] for entry in trainer.state.log_history]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.2
