import pytest

from tests.head.heads import V
from trl_step.head import tiles as vocabulary
from trl_step.head import weight_gradient


@pytest.fixture(params=["cpu", "accelerator"])
def small_chunks(request, monkeypatch):
    """Several chunks and tiles, and last ones that are smaller, cut as on a CPU and as on an accelerator."""
    monkeypatch.setattr(vocabulary, "MIN_CHUNK_ROWS", 1)
    if request.param == "cpu":
        monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", 10 * V)
        monkeypatch.setattr(vocabulary, "TILE_ELEMENTS", 10 * 7)
    else:
        monkeypatch.setattr(vocabulary, "HOSTS", [])
        monkeypatch.setattr(weight_gradient, "HOSTS", [])
        monkeypatch.setattr(weight_gradient, "NARROWED_AT_ONCE", 30)
        monkeypatch.setattr(vocabulary, "ACCELERATOR_CHUNK_BYTES", 4 * 10 * V)
        monkeypatch.setattr(vocabulary, "ACCELERATOR_TILE_ELEMENTS", 10 * 7)
        monkeypatch.setattr(vocabulary, "WIDTH_MULTIPLE", 4)
