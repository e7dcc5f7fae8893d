"""PEFT adapters: loading, switching between them exactly, the frozen reference, the reward adapter."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trl_step.import_utils import require_peft
from trl_step.models.checkpoints import ADAPTER_CONFIG, ADAPTER_FILES, find_file, names_folder, read_tensors
from trl_step.models.inner_model import has_adapter, is_peft_model
from trl_step.models.notices import warn_user
from trl_step.models.output_head import probe_logits
from trl_step.models.sharding import is_sharded

REFERENCE_ADAPTER = "reference"
"""Name of the frozen copy of an adapter that training starts from, unless the user has an adapter of that name."""

MOST_TOKENS = 16
"""Trained embeddings that are compared; a short pass fits every model."""

# attributes of a PeftModel: the name of the copy that was made here; whether its adapter came from a folder
_REFERENCE_NAME, _IS_LOADED = "_trl_step_reference", "_trl_step_loaded"


# --- loading -------------------------------------------------------------------------------------------------


def adapter_folder(source: str, hub: dict[str, Any]) -> Path | None:
    """The folder with the adapter in `source`, or None if `source` has none.

    Raises:
        ValueError: `source` has the configuration of an adapter, but no weights for it.
    """
    config = find_file(source, ADAPTER_CONFIG, hub)
    if config is None:
        return None
    weights = next((path for name in ADAPTER_FILES if (path := find_file(source, name, hub)) is not None), None)
    if weights is None:
        raise ValueError(f"{source} has an {ADAPTER_CONFIG}, but neither {' nor '.join(ADAPTER_FILES)}")
    return weights.parent


def base_of_adapter(folder: Path) -> str:
    """The folder or hub name of the model that the adapter in `folder` was trained on.

    Raises:
        ValueError: the adapter's configuration does not name it.
    """
    require_peft("a trained adapter")
    from peft import PeftConfig

    name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not name:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG} has no base_model_name_or_path: load the base model, add the adapter to it "
            "with peft.PeftModel.from_pretrained and pass the result to from_pretrained"
        )
    return name


def load_adapter(base: nn.Module, folder: Path, is_trainable: bool) -> nn.Module:
    """A PeftModel: `base` with the adapter from `folder`."""
    from peft import PeftModel

    with _quiet_about_names():
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable)
    _warn_of_chance(model.active_peft_config)
    setattr(model, _IS_LOADED, True)
    return model


def remove_paths_from_card(folder: str | os.PathLike[str], model: Any) -> None:
    """Remove the lines of `folder`/README.md, which PEFT writes, that name a base model by its path."""
    card = Path(folder, "README.md")
    bases = {config.base_model_name_or_path for config in model.peft_config.values()}
    places = [base for base in bases if base and names_folder(base)]
    if places and card.is_file():
        lines = card.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not any(place in line for place in places)]
        card.write_text("".join(kept), encoding="utf-8")


def new_adapter(base: nn.Module, peft_config: Any, quantized: bool, kbit_arguments: dict[str, Any]) -> nn.Module:
    """A PeftModel: `base` with a fresh adapter.

    Args:
        base: the model; a quantized one is prepared for training first.
        peft_config: `peft.PeftConfig`.
        quantized: whether its weights were loaded in 8 or 4 bits.
        kbit_arguments: for `peft.prepare_model_for_kbit_training`.

    Raises:
        ValueError: `peft_config` is something else; `base` has an adapter already, which would be lost.
    """
    require_peft("peft_config")
    from peft import PeftConfig, get_peft_model, prepare_model_for_kbit_training

    if not isinstance(peft_config, PeftConfig):
        raise ValueError(f"peft_config must be a peft.PeftConfig, such as peft.LoraConfig(...), not {peft_config!r}")
    if has_adapter(base):
        raise ValueError(
            f"peft_config would take the place of an adapter: this {type(base).__name__} already has an adapter inside "
            "it. To train that adapter further, pass its folder, without peft_config. For a new one on top of it, load "
            "it with peft.PeftModel.from_pretrained and pass the result of its merge_and_unload()"
        )
    if quantized:
        base = prepare_model_for_kbit_training(base, **kbit_arguments)
    _warn_of_chance(peft_config)
    with _quiet_about_names():
        return get_peft_model(base, peft_config)


@contextmanager
def _quiet_about_names() -> Iterator[None]:
    """Inside, PEFT's use of an old name of transformers is not warned of, nor that it transposes layers by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        yield


def _warn_of_chance(config: Any) -> None:
    """Warn of an adapter that takes a part out of the base weights which is another one at every loading."""
    init = getattr(config, "init_lora_weights", None)
    if isinstance(init, str) and init.startswith("pissa_niter"):
        warn_user(
            f"init_lora_weights={init!r} splits the base weights with random numbers, and they are split anew when the "
            'adapter is loaded, so that a saved adapter no longer fits: use "pissa", or save the whole model, after '
            "model.pretrained_model = model.pretrained_model.merge_and_unload()"
        )


def _knows_its_adapters(model: Any) -> bool:
    """Whether a transformers model without a PeftModel around it loaded or added its adapters itself."""
    try:
        return bool(model.active_adapters())
    except (AttributeError, ValueError):  # "no adapter loaded"
        return False


def check_adapters(model: Any) -> None:
    """Raise ValueError for adapters that cannot be trained here, or could not be saved.

    That is prompt, prefix and p-tuning, whose virtual tokens would shift every position; and adapter layers in a model
    that does not know of them, whose weights would be saved under names that no class loads.
    """
    if not is_peft_model(model):
        if has_adapter(model) and not _knows_its_adapters(model):
            raise ValueError(
                f"this {type(model).__name__} has adapter layers of a PeftModel around it: pass the PeftModel itself, "
                "or the result of its merge_and_unload()"
            )
        return
    config = model.active_peft_config
    if config.is_prompt_learning:
        raise ValueError(
            f"{config.peft_type.value} adds virtual tokens to the prompt and cannot be trained here: use an adapter on "
            "the weights, such as LoRA"
        )


# --- switching -----------------------------------------------------------------------------------------------


@contextmanager
def untouched_flags(model: nn.Module) -> Iterator[None]:
    """After the block, requires_grad of each parameter and the mode of each module are restored."""
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


@contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
    """Inside, the adapter `name` is active and frozen; afterwards the previous one is, with its flags."""
    former = model.active_adapter
    with untouched_flags(model):
        model.set_adapter(name, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter(former)


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Inside, no adapter is active; afterwards the previous one is, with its flags."""
    with untouched_flags(model), model.disable_adapter():
        yield


# --- the reference -------------------------------------------------------------------------------------------


def is_fresh(model: Any) -> bool:
    """Whether the active adapter changes nothing yet: the logits of two tokens are bit for bit those without it, and
    those of tokens that the adapter trains one by one.

    One that was loaded from a folder counts as trained; of a sharded model, which cannot be asked yet, any other one
    counts as fresh.
    """
    if getattr(model, _IS_LOADED, False) or is_sharded(model):
        return not getattr(model, _IS_LOADED, False)
    with untouched_flags(model), torch.no_grad():
        model.eval()
        tokens = _trained_tokens(model.active_peft_config)
        adapted = probe_logits(model, tokens)
        with model.disable_adapter():
            return torch.equal(adapted, probe_logits(model, tokens))


def _trained_tokens(config: Any) -> list[int]:
    """Some of the tokens whose embeddings an adapter trains one by one."""
    indices = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    return [int(token) for tokens in lists for token in tokens][:MOST_TOKENS]


def frozen_reference(model: Any) -> str | None:
    """The name of the copy that `freeze_reference` made, or None."""
    name = getattr(model, _REFERENCE_NAME, None)
    return name if name in model.peft_config else None


def freeze_reference(model: Any) -> str:
    """Add a frozen copy of the active adapter, unless there is one already; returns its name.

    The random stream is restored, so that a seeded script draws the same value head with and without the copy.

    Raises:
        ValueError: PEFT cannot hold this adapter twice (one with trained biases, for example).
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    known = frozen_reference(model)
    if known is not None:
        return known
    name = REFERENCE_ADAPTER
    while name in model.peft_config:
        name = f"frozen_{name}"
    source = model.active_adapter
    config = copy.deepcopy(model.peft_config[source])
    config.inference_mode = True
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True  # PiSSA and similar methods would decompose the base weights a second time
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with untouched_flags(model), torch.random.fork_rng(devices=cuda):
        model.add_adapter(name, config)
        weights = get_peft_model_state_dict(model, adapter_name=source, save_embedding_layers=False)
        set_peft_model_state_dict(model, weights, adapter_name=name)
    setattr(model, _REFERENCE_NAME, name)
    return name


# --- what belongs to the adapters ----------------------------------------------------------------------------


def frozen_base_names(model: nn.Module) -> set[str]:
    """Names, as in the state dict, of the tensors that existed before any adapter and are not trained."""
    of_adapters = _adapter_prefixes(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name for name in model.state_dict() if name not in trained and not name.startswith(of_adapters)}


def trained_base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train and existed before any adapter: biases with `bias="all"`, or unfrozen by hand."""
    of_adapters = _adapter_prefixes(model)
    return {n: p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(of_adapters)}


def _adapter_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of all tensors that adapters added."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    of_adapters: set[str] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            parts: Sequence[str] = (*module.adapter_layer_names, *module.other_param_names)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            of_base = ("original_module", "token_adapter")
            parts = tuple(name for name, _ in module.named_children() if name not in of_base)
        else:
            continue
        of_adapters.update(f"{prefix}.{part}." for part in parts)
    return tuple(of_adapters)


@contextmanager
def replaced_values(values: Mapping[nn.Parameter, torch.Tensor]) -> Iterator[None]:
    """Inside, each parameter has the given value, on its own device."""
    kept = {parameter: parameter.data for parameter in values}
    try:
        for parameter, value in values.items():
            parameter.data = value.to(parameter.device)
        yield
    finally:
        for parameter, value in kept.items():
            parameter.data = value


# --- the reward adapter --------------------------------------------------------------------------------------


def load_reward_adapter(
    model: Any, source: str, name: str, hub: dict[str, Any], head_names: Sequence[str]
) -> nn.Linear:
    """Add the adapter from `source` to `model`, frozen and inactive, and return its frozen score head.

    Args:
        model: PeftModel.
        source: folder or hub repository of the adapter of a sequence classifier.
        name: the adapter's name in the model.
        hub: see `checkpoints.hub_arguments`.
        head_names: possible names of the score head, such as ("score",).

    Returns:
        The head, from hidden states [..., D] to scores [..., labels], in the dtype of the model.

    Raises:
        ValueError: there is no adapter in `source`, it has no score head, or its file holds more than tensors; `name`
            is that of the adapter that is trained, or of its reference.
    """
    if name in (model.active_adapter, frozen_reference(model)):
        raise ValueError(f"reward_adapter_name={name!r} is the name of an adapter of the policy: give another one")
    folder = adapter_folder(source, hub)
    if folder is None:
        raise ValueError(f"no adapter is found in {source}: there is no {ADAPTER_CONFIG}")
    path = next(folder / file for file in ADAPTER_FILES if os.path.exists(folder / file))
    tensors = _score_tensors(read_tensors(path), head_names)
    if "weight" not in tensors:
        raise ValueError(f"{path} has no score head: no tensor of it is called {' or '.join(head_names)}")
    with untouched_flags(model):
        model.load_adapter(str(folder), name, is_trainable=False)
    labels, width = tensors["weight"].shape
    score = nn.Linear(width, labels, bias="bias" in tensors).to(device=model.device, dtype=model.dtype)
    score.load_state_dict(tensors)
    return score.requires_grad_(False)


def _score_tensors(tensors: dict[str, torch.Tensor], head_names: Sequence[str]) -> dict[str, torch.Tensor]:
    """`weight` and `bias` of the first head in `head_names` that exists."""
    for head_name in head_names:
        found = {
            name.split(".")[-1]: tensor
            for name, tensor in tensors.items()
            if head_name in name.split(".") and "original_module" not in name.split(".")
        }
        if found:
            return {part: found[part] for part in ("weight", "bias") if part in found}
    return {}
