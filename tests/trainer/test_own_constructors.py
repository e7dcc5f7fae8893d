"""Subclasses of release 0.7 whose constructor never calls ours: it sets what that release's own sets, and nothing else.

So does optimum-habana's trainer. Every method of that release works on such an object, and so do the new ones.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling

from tests import tiny
from tests.hub_tools import Hub
from trl_step import PPOTrainer
from trl_step.core import set_seed, stack_dicts, stats_to_np
from trl_step.models import create_reference_model
from trl_step.trainer import AdaptiveKLController, BaseTrainer, RunningMoments
from trl_step.trainer.updates.on_device import OnDeviceUpdater
from trl_step.trainer.updates.updater import Updater


@pytest.fixture(autouse=True)
def plain_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, whatever `TrainingArguments` of an earlier test has left in the process."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)


class OwnConstructor(PPOTrainer):
    """With release 0.7.11's attributes."""

    def __init__(self, config: Any, model: Any, ref_model: Any, tokenizer: Any, dataset: Any = None) -> None:
        BaseTrainer.__init__(self, config)
        set_seed(config.seed)
        self.accelerator = Accelerator(
            log_with=config.log_with,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            project_config=ProjectConfiguration(**config.project_kwargs),
            **config.accelerator_kwargs,
        )
        self.accelerator.init_trackers(config.tracker_project_name)
        self.model = model
        self.model_params = filter(lambda parameter: parameter.requires_grad, self.model.parameters())
        self.is_encoder_decoder = hasattr(model, "is_encoder_decoder")
        self.is_peft_model = getattr(model, "is_peft_model", False)
        self.is_using_text_environment = False
        self.ref_model = ref_model
        if ref_model is None and not self.is_peft_model:
            self.ref_model = create_reference_model(model)
        self.optional_peft_ctx = model.pretrained_model.disable_adapter if self.is_peft_model else nullcontext
        self.tokenizer = tokenizer
        self.dataset = dataset
        self._signature_columns = None
        self.dataloader = None if dataset is None else self.prepare_dataloader(dataset)
        self.data_collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate)
        self.lr_scheduler = None
        self.kl_ctl = AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
        prepared = self.accelerator.prepare(self.model, self.optimizer, self.data_collator, self.dataloader)
        self.model, self.optimizer, self.data_collator, self.dataloader = prepared
        if self.ref_model is not None:
            self.ref_model = self.accelerator.prepare(self.ref_model)
        self.is_distributed = False
        self.current_step = 0
        self.current_device = self.accelerator.device
        self.running = RunningMoments(self.accelerator)


class OwnStep(OwnConstructor):
    """And with a `step` of its own, from the parts of release 0.7's."""

    def step(self, queries: Any, responses: Any, scores: Any, response_masks: Any = None) -> dict[str, Any]:  # type: ignore[override]
        config = self.config
        size = config.batch_size
        queries, responses, scores, masks = self._step_safety_checker(size, queries, responses, scores, response_masks)
        scores = torch.tensor(scores)
        inputs = self.prepare_model_inputs(queries, responses)
        with torch.no_grad():
            given = (queries, responses, inputs)
            logprobs, _, values, mask = self.batched_forward_pass(self.model, *given, response_masks=masks)
            with self.optional_peft_ctx():
                reference = self.model if self.is_peft_model else self.ref_model
                ref_logprobs = self.batched_forward_pass(reference, *given)[0]
            rewards, non_score_rewards, kls = self.compute_rewards(scores, logprobs, ref_logprobs, mask)
            values, advantages, returns = self.compute_advantages(values, rewards, mask)
        found = []
        for _ in range(config.ppo_epochs):
            order = np.random.permutation(size)
            for start in range(0, size, config.mini_batch_size):
                rows = order[start : start + config.mini_batch_size]
                with self.accelerator.accumulate(self.model):
                    now, logits, vpreds, _ = self.batched_forward_pass(
                        self.model,
                        [queries[i] for i in rows],
                        [responses[i] for i in rows],
                        {key: value[rows] for key, value in inputs.items()},
                        return_logits=True,
                    )
                    known = logprobs[rows], values[rows]
                    targets = mask[rows], advantages[rows], returns[rows]
                    found.append(self.train_minibatch(*known, now, logits, vpreds, *targets))
            if self._early_stop(found[-1]["policy/policykl"]):
                break
        train_stats = stack_dicts(found)
        for key in ("policy/advantages", "policy/ratio"):
            train_stats[key] = train_stats[key].flatten().unsqueeze(0)
        stats = stats_to_np(
            self.record_step_stats(
                scores=scores, logprobs=logprobs, ref_logprobs=ref_logprobs, non_score_reward=non_score_rewards,
                train_stats=train_stats, kl_coef=self.kl_ctl.value, masks=mask, queries=queries, responses=responses,
                kls=kls,
            )
        )  # fmt: skip
        self.kl_ctl.update(stats["objective/kl"], size)
        return stats


def of_one_length() -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Eight samples; a mean over mini-batches is one over tokens then, and no mini-batch has a column less."""
    ids = torch.randint(4, 60, (8, 12), generator=torch.Generator().manual_seed(3))
    return list(ids[:, :7]), list(ids[:, 7:]), [torch.tensor(0.1 * i) for i in range(8)]


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("cls", [OwnConstructor, OwnStep])
def test_steps_are_ours(cls: type[PPOTrainer], name: str) -> None:
    options = {"mini_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.01, "exact_v07": True}
    moved, kls = [], []
    for kind in (PPOTrainer, cls):
        trainer = tiny.trainer(name, cls=kind, **options)
        updates: list[int] = []
        trainer.optimizer.optimizer.register_step_post_hook(lambda *_, seen=updates: seen.append(1))
        for _ in range(2):
            np.random.seed(5)
            stats = trainer.step(*of_one_length())
        assert len(updates) == trainer._updater.updates == 2 * 4 * 8 / 4, kind
        moved.append(tiny.weights(trainer.model))
        kls.append(float(stats["objective/kl"]))
    assert kls[1] == pytest.approx(kls[0], rel=1e-3)
    for key, weight in moved[0].items():  # some gradients are as small as Adam's eps, so their rounding shows
        torch.testing.assert_close(moved[1][key], weight, atol=2e-4, rtol=1e-4, msg=key)


def test_a_loop_that_was_left_elsewhere_ends_no_accumulation() -> None:
    """transformers' Trainer leaves its loop at max_steps; accelerate goes on to take its last batch for this one."""
    loader = Accelerator().prepare(torch.utils.data.DataLoader([1.0]))
    left = iter(loader)
    next(left)
    trainer = tiny.trainer(cls=OwnStep, mini_batch_size=2, gradient_accumulation_steps=2)
    assert trainer.accelerator.gradient_state.end_of_dataloader
    trainer.step(*of_one_length())
    assert trainer._updater.updates == 4 * 8 / 4


def test_a_step_of_its_own_leaves_nothing_to_the_device() -> None:
    """On an accelerator the verdict on a mini-batch stays there until a step of ours ends."""
    moved = []
    for kind in (Updater, OnDeviceUpdater):
        trainer = tiny.trainer(cls=OwnStep, mini_batch_size=2, gradient_accumulation_steps=2)
        known = trainer._processes, trainer.model, trainer.optimizer, list(trainer.model.parameters())
        trainer._updater = kind(*known, trainer.config)
        np.random.seed(5)
        trainer.step(*of_one_length())
        moved.append(tiny.weights(trainer.model))
    assert all(torch.equal(moved[1][key], weight) for key, weight in moved[0].items())


def test_every_update_of_its_own_is_clipped() -> None:
    """The parameters that its constructor sets are an iterator, which the first clipping would have emptied."""
    trainer = tiny.trainer(cls=OwnConstructor)
    for _ in range(2):
        for parameter in trainer.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        trainer.accelerator.clip_grad_norm_(trainer.model_params, 0.5)
        norm = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]).norm()
        assert float(norm) == pytest.approx(0.5, rel=1e-4)


def test_inputs_are_checked() -> None:
    trainer, (queries, responses, scores) = tiny.trainer(cls=OwnConstructor), of_one_length()
    checked = trainer._step_safety_checker(8, queries, responses, scores)
    assert [list(map(tuple, rows)) for rows in checked[:2]] == [list(map(tuple, rows)) for rows in (queries, responses)]
    assert [score.dim() for score in checked[2]] == [0] * 8
    assert checked[3] is None
    with pytest.raises(ValueError, match="queries has 8 entries, but batch_size is 4"):
        trainer._step_safety_checker(4, queries, responses, scores)
    with pytest.raises(ValueError, match=r"responses\[1\] must be a tensor"):
        trainer._step_safety_checker(8, queries, [responses[0], 3, *responses[2:]], scores)
    with pytest.raises(ValueError, match="scores must be one number per sample"):
        trainer._step_safety_checker(8, queries, responses, [torch.ones(5)] * 8)


def test_it_samples() -> None:
    trainer, queries = tiny.trainer(cls=OwnConstructor), of_one_length()[0]
    ours = tiny.trainer()
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    for one, other in zip(trainer.generate(queries, **settings), ours.generate(queries, **settings), strict=True):
        assert torch.equal(one, other)
    assert len(trainer._generate_batched(trainer.ref_model, queries, **settings)) == 8
    assert trainer.sample(queries, n=2, **settings).version == 0


def test_it_makes_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_dict({"input_ids": [[5, 6]] * 9, "query": ["a"] * 9, "other": [1] * 9})
    trainer = tiny.trainer(cls=lambda config, model, ref, words: OwnConstructor(config, model, ref, words, rows))
    assert [len(batch["query"]) for batch in trainer.dataloader] == [8]
    assert "other" not in next(iter(trainer.dataloader))
    assert trainer._filter_kwargs({"a": 1, "length": 2}, lambda length: None) == {"length": 2}

    def keep_all(self: Any) -> None:
        self._signature_columns = ["other"]

    monkeypatch.setattr(OwnConstructor, "_set_signature_columns_if_needed", keep_all)
    trainer._signature_columns = None
    assert trainer._remove_unused_columns(rows).column_names == ["other"]


def test_it_reports_and_saves(tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture) -> None:
    trainer, batch = tiny.trainer(cls=OwnConstructor), of_one_length()
    seen: list[int] = []
    trainer.on_step(lambda report: seen.append(report.step))
    stats = trainer.step(*batch)
    assert seen == [1]
    trainer.log_stats(stats, {"query": ["a"] * 8, "response": ["b"] * 8}, batch[2])
    assert trainer.current_step == 1
    assert trainer.gather_stats({"one": torch.tensor([2.0]), "rest": 3})["one"] == 2.0
    assert trainer.step_cost().seconds > 0
    assert trainer.values_after(*batch[:2]).shape == (8,)
    trainer._show_tokens(torch.tensor([5, 6]), torch.tensor([1, 0]))
    assert "w5 w6" in capsys.readouterr().out
    trainer.save_pretrained(str(tmp_path / "policy"))
    assert {"model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "policy").iterdir()}
    trainer.push_to_hub("me/policy")
    assert len(hub.uploads) == 1
    trainer.save_state(tmp_path / "state")
    assert tiny.trainer(cls=OwnConstructor).load_state(tmp_path / "state") == 1


def test_trackers_that_are_open_stay_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    options = {"project_kwargs": {"logging_dir": str(tmp_path)}, "tracker_project_name": "own"}
    trainer, batch = tiny.trainer(cls=OwnConstructor, log_with="tensorboard", **options), of_one_length()
    opened = list(trainer.accelerator.trackers)
    trainer.log_stats(trainer.step(*batch), {"query": ["a"] * 8, "response": ["b"] * 8}, batch[2])
    assert trainer.accelerator.trackers == opened
    assert any(path.stat().st_size > 500 for path in (tmp_path / "own").iterdir())


@pytest.mark.parametrize(("stage", "expected"), [(2, {"stage": 0}), (3, {"stage": 3, "reduce_bucket_size": 32 * 32})])
def test_a_reference_becomes_an_engine(monkeypatch: pytest.MonkeyPatch, stage: int, expected: dict[str, int]) -> None:
    given: dict[str, Any] = {"zero_optimization": {"stage": stage}}

    def initialize(model: Any, config: Any) -> Any:
        assert expected.items() <= config["zero_optimization"].items()
        return model, None, None, None

    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(initialize=initialize))
    trainer = tiny.trainer(cls=OwnConstructor)
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config=given))
    monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(state=state))
    assert trainer._prepare_deepspeed(trainer.ref_model.train()) is trainer.ref_model
    assert not trainer.ref_model.training
    assert given == {"zero_optimization": {"stage": stage}}


def test_an_engine_needs_an_accelerator_with_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace())
    trainer = tiny.trainer(cls=OwnConstructor)
    with pytest.raises(ValueError, match=r"this accelerator does not train with DeepSpeed"):
        trainer._prepare_deepspeed(trainer.ref_model)
