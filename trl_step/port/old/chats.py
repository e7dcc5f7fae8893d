"""`tokenizer.apply_chat_template` without `return_dict`, which gave token ids in transformers 4, not a dictionary."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_step.port.replacing import is_asked_by_library, replaced

BEFORE_TOKENIZE, BEFORE_RETURN_DICT = 7, 12
"""How many arguments of a call, the tokenizer among them, stand before these two, or before the next one."""


@contextmanager
def old_chats(report: Callable[[str, str], None]) -> Iterator[None]:
    """Inside, a script's tokenizers give token ids if nothing is said; libraries get what they expect."""
    apply = PreTrainedTokenizerBase.apply_chat_template

    @functools.wraps(apply)
    def apply_chat_template(*args: Any, **keywords: Any) -> Any:
        tokenizes = args[BEFORE_TOKENIZE] if len(args) > BEFORE_TOKENIZE else keywords.get("tokenize", True)
        is_said = len(args) > BEFORE_RETURN_DICT or {"return_dict", "return_assistant_tokens_mask"} & keywords.keys()
        if tokenizes and not is_said and not is_asked_by_library():
            report("apply_chat_template without return_dict", "return_dict=False (transformers 4 gave token ids)")
            keywords["return_dict"] = False
        return apply(*args, **keywords)

    with replaced(PreTrainedTokenizerBase, "apply_chat_template", apply_chat_template):
        yield
