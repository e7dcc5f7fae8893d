"""Old settings that a script reads from its training arguments, or sets: `args.evaluation_strategy`, `args.no_cuda`."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from trl_step.port.edits import Edit, Script
from trl_step.port.rewriting.members import attribute_edit
from trl_step.trainer.text.old_arguments import RENAMED, WHAT_TO_DO, WITHOUT_EFFECT

KINDS = ("TrainingArguments", "OnPolicyConfig")
OUR_ARGUMENTS = ("RewardConfig", "SFTConfig", "DPOConfig")
OUR_TRAINERS = ("RewardTrainer", "SFTTrainer", "DPOTrainer", "IterativeSFTTrainer")
"""They take old names, so their calls are left alone; read back, an old name is None."""
EXPRESSIONS: Mapping[str, str] = {
    "adafactor": '({}.optim == "adafactor")',
    "group_by_length": '({}.train_sampling_strategy == "group_by_length")',
    "include_inputs_for_metrics": '("inputs" in {}.include_for_metrics)',
    "split_batches": "{}.accelerator_config.split_batches",
    "dispatch_batches": "{}.accelerator_config.dispatch_batches",
    "warmup_ratio": "({0}.warmup_steps if {0}.warmup_steps < 1 else 0.0)",
}
"""What says the same today; {} is the training arguments."""

KindOfName = Callable[[ast.expr], str | None]


def arguments_of(nodes: Sequence[ast.AST], kind_of_name: KindOfName) -> frozenset[str]:
    """Expressions that are training arguments, as far as the text says: `training_args`, `self.args`."""

    def is_kind(name: ast.expr, kinds: Sequence[str], ours: Sequence[str]) -> bool:
        return kind_of_name(name) in kinds or ast.unparse(name).rpartition(".")[2] in ours

    found: set[str] = set()
    parsers: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.arg) and node.annotation is not None and is_kind(node.annotation, KINDS, OUR_ARGUMENTS):
            found.add(node.arg)
        elif isinstance(node, ast.ClassDef) and any(is_kind(base, ["Trainer"], OUR_TRAINERS) for base in node.bases):
            found.add("self.args")
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            target, call = node.targets[0], node.value
            if is_kind(call.func, KINDS, OUR_ARGUMENTS):
                found.add(ast.unparse(target))
            elif is_kind(call.func, ["Trainer"], OUR_TRAINERS):
                found.add(f"{ast.unparse(target)}.args")
            elif (kinds := _parsed_kinds(call)) is not None:
                parsers[ast.unparse(target)] = kinds
            elif isinstance(call.func, ast.Attribute) and call.func.attr.startswith("parse_"):
                owner = call.func.value
                made = _parsed_kinds(owner) if isinstance(owner, ast.Call) else parsers.get(ast.unparse(owner))
                targets = target.elts if isinstance(target, ast.Tuple) else []
                found |= {
                    ast.unparse(each)
                    for each, kind in zip(targets, made or [], strict=False)
                    if is_kind(kind, KINDS, OUR_ARGUMENTS)
                }
    return frozenset(found)


def _parsed_kinds(call: ast.Call) -> list[ast.expr] | None:
    """The classes of `HfArgumentParser((A, B))`."""
    if not ast.unparse(call.func).endswith(("HfArgumentParser", "TrlParser")) or not call.args:
        return None
    kinds = call.args[0]
    return list(kinds.elts) if isinstance(kinds, (ast.Tuple, ast.List)) else [kinds]


def _uses(nodes: Sequence[ast.AST], owners: AbstractSet[str], own: AbstractSet[str]) -> Iterator[ast.Attribute]:
    """Attributes of training arguments with an old name that is not one of the script's `own` fields."""
    names = {*RENAMED, *EXPRESSIONS, *WITHOUT_EFFECT} - own
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) in owners:
            yield node


def read_edits(
    script: Script, nodes: Sequence[ast.AST], owners: AbstractSet[str], own: AbstractSet[str]
) -> Iterator[Edit]:
    """The new name, or an expression that says the same."""
    for node in _uses(nodes, owners, own):
        if node.attr in RENAMED:
            new = RENAMED[node.attr]
            yield attribute_edit(script, node, f".{new}", f"{node.attr} -> {new} (it was renamed)")
        elif node.attr in EXPRESSIONS and isinstance(node.ctx, ast.Load):
            new = EXPRESSIONS[node.attr].format(script.text(node.value))
            yield script.edit(script.span(node), new, f"{script.text(node)} -> {new}")


def read_questions(
    script: Script, nodes: Sequence[ast.AST], owners: AbstractSet[str], own: AbstractSet[str]
) -> Iterator[tuple[int, str]]:
    """Line and text of the uses that nothing stands for."""
    for node in _uses(nodes, owners, own):
        is_read = isinstance(node.ctx, ast.Load)
        if node.attr in WITHOUT_EFFECT or (node.attr in EXPRESSIONS and not is_read):
            advice = WHAT_TO_DO.get(node.attr, "" if node.attr in WITHOUT_EFFECT else "give it to TrainingArguments")
            text = f"{script.text(node)} is {'read' if is_read else 'set'}: transformers 5 has no such setting"
            yield node.lineno, f"{text}{'; ' * bool(advice)}{advice}"
