"""Names that are imported when they are first used, and packages that are imported only where they are used."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG
from tests.markdown_pages import ROOT

HEAVY = ("torch", "transformers", "accelerate", "datasets", "tyro", "peft", "wandb", "pandas", "pyarrow")


def lazy_packages() -> list[str]:
    """Dotted names of the packages with a table `HOMES`."""
    found = [path for path in (ROOT / "trl_step").rglob("__init__.py") if "\nHOMES = " in path.read_text()]
    return sorted(".".join(path.parent.relative_to(ROOT).parts) for path in found)


def for_type_checkers(package: str) -> dict[str, tuple[str, ...]]:
    """Module -> names that a package imports from it under `TYPE_CHECKING`."""
    tree = ast.parse((ROOT / Path(*package.split(".")) / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    return {str(node.module): tuple(alias.name for alias in node.names) for node in imports}


def imported_by(code: str, *arguments: str, blocked: tuple[str, ...] = (), names: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of `names` a process has imported after `code`; there the `blocked` packages cannot be imported."""
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n{code}\n"
    code += f"print(*(name for name in {names!r} if sys.modules.get(name)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_the_packages_that_users_import_are_lazy() -> None:
    assert {"trl_step", "trl_step.trainer", "trl_step.models", "trl_step.environment", "trl_step.extras",
            "trl_step.port"} <= set(lazy_packages())  # fmt: skip


@pytest.mark.parametrize("package", lazy_packages())
def test_the_table_is_what_type_checkers_see(package: str) -> None:
    module = importlib.import_module(package)
    seen = for_type_checkers(package)
    modules = {name for name in seen.pop(package, ()) if (ROOT / Path(*package.split(".")) / f"{name}.py").is_file()}
    assert seen == module.HOMES
    assert {name for names in seen.values() for name in names} | modules == set(module.__all__)


@pytest.mark.parametrize("package", lazy_packages())
def test_every_name_is_listed_and_there(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    everything: dict[str, object] = {}
    exec(f"from {package} import *", everything)
    for home, names in module.HOMES.items():
        for name in names:
            assert everything[name] is getattr(module, name) is getattr(importlib.import_module(home), name)
            assert name in vars(module), "the second use is as fast as that of any other name"


def test_modules_are_attributes_of_a_bare_import() -> None:
    parts = ("import_utils.require_peft", "trainer.base.BaseTrainer", "port.rules.CALLS", "extras.doctor.report")
    assert imported_by("import trl_step\n" + "\n".join(f"trl_step.{part}" for part in parts)) == set()
    names = dir(importlib.import_module("trl_step"))
    assert {"core", "trainer", "models", "environment", "extras"} <= set(names)
    assert "__main__" not in names


def test_names_that_are_not_there_are_pythons_own_error() -> None:
    for package in lazy_packages():
        module = importlib.import_module(package)
        for name in ("Nope", "_private", "__path__of"):
            with pytest.raises(AttributeError, match=f"module '{package}' has no attribute '{name}'"):
                getattr(module, name)


def test_classes_are_pickled_by_the_module_that_has_them() -> None:
    import trl_step

    assert pickle.loads(pickle.dumps(trl_step.PPOTrainer)) is trl_step.PPOTrainer
    assert pickle.loads(pickle.dumps(trl_step.PPOConfig(batch_size=4))) == trl_step.PPOConfig(batch_size=4)


@pytest.mark.parametrize(
    "code",
    [
        "import trl_step",
        "from trl_step.extras import doctor",
        "import trl_step\ntry:\n    trl_step.GRPOTrainer\nexcept AttributeError:\n    pass",
    ],
)
def test_an_import_takes_only_what_it_uses(code: str) -> None:
    assert imported_by(code) == set()


def test_the_command_line_imports_torch_only_if_it_computes(tmp_path: Path) -> None:
    script = tmp_path / "old.py"
    script.write_text(
        "from trl import PPOTrainer, GRPOTrainer, create_reference_model\nfrom trl.core import LengthSampler, Nope\n"
        "import trl.trainer.utils\nfrom transformers import AutoTokenizer, AdamW\nfrom accelerate import Accelerator\n"
        "from peft import LoraConfig, nope\n"
    )
    start = "from trl_step.commands import main\n"
    assert imported_by(f"{start}main(['port', '--check', sys.argv[1]])", str(script)) <= {"transformers"}
    assert imported_by(f"{start}main(['--version'])") == set()
    helped = f"{start}try:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert imported_by(helped) <= {"tyro"}
    (tmp_path / "stats.jsonl").write_text('{"objective/kl": 0.5}\n')
    assert imported_by(f"{start}main(['doctor', sys.argv[1]])", str(tmp_path)) <= {"tyro"}


STEP = """
import torch
from tests.tiny import batch, trainer
queries, _, scores = batch()
tuned = trainer()
tuned.step(queries, tuned.generate(queries, return_prompt=False, max_new_tokens=3), scores)
from transformers import HfArgumentParser
from trl_step import PPOConfig
HfArgumentParser(PPOConfig).parse_args_into_dataclasses(["--tracker_kwargs", "{}"])
"""


def test_a_step_needs_neither_datasets_nor_tyro() -> None:
    """Where they are installed, a trainer does not import them either."""
    needed = {"torch", "transformers", "accelerate"}
    assert imported_by("from trl_step import PPOTrainer") == needed
    assert imported_by(STEP, blocked=("datasets", "tyro", "wandb", "pandas", "pyarrow")) == needed
