"""Private names of other packages stand in one file, and are still there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from tests.tiny import gpt2
from trl_step import private_names

PACKAGE = Path(private_names.__file__).parent
ALLOWED = {
    "_fields", "_replace", "_asdict", "_make",  # of named tuples, documented
    "_exit", "_getframe",  # of Python, documented
    "_prepare_inputs", "_get_learning_rate", "_actions",  # what a subclass calls of its base
}  # fmt: skip


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Names that a module defines, or sets on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used(tree: ast.AST) -> Iterator[str]:
    """Private attributes and modules that a module uses, those that are named in a text of `getattr` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from filter(private, parts)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            yield from (
                one.value for one in node.args[1:2] if isinstance(one, ast.Constant) and private(str(one.value))
            )


def test_they_stand_in_one_file() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    home = Path(private_names.__file__)
    ours = {name for tree in trees.values() for name in defined(tree)} | ALLOWED
    # what runs old scripts replaces parts of other packages on purpose
    places = {p for p in trees if p != home and "port" not in p.relative_to(PACKAGE).parts}
    found = {(path.relative_to(PACKAGE).as_posix(), name) for path in places for name in used(trees[path])}
    assert sorted(one for one in found if one[1] not in ours) == []
    assert "_gradient_checkpointing_func" in set(used(trees[Path(private_names.__file__)])) - ours, (
        "the reader sees them"
    )


def test_those_of_transformers() -> None:
    model = gpt2()
    assert private_names.attention_kernel(model) == "sdpa"
    assert private_names.undivided_modules(model) == ["GPT2Block"]
    model.gradient_checkpointing_enable()
    layer = model.transformer.h[0]
    assert callable(private_names.checkpoint_function(layer))
    private_names.set_checkpoint_function(layer, print)
    assert private_names.checkpoint_function(layer) is print
    assert private_names.model_classes(AutoModelForCausalLM, model.config) == (GPT2LMHeadModel,)
    assert private_names.model_classes(GPT2LMHeadModel, model.config) == (GPT2LMHeadModel,)


def test_those_of_accelerate_and_torch() -> None:
    accelerator, one, other = Accelerator(cpu=True), torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    accelerator.prepare(one, other)
    private_names.forget_model(accelerator, one)
    assert accelerator._models == [other]
    before = private_names.put_in_force(type(accelerator.state), {"a": 1})
    assert private_names.put_in_force(type(accelerator.state), before) == {"a": 1}
    assert accelerator.state.device.type == "cpu"
    assert private_names.leaves_steps_out(torch.optim.Adam(one.parameters(), fused=True))
    assert not private_names.leaves_steps_out(torch.optim.SGD(one.parameters()))
