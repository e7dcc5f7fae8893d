"""Row B10: several processes without an accelerator find each other, and the reference stays what it is.

Slow, as two processes are started, and each imports torch and transformers.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import trainer

Seen = tuple[dict[str, Any], dict[str, Any]]


@pytest.mark.slow
def test_the_world_is_two_on_the_cpu_without_being_told(two_processes: Seen) -> None:
    for rank, seen in enumerate(two_processes):
        assert seen["ragged"]["world"] == {
            "processes": 2,
            "rank": rank,
            "device": "cpu:0",
            "world_size": 2,
            "global_batch_size": 16,
            "global_backward_batch_size": 4,
        }


@pytest.mark.slow
def test_the_reference_is_not_wrapped(two_processes: Seen) -> None:
    for seen in two_processes:
        assert seen["ragged"]["wrapped"] == {
            "model": "DistributedDataParallel",
            "reference": "AutoModelForCausalLMWithValueHead",
        }


def test_a_process_of_several_that_stands_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here accelerate has long decided that this process is the only one."""
    trainer("gpt2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but accelerate takes it for the only one"):
        trainer("gpt2")


def test_a_launcher_that_starts_one_of_two_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process, in this environment."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.warns(UserWarning, match="torchrun --nproc_per_node"):
        trainer("gpt2")
