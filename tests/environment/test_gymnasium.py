"""Gymnasium's environments in `EnvironmentRunner`: its tuples, objects and ids, unreadable answers, cut ends."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from tests.environment.environment_tools import ScriptedModel, byte_tokenizer
from tests.environment.test_runner import Countdown, runner
from tests.environment.worlds import Corridor, short_corridor
from tests.tiny import tokenizer, trainer
from trl_step.environment import EnvironmentRunner, UnreadableAction


def to_text(observation: int) -> str:
    return f"at {observation}\n"


def to_action(text: str) -> int:
    if text not in ("back", "on"):
        raise UnreadableAction("say back or on\n", price=0.5)
    return int(text == "on")


def play(source: Any, *script: str, tasks: Any = (3,), **options: Any) -> Any:
    return runner(source, *script, **({"to_text": to_text, "to_action": to_action} | options)).run(list(tasks))


def test_its_tuples_texts_and_actions() -> None:
    task = {"options": {"place": 5}}
    episodes = play(Corridor, "on", "on", "back", tasks=[task], max_turns=3)
    text = byte_tokenizer().decode(torch.cat((episodes.queries[0], episodes.responses[0])))
    assert text == "<s>at 5\non</s>at 6\non</s>at 7\nback</s>at 6\n"
    assert episodes.turn_rewards == [[1.0, 1.0, 1.0]]
    assert [info["place"] for info in episodes.infos[0]] == [6, 7, 6]
    assert episodes.errors == [None]


def test_an_answer_that_cannot_be_read_costs_and_does_not_end() -> None:
    episodes = play(Corridor, "up", "on", tasks=[{"options": {"place": 5}}], max_turns=2)
    assert episodes.histories[0].text == "at 5\nup</s>say back or on\non</s>at 6\n"
    assert episodes.turn_rewards == [[-0.5, 1.0]]
    assert episodes.infos[0] == [{"unreadable": "up"}, {"place": 6}]
    assert episodes.errors == [None]

    for price in (float("inf"), "0.5", None, torch.zeros(2), [0.5]):
        with pytest.raises(ValueError, match="the price of an answer that cannot be read is"):
            UnreadableAction("no", price=price)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match="the message about an answer that cannot be read is 5; give a text or messages"
    ):
        UnreadableAction(5)  # type: ignore[arg-type]
    assert UnreadableAction("no", price=np.array([0.5])).price == 0.5


def test_truncated_is_not_terminated() -> None:
    """The last observation of an episode that was cut off belongs to it: what follows is valued there."""
    episodes = play(short_corridor, "on", tasks=[{"options": {"place": 5}}], max_turns=9)
    assert episodes.truncated == [True]
    assert episodes.histories[0].text.endswith("on</s>at 8\n")
    assert len(episodes.infos[0]) == 3

    class Both(Corridor):
        def step(self, action: int) -> Any:
            return (*super().step(action)[:2], True, True, {})

    assert play(Both, "on").truncated == [False], "an end is an end, whatever the clock says"
    assert play(Corridor, "on", max_turns=2).truncated == [True]


def test_a_task_is_a_seed_or_seed_and_options() -> None:
    texts = [history.text for history in play(Corridor, "on", tasks=[3, 4, 3, {"seed": 3}], max_turns=1).histories]
    assert texts[0] == texts[2] == texts[3] != texts[1]
    assert play(Corridor, "on", tasks=[None], max_turns=1).errors == [None]
    for seeds in (np.array([3, 4]), torch.tensor([3, 4]), [{"seed": np.int64(3)}, np.int8(4)]):
        assert [history.text for history in play(Corridor, "on", tasks=seeds, max_turns=1).histories] == texts[:2]
    for task in ("easy", 1.5, True, {"sead": 3}):
        with pytest.raises(TypeError, match="task 0: a task of an environment with Gymnasium's reset is None, a seed"):
            play(Corridor, "on", tasks=[task])


def test_every_episode_has_an_environment_of_its_own() -> None:
    made = Corridor()  # no specification: it is copied
    tasks = [{"options": {"place": place}} for place in (10, 20)]
    for source in (made, lambda: Corridor()):
        episodes = play(source, "on", tasks=tasks, max_turns=2)
        assert [history.text.split()[1] for history in episodes.histories] == ["10", "20"]
        assert [[info["place"] for info in infos] for infos in episodes.infos] == [[11, 12], [21, 22]]
    lake = gymnasium.make("FrozenLake-v1", is_slippery=False)
    for source in ("FrozenLake-v1", lake, lake.spec):
        run = runner(source, "2", to_text=to_text, to_action=int, max_turns=2)
        first, second = run.actors.create(2)
        assert first is not second
        assert first.spec.id == "FrozenLake-v1"
        assert first.unwrapped is not lake.unwrapped
    assert runner(lake, "2", to_text=to_text, to_action=int).run([0]).histories[0].text.startswith("at 0\n2</s>at 1\n")


class Goes(gymnasium.ActionWrapper):
    """A wrapper as users write them: Gymnasium keeps no arguments of it, so it cannot make it again."""

    def action(self, action: str) -> int:
        return ["left", "down", "right", "up"].index(action)


def test_an_object_is_played_with_all_that_is_around_it() -> None:
    lake = Goes(gymnasium.make("FrozenLake-v1", is_slippery=False))
    episodes = runner(lake, "right", to_text=to_text, max_turns=2).run([0, 0])
    assert [history.text for history in episodes.histories] == ["at 0\nright</s>at 1\nright</s>at 2\n"] * 2
    bare = gymnasium.make("FrozenLake-v1", max_episode_steps=1).unwrapped
    episodes = runner(bare, "0", to_text=to_text, to_action=int, max_turns=3).run([0])
    assert len(episodes.infos[0]) == 3, "it came without the time limit that `gymnasium.make` adds"

    class Held(Corridor):
        lock = property(lambda self: None)

        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("a window is open")

    with pytest.raises(TypeError, match=r"this Held cannot be copied: give a function that makes one \(a window is"):
        play(Held(), "on")


def test_copies_of_an_object_draw_random_numbers_of_their_own() -> None:
    """Even if the object was played before, as its generator was made then."""
    made = Corridor()
    made.reset(seed=3)
    first, again = (play(made, "on", tasks=[None] * 4, max_turns=1).histories for _ in range(2))
    assert len({history.text for history in [*first, *again]}) > 2
    seeded = play(made, "on", tasks=[3, 3], max_turns=1).histories
    assert seeded[0].text == seeded[1].text


def test_a_vector_of_environments_is_refused() -> None:
    vector = gymnasium.vector.SyncVectorEnv([Corridor])
    with pytest.raises(TypeError, match="a SyncVectorEnv is a vector of environments: give a single one"):
        play(vector, "on")
    with pytest.raises(TypeError, match="task 0: a SyncVectorEnv is a vector of environments: give a single one"):
        play(lambda: vector, "on")


def test_nobody_looks_at_the_observation_after_the_end() -> None:
    class Ends(Corridor):
        def step(self, action: int) -> Any:
            return None, 1.0, True, False, {}  # as many environments of users do

    episodes = play(Ends, "on", to_text=lambda place: f"at {int(place)}\n")
    assert episodes.errors == [None]
    assert episodes.turn_rewards == [[1.0]]


def test_forms_that_mix() -> None:
    """A task for `reset`, with Gymnasium's results; `reset` without options; and today's form stays what it is."""

    class Mixed(Countdown):
        def reset(self, task: Any) -> Any:
            return super().reset(task), {"task": task}

        def step(self, action_text: str) -> Any:
            observation, reward, done, info = super().step(action_text)
            return observation, reward, False, done, info

    class Seeded(Countdown):
        def reset(self, seed: Any = None) -> Any:  # type: ignore[override]
            return super().reset(seed), {}

    class Keywords(Countdown):
        def reset(self, **keywords: Any) -> Any:  # type: ignore[override]
            return super().reset(keywords["seed"])

    class Default(Countdown):
        def reset(self, task: Any = None, seed: int = 0) -> str:
            assert seed == 0
            return super().reset(task)

    class More(Countdown):
        def reset(self, seed: Any = None, options: Any = None, return_info: bool = False) -> Any:  # type: ignore[override]
            assert options == {"hard": True}
            return super().reset(seed)

    assert runner(More, "a").run([{"seed": 2, "options": {"hard": True}}]).histories[0].text.startswith("2 left:a")
    for kind in (Mixed, Seeded, Keywords, Default):
        episodes = runner(kind, "a").run([2])
        assert episodes.histories[0].text.startswith("2 left:a</s>[1 left]a</s>")
        assert episodes.truncated == [kind is Mixed]


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(TypeError, match="task 0: without a chat template an observation is a text, got int; give a to"):
        play(Corridor, "on", to_text=None)
    with pytest.warns(UserWarning, match="ZeroDivisionError: division by zero"):
        (error,) = play(Corridor, "on", to_text=lambda place: to_text(place) if place < 50 else 1 / 0,
                        tasks=[{"options": {"place": 49}}]).errors  # fmt: skip
    assert "test_gymnasium.py" in str(error)
    with pytest.warns(UserWarning, match=r"ValueError: invalid literal.*test_gymnasium.py"):
        play(Corridor, "on", to_action=lambda text: int(text))
    with pytest.raises(TypeError, match="the id of one, got a int"):
        runner(3)
    with pytest.raises(gymnasium.error.NameNotFound):
        runner("NoSuchWorld-v1", "on").run([0])


def test_a_cut_corridor_is_worth_what_it_would_still_have_paid() -> None:
    """A corridor pays 1 per turn for ever; with gamma 0.5 every state is worth 2. A turn is one token here."""
    ours = trainer("gpt2", gamma=0.5, lam=0.7, init_kl_coef=0.0, learning_rate=0.0, whiten_advantages=False)
    with torch.no_grad():
        ours.model.v_head.summary.weight.zero_()
        ours.model.v_head.summary.bias.fill_(2.0)
    run = EnvironmentRunner(
        ours.model, tokenizer(), short_corridor, to_text=lambda place: "w5 w6", to_action=lambda text: 1,
        generation_kwargs={"max_new_tokens": 1, "do_sample": True, "top_k": 0, "suppress_tokens": [0, 1, 2]},
    )  # fmt: skip
    episodes = run.run([1, 2, 3, 4])
    seen: dict[str, Any] = {}
    plain = ours.compute_advantages
    ours.compute_advantages = lambda *args: seen.setdefault("found", plain(*args))  # type: ignore[method-assign]
    inputs = episodes.queries, episodes.responses, episodes.rewards, episodes.masks
    ours.step(*inputs, truncated=episodes.truncated)
    _, advantages, returns = seen["found"]
    counted = returns != 0
    assert int(counted.sum()) == 12, "three turns of one token in four episodes"
    assert returns[counted].tolist() == pytest.approx([2.0] * 12)
    assert advantages.abs().max() < 1e-6


def test_a_scripted_game_of_the_real_frozen_lake() -> None:
    """The way around the holes of the 4x4 map, without slipping: right, right, down, down, down, right."""
    way = iter("221112")
    model = ScriptedModel(lambda text: next(way), byte_tokenizer())
    lake = gymnasium.make("FrozenLake-v1", is_slippery=False)
    run = EnvironmentRunner(model, byte_tokenizer(), lake, to_text=to_text, to_action=int, max_turns=10,
                            generation_kwargs={"max_new_tokens": 5})  # fmt: skip
    episodes = run.run([0])
    assert episodes.turn_rewards == [[0.0] * 5 + [1.0]]
    assert episodes.truncated == [False]
