"""An `Accelerator()` beside `TrainingArguments(bf16=True)`, which decided its precision in transformers 4.

Today `Trainer` asks for the precision itself, and accelerate refuses another one than the first of the process.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from trl_step.port.edits import Edit, Script

OF_THE_PROCESS = ("process_index", "local_process_index", "num_processes", "device", "is_main_process",
                  "is_local_main_process")  # fmt: skip
"""What `PartialState` answers as `Accelerator` does, without a precision."""
STATEMENT = "from accelerate import PartialState"

KindOf = Callable[[ast.Call], str | None]


def _precisions(nodes: Sequence[ast.AST], kind_of: KindOf) -> Iterator[str]:
    """What the script's training arguments may turn on."""
    for call in nodes:
        if isinstance(call, ast.Call) and kind_of(call) == "TrainingArguments":
            for keyword in call.keywords:
                if keyword.arg in ("bf16", "fp16") and getattr(keyword.value, "value", True):
                    yield keyword.arg


def _accelerators(nodes: Sequence[ast.AST], kind_of: KindOf) -> Iterator[ast.Call]:
    """Calls that leave the precision open."""
    for call in nodes:
        if not isinstance(call, ast.Call) or kind_of(call) != "Accelerator" or len(call.args) > 2:
            continue
        if not {None, "mixed_precision", "fp16"}.intersection(keyword.arg for keyword in call.keywords):
            yield call


def _states(nodes: Sequence[ast.AST]) -> set[ast.AST]:
    """The calls whose answer to a question about the process is all that is used: `Accelerator().process_index`."""
    owners = (node.value for node in nodes if isinstance(node, ast.Attribute) and node.attr in OF_THE_PROCESS)
    return {owner for owner in owners if isinstance(owner, ast.Call) and not owner.args and not owner.keywords}


def precision_edits(
    script: Script, nodes: Sequence[ast.AST], kind_of: KindOf, need: Callable[[str, str], None]
) -> Iterator[Edit]:
    """`PartialState()` in place of an `Accelerator()` that is asked about the process alone."""
    if precisions := list(_precisions(nodes, kind_of)):
        states = _states(nodes)
        for call in _accelerators(nodes, kind_of):
            if call in states:
                need(STATEMENT, "PartialState")
                note = f"Accelerator() would fix the precision before {precisions[0]} of TrainingArguments does"
                yield script.edit(script.span(call.func), "PartialState", note)


def precision_questions(nodes: Sequence[ast.AST], kind_of: KindOf) -> Iterator[tuple[int, str]]:
    """Line and text of each `Accelerator()` that needs a precision."""
    if precisions := list(_precisions(nodes, kind_of)):
        states, name = _states(nodes), precisions[0]
        for call in _accelerators(nodes, kind_of):
            if call not in states:
                yield (
                    call.lineno,
                    f'Accelerator() fixes the precision of the process: give it mixed_precision="{name}" if {name} of '
                    "TrainingArguments is on, or make it after the trainer",
                )
