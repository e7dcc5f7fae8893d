"""Finds checkpoint files and reads value heads from them.

A path that exists on disk is never looked up on a hub. Pickle files are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from trl_step.models.notices import warn_user

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In transformers' order of precedence. Next to an adapter, the first one holds only the value head."""

HEAD_FILES = ("value_head.safetensors", "value_head.bin")
"""Where other tools, such as LLaMA-Factory, write a value head."""

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")

HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
"""Of a repository: a name, or an owner and a name."""

SAFETENSORS_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained` that say where and how to find files."""
    return {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}


def require_source(source: str | os.PathLike[str]) -> None:
    """Raise a `FileNotFoundError` if `source` can only be a folder, as a hub has no such names, and does not exist."""
    name, is_path = os.fspath(source), isinstance(source, os.PathLike)
    if os.path.isfile(name):
        raise NotADirectoryError(f"{name} is a file: give the folder that it is in")
    if not os.path.exists(name) and (is_path or not HUB_NAME.fullmatch(name)):
        hint = '; "~" is not expanded, os.path.expanduser does that' if name.startswith("~") else ""
        hint += "; a name on the hub has to be a string" * is_path
        raise FileNotFoundError(f"there is no folder {name or repr(name)} (looked for {os.path.abspath(name)}){hint}")


def names_folder(source: str) -> bool:
    """Whether `source` is a path of this machine, and not the name of a repository."""
    return os.path.isabs(source) or source.startswith(("~", ".")) or os.path.isdir(source)


def find_file(source: str, filename: str, hub: Mapping[str, Any]) -> Path | None:
    """`filename` in the folder `source`; if there is no such folder, in the hub repository of that name.

    Args:
        source: folder or repository.
        filename: its name in there.
        hub: see `hub_arguments`.

    Returns:
        Its path on disk, or None if it does not exist or the hub cannot be reached.

    Raises:
        FileNotFoundError: there is no such folder, and no repository can have this name.
    """
    require_source(source)
    if os.path.exists(source):
        path = Path(source, hub.get("subfolder", ""), filename)
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(source, filename, **hub))
    except (EntryNotFoundError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError):
        return None


def warn_of_old_adapter(folder: str) -> None:
    """Warn of an adapter in `folder`, where a whole model was saved: `from_pretrained` would take the adapter."""
    if os.path.exists(os.path.join(folder, ADAPTER_CONFIG)):
        warn_user(
            f"the whole model was saved in {folder}, which holds an adapter as well, and from_pretrained loads the "
            f"adapter in place of the model: move {ADAPTER_CONFIG} away, or save the model in a folder of its own"
        )


def read_tensors(path: Path, parts: Sequence[str] = ("",)) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors or .bin file, on the CPU, whose names contain one of `parts`.

    Raises:
        ValueError: a .bin file that holds anything but plain tensors; its code does not run.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if _has_part(name, parts)}  # noqa: SIM118
    try:
        # an old file is not a zip archive, and cannot be memory-mapped
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it holds more than tensors, and reading it could run code. If you trust it, read it "
            "with torch.load(..., weights_only=False) yourself and save the tensors with safetensors."
        ) from error
    return {name: tensor for name, tensor in tensors.items() if _has_part(name, parts)}


def _has_part(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)


def weight_files(source: str, hub: Mapping[str, Any], parts: Sequence[str] = ("",)) -> Iterator[Path]:
    """The weight files of a checkpoint; of the shards only those with a tensor whose name contains one of `parts`.

    Raises:
        ValueError: an index names a shard that does not exist.
    """
    for filename in WEIGHT_FILES:
        path = find_file(source, filename, hub)
        if path is None:
            continue
        if path.suffix != ".json":
            yield path
            continue
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        for shard in sorted({file for name, file in weight_map.items() if _has_part(name, parts)}):
            shard_path = find_file(source, shard, hub)
            if shard_path is None:
                raise ValueError(f"{path} names the shard {shard}, which is not in {source}")
            yield shard_path


def read_value_head(source: str, hub: Mapping[str, Any], modules: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's value head, from the first of its files that has any.

    Args:
        source: folder or hub repository.
        hub: see `hub_arguments`.
        modules: names of the requested modules, such as ("v_head",).

    Returns:
        Names such as v_head.summary.weight, and tensors; empty if no file has one.
    """
    parts = tuple(f"{module}." for module in modules)
    for path in weight_files(source, hub, parts):
        tensors = read_tensors(path, parts)
        if tensors:
            return tensors
    own = next((found for name in HEAD_FILES if (found := find_file(source, name, hub)) is not None), None)
    if own is None:
        return {}
    tensors = read_tensors(own)
    of_modules = {name: tensor for name, tensor in tensors.items() if _has_part(name, parts)}
    return of_modules or {f"{parts[0]}{name}": tensor for name, tensor in tensors.items()}


def dtype_of_checkpoint(source: str, hub: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of the first floating-point tensor of a safetensors checkpoint; None if it cannot be read."""
    for path in weight_files(source, hub):
        if path.suffix != ".safetensors":
            return None
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                dtype = SAFETENSORS_DTYPES.get(file.get_slice(name).get_dtype())
                if dtype is not None and not name.startswith("v_head."):
                    return dtype
    return None
