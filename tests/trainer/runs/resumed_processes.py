"""The runs of `resumed_runs` on two processes, which `launch` of `tests.regressions.two_processes` starts.

Each of the two forks twice. The first forked processes play every case in one go, and its first part up to the save;
when they have ended, the second ones go on from there. Each writes what it saw to FOLDER.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.tiny import weights
from tests.trainer.runs.forks import fork, wait
from tests.trainer.runs.resumed_runs import CASES, build, outcome, step, train
from trl_step import PPOTrainer

SCRIPT = __file__
NAMES = ("plain", "between two passes", "accumulation", "shared layers", "everything")


def begin(rank: int, folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name in NAMES:
        case = CASES[name]
        whole = build(case, accelerator_kwargs={})
        seen[name] = (train(whole, case), outcome(whole), weights(whole.accelerator.unwrap_model(whole.model)))
        train(build(case, accelerator_kwargs={}), case, save_to=folder / name)
    return {
        **seen,
        "interrupted": interrupted(rank, folder),
        "failed": failed(rank, folder),
        "little memory": little_memory(rank),
    }


def go_on(rank: int, folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name in NAMES:
        case = CASES[name]
        ours = build(case, accelerator_kwargs={}, seed=5)
        ours.load_state(folder / name, may_differ=("seed",))
        seen[name] = (train(ours, case), outcome(ours), weights(ours.accelerator.unwrap_model(ours.model)))
    case = CASES["plain"]
    ours = build(case, accelerator_kwargs={}, save_dir=str(folder / "interrupted"))
    return {**seen, "latest": ours.load_state("latest"), "rest": train(ours, case), "damaged": damaged(rank, folder)}


def interrupted(rank: int, folder: Path) -> Any:
    """Ctrl-C reaches process 1 alone in its second step: both save after it, and stop."""
    case = CASES["plain"]
    ours = build(case, accelerator_kwargs={}, save_every=100, save_dir=str(folder / "interrupted"))

    def interrupt(report: Any) -> None:
        if rank == 1 and report.step == 2:
            signal.raise_signal(signal.SIGINT)

    ours.on_step(interrupt)
    try:
        train(ours, case)
    except KeyboardInterrupt:
        return ours.steps_done


def failed(rank: int, folder: Path) -> Any:
    """One process cannot write: both raise, and the state from before is still there."""
    case = CASES["plain"]
    ours = build(case, accelerator_kwargs={})
    ours.save_state(folder / "failed")
    ours.steps_done = 7
    if rank == 1:
        ours._budget.most_samples = object()  # type: ignore[assignment]  # nothing that a state can hold
    return error_of(lambda: ours.save_state(folder / "failed")), PPOTrainer.load_state(
        build(case, accelerator_kwargs={}), folder / "failed"
    )


def little_memory(rank: int) -> dict[str, Any]:
    """Process 1 has memory for two samples of a forward pass, and process 0 for as many as there are."""
    after: dict[bool, dict[str, torch.Tensor]] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for little in (False, True):
            ours = build(CASES["plain"], accelerator_kwargs={})
            policy = ours.accelerator.unwrap_model(ours.model)

            def hook(_: Any, inputs: Any, fails: bool = little and rank == 1) -> None:
                if fails and torch.is_grad_enabled() and len(inputs[0]) > 2:
                    raise torch.OutOfMemoryError("out of memory")

            policy.pretrained_model.transformer.h[1].register_forward_pre_hook(hook)
            step(ours, next(iter(ours.dataloader))["input_ids"])
            after[little] = weights(policy)
    warned = sum("out of memory in a forward pass of 4 samples" in str(warning.message) for warning in caught)
    return {"plenty": after[False], "little": after[True], "warned": warned}


def damaged(rank: int, folder: Path) -> Any:
    """Of one process's file."""
    ours = build(CASES["plain"], accelerator_kwargs={})
    if rank == 0:
        next((folder / "plain").glob("data-*/process-1.json")).write_text("{}")
    ours.accelerator.wait_for_everyone()
    return error_of(lambda: ours.load_state(folder / "plain")), ours.steps_done


def error_of(work: Any) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def join(rank: int, name: str) -> None:
    """Meet the other process as process `rank` of the group `name`, through the launcher's store."""
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(name, dist.TCPStore(*place, is_master=False))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)


def main(folder: Path) -> None:
    """In the second half the processes change places, as their hash seeds differ: the order of a set may not count."""
    own = int(os.environ["RANK"])
    for name, rank, play in (("begun", own, begin), ("went-on", 1 - own, go_on)):

        def work(name: str = name, rank: int = rank, play: Any = play) -> None:
            join(rank, name)
            torch.save(play(rank, folder), folder / f"{name}-{rank}.pt")

        wait(fork(work))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
