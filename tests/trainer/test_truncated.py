"""`step(truncated=...)`: an episode that was cut off gets the value of its last state; known worlds, a plain pass."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.tiny import VOCABULARY, trainer
from trl_step import PPOTrainer
from trl_step.algorithms.advantages.gae import advantages_and_returns

FOREVER = 2.0
"""The value of every state of a world that pays 1 at each token for ever, with gamma 0.5: 1 + 0.5 + 0.25 + ..."""


def with_constant_values(ours: Any, value: float) -> None:
    """A critic that says `value` of every state."""
    with torch.no_grad():
        ours.model.v_head.summary.weight.zero_()
        ours.model.v_head.summary.bias.fill_(value)


def advantages_of_step(ours: Any, *inputs: Any, **more: Any) -> Any:
    """Values, advantages and returns of a step."""
    seen: dict[str, Any] = {}
    plain = ours.compute_advantages
    ours.compute_advantages = lambda *args: seen.setdefault("found", plain(*args))
    ours.step(*inputs, **more)
    del ours.compute_advantages
    return seen["found"]


def batch(lengths: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Queries, responses, and a reward of 1 for every token."""
    torch.manual_seed(1)
    queries = [torch.randint(3, VOCABULARY, (2 + n % 3,)) for n in lengths]
    responses = [torch.randint(3, VOCABULARY, (n,)) for n in lengths]
    return queries, responses, [torch.ones(n) for n in lengths]


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_a_world_that_pays_for_ever(lam: float) -> None:
    """The critic is right, so nothing is better than expected: advantages 0, returns 2, wherever the cut is."""
    ours = trainer("gpt2", gamma=0.5, lam=lam, init_kl_coef=0.0, learning_rate=0.0, whiten_advantages=False)
    with_constant_values(ours, FOREVER)
    inputs = batch([3, 5, 1, 4])
    _, advantages, returns = advantages_of_step(ours, *inputs, truncated=[True, True, True, False])
    for i, (query, response) in enumerate(zip(*inputs[:2], strict=True)):
        own = slice(len(query) - 1, len(query) - 1 + len(response))
        if i < 3:
            assert advantages[i, own].tolist() == pytest.approx([0.0] * len(response))
            assert returns[i, own].tolist() == pytest.approx([FOREVER] * len(response))
    if lam == 1.0:  # the one that came to its end: 1 + 0.5 + 0.25 + 0.125, ...
        start = len(inputs[0][3]) - 1
        assert returns[3, start : start + 4].tolist() == pytest.approx([1.875, 1.75, 1.5, 1.0])


def test_without_truncated_the_numbers_stay() -> None:
    found = []
    for more in ({}, {"truncated": [False] * 4}):
        ours = trainer("gpt2", gamma=0.5, init_kl_coef=0.0, learning_rate=0.0)
        with_constant_values(ours, FOREVER)
        found.append(advantages_of_step(ours, *batch([3, 5, 1, 4]), **more))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_values_after_are_those_of_a_plain_pass(family: str) -> None:
    """Each sample alone, without padding: the value at its very last token."""
    ours = trainer(family)
    queries, responses, _ = batch([3, 7, 1, 4, 5])
    found = ours.values_after(queries, responses)
    assert found.dtype == torch.float32
    with torch.no_grad():
        for i, (query, response) in enumerate(zip(queries, responses, strict=True)):
            if family == "t5":
                values = ours.model.eval()(input_ids=query[None], decoder_input_ids=response[None])[2]
            else:
                values = ours.model.eval()(input_ids=torch.cat((query, response))[None])[2]
            torch.testing.assert_close(found[i], values[0, -1].float())
    assert ours.values_after([], []).shape == (0,)


def test_a_turn_is_a_step_of_a_truncated_episode_too() -> None:
    """Two turns of two tokens, with a token of the world between them; one discount per turn, lambda 0."""
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    rewards, values = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0]]), torch.tensor([[9.0, 2.0, 9.0, 9.0, 4.0]])
    found = advantages_and_returns(values, rewards, mask, 0.5, 0.0, whiten=False, of_turns=True,
                                   final_values=torch.tensor([6.0]))  # fmt: skip
    first, second = 1 + 0.5 * 4 - 2, 1 + 0.5 * 6 - 4
    assert found.advantages.tolist() == [[first, first, 0, second, second]]


def test_the_value_of_the_last_state_is_in_the_scale_of_whitened_rewards() -> None:
    torch.manual_seed(0)
    rewards, mask = torch.randn(2, 3), torch.ones(2, 3).long()
    more = {"whiten_rewards": True, "whiten": False}
    plain = advantages_and_returns(torch.zeros(2, 3), rewards, mask, 0.5, 1.0, **more)
    cut = advantages_and_returns(torch.zeros(2, 3), rewards, mask, 0.5, 1.0, **more,
                                 final_values=torch.tensor([4.0, 0.0]))  # fmt: skip
    torch.testing.assert_close(cut.returns - plain.returns, torch.tensor([[0.5, 1.0, 2.0], [0.0, 0.0, 0.0]]))


def test_advantages_of_a_subclass_that_leave_it_out_are_reported() -> None:
    """The method of release 0.7 knows nothing of values after the end."""

    class Own(PPOTrainer):
        def compute_advantages(self, values: Any, rewards: Any, mask: Any) -> Any:
            return values, rewards * mask, rewards + values

    class Around(PPOTrainer):
        def compute_advantages(self, *args: Any) -> Any:
            return super().compute_advantages(*args)

    inputs = batch([3, 5, 1, 4])
    with pytest.warns(UserWarning, match="truncated are ignored: compute_advantages is overridden, and does not call"):
        trainer("gpt2", cls=Own).step(*inputs, truncated=[True] * 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="truncated are ignored")
        trainer("gpt2", cls=Own).step(*inputs)
        trainer("gpt2", cls=Around).step(*inputs, truncated=[True] * 4)


def test_what_cannot_be_taken_is_named() -> None:
    ours = trainer("gpt2")
    inputs = batch([3, 5, 1, 4])
    with pytest.raises(ValueError, match=r"truncated\[2\] must be True or False, got 'yes'"):
        ours.step(*inputs, truncated=[True, False, "yes", False])
    with pytest.raises(ValueError, match="sample 3 is the first that is missing"):
        ours.step(*inputs, truncated=[True] * 3)
    grouped = trainer("gpt2", advantage_estimator="reinforce_plus_plus")
    with pytest.warns(UserWarning, match="truncated are ignored: advantage_estimator is 'reinforce_plus_plus'"):
        grouped.step(*inputs, truncated=[True] * 4)
