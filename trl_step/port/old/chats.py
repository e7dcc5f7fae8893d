"""`tokenizer.apply_chat_template` without `return_dict`, which gave token ids in transformers 4, not a dictionary."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_mistral_common import MistralCommonBackend

from trl_step.port.asking import is_asked_by_library
from trl_step.replacing import replaced

OWNERS: tuple[type, ...] = (PreTrainedTokenizerBase, MistralCommonBackend)
"""Classes that define the method."""
OF_TODAY = ("transformers", "trl_step")
"""They call it for what it returns today. Others, such as `Dataset.map`, call what the script gave them."""


@contextmanager
def old_chats(report: Callable[[str, str], None]) -> Iterator[None]:
    """Inside, a script's tokenizers give token ids if nothing is said; transformers gets what it expects."""
    with ExitStack() as stack:
        for owner in OWNERS:
            method = vars(owner)["apply_chat_template"]
            stack.enter_context(replaced(owner, method.__name__, _with_token_ids(method, report)))
        yield


def _with_token_ids(apply: Callable[..., Any], report: Callable[[str, str], None]) -> Callable[..., Any]:
    order = list(inspect.signature(apply).parameters)

    @functools.wraps(apply)
    def apply_chat_template(*args: Any, **keywords: Any) -> Any:
        given = {**dict(zip(order, args, strict=False)), **keywords}
        is_said = "return_dict" in given or "return_assistant_tokens_mask" in keywords
        if given.get("tokenize", True) and not is_said and not is_asked_by_library(OF_TODAY):
            report("apply_chat_template without return_dict", "return_dict=False (transformers 4 gave token ids)")
            keywords["return_dict"] = False
        return apply(*args, **keywords)

    return apply_chat_template
