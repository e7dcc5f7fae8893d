"""Record the statistics of the sentiment example, a healthy run, for `test_doctor.py`.

`python -m tests.extras.record_sentiment` takes one to two minutes; scalars alone are written, without times.
"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from trl_step import PPOTrainer

RECORDED = Path(__file__).with_name("sentiment_stats.json")
SCRIPT = Path(__file__).parents[2] / "examples" / "sentiment" / "ppo_sentiment.py"


def main() -> None:
    steps: list[dict[str, float]] = []

    def keep(self: PPOTrainer, stats: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        scalars = {key: value for key, value in stats.items() if isinstance(value, float) and "time/" not in key}
        steps.append({key: float(f"{value:.5g}") for key, value in scalars.items()})

    sys.path.insert(0, str(SCRIPT.parent))
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(PPOTrainer, "log_stats", keep):
        sys.argv = [SCRIPT.name, "--output_dir", folder]
        runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = ",\n".join(json.dumps(step) for step in steps)
    RECORDED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
