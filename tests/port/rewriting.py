"""The assertions of every test that `--write` changes a script."""

from __future__ import annotations

from trl_step.port.edits import Edit
from trl_step.port.rewrite import rewritten


def assert_rewritten(old: str, new: str) -> list[Edit]:
    """`old` becomes `new`, which stays as it is; the edits."""
    got, edits = rewritten(old.encode())
    assert got.decode() == new
    assert edits
    assert rewritten(got) == (got, [])
    return edits
