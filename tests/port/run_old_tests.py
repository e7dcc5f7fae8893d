"""Runs test files of a release of TRL as an old script: `python -m trl_step.port run_old_tests.py`, pytest's arguments.

What is not the hub here does nothing: `HfFolder`, which huggingface_hub has no more and the tests set a token with, and
the removal of a repository.
"""

import sys
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import torch
import transformers

torch.backends.mps.is_available = lambda: False  # as in `tests.cpu`: here `tests` are those of the release
huggingface_hub.HfFolder = huggingface_hub.delete_repo = MagicMock()
# unittest's assertWarns asks every module for its warnings: old names of modules in transformers 5.20, the last for
# Python 3.10, would import torchvision to answer
for name, module in list(sys.modules.items()):
    if name.startswith(f"{transformers.__name__}."):
        vars(module).setdefault("__warningregistry__", {})
sys.exit(pytest.main([*sys.argv[1:], "-p", "no:cacheprovider"]))
