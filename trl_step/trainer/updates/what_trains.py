"""Which parameters of the policy train: at the start of a run, and in each step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from trl_step.models.critic import PolicyWithCritic
from trl_step.models.inner_model import has_adapter
from trl_step.models.notices import warn_user


def check_trained(model: Any, needs_values: bool = True) -> None:
    """Warn if nothing of the model inside the wrapper `model` trains, or if weights train in float16.

    Args:
        needs_values: whether its value head trains.

    Raises:
        ValueError: it does not, so nothing is left to train.
    """
    inside = model.pretrained_model
    trained = [parameter for parameter in inside.parameters() if parameter.requires_grad]
    if any(parameter.dtype == torch.float16 for parameter in trained):
        warn_user(
            "weights that train are float16, in which small gradients vanish and Adam's steps are far too large "
            "(squared gradients and epsilon round to 0): load the model with dtype=torch.float32, or bfloat16"
        )
    if trained:
        return
    what = "unfreeze what should train with requires_grad_(True)"
    if has_adapter(inside):
        what = (
            "its adapter was loaded frozen, as it is by default. To train it, pass is_trainable=True to "
            "AutoModelForCausalLMWithValueHead.from_pretrained(folder of the adapter), or to "
            "peft.PeftModel.from_pretrained"
        )
    if not needs_values:
        raise ValueError(f"nothing of the policy trains, and the advantage_estimator needs no values: {what}")
    warn_user(f"nothing of the policy but its value head trains, so its answers stay as they are: {what}.")


class AtStart(NamedTuple):
    """The parameters of a policy when its trainer was built, by their `id`."""

    kinds: dict[int, tuple[torch.Size, torch.dtype]]
    """shape and dtype of each"""
    trained: frozenset[int]
    """those that train"""

    @classmethod
    def of(cls, policy: torch.nn.Module) -> AtStart:
        """As they are now."""
        parameters = list(policy.parameters())
        kinds = {id(p): (p.shape, p.dtype) for p in parameters}
        return cls(kinds, frozenset(id(p) for p in parameters if p.requires_grad))


def changed_since(policy: torch.nn.Module, start: AtStart) -> ValueError | None:
    """An error if a parameter that trains is new since `start`, or has another shape or dtype: the optimizer does not
    hold it, or holds moments that do not fit (torch's fused Adam then reads outside of them)."""
    training = ((name, p) for name, p in policy.named_parameters() if p.requires_grad)
    later = [name for name, p in training if start.kinds.get(id(p)) != (p.shape, p.dtype)]
    if not later:
        return None
    return ValueError(
        f"{len(later)} parameters of model, such as {later[0]}, are new or have another shape or dtype since the "
        "trainer was built, and its optimizer does not fit them: resize embeddings, convert weights and add adapters "
        "first, and build the trainer then"
    )


def thawed_since(policy: torch.nn.Module, start: AtStart) -> dict[str, torch.nn.Parameter]:
    """The parameters that train now and did not at `start`, by name."""
    return {name: p for name, p in policy.named_parameters() if p.requires_grad and id(p) not in start.trained}


def cannot_join(
    thawed: dict[str, torch.nn.Parameter], held: set[int], base: dict[str, torch.nn.Parameter], settled: bool
) -> ValueError | None:
    """An error if parameters that were thawed after the trainer was built, and that the optimizer holds, would train in
    a wrong way.

    Args:
        thawed: see `thawed_since`
        held: the `id` of each parameter of the optimizer
        base: what trains of the base model of an adapter, if the base model is the reference
        settled: whether processes exchange the gradients of what trained at the start, and of nothing else
    """
    joined = [(name, p) for name, p in thawed.items() if id(p) in held]
    if joined and settled:
        return ValueError(
            f"{len(joined)} parameters of model, such as {joined[0][0]}, were frozen when the trainer was built and "
            "train now, but several processes, FSDP and DeepSpeed exchange the gradients of what trained then, and of "
            "nothing else: unfreeze them before the trainer is built"
        )
    moves = {id(p) for p in base.values()}
    joined = [(name, p) for name, p in joined if id(p) in moves]
    if joined:
        return ValueError(
            f"{len(joined)} parameters of the base model, such as {joined[0][0]}, were frozen when the trainer was "
            "built and train now; the base model is the reference too, which would move with them: unfreeze them "
            "before the trainer is built, which then keeps a copy, or pass a ref_model"
        )
    return None


def stays_since(
    policy: Any, start: AtStart, thawed: dict[str, torch.nn.Parameter], held: set[int], needs_values: bool
) -> ValueError | None:
    """Warn of what stays as it is because `requires_grad` changed since `start`; an error if nothing would train.

    Args:
        policy: not wrapped by accelerate
        start: of the policy
        thawed: see `thawed_since`
        held: the `id` of each parameter of the optimizer
        needs_values: whether a value head or a critic trains in this step
    """
    outside = [name for name, p in thawed.items() if id(p) not in held]
    if outside:
        warn_user(
            f"{len(outside)} parameters of model, such as {outside[0]}, were frozen when the trainer was built and "
            "train now, but its optimizer does not hold them, so they stay as they are: unfreeze them, or activate "
            "their adapter, before the trainer is built, or, in a single process, give them to "
            "trainer.optimizer.add_param_group"
        )
    inside = list(policy.pretrained_model.parameters())
    if not any(id(p) in start.trained for p in inside) or any(p.requires_grad for p in inside):
        return None
    what = "since the trainer was built, the weights of the policy were frozen, or its adapter was disabled"
    if not needs_values:
        return ValueError(f"nothing of the policy trains any more: {what}; undo it")
    warn_user(f"nothing of the policy but its values trains any more, so its answers stay as they are: {what}")
    return None


def trained_now(
    policy: Any, parameters: list[torch.nn.Parameter], with_values: bool, warms_up: bool
) -> list[torch.nn.Parameter] | None:
    """The parameters that may move in a step; None: all that train.

    Args:
        policy: not wrapped
        parameters: all that train
        with_values: the step has a value loss
        warms_up: only values train in it
    """
    of_values = {id(parameter) for parameter in policy.value_parameters()}
    unused = {id(p) for p in policy.unused_parameters()} if isinstance(policy, PolicyWithCritic) else set()
    if with_values and warms_up:
        return [p for p in parameters if id(p) in of_values]
    left_out = unused if with_values else unused | of_values
    return [p for p in parameters if id(p) not in left_out] if left_out else None
