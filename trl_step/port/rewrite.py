"""Finds what has to change in the text of an old script, from its syntax tree.

Calls are recognized by the name that is called (`kind_of`). Dictionaries of arguments are tracked by name:
`sent_kwargs = {...}` belongs to the call with `**sent_kwargs`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from trl_step.port.aliases import new_name
from trl_step.port.config_calls import default_edits, questions
from trl_step.port.edits import Edit, Script, applied
from trl_step.port.imports import (
    NEW_PACKAGE,
    WITH_TRAIN,
    Imports,
    import_edits,
    import_of,
    module_edit,
    train_import_edits,
)
from trl_step.port.moved import MOVED_IMPORTS, MOVED_MODULES
from trl_step.port.releases import UNKNOWN_ORIGIN, Origin
from trl_step.port.rewriting.arguments import Arguments
from trl_step.port.rewriting.chats import chat_edits, chat_questions
from trl_step.port.rewriting.devices import device_edits, device_questions
from trl_step.port.rewriting.members import member_edits
from trl_step.port.rewriting.precision import precision_edits, precision_questions
from trl_step.port.rewriting.reads import arguments_of, read_edits, read_questions
from trl_step.port.rules import (
    ALL_SCORES,
    CALLS,
    TEXT_CLASSIFICATION,
)
from trl_step.port.train_api import EXPERIMENTAL, NAMES, PLACES, for_the_user, means_train

KINDS = {
    "Seq2SeqTrainingArguments": "TrainingArguments",
    "Seq2SeqTrainer": "Trainer",
    "GenerationConfig": "generate",
    "prepare_model_for_int8_training": "prepare_model_for_kbit_training",
    "prepare_model_for_training": "prepare_model_for_kbit_training",
    "RLOOConfig": "OnPolicyConfig",
    "PPOv2Config": "OnPolicyConfig",
}
"""Called names that are not themselves a kind of `CALLS`."""
TRAIN_KINDS = {"PPOConfig": "OnPolicyConfig", "PPOTrainer": "experimental.PPOTrainer"}
"""The kinds of the calls of PPO with `train()`."""
OF_BASES = ("Trainer", "TrainingArguments", "OnPolicyConfig", "experimental.PPOTrainer")
"""Kinds that also concern classes that derive from what is called."""
DICTIONARIES = {
    "generation_kwargs": "generate",
    "model_kwargs": "from_pretrained",
    "accelerator_kwargs": "Accelerator",
}
"""Keywords whose dictionary holds the arguments of another call."""
MOST_PASSES = 8
MOVED_PLACES = {".".join(old): ".".join(new) for old, new in MOVED_IMPORTS.items()}
"""Dotted names that moved."""
ALL_SCORES_IMPORT = "from trl_step.extras.all_scores import AllScoresPipeline"


def rewritten(data: bytes, origin: Origin = UNKNOWN_ORIGIN) -> tuple[bytes, list[Edit]]:
    """The source with every change made, and the changes, in the order of the lines.

    Nested arguments are changed in later passes, so the result has nothing left to change. With a known `origin`,
    calls of `PPOConfig` get the defaults of that release.

    Raises:
        SyntaxError: it is not valid in the running Python version.
    """
    data, made = applied(data, Rewriter(Script(data), origin).default_edits(origin))
    first = Rewriter(Script(data), origin)
    data, edits = applied(data, chat_edits(first.script, first.nodes, first.imports, first.own_names))
    made += edits
    needed: dict[str, str] = {}
    for _ in range(MOST_PASSES):
        rewriter = Rewriter(Script(data), origin)
        data, edits = applied(data, rewriter.edits())
        needed |= rewriter.needed
        if not edits:
            break
        made += edits
    data, edits = applied(data, import_edits(Script(data), needed))
    made += edits
    return data, sorted(made, key=lambda edit: edit.line)


def undecided(data: bytes, origin: Origin) -> list[tuple[int, str]]:
    """Line and text of calls that mean something else in another release, and stay as they are."""
    rewriter = Rewriter(Script(data), origin)
    found = list(for_the_user(rewriter.nodes, rewriter.class_of))
    found += device_questions(rewriter.script, rewriter.nodes, rewriter.kind_of)
    found += read_questions(rewriter.script, rewriter.nodes, rewriter.training_arguments(), rewriter.own_names)
    found += precision_questions(rewriter.nodes, rewriter.kind_of)
    found += chat_questions(rewriter.nodes, rewriter.imports, rewriter.own_names)
    if rewriter.imports.is_old:
        found += questions(rewriter.script, rewriter.nodes, rewriter.is_config, origin)
    return found


def is_of_train_api(data: bytes, origin: Origin) -> bool:
    """Whether the script's `PPOTrainer` is that of TRL 0.12 and later.

    Raises:
        SyntaxError: it is not valid in the running Python version.
    """
    return Rewriter(Script(data), origin).means_train


class Rewriter:
    """Finds the edits of one script."""

    def __init__(self, script: Script, origin: Origin = UNKNOWN_ORIGIN) -> None:
        self.script = script
        self.nodes = list(nodes_outside_of_f_strings(script.tree))
        self.own_functions = {node.name for node in self.nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        self.own_names = self.own_functions | {
            node.target.id
            for node in self.nodes
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        """Functions, classes and fields of the script."""
        self.imports = Imports(self.nodes, script.tree.body)
        self.needed: dict[str, str] = {}
        """Names that the edits need, and the statements that import them."""
        self.arguments = Arguments(script, self.nodes, self._need)
        is_old = self.imports.is_old
        self.means_train = means_train(self.nodes, self.step_name, origin if is_old else UNKNOWN_ORIGIN)
        """Whether the script's `PPOTrainer` is that of TRL 0.12 and later."""
        self.kinds_of_classes = self._kinds_of_classes()

    def edits(self) -> list[Edit]:
        """All edits but new imports, in no order; they may overlap."""
        parts = [self._import_edits(), self._call_edits(), self._dictionary_edits()]
        parts.append(member_edits(self.script, self.nodes, self.own_names))
        parts.append(device_edits(self.script, self.nodes, self.arguments.source, self._need))
        parts.append(read_edits(self.script, self.nodes, self.training_arguments(), self.own_names))
        parts.append(precision_edits(self.script, self.nodes, self.kind_of, self._need))
        return [edit for part in parts for edit in part]

    def default_edits(self, origin: Origin) -> list[Edit]:
        """The defaults of the script's release; none in a script that is ported already."""
        return list(default_edits(self.script, self.nodes, self.is_config, origin)) if self.imports.is_old else []

    def is_config(self, node: ast.expr) -> bool:
        """Whether the expression is `PPOConfig` of the step API."""
        return not self.means_train and self.step_name(node) == "PPOConfig"

    def step_name(self, node: ast.expr) -> str | None:
        """Which of `train_api.NAMES` the expression is, if it is one from where the step API has them."""
        return self.imports.name_from(node, NAMES, PLACES)

    def train_name(self, node: ast.expr) -> str | None:
        """Which of `train_api.NAMES` the expression is, if it is that of PPO with `train()`."""
        return self.step_name(node) if self.means_train else self.imports.name_from(node, NAMES, (EXPERIMENTAL,))

    def training_arguments(self) -> frozenset[str]:
        """Expressions of the script that are training arguments."""
        return arguments_of(self.nodes, self.kind_of_class)

    # --- imports ---------------------------------------------------------------------------------------------

    def _import_edits(self) -> Iterator[Edit]:
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if new_name(alias.name) != alias.name:
                        yield self.script.edit(self.script.span(alias), import_of(alias), NEW_PACKAGE)
                    elif alias.name in MOVED_MODULES:
                        bound = f" as {alias.asname}" if alias.asname else ""
                        new = MOVED_MODULES[alias.name]
                        note = f"{alias.name} is {new} today"
                        yield self.script.edit(self.script.span(alias), f"{new}{bound}", note)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                if self.means_train and new_name(node.module) in PLACES:
                    yield from train_import_edits(self.script, node)
                elif new_name(node.module) != node.module:
                    yield module_edit(self.script, node, new_name(node.module), NEW_PACKAGE)
                elif node.module in MOVED_MODULES:
                    new = MOVED_MODULES[node.module]
                    yield module_edit(self.script, node, new, f"{node.module} is {new} today")
                for alias in node.names:
                    if (node.module, alias.name) in MOVED_IMPORTS:
                        yield self._moved_name(node, alias)
            elif isinstance(node, ast.Attribute) and (place := self.imports.place_of(node)) in MOVED_PLACES:
                yield self._moved_attribute(node, place, MOVED_PLACES[place])
            elif isinstance(node, ast.Attribute) and self.means_train and self.step_name(node):
                package = ast.unparse(node).partition(".")[0]
                self._need(f"import {EXPERIMENTAL}", EXPERIMENTAL)
                text = f"{package}{EXPERIMENTAL.removeprefix('trl_step')}.{node.attr}"
                yield self.script.edit(self.script.span(node), text, WITH_TRAIN)

    def _moved_attribute(self, node: ast.Attribute, old: str, new: str) -> Edit:
        """`package.old` by the name that the script gives the package, or by the whole name of another one."""
        bound, package = ast.unparse(node).partition(".")[0], new.partition(".")[0]
        if self.imports.packages[bound] == package:
            new = f"{bound}{new.removeprefix(package)}"
        else:
            self._need(f"import {new.rpartition('.')[0]}", new.rpartition(".")[0])
        return self.script.edit(self.script.span(node), new, f"{old} is {MOVED_PLACES[old]} today")

    def _moved_name(self, node: ast.ImportFrom, alias: ast.alias) -> Edit:
        module, name = MOVED_IMPORTS[str(node.module), alias.name]
        bound = alias.asname or alias.name
        text = name if name == bound else f"{name} as {bound}"
        note = f"{alias.name} of {node.module} is {module}.{name} today"
        if module == node.module:
            return self.script.edit(self.script.span(alias), text, note)
        if len(node.names) == 1:
            return self.script.edit(self.script.span(node), f"from {module} import {text}", note)
        self.imports.known.discard(bound)
        self._need(f"from {module} import {text}", bound)
        return self.script.edit(self.script.removal(*self.script.span(alias)), "", note)

    def _need(self, statement: str, name: str) -> None:
        if name not in self.imports.known:
            self.needed[name] = statement

    # --- calls -----------------------------------------------------------------------------------------------

    def kind_of(self, call: ast.Call) -> str | None:
        """The kind in `CALLS`; "pipe" for whatever else is called, which may be a pipeline."""
        function = call.func
        name = _last_name(function)
        if name == "__init__" and isinstance(function, ast.Attribute) and _is_super(function.value):
            return self.kinds_of_classes.get(id(call))
        if name in self.own_functions:
            return self.kinds_of_classes.get(name)
        if name == "from_pretrained" and isinstance(function, ast.Attribute):
            owner = self.script.text(function.value).partition(".")[0]
            return "value_head.from_pretrained" if owner in self.imports.ours else name
        return self._kind_of_name(function) or "pipe"

    def class_of(self, function: ast.expr) -> str:
        """The name of what is called, before an import gave it another."""
        name = _last_name(function)
        return self.imports.originals.get(name, name) if isinstance(function, ast.Name) else name

    def kind_of_class(self, name: ast.expr) -> str | None:
        """The kind of calls of a class, which may be one of the script's."""
        last = _last_name(name)
        return self.kinds_of_classes.get(last) if last in self.own_functions else self._kind_of_name(name)

    def _kind_of_name(self, function: ast.expr) -> str | None:
        if train_name := self.train_name(function):
            return TRAIN_KINDS[train_name]
        name = self.class_of(function)
        kind = KINDS.get(name, name)
        return kind if kind in CALLS else None

    def _kinds_of_classes(self) -> dict[str | int, str]:
        """The kind of the base class: by name for the script's classes without their own `__init__`, by `id` for
        `super().__init__` calls."""
        kinds: dict[str | int, str] = {}
        for node in self.nodes:
            of_others = [base for base in getattr(node, "bases", ()) if _last_name(base) not in self.own_functions]
            bases = [self._kind_of_name(base) for base in of_others]
            kind = next((kind for kind in bases if kind in OF_BASES), None)
            if kind is None or not isinstance(node, ast.ClassDef):
                continue
            if not any(getattr(member, "name", "") == "__init__" for member in node.body):
                kinds[node.name] = kind
            for inner in ast.walk(node):
                if (
                    isinstance(inner, ast.Call)
                    and isinstance(inner.func, ast.Attribute)
                    and _is_super(inner.func.value)
                ):
                    kinds[id(inner)] = kind
        return kinds

    def _call_edits(self) -> Iterator[Edit]:
        all_scores = b"return_all_scores" in self.script.data
        for call in self.nodes:
            if isinstance(call, ast.Call) and (kind := self.kind_of(call)) is not None:
                yield from self.arguments.of_call(kind, call)
                if kind == "pipeline" and all_scores and _may_classify_texts(call):
                    yield self._pipeline_class(call)

    def _pipeline_class(self, call: ast.Call) -> Edit:
        """The class that knows `sort_scores`, as the last argument."""
        arguments: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
        last = self.arguments.end(
            max(arguments, key=lambda item: self.script.span(item)[1]), self.script.span(call)[1] - 1
        )
        self._need(ALL_SCORES_IMPORT, "AllScoresPipeline")
        return self.script.edit((last, last), ", pipeline_class=AllScoresPipeline", f"pipeline_class: {ALL_SCORES.why}")

    # --- dictionaries ----------------------------------------------------------------------------------------

    def _dictionary_edits(self) -> Iterator[Edit]:
        kinds = self._dictionary_kinds()
        for node in self.nodes:
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    kind_inside = DICTIONARIES.get(keyword.arg) if keyword.arg else self.kind_of(node)
                    if kind_inside is not None:
                        yield from self.arguments.of_dictionary(kind_inside, keyword.value)
                if isinstance(node.func, ast.Attribute) and node.func.attr == "update":
                    for kind in kinds[self.script.text(node.func.value)]:
                        yield from self.arguments.of_call(kind, node)
                        for argument in node.args:
                            yield from self.arguments.of_dictionary(kind, argument)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                for kind in kinds[self.script.text(target)]:
                    yield from self.arguments.of_dictionary(kind, node.value)
                if isinstance(target, ast.Subscript) and (isinstance(node, ast.AnnAssign) or len(node.targets) == 1):
                    for kind in kinds[self.script.text(target.value)]:
                        yield from self.arguments.of_assignment(kind, node, target, node.value)

    def _dictionary_kinds(self) -> defaultdict[str, set[str]]:
        """For the name of each dictionary: the kinds of the calls that it is passed to."""
        kinds: defaultdict[str, set[str]] = defaultdict(set)
        for call in self.nodes:
            if isinstance(call, ast.Call):
                for keyword in call.keywords:
                    kind = DICTIONARIES.get(keyword.arg) if keyword.arg else self.kind_of(call)
                    if kind is not None:
                        kinds[self.script.text(keyword.value)].add(kind)
        return kinds


def nodes_outside_of_f_strings(node: ast.AST) -> Iterator[ast.AST]:
    """Like `ast.walk`, without the nodes inside f-strings, whose positions are wrong before Python 3.12."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.JoinedStr):
            waiting += reversed(list(ast.iter_child_nodes(node)))


def _last_name(function: ast.expr) -> str:
    """The name that is called: `b` of `a.b`."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _last_name(node.func) == "super"


def _may_classify_texts(call: ast.Call) -> bool:
    """Whether the task of `pipeline(task, ...)` is, or may be, text classification, and no class was chosen."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    task = call.args[0] if call.args else keywords.get("task")
    is_other = isinstance(task, ast.Constant) and task.value not in TEXT_CLASSIFICATION
    return not is_other and "pipeline_class" not in keywords and bool(call.args or call.keywords)
