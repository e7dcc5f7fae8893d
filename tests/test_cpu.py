"""On a Mac the tests run on its CPU."""

from __future__ import annotations

import os

import pytest
import torch
from accelerate.utils import is_mps_available
from transformers.utils import is_torch_mps_available

from tests.cpu import stay_on_the_cpu


@pytest.mark.parametrize("mac", [True, False])
def test_nobody_sees_a_mac_s_gpu(mac: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mac)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: mac)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")  # so that it is as before after the test
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    stay_on_the_cpu()
    assert not is_mps_available()
    assert not is_torch_mps_available()
    assert os.environ.get("ACCELERATE_USE_CPU") == ("true" if mac else None)
