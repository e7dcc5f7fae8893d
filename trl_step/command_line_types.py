"""Layer 1: types for the command lines of tyro, which is imported when one is made, not before.

Annotations are strings until a command line reads them. Without tyro these are the plain types.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

Value = TypeVar("Value")

if TYPE_CHECKING:
    Suppress = Annotated[Value, "is on no command line"]
    Positional = Annotated[Value, "has no name on a command line"]
    JSON = Annotated[Value, "is one word of JSON on a command line"]
else:

    class _Marked:
        def __class_getitem__(cls, kind: Any) -> Any:
            try:
                from tyro import conf
            except ImportError:
                return kind
            return cls.marked(kind, conf)

    class Suppress(_Marked):
        """`Suppress[type]`: a setting that is on no command line."""

        @staticmethod
        def marked(kind: Any, conf: Any) -> Any:
            return conf.Suppress[kind]

    class Positional(_Marked):
        """`Positional[type]`: an argument without a name."""

        @staticmethod
        def marked(kind: Any, conf: Any) -> Any:
            return conf.Positional[kind]

    class JSON(_Marked):
        """`JSON[type]`: a setting that is one word of JSON."""

        @staticmethod
        def marked(kind: Any, conf: Any) -> Any:
            return Annotated[kind, conf.arg(metavar="JSON", constructor=json.loads)]
