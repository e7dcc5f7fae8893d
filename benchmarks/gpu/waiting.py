"""Section of gpu_check.py: nothing in a mini-batch makes the host wait for the device.

torch raises where it would wait, in `FusedEngine.train` (forward, backward and update of a mini-batch) and in
`FusedEngine.sweep` (log-probs and values of the batch), in the second step of a trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from records import Section
from right import VARIANTS, make, moved

from trl_step.trainer.engine.engine import FusedEngine

LOOKED_AT = {
    "t5": "transformers looks at the mask of an encoder",
    "padded": "transformers looks for packed samples where it is given no mask",
}
"""Variants in which the host waits, and why."""
PRECISIONS = {"gpt2": "bf16"}
"""Of variants; the others are float32."""


def refusing_to_wait(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """`function`, inside of which torch raises where the host would wait for a GPU."""

    def watched(*arguments: Any, **options: Any) -> Any:
        calls.append(function.__name__)
        if not torch.cuda.is_available():
            return function(*arguments, **options)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*arguments, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched


def main() -> None:
    section = Section()
    if not section.on_gpu:
        section.absent("waiting", "a CPU has nothing to wait for; the steps run all the same")
    original = FusedEngine.train, FusedEngine.sweep
    for name in ("llama",) if section.tiny else VARIANTS:
        if name in LOOKED_AT:
            section.absent(f"no wait in a mini-batch, {name}", LOOKED_AT[name])
            continue
        with section.attempt(f"waits, {name}"):
            model, settings = VARIANTS[name]
            trainer = make(section.device, model, sgd=False, precision=PRECISIONS.get(name, "no"), **settings)
            moved(trainer, model)
            calls: list[str] = []
            FusedEngine.train, FusedEngine.sweep = (  # type: ignore[method-assign]
                refusing_to_wait(function, calls) for function in original
            )
            try:
                moved(trainer, model, seed=2)
            finally:
                FusedEngine.train, FusedEngine.sweep = original  # type: ignore[method-assign]
            section.check(f"no wait in a mini-batch, {name}", float("train" not in calls), 0, f"{len(calls)} passes")


if __name__ == "__main__":
    main()
