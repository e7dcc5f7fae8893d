"""Record what two other releases compute of groups of answers, as data that `test_group.py` replays. For maintainers:

    python tests/parity/record_group.py                              # environments of their own, made and thrown away
    python tests/parity/record_group.py --trainer rloo               # one of the two
    python tests/parity/record_group.py --trainer grpo --python PATH   # in an environment that holds the pins already

Runs on Python 3.11. Recording takes under a minute for each, after the installation (about 1 GB each).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # it is started as a script
from tests.parity.record import record_releases

PINS = {
    "rloo": [
        "torch==2.13.0",
        "trl==0.15.2",
        "transformers==4.49.0",
        "accelerate==1.4.0",
        "datasets==3.3.2",
        "numpy==2.2.6",
        "rich==15.0.0",
    ],
    "grpo": [
        "torch==2.13.0",
        "trl==1.16.0",
        "transformers==5.23.0",
        "accelerate==1.15.0",
        "datasets==5.2.0",
        "numpy==2.4.6",
    ],
}


COMMANDS = {trainer: [f"tests.parity.record_{trainer}"] for trainer in PINS}

if __name__ == "__main__":
    record_releases(PINS, COMMANDS)
