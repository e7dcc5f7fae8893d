"""Subclasses written for release 0.7 with parts of its own code, and for `transformers.Trainer` beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

from tests import tiny
from trl_step import PPOTrainer
from trl_step.trainer.utils import exact_div


class OwnUpdate(PPOTrainer):
    """A `train_minibatch` as release 0.7 has it: accelerate is left to say when the optimizer steps."""

    steps = 0

    def train_minibatch(self, old_logprobs: Any, values: Any, logprobs: Any, logits: Any, vpreds: Any, mask: Any,
                        advantages: Any, returns: Any) -> dict[str, torch.Tensor]:  # fmt: skip
        self.model.train()
        policy, value, stats = self.loss(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        self.accelerator.backward(policy + value)
        if self.config.max_grad_norm is not None and self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.model_params, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return stats


def count_updates(trainer: PPOTrainer) -> list[int]:
    updates: list[int] = []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: updates.append(1))
    return updates


def test_an_update_by_accelerate_accumulates() -> None:
    trainer = tiny.trainer(cls=OwnUpdate, mini_batch_size=1, gradient_accumulation_steps=4, ppo_epochs=2)
    assert trainer.accelerator.gradient_accumulation_steps == 4
    updates = count_updates(trainer)
    trainer.step(*tiny.batch())
    assert len(updates) == 2 * 8 / 4


def test_an_update_by_accelerate_is_ours_for_samples_of_one_length() -> None:
    """Its mean over mini-batches is a mean over tokens if all have as many."""
    moved, (queries, _, scores) = [], tiny.batch()
    responses = [torch.randint(4, 60, (5,), generator=torch.Generator().manual_seed(i)) for i in range(8)]
    for cls in (PPOTrainer, OwnUpdate):
        trainer = tiny.trainer(cls=cls, mini_batch_size=2, gradient_accumulation_steps=2, max_grad_norm=0.5)
        trainer.step(queries, responses, scores)
        moved.append(tiny.weights(trainer.model))
    for name, weight in moved[0].items():
        torch.testing.assert_close(moved[1][name], weight, atol=2e-6, rtol=0, msg=name)


def test_dropout_stays_off_if_a_mini_batch_calls_train() -> None:
    """Release 0.7's method does, and with a learning rate of 0 nothing may change all the same."""
    trainer = tiny.trainer(tiny.with_value_head("gpt2", dropout=0.3), cls=OwnUpdate, learning_rate=0.0)
    stats = trainer.step(*tiny.batch())
    assert stats["ppo/policy/approxkl"] < 1e-10


class Both(PPOTrainer, transformers.Trainer):
    """As LLaMA-Factory's: the methods of both trainers, with a constructor that calls both."""

    def __init__(self, folder: Path) -> None:
        arguments = transformers.TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])
        model = tiny.with_value_head("gpt2")
        PPOTrainer.__init__(self, tiny.config(), model, None, tiny.tokenizer())
        self.args = arguments
        self.state, self.control = transformers.TrainerState(), transformers.TrainerControl()
        self.processing_class = self.tokenizer


def test_a_class_with_both_bases_saves_the_state_of_the_other(tmp_path: Path) -> None:
    trainer = Both(tmp_path)
    trainer.step(*tiny.batch())
    trainer.save_state()
    assert (tmp_path / "trainer_state.json").exists()
    trainer.save_state(tmp_path / "ours")
    assert trainer.load_state(tmp_path / "ours") == 1


def test_save_state_without_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="save_state needs a folder"):
        tiny.trainer().save_state()


def test_names_that_both_trainers_have_need_no_more_than_those_of_transformers() -> None:
    import inspect

    shared = {name for name in vars(transformers.Trainer) if not name.startswith("_") and hasattr(PPOTrainer, name)}
    for name in shared:
        ours, theirs = getattr(PPOTrainer, name), getattr(transformers.Trainer, name)
        if not callable(ours) or not callable(theirs):
            continue
        wanted = {n for n, p in inspect.signature(theirs).parameters.items() if p.default is p.empty}
        needed = {
            n for n, p in inspect.signature(ours).parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }  # fmt: skip
        assert needed <= wanted | {"repo_id", "path"}, name


def test_the_tokenizer_has_two_names() -> None:
    trainer = tiny.trainer()
    assert trainer.processing_class is trainer.tokenizer
    other = tiny.tokenizer()
    trainer.processing_class = other
    assert trainer.tokenizer is other


def test_a_generate_of_its_own_finds_release_07s_batched_one() -> None:
    trainer, (queries, *_) = tiny.trainer(), tiny.batch()
    lengths = iter(range(1, 9))
    got = trainer._generate_batched(
        trainer.model, queries, lambda: next(lengths), return_prompt=False, do_sample=False, suppress_tokens=[1]
    )
    assert [len(row) for row in got] == list(range(1, 9))
    of_reference = trainer._generate_batched(trainer.ref_model, queries, max_new_tokens=2)
    assert all(torch.equal(row[: len(query)], query) for row, query in zip(of_reference, queries, strict=True))


def test_columns_of_a_data_set_are_lists() -> None:
    queries, responses, scores = tiny.batch()
    rows = {"queries": [q.tolist() for q in queries], "responses": [r.tolist() for r in responses], "scores": scores}
    table = Dataset.from_dict(rows).with_format("torch")
    expected = tiny.trainer().step(queries, responses, scores)
    trainer = tiny.trainer()
    got = trainer.step(table["queries"], table["responses"], table["scores"])
    assert got["ppo/loss/total"] == pytest.approx(expected["ppo/loss/total"], rel=1e-5)
    assert len(trainer.generate(table["queries"], max_new_tokens=2)) == 8


def test_exact_div_takes_names_or_a_message() -> None:
    """The names are release 0.7's arguments, the message that of 0.9, which subclasses of `PPOConfig` give."""
    assert exact_div(8, 4, "batch") == 2
    with pytest.raises(ValueError, match=r"^of what: a=8 is not a multiple of b=3$"):
        exact_div(8, 3, "a", "b", "of what")
    with pytest.raises(ValueError, match=r"^must be a multiple: 8 / 3$"):
        exact_div(8, 3, "must be a multiple")


def test_tags_are_lists() -> None:
    assert PPOTrainer._tag_names == ["trl", "ppo"]
