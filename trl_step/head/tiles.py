"""Logits and softmax over the vocabulary for many rows, tile by tile: [N, V] never exists.

A chunk is some rows, a tile is some columns of a chunk. On a CPU a tile's logits are turned into probabilities while
they lie in the cache; on an accelerator tiles bound the memory of what is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F

from trl_step.head.compiled import may_be_compiled, seen

CHUNK_ELEMENTS = 1 << 25
"""Numbers of one chunk on a CPU: 32 Mi, 128 MiB in float32."""
MIN_CHUNK_ROWS = 128
"""Fewer rows starve the matrix product."""
TILE_ELEMENTS = 1 << 19
"""Numbers of one tile on a CPU: 512 Ki, 2 MiB in float32, which lie in the cache of one or two cores."""

HOSTS = ["cpu"]
"""Types of devices with the sizes above; the others have those below."""
ACCELERATOR_CHUNK_BYTES = 192 << 20
"""Of what one chunk keeps on an accelerator.

Every chunk reads and writes the sum of the weight's gradient once, 8 bytes for each of V D numbers, and multiplies
2 n V D times for it, n being its rows. An H100 multiplies 990 T/s in bfloat16 and moves 3.35 TB/s, so the sum takes
longer than the product if n < 990 / 3.35 * 8 / 2 = 1180 at the peak rate, or n < 830 at the 700 T/s that products
reach. At V = 128,256 in bfloat16, 192 MiB are 784 rows: 21 chunks for 16,384 rows, whose sums move 21 * 4.2 GB in
26 ms, beside 17 ms for the product (52 for all three). 128 MiB of float32 logits were 261 rows: 63 chunks, 79 ms.

Memory above the gradients that are handed out, for 16,384 rows of width 4,096 and a head in bfloat16: the sum takes
2.10 GB, of which 1.05 are handed out; a chunk 0.20; a tile 0.10; the rest of a chunk's rows 0.06: 1.41 GB. Twice the
rows would take 1.6 GB and save 13 ms.
"""
ACCELERATOR_TILE_ELEMENTS = 1 << 24
"""Numbers of one tile on an accelerator: 96 MiB in bfloat16 and float32 together."""
WIDTH_MULTIPLE = 64
"""Of the columns of a tile there, as products on a GPU are slow at other widths."""


class OutputHead(NamedTuple):
    """logits = softcap * tanh(x / softcap) with x = scale * (hidden @ weight.T + bias); without a soft cap, x."""

    weight: torch.Tensor
    """[V, D]"""
    bias: torch.Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, D] -> [N, V], all at once: the definition, for when memory does not matter."""
        product = F.linear(hidden, self.weight, self.bias) * self.scale
        return product if self.softcap is None else self.softcap * torch.tanh(product / self.softcap)


class ChunkBuffers:
    """The memory that the tiles of one chunk are kept in.

    Inside `kept` one call hands it to the next: on a CPU the pages of a fresh buffer cost as much as a pass over it.
    """

    def __init__(self) -> None:
        self._keep = False
        self._buffers: dict[str, torch.Tensor] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Buffers live until the end of this context."""
        self._keep = True
        try:
            yield
        finally:
            self._keep = False
            self._buffers.clear()

    def numbers(self, name: str, count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Uninitialised [count]; `name` distinguishes buffers that are in use at the same time."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < count or (buffer.dtype, buffer.device) != (dtype, device):
            buffer = torch.empty(count, dtype=dtype, device=device)
        if self._keep:
            self._buffers[name] = buffer
        return buffer[:count]


class RowChunk(NamedTuple):
    """Some of N rows."""

    rows: slice
    hidden: torch.Tensor
    """[n, D]"""
    labels: torch.Tensor
    """[n] int64"""


def row_chunks(
    hidden: torch.Tensor, labels: torch.Tensor, vocabulary: int, kept_bytes: int | None = None
) -> Iterator[RowChunk]:
    """All of hidden [N, D] and labels [N], in chunks of about equal size.

    Args:
        kept_bytes: what is kept of each logit of a chunk; None: one number in the dtype of `hidden`
    """
    most = CHUNK_ELEMENTS // vocabulary
    if hidden.device.type not in HOSTS:
        most = ACCELERATOR_CHUNK_BYTES // (vocabulary * (kept_bytes or hidden.element_size()))
    for rows in _even_slices(len(labels), max(most, MIN_CHUNK_ROWS)):
        yield RowChunk(rows, hidden[rows], labels[rows])


def column_tiles(rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    """All columns, in tiles of about equal width."""
    if device.type in HOSTS:
        return _even_slices(vocabulary, max(TILE_ELEMENTS // max(rows, 1), 1))
    most = max(ACCELERATOR_TILE_ELEMENTS // max(rows, 1) // WIDTH_MULTIPLE, 1) * WIDTH_MULTIPLE
    return _even_slices(vocabulary, most, WIDTH_MULTIPLE)


def tile_of(buffer: torch.Tensor, rows: int, columns: slice) -> torch.Tensor:
    """The tile's place [n, v] in a buffer [n * V] that holds one tile after the other."""
    return buffer[rows * columns.start : rows * columns.stop].view(rows, columns.stop - columns.start)


def _even_slices(length: int, most: int, multiple: int = 1) -> list[slice]:
    count = max(-(-length // most), 1)
    size = -(-max(-(-length // count), 1) // multiple) * multiple
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class Logits(NamedTuple):
    """Of one tile [n, v], float32 at least, in memory of their own."""

    values: torch.Tensor
    """divided by the temperature"""
    tanh: torch.Tensor | None
    """logits / softcap, for the derivative of the soft cap"""


def tile_logits(
    hidden: torch.Tensor, weight: torch.Tensor, head: OutputHead, columns: slice, temperature: float
) -> Logits:
    """The logits of some columns.

    Args:
        hidden, weight: [n, D] and [V, D] in the dtype of the product; all that follows it is float32 at least
        head: what else there is about the logits
    """
    return logits_of(torch.mm(hidden, weight[columns].t()), head, columns, temperature)


def logits_of(logits: torch.Tensor, head: OutputHead, columns: slice, temperature: float) -> Logits:
    """The logits of some columns from their product [n, v] with the weight, whose memory may be used."""
    if head.bias is not None:
        logits.add_(head.bias[columns])
    logits = logits.to(wide(logits.dtype))
    if head.scale != 1.0:
        logits.mul_(head.scale)
    tanh = None
    if head.softcap is not None:
        tanh = torch.tanh(logits / head.softcap)
        logits = tanh * head.softcap
    if temperature != 1.0:
        logits.div_(temperature)
    return Logits(logits, tanh)


class RowSoftmax:
    """The softmax of n rows over the whole vocabulary, from tiles that come one after the other.

    In tile k, with the highest logit m_k, each token leaves its weight exp(logit - m_k). Over all tiles its
    probability is that weight times

        factor_k = exp(m_k - m) / total,    m = the highest m_k,    total = sum over k of exp(m_k - m) sum_k

    where sum_k is the sum of the tile's weights; so no tile is visited twice.

    Args:
        labels: [n] int64; the log-prob of one that no tile has is NaN
    """

    def __init__(self, labels: torch.Tensor) -> None:
        self._labels = labels.unsqueeze(1)
        self._label_logits: torch.Tensor | None = None
        self._peaks: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []

    def see(self, logits: torch.Tensor, columns: slice, out: torch.Tensor | None = None) -> torch.Tensor:
        """Takes the next tile's logits [n, v], which it overwrites, and returns its weights, in `out` or in place."""
        inside, place = self.place(columns)
        label_logits = logits.gather(1, place)  # before they are overwritten
        # finite, so that a tile of tokens that are all excluded has weights of 0
        peak = logits.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
        weights = torch.exp(logits.sub_(peak), out=logits if out is None else out)
        self._remember(inside, label_logits, peak, weights.sum(dim=1, keepdim=True))
        return weights

    def see_product(
        self, raw: torch.Tensor, head: OutputHead, columns: slice, temperature: float, keep: bool = False
    ) -> torch.Tensor | None:
        """Takes the next tile's product `raw` [n, v] with the weight in one kernel, if that can be.

        Returns:
            None if it was not taken; else, to `keep` them, the weights in the dtype of the product, or the sums [n, 1]
        """
        if head.bias is not None or head.softcap is not None or not may_be_compiled(raw):
            return None
        inside, place = self.place(columns)
        found = seen(raw, place, head.scale / temperature, keep)
        if found is None:
            return None
        self._remember(inside, found.label_logits, found.peak, found.sum)
        return found.weights if keep else found.sum

    def _remember(
        self, inside: torch.Tensor, label_logits: torch.Tensor, peak: torch.Tensor, total: torch.Tensor
    ) -> None:
        known = torch.nan if self._label_logits is None else self._label_logits
        self._label_logits = torch.where(inside, label_logits, known)
        self._peaks.append(peak)
        self._sums.append(total)

    def place(self, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether each label is among the columns, and where among them (anywhere if it is not); both [n, 1]."""
        place, width = self._labels - columns.start, columns.stop - columns.start
        return (place >= 0) & (place < width), place.clamp_(0, width - 1)

    def result(self) -> TiledSoftmax:
        """Once all tiles have been seen."""
        assert self._label_logits is not None
        peaks, sums = torch.cat(self._peaks, dim=1), torch.cat(self._sums, dim=1)
        peak = peaks.amax(dim=1, keepdim=True)
        shrunk = torch.exp(peaks - peak)
        total = (shrunk * sums).sum(dim=1, keepdim=True)
        log_total = total.log()
        logprobs = (self._label_logits - peak) - log_total
        return TiledSoftmax(logprobs, self._label_logits, shrunk / total, peak, log_total)


class TiledSoftmax(NamedTuple):
    """What makes one softmax of the tiles of n rows."""

    logprobs: torch.Tensor
    """[n, 1], of the labels"""
    label_logits: torch.Tensor
    """[n, 1]"""
    factors: torch.Tensor
    """[n, tiles]: what a tile's weights are multiplied by to be probabilities"""
    peak: torch.Tensor
    """[n, 1]: the highest logit"""
    log_total: torch.Tensor
    """[n, 1]: log of the sum of exp(logit - peak)"""


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """What autocast would multiply in, else the dtype of the weight; autocast leaves float64 alone."""
    device_type = weight.device.type
    if weight.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return weight.dtype
    return torch.get_autocast_dtype(device_type)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What softmax, sums and the head's gradient are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
