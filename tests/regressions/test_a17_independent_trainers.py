"""Row A17: trainers in one process do not change each other, and only the seed changes the process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from tests.tiny import batch, config, tokenizer, trainer, with_value_head
from tests.trainer.runs.state_tools import changed, random_streams
from trl_step import PPOConfig, PPOTrainer, set_seed


class Watched(PPOTrainer):
    """Writes down in which precision its training forward runs, and how often its optimizer steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.precisions: set[torch.dtype] = set()
        self.updates = 0
        self.optimizer.optimizer.register_step_post_hook(self._count)
        self.accelerator.unwrap_model(self.model).pretrained_model.transformer.h[0].attn.register_forward_hook(
            lambda module, arguments, output: self.precisions.add(output[0].dtype)
        )

    def _count(self, *args: Any) -> None:
        self.updates += 1


def plain() -> Watched:
    return trainer("gpt2", cls=Watched, mini_batch_size=2)


def accumulating_in_bfloat16() -> Watched:
    return trainer(
        "gpt2",
        cls=Watched,
        mini_batch_size=2,
        gradient_accumulation_steps=4,
        accelerator_kwargs={"cpu": True, "mixed_precision": "bf16"},
    )


@pytest.mark.parametrize("plain_first", [True, False])
def test_accumulation_and_precision_are_each_trainers_own(plain_first: bool) -> None:
    if plain_first:
        one, two = plain(), accumulating_in_bfloat16()
    else:
        two, one = accumulating_in_bfloat16(), plain()
    for _ in range(2):  # in turns
        one.step(*batch())
        two.step(*batch())
    assert one.updates == 2 * 16
    assert two.updates == 2 * 4
    assert one.precisions == {torch.float32}
    assert two.precisions == {torch.bfloat16}


def test_a_trainer_gives_the_same_numbers_beside_another_one() -> None:
    def run(beside: bool) -> list[float]:
        if beside:
            accumulating_in_bfloat16().step(*batch())
        ours = plain()
        if beside:
            accumulating_in_bfloat16()
        return [ours.step(*batch(seed=step))["ppo/loss/total"] for step in range(2)]

    assert run(beside=False) == run(beside=True)


def test_an_accelerator_of_the_users_own_stays_as_it_was() -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    own = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    ours = trainer("gpt2")
    ours.step(*batch())
    assert own.mixed_precision == "bf16"
    assert own.gradient_accumulation_steps == 3
    assert AcceleratorState().mixed_precision == "bf16"
    assert GradientState().num_steps == 3
    assert ours.accelerator.mixed_precision == "no"
    AcceleratorState._reset_state()
    GradientState._reset_state()


@pytest.mark.parametrize("trainer_first", [True, False])
def test_a_loop_of_the_users_own_that_accumulates_does_not_hold_the_trainer_back(trainer_first: bool) -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if trainer_first:
        ours, own = plain(), Accelerator(gradient_accumulation_steps=3)
    else:
        own, ours = Accelerator(cpu=True, gradient_accumulation_steps=3), plain()
    module = own.prepare(torch.nn.Linear(1, 1))
    with own.accumulate(module):
        assert not own.sync_gradients
        ours.step(*batch())
        assert not own.sync_gradients
    assert ours.updates == 16
    AcceleratorState._reset_state()
    GradientState._reset_state()


def test_trackers_are_each_trainers_own(tmp_path: Any) -> None:
    with_logs = trainer("gpt2", log_with="tensorboard", project_kwargs={"logging_dir": str(tmp_path)})
    without = trainer("gpt2")
    assert [tracker.name for tracker in with_logs.accelerator.trackers] == ["tensorboard"]
    assert without.accelerator.trackers == []
    stats = without.step(*batch())
    without.log_stats(stats, {"query": ["q"] * 8, "response": ["r"] * 8}, batch()[2])
    with_logs.accelerator.trackers[0].writer.flush()
    assert without.current_step == 1
    assert with_logs.current_step == 0


@pytest.mark.parametrize("options", [{}, {"log_with": "tensorboard"}])
def test_seed_none_leaves_the_random_streams_alone(options: dict[str, Any], tmp_path: Any) -> None:
    model = with_value_head("gpt2")
    if options:
        options["project_kwargs"] = {"logging_dir": str(tmp_path)}
    set_seed(123)
    before = random_streams()
    ours = PPOTrainer(config(seed=None, **options), model, None, tokenizer())
    assert changed(before, random_streams()) == []
    ours.step(*batch())
    assert changed(before, random_streams()) == ["numpy"], "a step draws the order of its mini-batches, nothing else"


def test_the_seed_sets_all_streams_and_with_them_the_order_of_mini_batches() -> None:
    class Order(PPOTrainer):
        """Overriding a hook that sees queries, to see the order."""

        def batched_forward_pass(self, model: Any, queries: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen = [*getattr(self, "seen", []), *(tuple(query.tolist()) for query in queries)]
            return super().batched_forward_pass(model, queries, *args, **kwargs)

    queries = batch()[0]
    for seed in (0, 5):
        np.random.seed(99)
        ours = trainer("gpt2", cls=Order, seed=seed, ppo_epochs=2)
        streams = random_streams()
        set_seed(seed)
        assert changed(streams, random_streams()) == []
        ours.step(*batch())
        np.random.seed(seed)
        expected = [tuple(queries[i].tolist()) for _ in range(2) for i in np.random.permutation(8)]
        assert ours.seen[-16:] == expected  # behind the passes of policy and reference


def test_two_configs_are_not_mixed_up() -> None:
    first, second = config(), config(batch_size=16)
    one = PPOTrainer(first, with_value_head("gpt2"), None, tokenizer())
    PPOTrainer(second, with_value_head("t5"), None, tokenizer())
    assert one.config is first
    assert (first.is_encoder_decoder, second.is_encoder_decoder) == (False, True)
    assert (first.global_batch_size, second.global_batch_size) == (8, 16)
    assert PPOConfig().accelerator_kwargs == {}
