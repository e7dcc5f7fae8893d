"""Record runs of three on-policy trainers of TRL, as data for the replays. For maintainers:

    python tests/parity/record_on_policy.py                              # environments of their own, thrown away
    python tests/parity/record_on_policy.py --trainer ppo                # one of ppov2, rloo, ppo
    python tests/parity/record_on_policy.py --trainer ppo --python PATH  # in an environment that holds the pins already

Runs on Python 3.11. Recording takes about a minute for each, after the installation (about 1 GB each).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # it is started as a script
from tests.parity.record import record_releases
from tests.parity.record_group import PINS as GROUP_PINS

PINS = {
    "ppov2": [
        "torch==2.13.0",
        "trl==0.11.4",
        "transformers==4.45.2",
        "accelerate==1.0.1",
        "datasets==3.0.1",
        "numpy==2.2.6",
        "rich==15.0.0",
    ],
    "rloo": GROUP_PINS["rloo"],
    "ppo": [
        "torch==2.13.0",
        "trl==0.26.2",
        "transformers==4.57.3",
        "accelerate==1.12.0",
        "datasets==4.4.1",
        "numpy==2.2.6",
        "rich==15.0.0",
    ],
}
COMMANDS = {trainer: ["tests.parity.on_policy_recorder", trainer] for trainer in PINS}

if __name__ == "__main__":
    record_releases(PINS, COMMANDS)
