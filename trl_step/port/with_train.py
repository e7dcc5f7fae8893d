"""Which PPO a script means: that of `step`, or that of `train()`, which TRL has under the same name from 0.12 to 1.9."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from trl_step.port.rules import Rename, Rule

NAMES = ("PPOConfig", "PPOTrainer")
PLACE = "trl_step.experimental.ppo"
MOVED: Mapping[tuple[str, str], tuple[str, str]] = {
    (module, name): (PLACE, name)
    for name in NAMES
    for package in ("trl", "trl_step")
    for module in (package, f"{package}.trainer", f"{package}.trainer.{name[:3].lower()}_{name[3:].lower()}")
}
"""(module, name) in a script that uses `train()`, and where the name is."""
RENAMED: tuple[Rule, ...] = (
    Rename("config", "args"), Rename("tokenizer", "processing_class"), Rename("policy", "model"),
    Rename("ref_policy", "ref_model"),
)  # fmt: skip
"""Arguments of `PPOTrainer` in 0.12 to 0.14."""
OF_TRAINER = {"args", "reward_model", "train_dataset", "eval_dataset", "policy", "ref_policy"}
OF_CONFIG = {
    "output_dir", "num_ppo_epochs", "kl_coef", "response_length", "total_episodes", "num_mini_batches", "stop_token",
    "stop_token_id", "missing_eos_penalty", "per_device_train_batch_size", "kl_estimator",
}  # fmt: skip
"""Keywords that only the classes with `train()` have."""


def uses_train(nodes: Iterable[ast.AST]) -> bool:
    """Whether a script's `PPOConfig` and `PPOTrainer` are those with `train()`.

    They are if one is called with an argument that only they have, or if `train()` is called on what `PPOTrainer`
    made.
    """
    nodes = list(nodes)
    made: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Call):
            keywords = {keyword.arg for keyword in node.keywords}
            name = _called(node)
            if (name == "PPOTrainer" and keywords & OF_TRAINER) or (name == "PPOConfig" and keywords & OF_CONFIG):
                return True
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _called(node.value) == "PPOTrainer":
            made |= {ast.unparse(target) for target in node.targets}
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "train"
        and ast.unparse(node.func.value) in made
        for node in nodes
    )


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@contextmanager
def names_with_train(script: str) -> Iterator[None]:
    """Inside, `trl_step.PPOConfig` and `PPOTrainer` are those that `script` (its text) means."""
    import trl_step
    from trl_step.experimental import ppo

    if not uses_train(ast.walk(ast.parse(script))):
        yield
        return
    before = {name: getattr(trl_step, name) for name in NAMES}
    try:
        for name in NAMES:
            setattr(trl_step, name, getattr(ppo, name))
        yield
    finally:
        for name, thing in before.items():
            setattr(trl_step, name, thing)
