"""Environments of verifiers (`pip install "verifiers<0.4"`), played by the policy behind an endpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, NamedTuple

import torch

from trl_step.environment.rewards import is_finite
from trl_step.models.notices import warn_user
from trl_step.sampling.endpoint.server import Endpoint
from trl_step.sampling.endpoint.settings import EPISODE_HEADER

TOKEN = "TRL_STEP_ENDPOINT_TOKEN"
"""The environment variable that a client of verifiers reads its key from."""
NO_REWARDS = "the environment gives no rewards; leave `score_rollouts` of it at True"


class VerifiersEpisodes(NamedTuple):
    """Played rollouts, ready for `trainer.step(queries, responses, scores, masks)`; all tensors are on the CPU.

    Each list but `failed` has one entry per sequence. A rollout is one sequence, or several if the environment changed
    what stood before in the conversation; each of them has the rollout's reward. One that never called the model has
    none.
    """

    queries: list[torch.Tensor]
    """each [Q_i] int64"""
    responses: list[torch.Tensor]
    """each [R_i] int64"""
    masks: list[torch.Tensor]
    """each [R_i] int64, 1 on the tokens that the model wrote"""
    scores: list[float]
    """the reward that the environment's rubric gave the rollout"""
    group_ids: list[int]
    """the number of the rollout's example"""
    sampling_logprobs: list[torch.Tensor] | None
    """each [R_i] float32, 0 where the mask is 0; None if the sampler knows none"""
    outputs: list[Mapping[str, Any]]
    """what verifiers returned of the rollout: `metrics`, `completion`, `stop_condition` and so on"""
    failed: list[Mapping[str, Any]]
    """what it returned of rollouts that ended with an `error`, and then of those with a reward that is not finite; they
    are not in the other lists"""


class VerifiersRunner:
    """Plays an environment of verifiers: its `generate` makes the rollouts, and its rubric gives the scores.

    ```text
    environment = verifiers.load_environment("gsm8k")
    with serve(trainer, max_new_tokens=256) as endpoint:
        runner = VerifiersRunner(environment, endpoint)
        played = runner.run(environment.get_dataset(8), n=4)
        trainer.step(played.queries, played.responses, played.scores, played.masks, group_ids=played.group_ids)
    ```

    Args:
        environment: has `generate_sync` and a rubric, as environments of verifiers 0.1.14 to 0.3 do.
        endpoint: what `serve` returned; it may stay open over all steps.
        sampling_args: what the environment asks the endpoint for, such as `max_tokens` and `temperature`.
        model: the name that the endpoint serves the policy by.

    Raises:
        ImportError: verifiers is missing.
        TypeError: the environment has no `generate_sync`, as those of verifiers 0.4.
    """

    def __init__(
        self,
        environment: Any,
        endpoint: Endpoint,
        sampling_args: Mapping[str, Any] | None = None,
        model: str = "policy",
    ) -> None:
        if not callable(getattr(environment, "generate_sync", None)):
            raise TypeError(
                f"{type(environment).__name__} has no `generate_sync`: give an environment of verifiers 0.1.14 to 0.3 "
                "(0.4 has other environments; in 0.2 and 0.3 those of `verifiers.v1` are such)"
            )
        self.environment = environment
        self.endpoint = endpoint
        self.sampling_args = dict(sampling_args or {})
        self.model = model
        self._client = _client(endpoint)

    def run(self, rows: Iterable[Mapping[str, Any]], n: int = 1, **options: Any) -> VerifiersEpisodes:
        """Play `n` rollouts of each row, all at the same time.

        Args:
            rows: examples of the environment's data set: `environment.get_dataset(8)`, or dictionaries with `prompt`
                (messages) and what the rubric reads, such as `answer`. Rows of one `example_id` are one group; a row
                without one is a group of its own.
            n: rollouts of each row; rubrics that compare the rollouts of an example see all of them.
            options: further arguments of `generate`, such as `max_concurrent`.

        Raises:
            ValueError: there is no row, `n` is below 1, or the environment does not score (`score_rollouts=False`).
        """
        if not getattr(self.environment, "score_rollouts", True):
            raise ValueError(NO_REWARDS)
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        inputs = [row for row in _numbered(rows) for _ in range(n)]
        if not inputs:
            raise ValueError("there is no row to play")
        options["state_columns"] = [*options.get("state_columns", ()), "trajectory_id"]
        generated = self.environment.generate_sync(
            inputs, client=self._client, model=self.model, sampling_args=self.sampling_args, **options
        )
        return self._episodes(generated["outputs"])

    def _episodes(self, outputs: list[Mapping[str, Any]]) -> VerifiersEpisodes:
        rollouts = {str(output["trajectory_id"]): output for output in outputs}
        served = self.endpoint.episodes(list(rollouts))
        failed = [output for output in outputs if output.get("error")]
        if failed:
            warn_user(
                f"{len(failed)} of {len(outputs)} rollouts ended with an error and are left out; the first: "
                f"{failed[0]['error']!s:.300}"
            )
        played = {*served.ids}
        silent = sum(name not in played and not output.get("error") for name, output in rollouts.items())
        if silent:
            warn_user(f"{silent} of {len(outputs)} rollouts never call the model: they are left out, too")
        if any(output["reward"] is None for output in outputs if not output.get("error")):
            raise ValueError(NO_REWARDS)
        unscored = [output for output in outputs if not output.get("error") and not is_finite(output["reward"])]
        if unscored:
            warn_user(
                f"the rubric gave {len(unscored)} of {len(outputs)} rollouts a reward that is not finite, and they are "
                f"left out; the first: {_where(unscored[0])}"
            )
        failed += unscored
        left_out = {str(output["trajectory_id"]) for output in failed}
        kept = [i for i, name in enumerate(served.ids) if name not in left_out]
        kept_outputs = [rollouts[served.ids[i]] for i in kept]
        numbers: dict[Any, int] = {}
        logprobs = served.sampling_logprobs
        return VerifiersEpisodes(
            [served.queries[i] for i in kept],
            [served.responses[i] for i in kept],
            [served.response_masks[i] for i in kept],
            [float(output["reward"]) for output in kept_outputs],
            [numbers.setdefault(output["example_id"], len(numbers)) for output in kept_outputs],
            None if logprobs is None else [logprobs[i] for i in kept],
            kept_outputs,
            failed,
        )


def _where(output: Mapping[str, Any]) -> str:
    """The example of a rollout, its reward, and the functions of the rubric that gave no finite number."""
    metrics = output.get("metrics") or {}
    causes = [f"{name}={number}" for name, number in metrics.items() if not is_finite(number)]
    said = f"example_id={output['example_id']!r}, reward={output['reward']}"
    return f"{said}, from {', '.join(causes)}" if causes else said


def _numbered(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with an `example_id`: its own, or a number that no other row has."""
    given = [dict(row) for row in rows]
    taken = {row["example_id"] for row in given if "example_id" in row}
    free = (number for number in count() if number not in taken)
    return [row if "example_id" in row else {"example_id": next(free), **row} for row in given]


def _client(endpoint: Endpoint) -> Any:
    """A client of verifiers that names the rollout in each of its calls."""
    try:
        from verifiers.clients import resolve_client
        from verifiers.types import ClientConfig
    except ImportError as error:
        raise ImportError('environments of verifiers need it: pip install "trl-step[verifiers]"') from error

    config = ClientConfig(
        api_base_url=endpoint.url,
        api_key_var=TOKEN,
        extra_headers_from_state={EPISODE_HEADER: "trajectory_id"},
    )
    before = os.environ.get(TOKEN)
    os.environ[TOKEN] = endpoint.token
    try:
        return resolve_client(config)
    finally:  # programs that the environment starts must not see it
        del os.environ[TOKEN]
        if before is not None:
            os.environ[TOKEN] = before
