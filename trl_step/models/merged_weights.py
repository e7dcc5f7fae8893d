"""The weights of a policy as the plain transformers model that it amounts to: no value head, adapters merged."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Set
from typing import Any

import torch
from torch import nn

from trl_step.models.inner_model import has_adapter, plain_model


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of each weight of `model`, a transformers model or PeftModel, under the names of the plain model.

    A weight that several modules share comes once. An adapted layer is merged in a copy of that layer, so `model` stays
    as it is, and one layer at a time is held twice.

    Raises:
        ValueError: an adapter changes one of two modules that share a weight: no plain model amounts to that.
    """
    base = plain_model(model)
    if has_adapter(base):
        _check_ties(base)
    saved = set(base.state_dict())
    unwrap = _without_adapter if has_adapter(base) else _as_it_is
    seen: set[int] = set()
    for name, weight in _walk(base, "", saved, unwrap):
        if id(weight) not in seen:
            seen.add(id(weight))
            yield name, weight.detach()


def _check_ties(base: nn.Module) -> None:
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    users = Counter(id(weight) for _, weight in base.named_parameters(remove_duplicate=False))
    for name, module in base.named_modules():
        if not isinstance(module, BaseTunerLayer) or isinstance(module, TrainableTokensLayer):
            continue  # trained tokens are the same in both modules
        if any(users[id(weight)] > 1 for weight in module.get_base_layer().parameters()):
            raise ValueError(
                f"the adapter changes {name}, whose weight another module shares (tie_word_embeddings): the model "
                "without an adapter is another one. Leave it out of target_modules, or untie the weights"
            )


def _walk(module: nn.Module, prefix: str, saved: Set[str], unwrap: Any) -> Iterator[tuple[str, torch.Tensor]]:
    plain = unwrap(module)
    buffers = plain.named_buffers(recurse=False)
    kept = ((name, value) for name, value in buffers if plain is not module or prefix + name in saved)
    for name, value in itertools.chain(plain.named_parameters(recurse=False), kept):
        yield prefix + name, value
    for name, child in plain.named_children():
        yield from _walk(child, f"{prefix}{name}.", saved, unwrap)


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


def _without_adapter(module: Any) -> nn.Module:
    """The module that an adapted one stands for; another one as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, ModulesToSaveWrapper):
        active = module.active_adapters
        return module.modules_to_save[active[0]] if active else module.original_module
    if isinstance(module, TrainableTokensWrapper):
        return _without_adapter(module.token_adapter)
    if isinstance(module, BaseTunerLayer):
        merged = copy.deepcopy(module)
        merged.merge()
        return _without_adapter(merged.get_base_layer())
    return module
