"""The precision of an `Accelerator()` that a script makes between `TrainingArguments` and `Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trl_step.models.notices import users_frame

Report = Callable[[str, str], None]


class Precision:
    """What the training arguments of a script said last; in transformers 4 every later `Accelerator()` followed it.

    Args:
        report: called once for each change.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.said: str | None = None
        self.place = ""
        """Of the script's own `Accelerator` that has another precision."""

    def note(self, arguments: Any) -> None:
        """Remember the precision of training arguments that were made."""
        self.said = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else self.said

    @contextmanager
    def of(self, args: tuple[Any, ...], keywords: dict[str, Any], is_of_library: bool) -> Iterator[None]:
        """Around the call that makes an `Accelerator`: gives it the precision, or says what a refusal is about.

        Raises:
            ValueError: the script made one with another precision before.
        """
        if not is_of_library:
            given = "mixed_precision" in keywords or keywords.get("fp16") or len(args) > 3
            if self.said is not None and not given:
                keywords["mixed_precision"] = self.said
                self.report("Accelerator()", f"mixed_precision={self.said!r} (TrainingArguments said so before)")
            else:
                frame = users_frame()
                self.place = self.place or f"{frame.f_code.co_filename}:{frame.f_lineno}"
        try:
            yield
        except ValueError as error:
            if not self.place or "already been initialized" not in str(error):
                raise
            asked = keywords.get("mixed_precision")
            raise ValueError(
                f"the Accelerator of {self.place} fixed the precision of the process before mixed_precision={asked!r} "
                f"was asked for: give it mixed_precision={asked!r}"
            ) from error
