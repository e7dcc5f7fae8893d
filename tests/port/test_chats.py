"""`apply_chat_template` of an old script gives token ids."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers.tokenization_mistral_common

from tests.markdown_pages import byte_tokenizer
from tests.port.test_run import run
from trl_step.port.releases import UNKNOWN_ORIGIN
from trl_step.port.rewrite import rewritten, undecided

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
SOURCE = f"""
from tests.markdown_pages import byte_tokenizer
t = byte_tokenizer()
t.pad_token = t.eos_token
t.chat_template = {TEMPLATE!r}
chat = [dict(role="user", content="hi")]
ids = t.apply_chat_template(chat)
batch = t.apply_chat_template([chat, chat], add_generation_prompt=True)
tensor = t.apply_chat_template(chat, return_tensors="pt")
text = t.apply_chat_template(chat, tokenize=False)
asked = t.apply_chat_template(chat, return_dict=True)
"""


def test_a_running_script_gets_token_ids_and_a_library_what_it_expects() -> None:
    told: list[str] = []
    names = run(SOURCE, told)
    hi = byte_tokenizer()("hi")["input_ids"]
    assert names["ids"] == hi
    assert names["batch"] == [hi, hi]
    assert torch.equal(names["tensor"], torch.tensor([hi]))  # type: ignore[arg-type]
    assert names["text"] == "hi"
    assert names["asked"]["input_ids"] == hi  # type: ignore[index]
    assert [line.partition(": ")[2] for line in told] == [
        "apply_chat_template without return_dict -> return_dict=False (transformers 4 gave token ids)"
    ]
    library = {"__name__": "transformers.one"}
    with_kit = f"library = {library!r}\nexec({SOURCE!r}, library)\nids = library['ids']"
    assert run(with_kit)["ids"]["input_ids"] == hi  # type: ignore[index]


def test_what_a_script_gives_to_a_library_gives_token_ids_there() -> None:
    names = run(
        SOURCE
        + """
from functools import partial
from torch.utils.data import DataLoader
apply = partial(t.apply_chat_template, add_generation_prompt=True)
own = apply(chat)
loaded = next(iter(DataLoader([chat], batch_size=1, collate_fn=apply)))
"""
    )
    hi = byte_tokenizer()("hi")["input_ids"]
    assert names["own"] == hi
    assert names["loaded"] == [hi]


def test_a_tokenizer_with_a_method_of_its_own_gives_token_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """MistralCommonBackend, whose arguments have another order."""
    asked: list[object] = []

    def apply_chat_template(
        self: object,
        conversation: object,
        tools: object = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool = False,
        truncation: bool = False,
        max_length: object = None,
        return_tensors: object = None,
        return_dict: bool = True,
    ) -> None:
        asked.append(return_dict)

    kind = transformers.tokenization_mistral_common.MistralCommonBackend
    assert list(inspect.signature(kind.apply_chat_template).parameters)[:11] == list(
        inspect.signature(apply_chat_template).parameters
    )
    monkeypatch.setattr(kind, "apply_chat_template", apply_chat_template)
    run("""
from transformers.tokenization_mistral_common import MistralCommonBackend
t = object.__new__(MistralCommonBackend)
t.apply_chat_template([])
t.apply_chat_template([], None, False, False, False)
t.apply_chat_template([], None, False, False, True, False, False, None, None, True)
t.apply_chat_template([], return_dict=True)
""")
    assert asked == [False, True, True, True]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("t.apply_chat_template(m)", "t.apply_chat_template(m, return_dict=False)"),
        ("partial(t.apply_chat_template, tokenize=x)", "partial(t.apply_chat_template, tokenize=x, return_dict=False)"),
        ("functools.partial(t.apply_chat_template)", "functools.partial(t.apply_chat_template, return_dict=False)"),
        ("partial(t.apply_chat_template, tokenize=False)", None),
        ("t.apply_chat_template((m),\n)", "t.apply_chat_template((m), return_dict=False,\n)"),
        ("f(t.apply_chat_template([t.apply_chat_template(m)]))",
         "f(t.apply_chat_template([t.apply_chat_template(m, return_dict=False)], return_dict=False))"),
        ("t.apply_chat_template(m, tokenize=x)", "t.apply_chat_template(m, tokenize=x, return_dict=False)"),
        ("t.apply_chat_template(m, tokenize=False)", None),
        ("t.apply_chat_template(m, None, None, None, False, False, False)", None),
        ("t.apply_chat_template(m, return_dict=d)", None),
        ("import trl_step\nt.apply_chat_template(m)", None),
        ("def apply_chat_template(): ...\nself.apply_chat_template(m)", None),
    ],
)  # fmt: skip
def test_the_text_says_return_dict(old: str, new: str | None) -> None:
    assert rewritten(old.encode())[0].decode() == (new or old)
    assert undecided(old.encode(), UNKNOWN_ORIGIN) == []


def test_written_twice_it_is_written_once() -> None:
    once = rewritten(b"import trl\nt.apply_chat_template(m)")[0]
    assert once == b"import trl_step as trl\nt.apply_chat_template(m, return_dict=False)"
    assert rewritten(once) == (once, [])


def test_a_method_that_is_given_away_is_a_question() -> None:
    source = b"x = 1\nmap(t.apply_chat_template, chats)"
    assert rewritten(source) == (source, [])
    ((line, text),) = undecided(source, UNKNOWN_ORIGIN)
    assert line == 2
    assert "give it as partial(t.apply_chat_template, return_dict=False)" in text


def test_unpacked_arguments_are_a_question() -> None:
    source = b"x = 1\nt.apply_chat_template(m, **k)"
    assert rewritten(source) == (source, [])
    ((line, text),) = undecided(source, UNKNOWN_ORIGIN)
    assert line == 2
    assert "return_dict=False" in text
