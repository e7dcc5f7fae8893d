"""Runs test files of a release of TRL as an old script: `python -m trl_step.port run_old_tests.py`, pytest's arguments.

What is not the hub here does nothing: `HfFolder`, which huggingface_hub has no more and the tests set a token with, and
the removal of a repository.
"""

import sys
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import torch

torch.backends.mps.is_available = lambda: False  # as in `tests.cpu`: here `tests` are those of the release
huggingface_hub.HfFolder = huggingface_hub.delete_repo = MagicMock()
sys.exit(pytest.main([*sys.argv[1:], "-p", "no:cacheprovider"]))
