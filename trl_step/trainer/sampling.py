"""Which settings of sampling change the law that responses are drawn from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

DEFAULT_TOP_K = 50
"""transformers' own `top_k` where nobody sets one."""


def _setting(model: Any, generation_kwargs: Mapping[str, Any], name: str) -> Any:
    """A generation setting as it will be in force: the call's, else its generation config's, else the model's."""
    if generation_kwargs.get(name) is not None:
        return generation_kwargs[name]
    config = generation_kwargs.get("generation_config") or getattr(
        getattr(model, "pretrained_model", model), "generation_config", None
    )
    return getattr(config, name, None)


def truncated_sampling(model: Any, generation_kwargs: Mapping[str, Any], temperature: float) -> list[str]:
    """The settings under which tokens are drawn from another law than the one whose log-probs are trained."""
    if not _setting(model, generation_kwargs, "do_sample"):
        return []
    vocabulary = getattr(model, "pretrained_model", model).get_input_embeddings().num_embeddings
    in_force = {name: _setting(model, generation_kwargs, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    sampled_at = 1.0 if in_force["temperature"] is None else in_force["temperature"]
    top_k = DEFAULT_TOP_K if in_force["top_k"] is None else in_force["top_k"]
    problems = []
    if sampled_at != temperature:
        problems.append(f"temperature={sampled_at:g} (PPOConfig.temperature is {temperature:g})")
    if 0 < top_k < vocabulary:
        problems.append(f"top_k={top_k:g}")
    if in_force["top_p"] is not None and in_force["top_p"] < 1.0:
        problems.append(f"top_p={in_force['top_p']:g}")
    if in_force["min_p"]:
        problems.append(f"min_p={in_force['min_p']:g}")
    return problems


def warn_of_truncated_sampling(
    model: Any, generation_kwargs: Mapping[str, Any], temperature: float, warned: set[str]
) -> None:
    """Say once per setting that responses are not sampled from the policy. `warned` remembers what was said."""
    problems = [p for p in truncated_sampling(model, generation_kwargs, temperature) if p not in warned]
    if problems:
        warned.update(problems)
        warnings.warn(
            f"responses are sampled with {', '.join(problems)}, but log-probs are those of the whole distribution at "
            f"temperature {temperature:g}: the KL estimate is biased and may turn negative. Sample with top_k=0, "
            "top_p=1.0 and the temperature of PPOConfig",
            UserWarning,
            stacklevel=3,
        )
