"""Scripts of TRL 0.12 to 1.9, where `PPOConfig` and `PPOTrainer` mean PPO with `train()`.

The step API had the same two names before, in the same places. What a script does with them says which it means; here
PPO with `train()` is in `trl_step.experimental.ppo`, where later releases have it too.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import resources

from trl_step.port.releases import Origin

NAMES = ("PPOConfig", "PPOTrainer")
PACKAGES = ("trl_step", "trl_step.trainer")
MODULES = ("ppo_config", "ppo_trainer")
PLACES = (*PACKAGES, *(f"trl_step.trainer.{module}" for module in MODULES))
"""Where the names of the step API are; in TRL 0.12 to 0.28 PPO with `train()` was there."""
EXPERIMENTAL = "trl_step.experimental.ppo"

TRAINER_ARGUMENTS = (
    "args", "policy", "ref_policy", "reward_model", "value_model", "train_dataset", "eval_dataset", "optimizers",
    "callbacks", "peft_config",
)  # fmt: skip
"""Arguments of `PPOTrainer` that only PPO with `train()` has."""
STEP_ARGUMENTS = ("dataset", "optimizer", "num_shared_layers", "lr_scheduler", "training_data_collator")
"""Arguments of `PPOTrainer` that only the step API has."""
STEP_METHODS = ("step", "generate", "log_stats")
"""Methods of the step API's trainer that the other one lacks."""
LATER_RLOO = {
    "num_generations": "rloo_k",
    "max_completion_length": "response_length",
    "num_iterations": "num_ppo_epochs",
    "epsilon": "cliprange",
    "beta": "kl_coef",
    "normalize_advantages": "normalize_advantage or normalize_reward",
}
"""Settings of `RLOOConfig` from TRL 0.22 on, and what does the same here."""


@cache
def step_fields() -> frozenset[str]:
    """The settings of the step API's `PPOConfig`, read from its source: importing it takes torch."""
    source = resources.files("trl_step.trainer").joinpath("ppo_config.py").read_text(encoding="utf-8")
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "PPOConfig")
    return frozenset(ast.unparse(item.target) for item in next(classes).body if isinstance(item, ast.AnnAssign))


NameOf = Callable[[ast.expr], str | None]
"""Which of `NAMES` of `PLACES` an expression denotes; None if another thing."""


def means_train(nodes: Sequence[ast.AST], name_of: NameOf, origin: Origin) -> bool:
    """Whether the script's `PPOConfig` and `PPOTrainer` are those with `train()`.

    What it passes to the trainer decides, then what it calls on it, then the settings, then the release that it is
    written for. Without any of them it is the step API.
    """
    given = {keyword for call in _calls(nodes, name_of, "PPOTrainer") for keyword in _keywords(call)}
    methods = set(_methods(nodes, name_of))
    if given.intersection(TRAINER_ARGUMENTS):
        return True
    if given.intersection(STEP_ARGUMENTS) or methods.intersection(STEP_METHODS):
        return False
    settings = {keyword for call in _calls(nodes, name_of, "PPOConfig") for keyword in _keywords(call)}
    return "train" in methods or not settings <= step_fields() or origin.has_only_train


def _calls(nodes: Sequence[ast.AST], name_of: NameOf, name: str) -> Iterator[ast.Call]:
    """The calls of a class, and those of `super().__init__` in a subclass of it."""
    for node in nodes:
        if isinstance(node, ast.Call) and name_of(node.func) == name:
            yield node
        elif isinstance(node, ast.ClassDef) and any(name_of(base) == name for base in node.bases):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call) and ast.unparse(inner.func) == "super().__init__":
                    yield inner


def _keywords(call: ast.Call) -> Iterator[str]:
    return (keyword.arg for keyword in call.keywords if keyword.arg is not None)


def _methods(nodes: Sequence[ast.AST], name_of: NameOf) -> Iterator[str]:
    """Methods that are called on a trainer: `train` of `trainer = PPOTrainer(...)` and `trainer.train()`."""
    trainers = {
        ast.unparse(target)
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if name_of(node.value.func) == "PPOTrainer"
        for target in node.targets
    }
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            is_made_here = isinstance(owner, ast.Call) and name_of(owner.func) == "PPOTrainer"
            if is_made_here or (trainers and ast.unparse(owner) in trainers):
                yield node.func.attr


def for_the_user(nodes: Sequence[ast.AST], class_of: Callable[[ast.expr], str]) -> Iterator[tuple[int, str]]:
    """Line and text of calls that no other argument can stand for; `class_of` gives the name of what is called."""
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        name, given = class_of(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        if name == "RLOOTrainer" and "reward_funcs" in given:
            yield (
                node.lineno,
                (
                    "RLOOTrainer(reward_funcs=...) is that of TRL 0.22 and later; here it is that of 0.9 to 0.21, with "
                    "policy, ref_policy and reward_model, which may be a function of prompts and completions"
                ),
            )
        if name == "RLOOConfig" and (later := [setting for setting in LATER_RLOO if setting in given]):
            pairs = ", ".join(f"{setting} is {LATER_RLOO[setting]} here" for setting in later)
            yield node.lineno, f"RLOOConfig is that of TRL 0.22 and later: {pairs}"
        penalty = given.get("non_eos_penalty") if name in ("RLOOConfig", "PPOv2Config") else None
        if penalty is not None and getattr(penalty, "value", True):
            yield (
                node.lineno,
                (
                    "non_eos_penalty gave an answer without an end token penalty_reward_value as its score; "
                    "missing_eos_penalty, which is here, is subtracted from the score"
                ),
            )
