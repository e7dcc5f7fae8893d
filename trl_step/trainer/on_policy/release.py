"""Answers as the releases of TRL read them, for `exact=True`."""

from __future__ import annotations

from typing import Any

import torch

from trl_step.sampling.sampler import Samples


def as_in_the_release(samples: Samples, n: int, args: Any, tokenizer: Any) -> Samples:
    """The same answers, cut and ordered as TRL 0.11 to 0.26 do it.

    Only `stop_token` or `stop_token_id` ends an answer; the padding token and what follows it do not count, which
    leaves the end token out where it pads as well; only the tokenizer's end token saves an answer from
    `missing_eos_penalty`. The rows are those of the whole batch of prompts, `n` times.

    Args:
        samples: answers to one query next to each other
        n: their number
        args: `OnPolicyConfig`

    Raises:
        ValueError: an answer begins with the padding token, so that nothing of it counts.
    """
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    stop = end if args.stop_token == "eos" else args.stop_token_id
    count = len(samples.responses) // n
    order = [number * n + copy for copy in range(n) for number in range(count)]
    responses, ended = [], []
    for i in order:
        response = samples.responses[i]
        whole = response if stop is None else response[: _first(response, stop) + 1]
        ended.append(bool((whole == end).any()) or (pad == end and len(whole) < args.response_length))
        response = whole if pad is None else whole[: _first(whole, pad)]
        if not len(response):
            raise ValueError(f"exact=True: answer {i} begins with the padding token, so nothing of it counts")
        responses.append(response)
    return samples._replace(
        queries=[samples.queries[i] for i in order],
        responses=responses,
        ended=ended,
        group_ids=[samples.group_ids[i] for i in order],
    )


def _first(ids: torch.Tensor, wanted: int) -> int:
    """Where `wanted` is in `ids` for the first time; their number, if it is not."""
    places = (ids == wanted).nonzero()
    return int(places[0]) if len(places) else len(ids)
