"""`device_map` whose dictionary stands elsewhere in the script."""

from __future__ import annotations

import pytest

from tests.port.rewriting import assert_rewritten
from trl_step.port.releases import UNKNOWN_ORIGIN
from trl_step.port.rewrite import rewritten, undecided

USE = "A.from_pretrained(x, device_map=d)"
IF = "if torch.accelerator.is_available() else None"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"if a:\n    d = None\nelse:\n    d = {{'': i}}\n{USE}",
         f"import torch\nif a:\n    d = None\nelse:\n    d = {{'': i}} {IF}\n{USE}"),
        (f"d: dict = {{'': 0}}\n{USE}", f"import torch\nd: dict = {{'': 0}} {IF}\n{USE}"),
        (f"d = {{'': 0}} if a else None\n{USE}", f"import torch\nd = ({{'': 0}} if a else None) {IF}\n{USE}"),
        (f"def f(x, d={{'': 0}}):\n    {USE}", f"import torch\ndef f(x, d={{'': 0}} {IF}):\n    {USE}"),
        ("A.from_pretrained(x, device_map='cuda:1')", f"import torch\nA.from_pretrained(x, device_map='cuda:1' {IF})"),
        (f"d = 0\n{USE}", f"import torch\nd = 0 {IF}\n{USE}"),
        ("d = {'': 0}\nk = dict(device_map=d)\nA.from_pretrained(**k)",
         f"import torch\nd = {{'': 0}} {IF}\nk = dict(device_map=d)\nA.from_pretrained(**k)"),
        ("d = {'': 0}\nk = {'device_map': d}\nA.from_pretrained(**k)",
         f"import torch\nd = {{'': 0}} {IF}\nk = {{'device_map': d}}\nA.from_pretrained(**k)"),
    ],
)  # fmt: skip
def test_change(old: str, new: str) -> None:
    edits = assert_rewritten(old, new)
    assert any("a machine without a GPU has only its CPU" in edit.note for edit in edits)
    assert undecided(old.encode(), UNKNOWN_ORIGIN) == undecided(new.encode(), UNKNOWN_ORIGIN) == []


@pytest.mark.parametrize(
    ("source", "is_clear"),
    [
        (f"d = 'auto' if a else None\n{USE}", True),
        (f"d = {{'': 'cpu'}}\ne = d\n{USE}", True),
        (f"d = get_kbit_device_map()\n{USE}", True),
        ("A.from_pretrained(x, device_map=args.device_map)", True),
        (f"d = d or None\n{USE}", True),
        ("places = {'': 0}\nprint(places)", True),
        (f"def f(d):\n    {USE}", False),
        (f"d = places_of(m)\n{USE}", False),
        (f"d, e = None, 1\n{USE}", False),
        (f"d = None\nd = e\n{USE}", False),
        ("A.from_pretrained(x, device_map=places())", False),
    ],
)
def test_what_cannot_be_followed_is_reported(source: str, is_clear: bool) -> None:
    assert rewritten(source.encode()) == (source.encode(), [])
    found = undecided(source.encode(), UNKNOWN_ORIGIN)
    assert [line for line, _ in found] == [] if is_clear else [source.count("\n") + 1]
    assert all("is made where it cannot be followed: without a GPU" in text for _, text in found)
