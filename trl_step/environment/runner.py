"""Any environment with `reset` and `step`, played by a language model, with a reward for every turn."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from trl_step.data.chat_template import ChatTemplate
from trl_step.environment.actors import Actors, in_words
from trl_step.environment.display import Display, NoTokens
from trl_step.environment.episodes import Episode, Episodes
from trl_step.environment.process_pool import RemoteError
from trl_step.environment.protocol import (
    Observation,
    StepResult,
    UnreadableAction,
    check_turns,
    first_observation,
    step_result,
    tasks_and_groups,
)
from trl_step.environment.side_by_side import Outcome, outcome_of
from trl_step.environment.sources import environment_maker
from trl_step.environment.turns import TurnWriter, sampler_of


class EnvironmentRunner:
    """Lets a language model play a batch of episodes.

    ```python
    runner = EnvironmentRunner(model, tokenizer, GuessTheNumber, generation_kwargs={"max_new_tokens": 8})
    episodes = runner.run([17, 4, 62])
    trainer.step(episodes.queries, episodes.responses, episodes.rewards, episodes.masks)
    ```

    A turn is what the model writes up to an end token, a stop string or its token limit; `step` gets it as text
    without special tokens, or what `to_action` makes of that. Only the environment says when an episode is over, unless
    it runs out of turns or room, or the environment cuts it off: then it is `truncated`, and
    `trainer.step(..., truncated=episodes.truncated)` counts what it would still have got.

    A failing environment ends its own episode and no other: `step` raises, takes longer than `step_timeout`, returns
    something other than (observation, finite reward, done, info) or Gymnasium's five, or its process dies. A warning
    and `errors` of the episodes report it with the type of the error, the file and the line. While you write an
    environment, `strict=True` raises it instead, and `check_environment` looks for what is wrong with it.

    Args:
        model: a value-head wrapper or a transformers model, also in a parallel wrapper; or a `Sampler`.
        tokenizer: of that model.
        make_environment: creates the environment of one episode, see `Environment`; may be a class. Also a
            `gymnasium.Env`, or the id of one: each episode gets its own.
        max_turns: model turns per episode.
        max_length: tokens of a whole episode, or None.
        generation_kwargs: for `model.generate`; never changed.
        stop_strings: a turn ends after the first of them.
        chat: observations are messages, rendered with the tokenizer's chat template. A text becomes a user message,
            with control tokens escaped; messages are used unchanged.
        chat_template: a Jinja template in place of the tokenizer's; implies `chat`.
        template_options: further variables of the template.
        to_text: what the model sees of an observation, a text or messages; needed if observations are neither.
        to_action: what `step` gets in place of the model's text. It raises `UnreadableAction(message, price)` for an
            answer that it cannot read: the turn costs the price, the model sees the message, and the episode goes on.
        step_workers: environments that step at the same time, in threads; 0 steps them one by one in the caller's
            thread, without a time limit. What `async def` methods return is awaited for all of them at the same time.
        step_timeout: seconds that one `reset` or `step` may take, with `step_workers`, processes or `async def`; and
            one `close` in a process, which has 60 without it.
        workers: "process" plays each episode in a process of its own, for environments that hold the interpreter or may
            bring it down; `make_environment` must be picklable, and the script needs `if __name__ == "__main__":`.
        strict: raise what an environment raised, or a ValueError or TypeError about what it returned, instead of
            ending its episode; the batch is lost.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        make_environment: Callable[[], Any] | Any,
        *,
        max_turns: int = 8,
        max_length: int | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        stop_strings: Sequence[str] = (),
        chat: bool = False,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        to_text: Callable[[Any], Observation] | None = None,
        to_action: Callable[[str], Any] | None = None,
        step_workers: int = 0,
        step_timeout: float | None = None,
        workers: str = "thread",
        strict: bool = False,
    ) -> None:
        check_turns(max_turns)
        if isinstance(stop_strings, str):
            raise TypeError("stop_strings is a list of strings; put the single one in a list")
        self.actors = Actors(environment_maker(make_environment), workers, step_workers, step_timeout)
        self.to_text = to_text
        self.to_action = to_action
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
        template = ChatTemplate(tokenizer, chat_template, (), template_options) if with_template else None
        self.display = Display(self.writer, template)

    def run(self, tasks: Sequence[Any], n: int = 1) -> Episodes:
        """Play `n` episodes per task until each is over or has had `max_turns` turns.

        Args:
            tasks: each is given to `reset` of its own environment; see `Environment` for those of Gymnasium.
            n: episodes of each task; they follow one another, with the same number in `group_ids`.

        Raises:
            TypeError, ValueError: a first observation has the wrong type or no tokens; nothing has been played yet.
                What a `reset` raises is raised as it is.
            TimeoutError: a `reset` takes longer than `step_timeout`.
        """
        played, groups = tasks_and_groups(tasks, n)
        environments = self.actors.create(len(groups))
        try:
            begun = self.actors.reset(environments, played)
            parts = zip(environments, groups, begun, strict=True)
            episodes = [self._start(*part) for part in parts]
            self._play(episodes)
        finally:
            self.actors.release(environments)
        self._warn(episodes)
        return Episodes.of(episodes)

    def close(self) -> None:
        """End the processes of `workers="process"`, which else wait for further episodes until this program ends."""
        self.actors.close()

    # --- turns ---------------------------------------------------------------------------------------------------

    def _play(self, episodes: list[Episode]) -> None:
        episode_of = {episode.history: episode for episode in episodes}
        for _ in range(self.max_turns):
            acting = [episode_of[history] for history in self.writer.write_turns(list(episode_of))]
            said = [self.display.said(episode.history) for episode in acting]
            actions = [partial(self._act, e.environment, text) for e, text in zip(acting, said, strict=True)]
            for episode, outcome in zip(acting, self.actors.step(actions), strict=True):
                self._take(episode, self._seen(outcome))
        for episode in episodes:
            if not episode.history.completed:
                episode.history.complete(truncated=True)

    def _start(self, environment: Any, group: int, begun: Outcome) -> Episode:
        """An episode from what `reset` returned."""
        try:
            if begun.exception is not None:
                raise begun.exception
            if begun.error is not None:
                raise TimeoutError(
                    f"task {group}: `reset`: {begun.error}. See what it waits for, or raise step_timeout, which holds "
                    "for `reset` as well"
                )
            observation = first_observation(begun.value)
            if self.to_text is not None:
                observation = self.to_text(observation)
            return Episode(environment, group, *self.display.begin(observation))
        except TypeError as error:
            place = f" ({_place_of(environment, 'reset')})" if begun.exception is None else ""
            raise TypeError(f"task {group}: {error}{place}") from error
        except (RemoteError, SystemExit) as error:
            raise RuntimeError(f"task {group}: {begun.error or error}") from error
        except NoTokens as error:
            raise ValueError(f"task {group}: {error}") from error

    def _act(self, environment: Any, text: str) -> Any:
        return environment.step(text if self.to_action is None else self.to_action(text))

    def _seen(self, outcome: Outcome) -> Outcome:
        """What a step returned, with the observation as the model sees it; nobody sees the one after the end."""
        value, to_text = outcome.value, self.to_text
        if to_text is None or not _goes_on(outcome):
            return outcome
        return in_words(outcome_of(lambda: (to_text(value[0]), *value[1:])))

    def _take(self, episode: Episode, outcome: Outcome) -> None:
        """Record what a step returned: reward, end, next observation."""
        history, end_of_turn, turn = episode.history, len(episode.history.tokens) - 1, len(episode.infos)
        try:
            result = _result(outcome, self.display.said(episode.history))
            episode.rewards.append((end_of_turn, result.reward))
            episode.infos.append(result.info)
            if not result.terminated:
                self.display.show(history, episode.prompt, result.observation)
            if result.terminated or result.truncated:
                history.complete(truncated=not result.terminated)
        except (Exception, SystemExit) as error:  # an environment that calls `sys.exit` must not end the training
            problem = outcome.error or f"{error} ({_place_of(episode.environment, 'step')})"
            if self.strict and outcome.error is None and isinstance(error, (TypeError, ValueError)):
                raise type(error)(problem) from error  # of what it returned, which the traceback does not show
            if self.strict:
                raise
            episode.error = f"turn {turn}: {problem}"
            history.complete(truncated=True)

    # --- results -------------------------------------------------------------------------------------------------

    def _warn(self, episodes: list[Episode]) -> None:
        failed = [f"{i} ({episode.error})" for i, episode in enumerate(episodes) if episode.error is not None]
        if failed:
            warnings.warn(
                f"{len(failed)} of {len(episodes)} episodes ended early because their environment failed: "
                f"{', '.join(failed[:4])}; leave them out with episodes.without_failed()",
                UserWarning,
                stacklevel=3,
            )
        full = sorted({episode.group for episode in episodes if not episode.infos and episode.error is None})
        if full:
            warnings.warn(
                f"the first observations of tasks {full} leave no room within max_length={self.writer.max_length}: "
                "leave these episodes out with episodes.without_failed(), or raise max_length",
                UserWarning,
                stacklevel=3,
            )


def _result(outcome: Outcome, said: str) -> StepResult:
    """What a step returned, or the price of an answer that could not be read; raises what the step raised."""
    if isinstance(outcome.exception, UnreadableAction):
        message, price = outcome.exception.message, outcome.exception.price
        return step_result((message, 0.0 - price, False, {"unreadable": said}))
    if outcome.exception is not None:
        raise outcome.exception
    if outcome.error is not None:
        raise TimeoutError(outcome.error)
    return step_result(outcome.value)


def _goes_on(outcome: Outcome) -> bool:
    """Whether a step returned what it should, and not the end of the episode."""
    try:
        return outcome.error is None and not step_result(outcome.value).terminated
    except ValueError:
        return False


def _place_of(environment: Any, method: str) -> str:
    """File and line where the environment's `reset` or `step` is defined."""
    function = inspect.unwrap(getattr(type(environment), method, getattr(environment, method)))
    code = getattr(function, "__code__", None)
    name = f"{type(environment).__name__}.{method}"
    return name if code is None else f"{name}, {code.co_filename}:{code.co_firstlineno}"
