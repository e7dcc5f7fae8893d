"""Any environment with `reset` and `step`, played by a language model, with a reward for every turn."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from trl_step.environment.chat_template import ChatTemplate, Message
from trl_step.environment.rewards import is_finite
from trl_step.environment.side_by_side import Outcome, SideBySide
from trl_step.environment.text_history import TextHistory
from trl_step.environment.tool_calls import control_pattern, escape, special_tokens
from trl_step.environment.turns import TurnWriter, sampler_of
from trl_step.models.notices import described

Observation = str | Message | Sequence[Message]
"""Text, or one or several chat messages."""


class Environment(Protocol):
    """What a language model acts in, one object per episode. The names are Gymnasium's."""

    def reset(self, task: Any) -> Observation:
        """Begin an episode; returns what the model sees first."""

    def step(self, action_text: str) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Act; returns the next observation, the turn's reward, whether the episode is over, and an info dictionary.

        The model writes the text: treat it as hostile.
        """


class Episodes(NamedTuple):
    """Played episodes, ready for `trainer.step(queries, responses, rewards, masks)`; one entry per task.

    `queries` [Q] and `responses` [R] int64; `masks` [R] int64, 1 on the model's tokens; `rewards` [R] float32, each
    turn's reward on the last token that the model wrote in it; `infos`: the dictionary that `step` returned for each
    turn; `errors`: what the environment did wrong, or None.
    """

    queries: list[torch.Tensor]
    responses: list[torch.Tensor]
    masks: list[torch.Tensor]
    rewards: list[torch.Tensor]
    histories: list[TextHistory]
    infos: list[list[dict[str, Any]]]
    errors: list[str | None]

    def without_failed(self) -> Episodes:
        """Only the episodes in which the environment did not fail and the model had a turn."""
        good = [error is None and bool(mask.any()) for error, mask in zip(self.errors, self.masks, strict=True)]
        columns: Any = ([item for item, keep in zip(column, good, strict=True) if keep] for column in self)
        return Episodes(*columns)


@dataclass
class _Episode:
    environment: Environment
    history: TextHistory
    prompt: list[Message]
    """the messages of the first observation; empty without a chat template"""
    rewards: list[tuple[int, float]] = field(default_factory=list)
    """position in `history.tokens` and reward of each turn"""
    infos: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


class EnvironmentRunner:
    """Lets a language model play a batch of episodes.

    ```python
    runner = EnvironmentRunner(model, tokenizer, GuessTheNumber, generation_kwargs={"max_new_tokens": 8})
    episodes = runner.run([17, 4, 62])
    trainer.step(episodes.queries, episodes.responses, episodes.rewards, episodes.masks)
    ```

    A turn is what the model writes up to an end token, a stop string or its token limit; `step` gets it as text
    without special tokens. Only the environment says when an episode is over, unless it runs out of turns or room:
    then its history is `truncated`.

    A failing environment ends its own episode and no other: `step` raises, takes longer than `step_timeout`, or returns
    something other than (observation, finite reward, done, info). A warning and `errors` of the episodes report it with
    the type of the error, the file and the line. While you write an environment, `strict=True` raises it instead.

    Args:
        model: a value-head wrapper or a transformers model, also in a parallel wrapper; or a `Sampler`.
        tokenizer: of that model.
        make_environment: creates the environment of one episode; may be a class.
        max_turns: model turns per episode.
        max_length: tokens of a whole episode, or None.
        generation_kwargs: for `model.generate`; never changed.
        stop_strings: a turn ends after the first of them.
        chat: observations are messages, rendered with the tokenizer's chat template. A text becomes a user message,
            with control tokens escaped; messages are used unchanged.
        chat_template: a Jinja template in place of the tokenizer's; implies `chat`.
        template_options: further variables of the template.
        step_workers: environments that step at the same time, in threads; 0 steps them one by one in the caller's
            thread, without a time limit.
        step_timeout: seconds that one `step` may take, with `step_workers`.
        strict: raise what an environment raised, or a ValueError or TypeError about what it returned, instead of
            ending its episode; the batch is lost.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        make_environment: Callable[[], Environment],
        *,
        max_turns: int = 8,
        max_length: int | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        stop_strings: Sequence[str] = (),
        chat: bool = False,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        step_workers: int = 0,
        step_timeout: float | None = None,
        strict: bool = False,
    ) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns={max_turns} must be at least 1")
        if isinstance(stop_strings, str):
            raise TypeError("stop_strings is a list of strings; put the single one in a list")
        self.make_environment = make_environment
        self.max_turns = max_turns
        self.strict = strict
        self.writer = TurnWriter(
            sampler_of(model, tokenizer),
            tokenizer,
            {} if generation_kwargs is None else generation_kwargs,
            max_length,
            stop_strings,
        )
        with_template = chat or chat_template is not None
        self.template = ChatTemplate(tokenizer, chat_template, (), template_options) if with_template else None
        self._control = control_pattern(special_tokens(tokenizer))
        self._steps = SideBySide(step_workers, step_timeout)

    def run(self, tasks: Sequence[Any]) -> Episodes:
        """Play one episode per task until each is over or has had `max_turns` turns.

        Args:
            tasks: each is given to `reset` of its own environment.

        Raises:
            TypeError, ValueError: a first observation has the wrong type or no tokens; nothing has been played yet.
        """
        if isinstance(tasks, str):
            raise TypeError("run takes a list of tasks; put the single task in a list")
        episodes = [self._start(i, task) for i, task in enumerate(tasks)]
        episode_of = {episode.history: episode for episode in episodes}
        for _ in range(self.max_turns):
            acting = [episode_of[history] for history in self.writer.write_turns(list(episode_of))]
            actions = [partial(episode.environment.step, self._action(episode)) for episode in acting]
            for episode, outcome in zip(acting, self._steps.run(actions), strict=True):
                self._take(episode, outcome)
        for episode in episodes:
            if not episode.history.completed:
                episode.history.complete(truncated=True)
        self._warn(episodes)
        return self._collect(episodes)

    # --- turns ---------------------------------------------------------------------------------------------------

    def _start(self, i: int, task: Any) -> _Episode:
        environment = self.make_environment()
        prompt: list[Message] = []
        try:
            observation = environment.reset(task)
            if self.template is None:
                text = _plain(observation)
                tokens = self.writer.tokenize(text)
            else:
                prompt = self._messages(observation)
                text = self.template.render(prompt, open_turn=True)
                tokens = self.template.tokenize(text, self.writer.device)
        except TypeError as error:
            raise TypeError(f"task {i}: {error}") from error
        if not text or len(tokens) == 0:
            raise ValueError(f"task {i}: its first observation has no tokens; return some text from `reset`")
        return _Episode(environment, TextHistory(text, tokens, system=True), prompt)

    def _action(self, episode: _Episode) -> str:
        return self.writer.tokenizer.decode(self.writer.written(episode.history), skip_special_tokens=True)

    def _take(self, episode: _Episode, outcome: Outcome) -> None:
        """Record what a step returned: reward, end, next observation."""
        history, end_of_turn, turn = episode.history, len(episode.history.tokens) - 1, len(episode.infos)
        try:
            if self.strict and outcome.exception is not None:
                raise outcome.exception
            if outcome.error is not None:
                raise TimeoutError(outcome.error)
            observation, reward, done, info = _checked(outcome.value)
            episode.rewards.append((end_of_turn, reward))
            episode.infos.append(info)
            if done:
                history.complete()
            else:
                self._show(episode, observation)
        except Exception as error:
            if self.strict:
                raise
            if outcome.exception is not None:
                problem = described(outcome.exception)
            elif outcome.error is not None:
                problem = outcome.error
            else:
                problem = f"{error} ({_place_of_step(episode.environment)})"
            episode.error = f"turn {turn}: {problem}"
            history.complete(truncated=True)

    def _show(self, episode: _Episode, observation: Observation) -> None:
        """Add the observation after the model's turn."""
        history = episode.history
        if self.template is None:
            tokens = self.writer.tokenize(_plain(observation), special_tokens=False)
        else:
            between = self.template.between(episode.prompt, self._messages(observation))
            last = int(history.tokens[-1])
            tokens = self.template.tokens_between(between, last, self.writer.end_ids(), self.writer.device)
        self.writer.append_given(history, self.writer.tokenizer.decode(tokens), tokens)

    def _messages(self, observation: Observation) -> list[Message]:
        if isinstance(observation, str):
            return [{"role": "user", "content": escape(observation, self._control)}]
        messages = [observation] if isinstance(observation, Mapping) else observation
        if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
            raise TypeError(f"an observation is a text, a message or a list of messages, got {observation!r:.80}")
        return list(messages)

    # --- results -------------------------------------------------------------------------------------------------

    def _collect(self, episodes: list[_Episode]) -> Episodes:
        split = [episode.history.split_query_response_tokens() for episode in episodes]
        for episode in episodes:
            episode.history.reward = sum(reward for _, reward in episode.rewards)
        return Episodes(
            [query for query, _, _ in split],
            [response for _, response, _ in split],
            [mask for _, _, mask in split],
            [_reward_vector(episode) for episode in episodes],
            [episode.history for episode in episodes],
            [episode.infos for episode in episodes],
            [episode.error for episode in episodes],
        )

    def _warn(self, episodes: list[_Episode]) -> None:
        failed = [f"{i} ({episode.error})" for i, episode in enumerate(episodes) if episode.error is not None]
        if failed:
            warnings.warn(
                f"{len(failed)} of {len(episodes)} episodes ended early because their environment failed: "
                f"{', '.join(failed[:4])}; leave them out with episodes.without_failed()",
                UserWarning,
                stacklevel=3,
            )
        full = [i for i, episode in enumerate(episodes) if not episode.infos and episode.error is None]
        if full:
            warnings.warn(
                f"the first observations of tasks {full} leave no room within max_length={self.writer.max_length}: "
                "leave these episodes out with episodes.without_failed(), or raise max_length",
                UserWarning,
                stacklevel=3,
            )


def _reward_vector(episode: _Episode) -> torch.Tensor:
    """A reward for every response token [R] float32, the reward of a turn on its last token."""
    tokens = episode.history.tokens
    rewards = torch.zeros(len(tokens), device=tokens.device)
    for position, reward in episode.rewards:
        rewards[position] = reward
    return rewards[episode.history.token_spans[0][1] :]


def _place_of_step(environment: Environment) -> str:
    """File and line where the environment's `step` is defined."""
    step = inspect.unwrap(getattr(type(environment), "step", environment.step))
    code = getattr(step, "__code__", None)
    name = f"{type(environment).__name__}.step"
    return name if code is None else f"{name}, {code.co_filename}:{code.co_firstlineno}"


def _plain(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"without a chat template an observation is a text, got {type(observation).__name__}")
    return observation


def _checked(result: Any) -> tuple[Any, float, bool, dict[str, Any]]:
    """A step's (observation, reward, done, info), or a `ValueError` that says what is wrong with it."""
    if not isinstance(result, tuple) or len(result) != 4:
        raise ValueError(f"step returned {result!r:.80}; it must return (observation, reward, done, info)")
    observation, reward, done, info = result
    if not is_finite(reward) or torch.as_tensor(reward).numel() != 1:
        raise ValueError(f"step returned the reward {reward!r:.80}; a reward is one finite number")
    return observation, float(reward), bool(done), dict(info or {})
