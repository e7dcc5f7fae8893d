"""Environments on servers of OpenEnv (`pip install openenv`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from trl_step.environment.protocol import Observation, whole_number


class OpenEnvironment:
    """An environment on a server of OpenEnv, for `EnvironmentRunner`; those of a batch wait for it side by side.

    ```text
    make = partial(
        OpenEnvironment,
        partial(GenericEnvClient, base_url="http://localhost:8000"),
        to_text=lambda observation: observation["prompt"],
        to_action=lambda text: {"message": text},
    )
    runner = EnvironmentRunner(model, tokenizer, make)
    ```

    A task is None, a seed, or a dictionary of arguments for the client's `reset`. A step without a reward counts as 0.

    Args:
        make_client: connects the client of one episode; the client may be OpenEnv's own, or its synchronous wrapper.
        to_text: what the model sees of an observation.
        to_action: the action that an answer means; it may raise `UnreadableAction`.
    """

    def __init__(
        self,
        make_client: Callable[[], Any],
        to_text: Callable[[Any], Observation],
        to_action: Callable[[str], Any],
    ) -> None:
        self.make_client = make_client
        self.to_text = to_text
        self.to_action = to_action
        self._client: Any = None

    async def reset(self, task: Any) -> Observation:
        self._client = self.make_client()
        if isinstance(task, Mapping):
            given = dict(task)
        else:
            seed = whole_number(task)  # JSON has no numbers of NumPy and torch
            given = {} if task is None else {"seed": task if seed is None else seed}
        result = await _awaited(self._client.reset(**given))
        return self.to_text(result.observation)

    async def step(self, action_text: str) -> tuple[Observation, float, bool, dict[str, Any]]:
        result = await _awaited(self._client.step(self.to_action(action_text)))
        seen = "" if result.done else self.to_text(result.observation)  # nobody sees the last one
        return seen, result.reward or 0.0, result.done, dict(result.metadata or {})

    async def close(self) -> None:
        if self._client is not None:
            await _awaited(self._client.close())


async def _awaited(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer
