"""Nested containers of numbers, texts and tensors as JSON and safetensors: files that cannot contain code.

A tree is what a `state_dict` usually is: dictionaries, lists and tuples of None, truth values, numbers, texts and
tensors. It comes back with the same types and the same bits.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

TAG = "$"
"""In JSON, a dictionary with this key stands for what JSON does not have."""


def write_tree(folder: Path, name: str, tree: Any) -> list[str]:
    """Write `tree` into `folder` as `name`.json, with its tensors beside it as `name`.safetensors.

    What these do not hold, such as the quantized tensors of some optimizers, is written as `name`.pt if torch reads it
    back with `weights_only=True`.

    Returns:
        the names of the files

    Raises:
        TypeError: there is something else in the tree; the message says where and what.
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        encoded = _encode(tree, (), tensors, {})
    except TypeError as error:
        return [_write_checked(folder / f"{name}.pt", tree, error)]
    (folder / f"{name}.json").write_text(json.dumps(encoded, allow_nan=False), encoding="utf-8")
    if not tensors:
        return [f"{name}.json"]
    save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    return [f"{name}.json", f"{name}.safetensors"]


def read_tree(folder: Path, name: str) -> Any:
    """What `write_tree` wrote, on the CPU. Tensors are read from the file when they are used: clone what stays."""
    if (folder / f"{name}.pt").exists():
        return torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
    tensors: dict[str, torch.Tensor] = {}
    path = folder / f"{name}.safetensors"
    if path.exists():
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return _decode(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors)


def _write_checked(path: Path, tree: Any, error: TypeError) -> str:
    buffer = io.BytesIO()
    try:
        torch.save(tree, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception:
        raise error from None
    path.write_bytes(buffer.getvalue())
    return path.name


def cloned(tree: Any) -> Any:
    """The tree with tensors of its own."""
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: cloned(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(cloned(item) for item in tree)
    return tree


def _encode(tree: Any, path: tuple[str, ...], tensors: dict[str, torch.Tensor], seen: dict[tuple, str]) -> Any:
    """`tree` as JSON; its tensors go into `tensors`, those that share their memory once (`seen`)."""
    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, float):
        return float(tree) if math.isfinite(tree) else {TAG: "float", "value": repr(float(tree))}
    if type(tree) in (torch.Tensor, torch.nn.Parameter):
        return {TAG: "tensor", "name": _keep(tree.detach(), "/".join(path), tensors, seen)}
    if isinstance(tree, (list, tuple)):
        items = [_encode(item, (*path, str(i)), tensors, seen) for i, item in enumerate(tree)]
        return items if isinstance(tree, list) else {TAG: "tuple", "items": items}
    if isinstance(tree, Mapping):
        pairs = [(key, _encode(value, (*path, str(key)), tensors, seen)) for key, value in tree.items()]
        if all(isinstance(key, str) for key in tree) and TAG not in tree:
            return dict(pairs)
        return {TAG: "dict", "items": [[_encode(key, path, tensors, seen), value] for key, value in pairs]}
    raise TypeError(
        f"{'/'.join(path) or 'the state'} is a {type(tree).__name__}, which JSON and safetensors do not hold"
    )


def _keep(tensor: torch.Tensor, name: str, tensors: dict[str, torch.Tensor], seen: dict[tuple, str]) -> str:
    """Put `tensor` into `tensors` unless it is there under another name; returns the name it has there."""
    place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    if tensor.numel() and place in seen:
        return seen[place]
    while name in tensors:  # keys that hold a "/"
        name += "'"
    seen[place] = name
    own = tensor.contiguous()
    # a part of a larger tensor would take the whole of it into the file
    tensors[name] = own if own.untyped_storage().nbytes() == own.nbytes else own.clone()
    return name


def _decode(encoded: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(encoded, list):
        return [_decode(item, tensors) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    kind = encoded.get(TAG)
    if kind is None:
        return {key: _decode(value, tensors) for key, value in encoded.items()}
    if kind == "float":
        return float(encoded["value"])
    if kind == "tensor":
        return tensors[encoded["name"]]
    items = [_decode(item, tensors) for item in encoded["items"]]
    return tuple(items) if kind == "tuple" else dict(items)
