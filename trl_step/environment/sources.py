"""Where environments come from: a function, or an environment of Gymnasium, its id or its specification."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any


def environment_maker(source: Any) -> Callable[[], Any]:
    """A function that creates the environment of one episode.

    Args:
        source: such a function or class; the id of a Gymnasium environment, such as "FrozenLake-v1", or its
            specification; or a `gymnasium.Env`, of which each episode gets one of its own: made from its specification
            if it has one, else a copy

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(source, str):
        return partial(make_gymnasium, source)
    gymnasium = sys.modules.get("gymnasium")  # without it there is no such object
    if gymnasium is not None and isinstance(source, gymnasium.envs.registration.EnvSpec):
        return partial(make_gymnasium, source)
    if gymnasium is not None and isinstance(source, gymnasium.Env):
        return partial(copy.deepcopy, source) if source.spec is None else partial(make_gymnasium, source.spec)
    if not callable(source):
        raise TypeError(
            "make_environment is a function that creates an environment, a gymnasium.Env, or the id of one, got a "
            f"{type(source).__name__}"
        )
    return source  # type: ignore[no-any-return]


def make_gymnasium(spec: Any) -> Any:
    """`gymnasium.make`, or an `ImportError` that says what to install."""
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(f"the environment {spec} needs Gymnasium: pip install gymnasium") from error
    return gymnasium.make(spec)
