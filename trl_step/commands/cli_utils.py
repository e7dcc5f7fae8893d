"""Legacy path of TRL 0.8 to 0.11: `TrlParser`, and the arguments of its example scripts."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from transformers import HfArgumentParser


def init_zero_verbose() -> None:
    """Log errors only, as the example scripts of TRL ask for with `TRL_USE_RICH=1`."""
    logging.basicConfig(level=logging.ERROR)
    logging.captureWarnings(True)


def _argument(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass
class SFTScriptArguments:
    """What TRL's example of supervised fine-tuning reads from its command line beside the trainer's settings."""

    dataset_name: str = _argument("timdettmers/openassistant-guanaco", "data set")
    dataset_train_split: str = _argument("train", "its part for training")
    dataset_test_split: str = _argument("test", "its part for evaluation")
    config: Optional[str] = _argument(None, "YAML file of settings")
    gradient_checkpointing_use_reentrant: bool = _argument(False, "`use_reentrant` of gradient checkpointing")


@dataclass
class RewardScriptArguments(SFTScriptArguments):
    """The same for a reward model."""

    dataset_name: str = _argument("trl-lib/ultrafeedback_binarized", "data set")


@dataclass
class DPOScriptArguments(SFTScriptArguments):
    """The same for DPO."""

    dataset_name: Optional[str] = _argument(None, "data set")  # type: ignore[assignment]
    sanity_check: bool = _argument(False, "take 1,000 samples")
    ignore_bias_buffers: bool = _argument(False, "leave buffers of booleans out of DDP")


class TrlParser(HfArgumentParser):
    """`transformers.HfArgumentParser` with a file of settings.

    Args:
        parsers: a dataclass, or several.
        ignore_extra_args: True leaves arguments that no dataclass knows alone.
        kwargs: as for `argparse.ArgumentParser`.
    """

    def __init__(self, parsers: Union[type, Iterable[type]], ignore_extra_args: bool = False, **kwargs: Any) -> None:
        super().__init__(parsers, **kwargs)
        self.ignore_extra_args = ignore_extra_args

    def parse_args_and_config(
        self, args: Sequence[str] | None = None, return_remaining_strings: bool = False
    ) -> tuple[Any, ...]:
        """One object per dataclass, from the command line and from the YAML file that `--config` names.

        The command line has precedence over the file. Its section `env` sets environment variables.

        Args:
            args: the command line; None: that of the process.
            return_remaining_strings: return what no dataclass knows as well, as a last list.

        Raises:
            ValueError: the file is no mapping, or holds settings or arguments that no dataclass knows.
        """
        given = list(sys.argv[1:] if args is None else args)
        settings = self._settings(given)
        for name, value in dict(settings.pop("env", None) or {}).items():
            os.environ[str(name)] = str(value)
        known = {action.dest for action in self._actions}
        unknown = sorted(set(settings) - known)
        if unknown and not (self.ignore_extra_args or return_remaining_strings):
            raise ValueError(f"the file of --config holds {', '.join(unknown)}, which no setting is called")
        self.set_defaults(**{name: value for name, value in settings.items() if name in known})
        for action in self._actions:  # what the file gives need not be on the command line
            action.required = action.required and action.dest not in settings
        *parsed, rest = self.parse_args_into_dataclasses(given, return_remaining_strings=True)
        if rest and not (self.ignore_extra_args or return_remaining_strings):
            raise ValueError(f"no setting is called {' '.join(rest)}")
        rest += [word for name in unknown for word in (f"--{name}", str(settings[name]))]
        return (*parsed, rest) if return_remaining_strings else tuple(parsed)

    @staticmethod
    def _settings(words: list[str]) -> dict[str, Any]:
        """Take `--config FILE` out of `words`; what the file holds."""
        at = next((i for i, word in enumerate(words) if word == "--config" or word.startswith("--config=")), None)
        if at is None:
            return {}
        word = words.pop(at)
        if "=" not in word and at == len(words):
            raise ValueError("--config needs the path of a YAML file")
        path = word.partition("=")[2] or words.pop(at)
        import yaml

        with open(path, encoding="utf-8") as file:
            found = yaml.safe_load(file) or {}
        if not isinstance(found, dict):
            raise ValueError(f"{path} must hold one mapping from settings to values, not a {type(found).__name__}")
        return found
