"""Row A11: the advantage estimate skips tokens that a tool wrote; the score lands on the last counted token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import batch, trainer, with_value_head
from trl_step import PPOTrainer


class Watched(PPOTrainer):
    """Keeps the rewards, advantages and returns of the last step."""

    def compute_advantages(self, values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor) -> Any:
        result = super().compute_advantages(values, rewards, mask)
        self.seen = {"rewards": rewards, "advantages": result[1], "returns": result[2], "mask": mask}
        return result

    def counted(self, key: str) -> list[torch.Tensor]:
        """Of each sample, only the tokens that count."""
        return [row[mask.bool()] for row, mask in zip(self.seen[key], self.seen["mask"], strict=True)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_inserted_tokens_leave_advantages_and_returns_unchanged(data: st.DataObject) -> None:
    ours = PLAIN
    rows, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    values, rewards = (torch.randn(rows, steps, generator=generator) for _ in range(2))
    mask = torch.ones(rows, steps, dtype=torch.long)
    expected = ours.compute_advantages(values, rewards, mask)

    width = steps + data.draw(st.integers(1, 5))
    places = torch.stack([torch.tensor(sorted(data.draw(st.permutations(range(width)))[:steps])) for _ in range(rows)])
    # what stands at a masked token is noise that must not matter
    noisy = [torch.full((rows, width), 50.0).scatter(1, places, x) for x in (values, rewards)]
    longer_mask = torch.zeros(rows, width, dtype=torch.long).scatter(1, places, 1)
    _, advantages, returns = ours.compute_advantages(*noisy, longer_mask)
    torch.testing.assert_close(advantages.gather(1, places), expected[1])
    torch.testing.assert_close(returns.gather(1, places), expected[2])


def test_by_hand_in_a_step() -> None:
    """gamma = lam = 1 and no KL: the return of every counted token is the score, however long the tool talks."""
    ours = trainer("gpt2", cls=Watched, gamma=1.0, lam=1.0, init_kl_coef=0.0)
    queries, responses, scores = batch()
    responses = [torch.cat((r, torch.full((3,), 9), r, torch.full((2,), 9))) for r in responses]
    masks = [torch.tensor([1] * n + [0] * 3 + [1] * n + [0] * 2) for n in ((len(r) - 5) // 2 for r in responses)]
    ours.step(queries, responses, scores, masks)
    for i, (returns, rewards) in enumerate(zip(ours.counted("returns"), ours.counted("rewards"), strict=True)):
        torch.testing.assert_close(returns, torch.full_like(returns, scores[i]))
        assert float(rewards[-1]) == pytest.approx(scores[i]), "the score lands on the last counted token"
        assert not rewards[:-1].any()
    assert not ours.seen["rewards"][ours.seen["mask"] == 0].any()


@pytest.mark.parametrize("whiten", [False, True])
def test_a_discount_counts_counted_tokens_only(whiten: bool) -> None:
    """With gamma < 1, the same values and rewards give the same returns with a tool reply in between."""
    ours = trainer("gpt2", gamma=0.9, lam=0.8, whiten_rewards=whiten)
    values = torch.tensor([[0.1, 0.2, 0.3]])
    rewards = torch.tensor([[0.0, 0.5, 1.0]])
    _, advantages, returns = ours.compute_advantages(values, rewards, torch.ones(1, 3).long())
    spread, mask = torch.tensor([[0, 4, 5]]), torch.tensor([[1, 0, 0, 0, 1, 1]])
    longer = [torch.zeros(1, 6).scatter(1, spread, x) for x in (values, rewards)]
    _, longer_advantages, longer_returns = ours.compute_advantages(*longer, mask)
    torch.testing.assert_close(longer_returns.gather(1, spread), returns)
    torch.testing.assert_close(longer_advantages.gather(1, spread), advantages)
    if not whiten:
        delta = [0.0 + 0.9 * 0.2 - 0.1, 0.5 + 0.9 * 0.3 - 0.2, 1.0 - 0.3]
        last = delta[2]
        middle = delta[1] + 0.72 * last
        torch.testing.assert_close(returns, torch.tensor([[delta[0] + 0.72 * middle + 0.1, middle + 0.2, last + 0.3]]))


def test_the_old_numbers_are_there_for_a_port() -> None:
    values, rewards = torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    mask = torch.tensor([[1, 0, 0, 1]])
    ours, old = (trainer("gpt2", gamma=0.5, lam=1.0, exact_v07=exact) for exact in (False, True))
    assert ours.compute_advantages(values, rewards, mask)[2][0, 0] == pytest.approx(0.5)
    assert old.compute_advantages(values, rewards, mask)[2][0, 0] == pytest.approx(0.125)


PLAIN = trainer(with_value_head("gpt2"), gamma=0.97)
