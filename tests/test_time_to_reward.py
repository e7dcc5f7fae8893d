"""What `benchmarks/time_to_reward_worker.py` measures in the same way for every library."""

from __future__ import annotations

from itertools import count, islice
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import time_to_reward_worker
from benchmarks.time_to_reward_worker import Clock, Course, batches

END = 0


def test_every_prompt_comes_once_in_a_round_and_with_its_group() -> None:
    prompts = ["a", "b", "c", "d"]
    drawn = list(islice(batches(prompts, size=6, group=3, seed=0), 4))
    for batch in drawn:
        assert batch[:3] == [batch[0]] * 3
        assert batch[3:] == [batch[3]] * 3
    for first, second in (drawn[:2], drawn[2:]):
        assert sorted(first[::3] + second[::3]) == prompts
    assert next(batches(prompts, 6, 3, seed=0)) == drawn[0]
    assert len({tuple(next(batches(prompts, 6, 3, seed))) for seed in range(9)}) > 1


def test_the_clock_counts_only_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = count()
    monkeypatch.setattr(time_to_reward_worker, "now", lambda: (float(next(wall)), 0.5))  # a second at each look
    clock = Clock()
    with clock.part("sampling"):  # of a measurement
        pass
    assert clock.seconds["sampling"] == [0.0, 0.0]
    for _ in range(2):
        clock.start()
        with clock.part("sampling"):
            pass
        clock.stop()
    assert clock.seconds == {"all": [6.0, 0.0], "sampling": [2.0, 0.0], "scoring": [0.0, 0.0]}


def small_model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 9, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "initializer_range": 0.5}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=END, eos_token_id=END, pad_token_id=END)).eval()


def test_the_kl_is_that_of_the_tokens_up_to_the_end() -> None:
    model, reference = small_model(1), small_model(2)
    queries = [[3, 4, 5], [6]]
    responses = [[1, 2, END, END], [7, END, 8, 8]]  # the first end counts, what follows it does not
    counted = [[1, 2, END], [7, END]]
    expected = 0.0
    with torch.no_grad():
        for query, response in zip(queries, counted, strict=True):
            for i, token in enumerate(response):
                before = torch.tensor([query + response[:i]])
                policy, old = (of(before).logits[0, -1].log_softmax(0)[token].item() for of in (model, reference))
                expected += (policy - old) / len(queries)
        course = Course.__new__(Course)
        course.inputs = {
            "input_ids": torch.tensor([[3, 4, 5], [END, END, 6]]),
            "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 1]]),
        }
        course.reference, course.task = reference, SimpleNamespace(tokenizer=SimpleNamespace(eos_token_id=END))
        rows = torch.cat([course.inputs["input_ids"], torch.tensor(responses)], dim=1)
        assert course.kl(model, rows) == pytest.approx(expected, rel=1e-4)
        assert abs(expected) > 0.1


@pytest.mark.parametrize(
    ("rewards", "kl", "reached", "ended"),
    [
        ([0.5], 0.0, False, False),
        ([0.5, 0.9], 6.0, True, True),
        ([0.5, 0.9], 6.1, False, False),
        ([0.5, 0.6, 0.6, 0.6], 1.0, False, True),
    ],
)
def test_a_run_ends_at_the_goal_or_after_so_many_batches(
    rewards: list[float], kl: float, reached: bool, ended: bool
) -> None:
    course = Course.__new__(Course)
    course.job = {"goal": 0.9, "most_kl": 6.0, "most_batches": 3}
    course.points = [{"reward": reward, "kl": kl} for reward in rewards]
    assert (course.reached, course.ended) == (reached, ended)
