"""Prompts of a data set: rows to batches, batches to token ids, and how many steps a run has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

OF_A_PROMPT = ("input_ids", "attention_mask")


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A batch of rows: each column a list, `input_ids` as tensors [Q_i]."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {**columns, "input_ids": [torch.as_tensor(ids) for ids in columns["input_ids"]]}


def loader_of(dataset: Any, size: int, data_collator: Any) -> torch.utils.data.DataLoader:
    """A shuffling loader of `size` rows; the last batch of a pass may be smaller."""
    return torch.utils.data.DataLoader(dataset, batch_size=size, shuffle=True, collate_fn=data_collator)


class Schedule(NamedTuple):
    """How long a run is."""

    steps: int
    episodes: int
    """answers, over all processes"""


def steps_of(dataset: Any, size: int, answers: int, args: Any) -> Schedule:
    """Steps and answers of a run.

    Args:
        dataset: rows with `input_ids`
        size: prompts of a step on a process
        answers: to each prompt
        args: `OnPolicyConfig`; `max_steps` counts before `total_episodes`, and that before `num_train_epochs`

    Raises:
        ValueError: there is no row, or none has `input_ids`.
    """
    if not hasattr(dataset, "__len__") or not len(dataset):
        raise ValueError("train_dataset must have rows, and say how many")
    if "input_ids" not in dataset[0]:
        raise ValueError(
            f"train_dataset has the columns {sorted(dataset[0])}, but not input_ids, the token ids of each prompt"
        )
    processes, rows = args.world_size, len(dataset)
    batches = math.ceil(rows / (size * processes))
    last = rows - (batches - 1) * size if processes == 1 else size  # several processes fill their last batch up
    in_step, in_pass = size * processes * answers, ((batches - 1) * size + last) * processes * answers
    if args.max_steps > 0:
        passes, rest = divmod(args.max_steps, batches)
        return Schedule(args.max_steps, passes * in_pass + rest * in_step)
    episodes = args.total_episodes or max(int(args.num_train_epochs * rows), 1)
    passes, rest = divmod(episodes, in_pass)
    return Schedule(passes * batches + math.ceil(rest / in_step), episodes)


class Prompts:
    """Token ids of the prompts in a batch, without padding.

    Args:
        tokenizer: knows the padding of batches that have no attention mask
    """

    def __init__(self, tokenizer: Any) -> None:
        self.pad = tokenizer.pad_token_id

    def __call__(
        self, batch: Mapping[str, Any], at_most: int | None = None
    ) -> tuple[list[torch.Tensor], dict[str, list[Any]]]:
        """The prompts [Q_i] int64, and the other columns of the batch.

        Args:
            batch: `input_ids`, a list of ids or a padded tensor [B, Q], and `attention_mask` [B, Q] if it is padded
            at_most: leave the prompts after this number out

        Raises:
            ValueError: a prompt without a token.
        """
        ids, masks = batch["input_ids"][:at_most], batch.get("attention_mask")
        found = []
        for i, one in enumerate(ids):
            one = torch.as_tensor(one)
            if masks is not None:
                one = one[torch.as_tensor(masks[i], device=one.device).bool()]
            elif isinstance(ids, torch.Tensor) and self.pad is not None:
                one = _stripped(one, self.pad)
            if not len(one):
                raise ValueError(f"prompt {i} of a batch has no tokens: drop the row from train_dataset")
            found.append(one.long())
        columns = {
            name: list(values)[:at_most]
            for name, values in batch.items()
            if name not in OF_A_PROMPT and len(values) == len(batch["input_ids"])
        }
        return found, columns


def _stripped(ids: torch.Tensor, pad: int) -> torch.Tensor:
    """Without the padding at both ends."""
    kept = (ids != pad).nonzero().flatten()
    return ids[int(kept[0]) : int(kept[-1]) + 1] if len(kept) else ids[:0]
