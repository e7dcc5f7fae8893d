"""What several processes are given: lists of which they exchange something are given to all of them or to none."""

from __future__ import annotations

import torch

from trl_step.trainer.batches.checks import StepInputs
from trl_step.trainer.batches.given import given_on_some, names_given
from trl_step.trainer.batches.rollout import Precomputed

IDS = [torch.tensor([4, 5])]
PLAIN = StepInputs(IDS, IDS, torch.zeros(1))


def test_lists_that_are_exchanged_are_given_to_all_processes() -> None:
    grouped = PLAIN._replace(group_ids=["a"], precomputed=Precomputed(sampling_logprobs=[torch.zeros(2)]))
    assert names_given(grouped) == ["group_ids", "sampling_logprobs"]
    assert given_on_some([names_given(grouped), names_given(grouped)]) is None
    error = given_on_some([names_given(grouped), names_given(PLAIN)])
    assert str(error).startswith("group_ids, sampling_logprobs must be given to step on all processes or on none")


def test_masks_and_log_probs_of_one_process_are_its_own_affair() -> None:
    masked = PLAIN._replace(
        response_masks=[torch.ones(2)], precomputed=Precomputed(old_logprobs=[torch.zeros(2)], old_values=IDS)
    )
    assert given_on_some([names_given(masked), names_given(PLAIN)]) is None
