"""What must be seen on a GPU, in one command of less than eight minutes: right numbers, no waiting, time, memory.

    python benchmarks/gpu_check.py --wheels FOLDER --out gpu.json
    python benchmarks/gpu_check.py --device cpu --tiny               # only to see that it works
    python benchmarks/gpu_check.py --sections right head

Every section is a process of its own with a limit of its own; a table is printed and the file is written after each.
It needs torch, transformers, accelerate, peft, NumPy and safetensors, and no network. What it compares with is taken
from the wheels in `--wheels` (TRL 0.11.4 and 1.16, Liger); one that is not there is reported as absent.

The exit status is 1 if a check failed or a section did not end; a goal that is missed changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent / "gpu"))

from records import MARK, Record, records_in
from report import RESULTS, machine

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE / "gpu"


class Part(NamedTuple):
    """A section: its script in `gpu/`, its limit in seconds, and what it looks at."""

    limit: float
    what: str


SECTIONS = {
    "right": Part(110, "the numbers are those of the CPU, of autograd and of release 0.7.11"),
    "waiting": Part(30, "the host never waits inside a mini-batch"),
    "steps": Part(190, "a step beside TRL 0.11.4, and 8B with adapters"),
    "head": Part(50, "the output embedding: time and memory"),
    "generation": Part(45, "tokens per second"),
    "learning": Part(55, "a run learns, in float32 and bf16"),
}
"""In the order in which they run: what matters most first."""


def main() -> int:
    arguments = read_arguments()
    report: dict[str, Any] = {
        "machine": machine() | ({} if arguments.commit is None else {"commit": arguments.commit}),
        **devices(arguments.device),
        "tiny": arguments.tiny,
        "sections": {},
    }
    for name in arguments.sections:
        limit = SECTIONS[name].limit if arguments.limit is None else arguments.limit
        found = run_section(name, limit, arguments)
        report["sections"][name] = found
        write(arguments.out, report)
        show(name, found)
    wrong = [name for name, found in report["sections"].items() if is_wrong(found)]
    print(f"written to {arguments.out}; " + (f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong"))
    return int(bool(wrong))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see in seconds that everything works")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
                        help=", ".join(f"{name}: {part.what}" for name, part in SECTIONS.items()))  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        help="the file for the results, which the README reports; of a CPU, or with --tiny, runs/gpu_check.json",
    )
    parser.add_argument("--wheels", type=Path, help="folder with wheels of other libraries")
    parser.add_argument("--commit", help="of this tree, where git cannot tell")
    parser.add_argument("--limit", type=float, help="seconds of each section, in place of its own limit")
    arguments = parser.parse_args()
    if arguments.out is None:
        is_a_run = arguments.device == "cuda" and not arguments.tiny
        arguments.out = (RESULTS if is_a_run else Path("runs")) / "gpu_check.json"
    return arguments


def devices(device: str) -> dict[str, Any]:
    """The device and what drives it."""
    import torch
    import transformers

    name, cuda = "CPU", None
    if device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("gpu_check: torch sees no GPU; --device cpu --tiny shows that the script works")
        name, cuda = torch.cuda.get_device_name(), torch.version.cuda
    return {"device": name, "cuda": cuda, "torch": torch.__version__, "transformers": transformers.__version__}


def run_section(name: str, limit: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """How the section ended, after how many seconds, its records, and the end of its output if it failed."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--device", arguments.device]
    command += ["--tiny"] if arguments.tiny else []
    command += [] if arguments.wheels is None else ["--wheels", str(arguments.wheels.resolve())]
    paths = [str(HERE.parent), str(HERE), str(SCRIPTS), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(limit)
            end = "done" if status == 0 else f"failed with exit status {status}"
        except subprocess.TimeoutExpired:
            end = f"cut off after {limit:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        text = output.read()
    records = records_in(text)
    found = {"end": end, "seconds": round(time.monotonic() - start, 1), "records": [asdict(each) for each in records]}
    if end != "done" or any(each.passed is False and each.value is None for each in records):
        found["output"] = "\n".join(line for line in text.splitlines() if line and not line.startswith(MARK))[-4000:]
    return found


def is_wrong(found: dict[str, Any]) -> bool:
    """Whether a section did not end, or one of its checks failed."""
    records = [Record(**each) for each in found["records"]]
    return found["end"] != "done" or any(each.kind == "check" and not each.passed for each in records)


def write(path: Path, report: dict[str, Any]) -> None:
    """Replace the file in one go: what kills this process leaves the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def show(name: str, found: dict[str, Any]) -> None:
    """Print the table of a section."""
    print(f"\n{name}: {SECTIONS[name].what} ({found['end']}, {found['seconds']:.0f} s)")
    rows = [line_of(Record(**each)) for each in found["records"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if found["end"] != "done":
        print(found["output"])
    sys.stdout.flush()


def line_of(record: Record) -> tuple[str, str, str, str, str]:
    """Verdict, name, value, limit and note."""
    verdicts = {True: "ok", False: "WRONG" if record.kind == "check" else "missed"}
    verdict = "-" if record.passed is None else verdicts[record.passed]
    value = "" if record.value is None else f"{record.value:.4g} {record.unit}".strip()
    limit = "" if record.limit is None else f"<= {record.limit:g}"
    return verdict, record.name, record.kind if record.kind == "absent" else value, limit, record.note


if __name__ == "__main__":
    sys.exit(main())
