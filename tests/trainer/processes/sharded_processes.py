"""Training, sampling and saving of a sharded model (FSDP2, ZeRO-2, ZeRO-3), played as one of two processes.

`launch(FOLDER, "fsdp2", SCRIPT)` of `tests.regressions.two_processes` starts both; each writes what it saw to FOLDER.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as param_group
from torch.distributed.tensor import DTensor

from tests.regressions.two_processes import CASES, Case, build, play
from tests.tiny import batch, tokenizer, weights, with_value_head
from tests.tiny import config as tiny_config
from tests.trainer.runs import resumed_runs
from trl_step import PPOTrainer, create_reference_model
from trl_step.models.sharding import gathered, is_sharded
from trl_step.trainer.processes.shards import own_part

SCRIPT = __file__
SHARDED_CASES = {name: CASES[name] for name in CASES if name not in ("tokens", "some token scores", "early stop")} | {
    "parts": Case((5, 2), {"mini_batch_size": 4, "forward_tokens": 30}),
    "two parts short": Case((6, 1), {"mini_batch_size": 8, "forward_tokens": 30}),
    "three parts short": Case((7, 1), {"mini_batch_size": 8, "forward_tokens": 24}),
    "own penalty": Case((2, 3), {"mini_batch_size": 2, "kl_penalty": "full"}, cls=type("OwnPenalty", (PPOTrainer,), {
        "_kl_penalty": lambda self, *pair: PPOTrainer._kl_penalty(self, *pair)
    })),
    "given head": Case((4, 4), {"mini_batch_size": 4}, model="llama"),
}  # fmt: skip
"""`parts`: the processes cut their mini-batches into different numbers of parts. The cases after it: process 0 into
three or four, process 1 into one. `given head`: untied embeddings."""
DEEPSPEED_CASES = {
    name: case for name, case in SHARDED_CASES.items() if "forward_tokens" not in case.options and name != "skip"
}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "return_prompt": False}


def sample(rank: int) -> dict[str, Any]:
    """Different numbers of prompts on the two processes, and how often weights were exchanged meanwhile."""
    ours = build(Case())
    exchanges = []
    plain = param_group.foreach_all_gather

    def counted(*args: Any, **kwargs: Any) -> Any:
        exchanges.append(1)
        return plain(*args, **kwargs)

    queries = batch(5)[0][: 2 + 3 * rank]
    with mock.patch.object(param_group, "foreach_all_gather", counted):
        responses = ours.generate(queries, **GREEDY)
        once = len(exchanges)
        both = ours.generate(queries, generate_ref_response=True, **GREEDY)
    policy = ours.accelerator.unwrap_model(ours.model)
    with gathered(policy), gathered(policy):
        whole = not any(isinstance(p, DTensor) for p in policy.parameters())
    return {
        "responses": [response.tolist() for response in responses],
        "both": [[response.tolist() for response in responses] for responses in both],
        "exchanges": once,
        "units": sum("FSDP" in type(module).__name__ for module in policy.modules()),
        "whole inside": whole,
        "sharded": is_sharded(policy),
    }


def sample_with_deepspeed(rank: int) -> dict[str, Any]:
    """The same; how often a layer gathered its own weights meanwhile; and the copy of a partitioned model."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    ours = build(Case())
    with mock.patch.object(PartitionedParameterCoordinator, "fetch_sub_module", side_effect=RuntimeError) as fetches:
        responses = ours.generate(batch(5)[0][: 2 + 3 * rank], **GREEDY)
    policy = ours.accelerator.unwrap_model(ours.model)
    told = ""
    try:
        create_reference_model(policy)
    except ValueError as error:
        told = str(error)
    return {"responses": [r.tolist() for r in responses], "fetches": fetches.call_count, "told": told}


def save_with_deepspeed(rank: int, folder: Path) -> dict[str, Any]:
    """The trainer's own Adam, and what `save_pretrained` writes."""
    settings = tiny_config(mini_batch_size=4, max_grad_norm=0.5, accelerator_kwargs={})
    ours = PPOTrainer(settings, with_value_head("gpt2"), None, tokenizer())
    queries, responses, scores = batch(8)
    own = slice(4 * rank, 4 * rank + 4)
    ours.step(queries[own], responses[own], scores[own])
    ours.save_pretrained(str(folder / "saved"))
    policy = ours.accelerator.unwrap_model(ours.model)
    with gathered(policy):
        return {"weights": weights(policy), "clipping": ours.model.gradient_clipping()}


def own_optimizer(rank: int, folder: Path) -> dict[str, Any]:
    """The trainer's own Adam, and what `save_pretrained` writes."""
    ours = PPOTrainer(
        tiny_config(mini_batch_size=4, max_grad_norm=0.5, accelerator_kwargs={}),
        with_value_head("gpt2"),
        None,
        tokenizer(),
    )
    before = weights(ours.model)
    queries, responses, scores = batch(8)
    own = slice(4 * rank, 4 * rank + 4)
    stats = ours.step(queries[own], responses[own], scores[own])
    states = list(ours.optimizer.state.values())
    ours.save_pretrained(str(folder / "saved"))
    after = weights(ours.model)
    return {
        "finite": all(torch.isfinite(value).all() for value in after.values()),
        "moved": {name: not torch.equal(before[name], after[name]) for name in after},
        "sharded states": [isinstance(state["exp_avg"], DTensor) for state in states],
        "fused": ours.optimizer.param_groups[0]["fused"],
        "weights": after,
        "ratio error": stats["ppo/policy/ratio_error"],
        "files": sorted(os.listdir(folder / "saved")),
    }


def resumed(folder: Path) -> dict[str, Any]:
    """Runs in one go, and runs that were saved and loaded on the way: what differs."""
    differ: dict[str, Any] = {}
    options = {"accelerator_kwargs": {}, "ppo_epochs": 1}
    for name in ("plain", "scheduler"):
        case = resumed_runs.CASES[name]
        whole = resumed_runs.build(case, **options)
        seen = resumed_runs.train(whole, case)
        resumed_runs.train(resumed_runs.build(case, **options), case, save_to=folder / name)
        again = resumed_runs.build(case, **options, seed=5)
        again.load_state(folder / name, may_differ=("seed",))
        rest = resumed_runs.train(again, case)
        one, two = own_part(whole.optimizer.state_dict()["state"]), own_part(again.optimizer.state_dict()["state"])
        weights_differ = [
            key for key, tensor in whole.model.state_dict().items()
            if not torch.equal(own_part(tensor), own_part(again.model.state_dict()[key]))
        ]  # fmt: skip
        moments_differ = [
            (index, key) for index in one for key in one[index] if not torch.equal(one[index][key], two[index][key])
        ]
        spread = all(isinstance(state["exp_avg"], DTensor) for state in again.optimizer.state.values())
        differ[name] = (rest == seen[case.saved_after :], weights_differ, moments_differ, spread)
    return differ


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    with_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if with_deepspeed:
        import deepspeed

        # its collectives in shared memory are compiled for minutes at the first start; gloo's do as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    cases = DEEPSPEED_CASES if with_deepspeed else SHARDED_CASES
    seen: dict[str, Any] = {name: play(case, rank, accelerator_kwargs={}) for name, case in cases.items()}
    seen["sampled"] = (sample_with_deepspeed if with_deepspeed else sample)(rank)
    seen["own optimizer"] = (save_with_deepspeed if with_deepspeed else own_optimizer)(rank, folder)
    if not with_deepspeed:
        seen["resumed"] = resumed(folder)
    torch.save(seen, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
