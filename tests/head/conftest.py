import pytest

from tests.head.heads import V
from trl_step.head import tiles as vocabulary


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks and tiles, and last ones that are smaller."""
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", 10 * V)
    monkeypatch.setattr(vocabulary, "MIN_CHUNK_ROWS", 1)
    monkeypatch.setattr(vocabulary, "TILE_ELEMENTS", 10 * 7)
