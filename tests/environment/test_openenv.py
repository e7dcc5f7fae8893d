"""Environments of OpenEnv: a client with its documented interface, and a real server if the package is installed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.environment.test_runner import runner
from trl_step.environment import UnreadableAction
from trl_step.environment.adapters import OpenEnvironment


class Client:
    """`reset` and `step` give a StepResult with observation, reward, done and metadata."""

    made: list[Client] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.given: dict[str, Any] | None = None
        self.open = True
        self.made.append(self)

    def reset(self, **given: Any) -> Any:
        self.given, self.turn = given, 0
        return SimpleNamespace(observation={"text": "go:"}, reward=None, done=False, metadata=None)

    def step(self, action: dict[str, str]) -> Any:
        self.turn += 1
        reward = None if self.turn == 1 else 0.5
        observation = {"text": f"[{action['message']}]"} if self.turn == 1 else {}
        return SimpleNamespace(
            observation=observation, reward=reward, done=self.turn == 2, metadata={"turn": self.turn}
        )

    def close(self) -> None:
        self.open = False


class AwaitedClient(Client):
    async def reset(self, **given: Any) -> Any:
        return super().reset(**given)

    async def step(self, action: dict[str, str]) -> Any:
        return super().step(action)

    async def close(self) -> None:  # type: ignore[override]
        super().close()


def to_text(observation: dict[str, Any]) -> str:
    return str(observation["text"])


def to_action(text: str) -> dict[str, str]:
    if text == "what":
        raise UnreadableAction("again:", 1.0)
    return {"message": text}


@pytest.mark.parametrize("kind", [Client, AwaitedClient])
def test_a_client_with_the_documented_interface(kind: Any) -> None:
    Client.made.clear()
    make = partial(OpenEnvironment, kind, to_text=to_text, to_action=to_action)
    episodes = runner(make, "what", "a", "b").run([None, np.int64(3), {"seed": 4, "level": "hard"}])
    assert episodes.errors == [None] * 3
    assert [history.text for history in episodes.histories] == ["go:what</s>again:a</s>[a]b</s>"] * 3
    assert episodes.turn_rewards == [[-1.0, 0.0, 0.5]] * 3
    assert episodes.infos[0][1:] == [{"turn": 1}, {"turn": 2}]
    assert type(Client.made[1].given["seed"]) is int, "JSON takes no other"  # type: ignore[index]
    assert [client.given for client in Client.made] == [{}, {"seed": 3}, {"seed": 4, "level": "hard"}]
    assert not any(client.open for client in Client.made)


@pytest.fixture
def address() -> Iterator[str]:
    """A server of OpenEnv in this process, with an environment that ends after two steps."""
    server_parts = pytest.importorskip("openenv.core.env_server")
    uvicorn = pytest.importorskip("uvicorn")
    types = pytest.importorskip("openenv.core.env_server.types")

    class Say(types.Action):
        message: str

    class Heard(types.Observation):
        text: str

    class Echo(server_parts.Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: Any = None, episode_id: Any = None, **_: Any) -> Heard:
            self.steps = 0
            return Heard(text="go:")

        def step(self, action: Say, timeout_s: Any = None, **_: Any) -> Heard:
            self.steps += 1
            reward = None if self.steps == 1 else 0.5
            return Heard(text=f"[{action.message}]", reward=reward, done=self.steps == 2)

        @property
        def state(self) -> Any:
            return types.State(step_count=self.steps)

    app = server_parts.create_fastapi_app(Echo, Say, Heard, max_concurrent_envs=8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_a_real_server(address: str) -> None:
    from openenv.core.generic_client import GenericEnvClient

    make = partial(OpenEnvironment, partial(GenericEnvClient, base_url=address), to_text=to_text, to_action=to_action)
    episodes = runner(make, "a", "b").run(np.arange(3))
    assert episodes.errors == [None] * 3
    assert [history.text for history in episodes.histories] == ["go:a</s>[a]b</s>"] * 3
    assert episodes.turn_rewards == [[0.0, 0.5]] * 3
