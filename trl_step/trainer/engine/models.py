"""The two models of a step, and where they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

from trl_step.models import PreTrainedModelWrapper
from trl_step.models.adapters import replaced_values, trained_base_parameters, without_adapter
from trl_step.models.critic import wrappers_of
from trl_step.models.inner_model import waits_for_device
from trl_step.models.notices import warn_user
from trl_step.models.sharding import embeddings_in_the_root, start_fsdp
from trl_step.trainer.engine.forward import TokenForward
from trl_step.trainer.engine.offload import OffloadedWeights, needs_no_copy
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.updates import deepspeed


class Models(NamedTuple):
    """Policy and reference, as accelerate prepared them."""

    policy: Any
    reference: Any
    """the policy itself if its reference is another adapter of it"""
    as_reference: Callable[[], AbstractContextManager[Any]]
    """surrounds the passes of `reference`"""
    unwrap: Callable[[Any], Any]
    """takes a value-head model out of what accelerate put around it"""
    sharded: bool
    """whether every process holds a part of the weights only"""


class Prepared(NamedTuple):
    """What `prepare` makes of a trainer's parts."""

    model: Any
    ref_model: Any
    optimizer: Any
    dataloader: Any
    lr_scheduler: Any
    parameters: list[torch.nn.Parameter]
    """those of the policy that train"""
    offloaded: OffloadedWeights | None
    """the reference's, if they lie on the host"""


def check_reference(model: torch.nn.Module, reference: torch.nn.Module) -> None:
    """Raise ValueError if training `model` moves `reference` as well, or if they are of different kinds."""
    kinds = [bool(getattr(one, "is_encoder_decoder", False)) for one in (model, reference)]
    if kinds[0] != kinds[1]:
        names = [("a decoder alone", "an encoder-decoder")[kind] for kind in kinds]
        raise ValueError(
            f"model is {names[0]} and ref_model is {names[1]}: the reference must read the same batches. "
            "Leave ref_model out for a copy of model, or load one of the same kind"
        )
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    shared = sum(id(parameter) in trained for parameter in reference.parameters())
    if shared:
        raise ValueError(
            f"ref_model shares {shared} trainable parameters with model, so it would move with it and the KL would "
            "measure nothing: leave ref_model out, or pass create_reference_model(model) or a model loaded separately"
        )


def reference_context(
    model: PreTrainedModelWrapper, config: PPOConfig, sharded: bool = False
) -> Callable[[], AbstractContextManager[Any]]:
    """Inside what this gives, the PEFT model `model` is its own reference: with the adapter that training starts from,
    or with none, and with the base weights as they are now.

    Args:
        sharded: whether the weights will be spread over processes.

    Raises:
        ValueError: base weights train beside the adapter, and are sharded.
    """
    if config.exact_v07:  # the base model, also if training starts from an adapter
        return partial(without_adapter, model.pretrained_model)
    trained = trained_base_parameters(model.pretrained_model)
    if not trained:
        return model.reference_adapter
    if sharded:
        raise ValueError(
            f"{next(iter(trained))} and {len(trained) - 1} other parameters of the base model train beside the "
            "adapter, so the base model cannot be the reference, and sharded weights cannot be kept twice: pass a "
            'ref_model, or train the adapter alone (bias="none")'
        )
    # differs from v0.7: the reference moved with them
    first = {parameter: parameter.detach().clone() for parameter in trained.values()}
    return partial(_as_it_was, model, first)


@contextmanager
def _as_it_was(model: PreTrainedModelWrapper, first: Mapping[torch.nn.Parameter, torch.Tensor]) -> Iterator[None]:
    with model.reference_adapter(), replaced_values(first):
        yield


def bring_flash_attention(accelerator: Accelerator, model: Any) -> None:
    """Move a model with flash attention to the device, where it can be asked what it is able to.

    Others are asked on the host. A model that will be sharded stays there, and is not asked.
    """
    if accelerator.is_fsdp2 or deepspeed.uses_deepspeed(accelerator) or needs_no_copy(accelerator.device):
        return
    if any(waits_for_device(part.pretrained_model) for part in wrappers_of(model)):
        model.to(accelerator.device)


def prepare(
    accelerator: Accelerator,
    config: PPOConfig,
    model: Any,
    ref_model: Any,
    optimizer: Any,
    dataloader: Any,
    lr_scheduler: Any,
    forward: TokenForward,
) -> Prepared:
    """Place everything on the device and let accelerate wrap what is trained. The reference is never wrapped, but
    sharded if the policy is, or kept on the host; `forward` learns whose head it cannot use any more.

    Raises:
        ValueError: `offload_reference` with a reference whose weights are spread over processes or devices.
    """
    offloads = config.offload_reference and _may_offload(accelerator, ref_model)
    if deepspeed.uses_deepspeed(accelerator):
        deepspeed.configure(accelerator, config)
        ref_model = None if ref_model is None else deepspeed.unshared(ref_model, model)
    is_encoder_decoder = getattr(model, "is_encoder_decoder", False)
    with embeddings_in_the_root(model) if accelerator.is_fsdp2 else nullcontext():
        model, optimizer, dataloader, lr_scheduler = accelerator.prepare(model, optimizer, dataloader, lr_scheduler)
    offloaded = None
    if offloads:
        offloaded = OffloadedWeights(ref_model.eval(), accelerator.unwrap_model(model), accelerator.device)
    elif ref_model is not None:
        ref_model = place_reference(ref_model, accelerator.device)
    if deepspeed.uses_deepspeed(accelerator) and deepspeed.begin(model):
        forward.forget_head(model.module)
    if accelerator.is_fsdp2:
        if ref_model is not None:
            with embeddings_in_the_root(ref_model):
                ref_model = fsdp2_prepare_model(accelerator, ref_model).eval()
        for sharded in (model, ref_model):
            if sharded is not None:
                start_fsdp(sharded, is_encoder_decoder, accelerator.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Prepared(model, ref_model, optimizer, dataloader, lr_scheduler, parameters, offloaded)


def _may_offload(accelerator: Accelerator, reference: Any) -> bool:
    """Whether there is a reference that can lie on the host, and a device that is not the host.

    Raises:
        ValueError: its weights are spread over processes or devices.
    """
    if reference is None:
        warn_user("offload_reference has no effect: the reference is the policy with another adapter or with none")
        return False
    if accelerator.is_fsdp2 or deepspeed.uses_deepspeed(accelerator) or _is_placed(reference):
        raise ValueError(
            "offload_reference=True: the weights of the reference are sharded, quantized or placed by device_map, so "
            "they stay where they are; leave the setting out"
        )
    return not needs_no_copy(accelerator.device)


def place_reference(reference: Any, device: torch.device) -> Any:
    """The reference in eval mode on `device`, unless its layers were placed when it was loaded."""
    return (reference if _is_placed(reference) else reference.to(device)).eval()


def _is_placed(reference: Any) -> bool:
    placed = getattr(reference, "is_sequential_parallel", False)
    return bool(placed or getattr(reference.pretrained_model, "quantization_method", None))
