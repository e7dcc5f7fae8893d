"""Reads what an offline run of wandb left on the disk, with wandb's own message types."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.limits import HANG

BLOCK, FILE_HEADER, CHUNK_HEADER = 32768, 7, struct.Struct("<IHB")
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The whole messages of a .wandb file: a log of LevelDB's format, chunks of a record in blocks of 32 KiB.

    wandb may be writing: a chunk whose end is not in the file yet is left for the next reading.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), FILE_HEADER, b""
    while place + CHUNK_HEADER.size <= len(data):
        if BLOCK - place % BLOCK < CHUNK_HEADER.size:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = CHUNK_HEADER.unpack_from(data, place)
        end = place + CHUNK_HEADER.size + length
        if end > len(data):
            return
        parts += data[place + CHUNK_HEADER.size : end]
        place = end
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""


def finished_run(folder: Path) -> list[Any]:
    """All messages of the one run under `folder`; wandb's own process writes the last of them a moment later."""
    (path,) = folder.rglob("*.wandb")
    began = time.monotonic()
    while time.monotonic() - began < HANG:
        found = list(records(path))
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{path} has no end after {HANG} seconds")


def history(folder: Path) -> list[dict[str, Any]]:
    """The values of every call of `log` in the one run under `folder`."""
    rows = [record.history for record in finished_run(folder) if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]


def settings(folder: Path) -> dict[str, Any]:
    """The run's configuration, the last value of each key."""
    found: dict[str, Any] = {}
    for record in finished_run(folder):
        for config in (record.run.config, record.config):
            found |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in config.update}
    return found
