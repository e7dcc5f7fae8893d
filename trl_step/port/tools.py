"""`Tool` and `load_tool`, as in transformers at the time of TRL 0.7, for scripts with a TextEnvironment.

`TextEnvironment` needs neither: a tool is any function from a string to a string.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import transformers

from trl_step.replacing import replaced


class Tool:
    """Base class of old tools: a subclass defines `__call__`, the other attributes describe it."""

    name: str
    description: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __call__")


def load_tool(folder: str, **options: Any) -> Any:
    """An object of the class that `tool_config.json` of `folder` names (`"tool_class": "file.Class"`).

    The file is imported, so its code runs: read it first. Nothing is downloaded from a hub.

    Raises:
        FileNotFoundError: there is no such folder, or no `tool_config.json` in it.
    """
    configuration = Path(folder, "tool_config.json")
    if not configuration.is_file():
        raise FileNotFoundError(
            f"there is no {configuration}. Tools from the hub are not downloaded, as loading one runs its code: read "
            f"https://huggingface.co/spaces/{folder}, save it to the folder {folder}, or give TextEnvironment a "
            "function from a string to a string"
        )
    file, _, class_name = json.loads(configuration.read_text(encoding="utf-8"))["tool_class"].rpartition(".")
    spec = importlib.util.spec_from_file_location(file, Path(folder, f"{file}.py"))
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{configuration} names the class {class_name} of {file}.py, which does not exist")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file, module)  # dataclasses and pickle look up their module
    with replaced(transformers, "Tool", Tool):  # old tools import their base class from here
        spec.loader.exec_module(module)
    return getattr(module, class_name)(**options)
