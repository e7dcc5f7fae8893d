"""What a run is made of, in words and numbers: a state is loaded only into a run of the same make."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import torch

from trl_step.models.sharding import is_sharded
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.processes.shards import own_part

_FREE = """
    exp_name log_with task_name model_name query_dataset reward_model remove_unused_columns tracker_kwargs
    accelerator_kwargs project_kwargs tracker_project_name push_to_hub_if_best_kwargs compare_steps steps
    forward_batch_size world_size optimize_cuda_cache optimize_device_cache backward_batch_size
    global_backward_batch_size global_batch_size is_encoder_decoder is_peft_model gradient_checkpointing
    dataset_num_proc forward_tokens generation_tokens use_habana log_arrays progress_bar num_sample_generations
    share_prompts padding_free save_every save_dir keep_last offload_reference
    run_name logdir num_epochs save_freq num_checkpoint_limit mixed_precision resume_from async_reward_computation
    max_workers
"""
FREE_SETTINGS = frozenset(_FREE.split())
"""May differ: names, places, how long, and how the arithmetic is cut. The others change what is learnt, or are in
another part of the identity."""

IMPLEMENTATION = frozenset(("fused", "foreach", "capturable", "differentiable"))
"""Options of an optimizer that choose a kernel and no number."""

MOST_LINES = 5
"""of one part of the identity in a message"""

SAMPLED = 64
"""Elements of a frozen tensor that its fingerprint looks at."""


def default_settings(config: Any) -> dict[str, Any]:
    """The default of each field of a configuration, by name."""
    return {f.name: f.default for f in fields(config)}


def settings_of(config: Any) -> dict[str, Any]:
    """Those fields of a configuration that change what is learnt, by name."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in FREE_SETTINGS}


def identity(
    processes: Processes,
    settings: Mapping[str, Any],
    policy: torch.nn.Module,
    reference: torch.nn.Module | None,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    kl_controller: Any,
    dataset: Any,
    loader: Any,
    mixed_precision: str,
) -> dict[str, Any]:
    """What must be the same where a state is loaded, as a tree without tensors; every process calls it.

    Args:
        processes: all that call this
        settings: see `settings_of`
        policy: with its value head, not wrapped
        reference: without value head, which is drawn at random and never asked; None if the policy has it inside
        optimizer: torch's own, or accelerate's around it
        scheduler: torch's own, or accelerate's around it, or None
        kl_controller: of the coefficient
        dataset: whose length is compared; None without a `loader`
        loader: of the batches, or None
        mixed_precision: accelerate's name of it
    """
    optimizer, scheduler = getattr(optimizer, "optimizer", optimizer), getattr(scheduler, "scheduler", scheduler)
    parameters = dict(policy.named_parameters())
    sharded = is_sharded(policy)

    def joined(own: str) -> str:
        """Sharded weights have a part on every process."""
        return " ".join(processes.together(lambda: own)) if sharded else own

    return {
        "processes": processes.count,
        "sharded": sharded,
        "mixed_precision": mixed_precision,
        "settings": dict(settings),
        "policy": {name: _describe(tensor) for name, tensor in policy.state_dict().items()},
        "frozen weights": joined(fingerprint((name, p) for name, p in parameters.items() if not p.requires_grad)),
        "reference": None if reference is None else joined(fingerprint(reference.named_parameters())),
        "optimizer": {
            "class": _class_of(optimizer),
            **{key: _plain(value) for key, value in optimizer.defaults.items() if key not in IMPLEMENTATION},
        },
        "optimizer's parameters": _group_members(optimizer, parameters),
        "scheduler": None if scheduler is None else _class_of(scheduler),
        "KL controller": type(kl_controller).__name__,
        "data set": None if loader is None else {"samples": _length(dataset), "batches": _length(loader)},
    }


def packages() -> dict[str, str]:
    """Versions that the last bits of a number depend on."""
    names = ("trl_step", "torch", "transformers", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def differences(
    saved: Mapping[str, Any], here: Mapping[str, Any], may_differ: Sequence[str], defaults: Mapping[str, Any]
) -> list[str]:
    """In what the identity of a state differs from that of a trainer: one line each; settings in `may_differ` may.

    Args:
        defaults: of all settings, see `default_settings`
    """
    # a setting that came later had its default's effect
    saved = {**saved, "KL controller": saved["KL controller"].rpartition(".")[2]}  # older states say the module too
    saved = {**saved, "settings": {key: saved["settings"].get(key, defaults[key]) for key in here["settings"]}}
    lines = [f"may_differ: {name!r} is not a setting" for name in may_differ if name not in defaults]
    for part, was in saved.items():
        now = here[part]
        if was == now:
            continue
        if part in ("frozen weights", "reference"):
            whose = "the policy's frozen weights" if part == "frozen weights" else "the reference's weights"
            lines.append(f"{whose} are not those of the saved run: build the trainer as it was built then")
        elif isinstance(was, Mapping) and isinstance(now, Mapping):
            changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
            changed = [key for key in changed if part != "settings" or key not in may_differ]
            lines += [_line(_named(part, key), was.get(key), now.get(key)) for key in changed[:MOST_LINES]]
            lines += [f"{part}: {len(changed) - MOST_LINES} more"] * (len(changed) > MOST_LINES)
        elif part == "optimizer's parameters":
            lines.append("the optimizer has other parameters, or in another order or other groups")
        else:
            lines.append(_line(part, was, now))
    return lines


def _line(what: str, was: Any, now: Any) -> str:
    return f"{what}: {'none' if was is None else was} in the state, {'none' if now is None else now} here"


def _named(part: str, key: str) -> str:
    return key if part == "settings" else f"{part}: {key}"


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Of names, shapes, dtypes and a few elements of each tensor: cheap, and another checkpoint has another one."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        flat = own_part(tensor.detach()).flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        digest.update(f"{name} {_describe(tensor)}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _class_of(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _group_members(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names of the parameters of each group; their shapes, where they are not the policy's."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [[names.get(id(p), _describe(p)) for p in group["params"]] for group in optimizer.param_groups]


def _length(thing: Any) -> int | None:
    try:
        return len(thing)
    except TypeError:  # an iterable data set
        return None
