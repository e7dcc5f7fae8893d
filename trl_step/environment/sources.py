"""Where environments come from: a function, or an environment of Gymnasium, its id or its specification."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from trl_step.environment.protocol import refuse_vector


def environment_maker(source: Any) -> Callable[[], Any]:
    """A function that creates the environment of one episode.

    Args:
        source: such a function or class; the id of a Gymnasium environment, such as "FrozenLake-v1", or its
            specification; or a `gymnasium.Env`, of which each episode gets one of its own: made from its specification
            if that is all of it, else a copy with random numbers of its own

    Raises:
        TypeError: it is none of these.
    """
    refuse_vector(source)
    if isinstance(source, str):
        return partial(make_gymnasium, source)
    gymnasium = sys.modules.get("gymnasium")  # without it there is no such object
    if gymnasium is not None and isinstance(source, gymnasium.envs.registration.EnvSpec):
        return partial(make_gymnasium, source)
    if gymnasium is not None and isinstance(source, gymnasium.Env):
        spec = source.spec
        if spec is None or any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
            return partial(copy_gymnasium, source)  # Gymnasium cannot make some wrappers again
        return partial(make_bare if source is source.unwrapped else make_gymnasium, spec)
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


def make_bare(spec: Any) -> Any:
    """An environment without the wrappers that `gymnasium.make` puts around it, such as a time limit."""
    return make_gymnasium(spec).unwrapped


def copy_gymnasium(environment: Any) -> Any:
    """A copy that does not repeat the random numbers of the environment and of its other copies.

    Raises:
        TypeError: it cannot be copied.
    """
    from gymnasium.utils import seeding

    try:
        copied = copy.deepcopy(environment)
    except Exception as error:
        raise TypeError(
            f"each episode needs an environment of its own, and this {type(environment).__name__} cannot be copied: "
            f"give a function that makes one ({error})"
        ) from error
    copied.unwrapped.np_random = seeding.np_random()[0]
    return copied
