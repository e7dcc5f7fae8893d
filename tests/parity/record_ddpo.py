"""Record what `DDPOTrainer` of release 0.7.11 computes, as data that `test_ddpo.py` replays. For maintainers:

    python tests/parity/record_ddpo.py                  # an environment of its own, made and thrown away
    python tests/parity/record_ddpo.py --python PATH    # an environment that holds the pins already

Runs on Python 3.11; ten seconds after the installation (about 1 GB). It writes `data/ddpo.npz`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # it is started as a script
from tests.parity.record import ENVIRONMENT, PINS, make_environment

DIFFUSERS = ["diffusers==0.26.3", "huggingface_hub==0.20.3"]
"""Of the time of the release; later hubs have no `cached_download`, which that diffusers imports."""
DATA = Path(__file__).parent / "data" / "ddpo.npz"


def main() -> None:
    """Find or make the environment of the release and run `record` in it."""
    parser = argparse.ArgumentParser(description="Record DDPO of release 0.7.11 for the parity tests.")
    parser.add_argument("--python", type=Path, help="interpreter of an environment that holds the pinned releases")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        record()
    elif arguments.python is not None:
        _start(arguments.python)
    else:
        with tempfile.TemporaryDirectory(prefix="trl-ddpo-") as folder:
            _start(make_environment(Path(folder), [*PINS, *DIFFUSERS]))


def _start(python: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [str(python.absolute()), "-m", "tests.parity.record_ddpo", "--inside"]
    subprocess.run(command, cwd=root, env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(root)}, check=True)


def record() -> None:
    """Run every case beside the release, and write the numbers under `<case>/<name>`."""
    import numpy as np
    import trl
    from trl.models import modeling_sd_base

    from tests.parity.ddpo_runs import CASES, NEGATIVE, SAMPLES, STEPS, run, run_step

    arrays: dict[str, np.ndarray] = {}
    for case in STEPS:
        arrays.update({f"step-{case}/{name}": array for name, array in run_step(modeling_sd_base, case).items()})
    for case in CASES:

        def sampled(trainer: Any, own: Callable[..., Any], epoch: int, case: str = case) -> Callable[..., Any]:
            """The release's own samples, written down."""

            def generate(*given: Any, **named: Any) -> Any:
                samples, images = own(*given, **named)
                whole = {name: np.concatenate([sample[name].numpy() for sample in samples]) for name in samples[0]}
                whole[NEGATIVE] = whole[NEGATIVE][:1]
                whole["latents"] = np.concatenate([whole["latents"], whole["next_latents"][:, -1:]], axis=1)
                arrays.update({f"{case}/{epoch}/{name}": whole[name] for name in (*SAMPLES, NEGATIVE)})
                return samples, images

            return generate

        arrays.update({f"{case}/{name}": array for name, array in run(trl, case, sampled).items()})
    np.savez_compressed(DATA, **arrays)
    print(f"{len(CASES)} runs, {len(STEPS)} kinds of steps, {len(arrays)} arrays, {DATA.stat().st_size} bytes")


if __name__ == "__main__":
    main()
