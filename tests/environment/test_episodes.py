"""Groups of episodes, and advantages of their turns."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.environment.test_runner import runner
from tests.environment.worlds import Countdown
from tests.tiny import tokenizer, trainer
from trl_step.environment import EnvironmentRunner, Episodes


def test_several_episodes_of_a_task_are_a_group() -> None:
    episodes = runner(Countdown, "a", "bcd").run([1, 2], n=3)
    assert episodes.group_ids == [0, 0, 0, 1, 1, 1]
    assert [history.text[:7] for history in episodes.histories] == ["1 left:"] * 3 + ["2 left:"] * 3
    assert len(episodes.without_failed().group_ids) == 6
    assert runner(Countdown, "a").run([1, 2]).group_ids == [0, 1]
    with pytest.raises(ValueError, match="n=0 episodes per task"):
        runner(Countdown, "a").run([1], n=0)


def test_episodes_of_several_runs() -> None:
    run = runner(Countdown, "a", "bcd")
    first, second = run.run([1, 2], n=2), run.run([3])
    both = Episodes.joined([first, second, first])
    assert both.group_ids == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert all(
        one is other for one, other in zip(both.queries, [*first.queries, *second.queries, *first.queries], strict=True)
    )
    assert both.turn_rewards == first.turn_rewards + second.turn_rewards + first.turn_rewards
    assert Episodes.joined([]).queries == []


def test_turns_and_their_rewards() -> None:
    episodes = runner(Countdown, "a", "bcd", "ef").run([3, 1])
    assert episodes.turn_rewards == [[1.0, 3.0, 2.0], [1.0]]
    assert episodes.turn_ends[1] == [1]
    for response, mask, ends in zip(episodes.responses, episodes.masks, episodes.turn_ends, strict=True):
        assert all(mask[end] and (end + 1 == len(response) or not mask[end + 1]) for end in ends)


def test_advantages_of_turns_by_hand() -> None:
    """Returns with gamma 0.5: 1 + 1 = 2 and 2; 3 + 0.5 = 3.5 and 1; a third turn that one episode alone has."""
    episodes = runner(Countdown, "a").run([3, 2], n=1)._replace(group_ids=[0, 0])
    for rewards, ends, own in zip(episodes.rewards, episodes.turn_ends, ([1, 2, 4], [3, 1]), strict=True):
        rewards[ends] = torch.tensor(own, dtype=torch.float32)
    first, second = episodes.turn_advantages(gamma=0.5, scale="none")
    # G: 1 + 0.5 * 4 = 3, 2 + 0.5 * 4 = 4, 4; and 3 + 0.5 = 3.5, 1
    for vector, episode, expected in ((first, 0, [(3 - 3.5) / 2, (4 - 1) / 2, 0.0]), (second, 1, [0.25, -1.5])):
        mask, ends = episodes.masks[episode].bool(), episodes.turn_ends[episode]
        assert (vector[~mask] == 0).all()
        turn = torch.tensor([sum(end < position for end in ends) for position in range(len(mask))])
        for position in mask.nonzero().flatten():
            assert float(vector[position]) == pytest.approx(expected[turn[position]])


def test_turns_without_others_to_compare_with_are_reported() -> None:
    """All advantages are 0, and nothing would be learned, without a word."""
    alone = runner(Countdown, "a").run([2, 1])
    with pytest.warns(UserWarning, match=r"no turn has another one of its task .* as in run\(tasks, n=4\)"):
        advantages = alone.turn_advantages()
    assert not any(vector.any() for vector in advantages)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner(Countdown, "a").run([2, 1], n=2).turn_advantages()
        runner(Countdown, "a").run([]).turn_advantages()


def test_a_step_with_the_advantages_of_turns() -> None:
    ours = trainer("gpt2", advantage_estimator="grpo", init_kl_coef=0.0, adap_kl_ctrl=False)

    class Words(Countdown):
        def reset(self, task: Any) -> str:
            super().reset(task)
            return "w5"

        def step(self, action_text: str) -> Any:
            return "w8", float("w7" in action_text), super().step("")[2], {}

    run = EnvironmentRunner(
        ours.model, tokenizer(), Words,
        generation_kwargs={"max_new_tokens": 3, "do_sample": True, "top_k": 0, "suppress_tokens": [0, 1, 2]},
    )  # fmt: skip
    episodes = run.run([2, 3], n=2)
    inputs = episodes.queries, episodes.responses, episodes.rewards, episodes.masks
    stats = ours.step(*inputs, advantages=episodes.turn_advantages())
    assert stats["ppo/mean_scores"] == pytest.approx(float(sum(r.sum() for r in episodes.rewards)) / 4)
    assert ours.step(*inputs, group_ids=episodes.group_ids)["ppo/group/count"] == 2
