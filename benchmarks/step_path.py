"""How far a reader has to go: the functions and files of the package that one step passes through.

    python benchmarks/step_path.py
    python benchmarks/step_path.py --list    # every function, in the order in which it is first called

A small GPT-2 makes one step to warm up and one that is counted. Only code of `trl_step` counts; a change of file
is a call into another file of the package than the call before it.
"""

from __future__ import annotations

import argparse
import sys
import threading
import warnings
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from cases import CASES, quick
from contenders import make_model, tokenizer

import trl_step

PACKAGE = str(Path(trl_step.__file__).parent)


class Calls:
    """A profile function that counts the calls of the package's functions."""

    def __init__(self) -> None:
        self.functions: dict[CodeType, None] = {}
        self.calls = 0
        self.changes = 0
        self._last = ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code.co_name.startswith("<"):
            return
        self.functions.setdefault(code)
        self.calls += 1
        self.changes += code.co_filename != self._last
        self._last = code.co_filename


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name every function")
    parser.add_argument("--quick", action="store_true", help="changes nothing: it takes seconds in any case")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    case = quick(CASES["ragged"])
    config = trl_step.PPOConfig(batch_size=4, mini_batch_size=2, ppo_epochs=1, log_with=None)
    trainer = trl_step.PPOTrainer(config, make_model(trl_step, case), None, tokenizer())
    queries = [torch.randint(4, 8, (n,)) for n in (3, 5, 4, 6)]
    responses = [torch.randint(4, 8, (n,)) for n in (5, 4, 6, 3)]
    scores = [torch.tensor(x) for x in (0.5, -1.0, 2.0, 0.0)]
    trainer.step(queries, responses, scores)
    seen = Calls()
    threading.setprofile(seen)
    sys.setprofile(seen)
    trainer.step(queries, responses, scores)
    sys.setprofile(None)
    threading.setprofile(None)  # type: ignore[arg-type]
    files = {code.co_filename for code in seen.functions}
    print(f"functions {len(seen.functions)}, files {len(files)}, calls {seen.calls}, changes of file {seen.changes}")
    if args.list:
        for code in seen.functions:
            print(f"  {Path(code.co_filename).relative_to(PACKAGE)}:{code.co_qualname}")


if __name__ == "__main__":
    main()
