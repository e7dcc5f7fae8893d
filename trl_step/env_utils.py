"""Legacy path of TRL 0.8 to 0.11: `strtobool`."""

from __future__ import annotations

TRUE, FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")


def strtobool(val: str) -> bool:
    """Whether a text means yes, in any case.

    Raises:
        ValueError: it means neither yes nor no.
    """
    lowered = val.lower()
    if lowered not in (*TRUE, *FALSE):
        raise ValueError(f"{val!r} is neither yes ({', '.join(TRUE)}) nor no ({', '.join(FALSE)})")
    return lowered in TRUE
