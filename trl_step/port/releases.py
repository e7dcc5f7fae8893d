"""Which release of TRL a script was written for, and the defaults that its `PPOConfig` had.

Release 0.7.11 changed defaults that decide what a run computes, so a script that leaves such a setting out means
something else before and after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

UNTIL_0_7_10: Mapping[str, Any] = {
    "batch_size": 256,
    "mini_batch_size": 1,
    "learning_rate": 1e-5,
    "model_name": None,
    "query_dataset": None,
    "reward_model": None,
}
CHANGES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("0.2.0", {**UNTIL_0_7_10, "target_kl": 0.1}),
    ("0.7.2", UNTIL_0_7_10),
    ("0.7.11", {}),
    ("0.11.0", {"query_dataset": "stanfordnlp/imdb"}),
)
"""Release, and the defaults of `PPOConfig` from it on that are not those of 0.7.11, which this package has."""
NAMES = ("model_name", "query_dataset", "reward_model")
"""Settings that only scripts read; the others change what a run computes."""
ASKED = tuple(name for name in UNTIL_0_7_10 if name not in NAMES)
"""What a script must set if nobody knows its release."""
RELEASES = (
    "0.2.0", "0.2.1", "0.3.0", "0.3.1", "0.4.0", "0.4.1", "0.4.2", "0.4.3", "0.4.4", "0.4.5", "0.4.6", "0.4.7",
    "0.5.0", "0.6.0", "0.7.0", "0.7.1", "0.7.2", "0.7.3", "0.7.4", "0.7.5", "0.7.6", "0.7.7", "0.7.8", "0.7.9",
    "0.7.10", "0.7.11", "0.8.0", "0.8.1", "0.8.2", "0.8.3", "0.8.4", "0.8.5", "0.8.6", "0.9.2", "0.9.3", "0.9.4",
    "0.9.6", "0.10.1", "0.11.0", "0.11.1", "0.11.2", "0.11.3", "0.11.4",
)  # fmt: skip
"""Those with the step API."""
TRAIN_RELEASES = (
    "0.12.0", "0.12.1", "0.12.2", "0.13.0", "0.14.0", "0.15.0", "0.15.1", "0.15.2", "0.16.0", "0.16.1", "0.17.0",
    "0.18.0", "0.18.1", "0.18.2", "0.19.0", "0.19.1", "0.20.0", "0.21.0", "0.22.0", "0.22.1", "0.22.2", "0.23.0",
    "0.23.1", "0.24.0", "0.25.0", "0.25.1", "0.26.0", "0.26.1", "0.26.2", "0.27.0", "0.27.1", "0.27.2", "0.28.0",
    "0.29.0", "0.29.1", "1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0", "1.5.1", "1.6.0", "1.7.0", "1.7.1",
    "1.8.0", "1.9.0", "1.9.1", "1.9.2",
)  # fmt: skip
"""Those with PPO with `train()` under the same names, or in `trl.experimental`."""
PINS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<![\w.-])trl(?:\[[^\]]*\])?[\"']?\s*\(?\s*(?:=\s*[\"']|:\s*[\"'])?\s*"
        r"((?:[=~!<>^]=?=?\s*v?\d[\w.*]*\s*,?\s*)+)",
        r"(?<![\w.-])trl[\"']?\s*=\s*[\"']?(\d[\w.]*)",  # poetry
        r"(?<![\w.-])trl[\"']?\s*=\s*\{[^}\n]*?(?:version|tag|rev)\s*=\s*[\"']([^\"']*)",  # poetry, uv, Pipfile
        r"\.trl\]\s*(?:\w+\s*=.*\s+)*?version\s*=\s*[\"']([^\"']*)",  # a table of poetry
        r"/trl(?:\.git)?@v?(\d+\.\d+[\d.]*)",
        r"/trl-(\d+\.\d+[\d.]*?)(?:-py|\.tar)",
        r"name = \"trl\"\s+version = \"([\d.]+)\"",  # lock files of poetry, pdm and uv
        r"\"trl\":\s*\{[^}]*?\"version\":\s*\"([^\"]*)\"",  # Pipfile.lock
    )
)
PINNING_FILES = ("*req*.txt", "*constraints*.txt", "*req*.in", "requirements/*.txt", "requirements/*.in",
                 "pyproject.toml", "setup.py", "setup.cfg", "environment*.y*ml", "*conda*.y*ml", "Pipfile",
                 "Pipfile.lock", "poetry.lock", "pdm.lock", "uv.lock", "Dockerfile*")  # fmt: skip
COMMENT = re.compile(r"(?:^|(?<=\s))#.*", re.MULTILINE)
LARGEST_FILE = 10_000_000


CHANGED = (
    "release 0.7.11 changed the defaults batch_size 256 to 128, mini_batch_size 1 to 128, learning_rate 1e-05 "
    "to 1.41e-05"
)


class Origin(NamedTuple):
    """Where a script comes from.

    Attributes:
        releases: those of TRL with the step API that it may have been written for; empty if nothing names one.
        named_by: what names them: `--release`, or file and line of a pin.
        train_releases: later ones, in which `PPOTrainer` has `train()`.
    """

    releases: tuple[str, ...] = ()
    named_by: str = ""
    train_releases: tuple[str, ...] = ()

    @property
    def has_only_train(self) -> bool:
        """Whether it is known to be a script of a release without the step API."""
        return bool(self.train_releases) and not self.releases

    @property
    def defaults(self) -> Mapping[str, Any] | None:
        """The defaults of `PPOConfig` that differ from 0.7.11's; None if they are not known."""
        found = [defaults_of(release) for release in self.releases]
        agreed = {
            name: value
            for name, value in (found or [{}])[0].items()
            if all((name, value) in each.items() for each in found)
        }
        differ = {name for each in found for name in each if name not in agreed} - set(NAMES)
        return agreed if found and not differ else None

    @property
    def question(self) -> str:
        """What to say about a script whose defaults are not known."""
        why = "no pin of trl was found"
        if self.releases or self.train_releases:
            why = f"{self} allows both" if self.releases else f"{self} has no step API"
        return f"{CHANGED}; {why}: say which release the script is of, e.g. --release 0.7.4"

    def __str__(self) -> str:
        known = self.releases or self.train_releases
        first, last = known[0], known[-1]
        return f"TRL {first}{f' to {last}' * (first != last)} ({self.named_by})"


UNKNOWN_ORIGIN = Origin()


def defaults_of(release: str) -> Mapping[str, Any]:
    """The defaults of a release's `PPOConfig` that differ from those of 0.7.11."""
    return [new for first, new in CHANGES if Version(first) <= Version(release)][-1]


def origin_of(script: Path, text: str, release: str | None) -> Origin:
    """The release that was given, or that a pin names: in the script itself, or in a file of its project.

    A pin is looked for beside the script, then in the folders above it up to the root of its repository. One in a
    comment counts in the script alone, and only if there is none outside of its comments.
    """
    if release is not None:
        return _sorted((release,), "--release")
    whole = [(script, COMMENT.sub("", text)), (script, text)]
    for path, content in [*whole, *((path, COMMENT.sub("", text)) for path, text in _project_files(script))]:
        for pattern in PINS:
            for match in pattern.finditer(content):
                if allowed := _allowed(match[1]):
                    line = content.count(chr(10), 0, match.start()) + 1
                    return _sorted(allowed, f"{path.name}:{line}")
    return UNKNOWN_ORIGIN


def _project_files(script: Path) -> Iterator[tuple[Path, str]]:
    folders = [script.resolve().parent, *script.resolve().parents[1:]]
    root = next((number for number, folder in enumerate(folders) if (folder / ".git").exists()), 0)
    for folder in folders[: root + 1]:
        for pattern in PINNING_FILES:
            for path in sorted(folder.glob(pattern)):
                if path.is_file() and path.stat().st_size <= LARGEST_FILE:
                    yield path, path.read_text(encoding="utf-8", errors="replace")


def _sorted(allowed: tuple[str, ...], named_by: str) -> Origin:
    """The origin that may be any of these releases."""
    earlier = tuple(release for release in allowed if release in RELEASES)
    return Origin(earlier, named_by, tuple(release for release in allowed if release in TRAIN_RELEASES))


def _allowed(pin: str) -> tuple[str, ...]:
    """The known releases that a requirement such as "==0.7.4", "^0.7.4" or "0.7.4" allows."""
    parts = [_requirement(part.strip().lstrip("vV")) for part in pin.strip().rstrip(",").split(",")]
    try:
        wanted = SpecifierSet(",".join(parts))
    except (InvalidSpecifier, InvalidVersion):
        return ()
    return tuple(release for release in (*RELEASES, *TRAIN_RELEASES) if wanted.contains(release))


def _requirement(part: str) -> str:
    """One of pip, for one of pip, conda or poetry."""
    if part[:1] not in "=~!<>^":
        return f"=={part}"
    if part[0] in "^~" and part[:2] != "~=":  # poetry: up to the next minor, or for ^1.2 the next major version
        version = part[1:].strip()
        same = version.split(".")[: 2 if part[0] == "~" or version.startswith("0.") else 1]
        return f">={version},=={'.'.join(same)}.*"
    return re.sub(r"^=(\d[\d.]*)$", r"==\1.*", part)  # conda: 0.7 is any 0.7
