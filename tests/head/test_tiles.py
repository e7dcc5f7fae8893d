import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_step.head import tiles as vocabulary
from trl_step.head.tiles import ChunkBuffers, RowSoftmax, column_tiles, row_chunks, tile_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(("rows", "vocabulary_size"), [(37, 23), (1, 1), (1000, 7), (3, 1000)])
def test_chunks_and_tiles_cover_everything_once(rows, vocabulary_size, monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", 230)
    monkeypatch.setattr(vocabulary, "MIN_CHUNK_ROWS", 1)
    monkeypatch.setattr(vocabulary, "TILE_ELEMENTS", 70)
    hidden, labels = torch.randn(rows, 2), torch.arange(rows)
    chunks = list(row_chunks(hidden, labels, vocabulary_size))
    assert [i for c in chunks for i in range(c.rows.start, c.rows.stop)] == list(range(rows))
    assert torch.equal(torch.cat([c.hidden for c in chunks]), hidden)
    assert torch.equal(torch.cat([c.labels for c in chunks]), labels)
    sizes = {len(c.labels) for c in chunks}
    assert max(sizes) * vocabulary_size <= max(230, vocabulary_size)
    for count in sizes:
        tiles = column_tiles(count, vocabulary_size, CPU)
        assert [i for c in tiles for i in range(c.start, c.stop)] == list(range(vocabulary_size))
        assert max(c.stop - c.start for c in tiles) <= max(70 // count, 1)


def test_chunks_and_tiles_of_an_accelerator():
    """By hand, for the shape of the head section of `make gpu-check`: 192 MiB over 128,256 numbers of 2 bytes are 784
    rows, so 21 chunks of 781; 16 Mi numbers over 781 rows are 21,482 columns, 21,440 as a multiple of 64, so 6 tiles.
    """
    hidden, labels = torch.empty(16_384, 4096, dtype=torch.bfloat16, device="meta"), torch.empty(16_384, device="meta")
    chunks = list(row_chunks(hidden, labels, 128_256))
    assert [len(chunk.labels) for chunk in chunks] == [781] * 20 + [764]
    tiles = column_tiles(781, 128_256, hidden.device)
    assert [c.stop - c.start for c in tiles] == [21_376] * 6
    assert (tiles[0].start, tiles[-1].stop) == (0, 128_256)
    assert len(list(row_chunks(hidden, labels, 128_256, kept_bytes=8))) == 84
    assert column_tiles(1 << 24, 100, hidden.device) == [slice(0, 64), slice(64, 100)]


def test_tiles_lie_one_after_the_other():
    buffer = torch.arange(12)
    tiles = [tile_of(buffer, 2, columns) for columns in (slice(0, 4), slice(4, 6))]
    assert tiles[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert tiles[1].tolist() == [[8, 9], [10, 11]]


@pytest.mark.parametrize("widths", [(5,), (2, 3), (1, 1, 1, 1, 1)], ids=str)
def test_a_softmax_from_tiles(widths):
    """By hand: logits log 1, log 2, log 3, log 4 and log 0 are 0.1, 0.2, 0.3, 0.4 and 0; shifted by 100 as well."""
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0]).log() + torch.tensor([[0.0], [100.0], [-100.0]])
    softmax, start, weights = RowSoftmax(torch.tensor([3, 0, 1])), 0, []
    for width in widths:
        columns = slice(start, start + width)
        weights.append(softmax.see(logits[:, columns].clone(), columns))
        start += width
    result = softmax.result()
    expected = torch.tensor([0.4, 0.1, 0.2]).log().unsqueeze(1)
    torch.testing.assert_close(result.logprobs, expected, rtol=0, atol=1e-5)
    shares = [tile * result.factors[:, k : k + 1] for k, tile in enumerate(weights)]
    torch.testing.assert_close(torch.cat(shares, dim=1), torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0]]).expand(3, 5))
    torch.testing.assert_close(result.peak + result.log_total, logits.logsumexp(dim=1, keepdim=True))


@given(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([1, 50, 1e4]), st.data())
@settings(max_examples=100, deadline=None)
def test_a_softmax_from_tiles_of_any_width(rows, widths, size, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = size * torch.randn(rows, sum(widths), generator=generator)
    excluded = torch.rand(logits.shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.5]))
    logits[excluded] = -torch.inf
    labels = torch.randint(sum(widths), (rows,), generator=generator)
    softmax, weights = RowSoftmax(labels), []
    for end, width in zip(torch.tensor(widths).cumsum(0).tolist(), widths, strict=True):
        weights.append(softmax.see(logits[:, end - width : end].clone(), slice(end - width, end)))
    result = softmax.result()
    expected = torch.log_softmax(logits.double(), dim=1)
    torch.testing.assert_close(result.logprobs, expected.gather(1, labels.unsqueeze(1)).float(), equal_nan=True)
    shares = torch.cat([tile * result.factors[:, k : k + 1] for k, tile in enumerate(weights)], dim=1)
    possible = ~excluded.all(dim=1)
    torch.testing.assert_close(shares[possible], expected.exp().float()[possible])


@pytest.mark.parametrize("label", [-100, -1, 5])
def test_a_label_outside_the_vocabulary_has_no_logprob(label):
    softmax = RowSoftmax(torch.tensor([label, 3]))
    for columns in (slice(0, 2), slice(2, 5)):
        softmax.see(torch.zeros(2, 5)[:, columns], columns)
    outside, inside = softmax.result().logprobs.flatten()
    assert outside.isnan()
    torch.testing.assert_close(inside, torch.tensor(0.2).log())


def test_buffers_are_used_again_and_given_back():
    buffers = ChunkBuffers()

    def address(name, count, dtype=torch.float32):
        buffer = buffers.numbers(name, count, dtype, CPU)
        assert buffer.shape == (count,)
        assert buffer.dtype == dtype
        return buffer.data_ptr()

    with buffers.kept():
        first = address("policy", 10)
        assert address("policy", 7) == first
        assert address("policy", 11) != first
        assert address("reference", 7) != address("policy", 7)
        address("policy", 7, torch.float64)
    one, other = (buffers.numbers("policy", 7, torch.float32, CPU) for _ in range(2))
    assert one.data_ptr() != other.data_ptr()
