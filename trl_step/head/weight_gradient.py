"""The gradient of the head's weight, summed up over chunks of rows in float32 at least."""

from __future__ import annotations

import torch

from trl_step.head.products import add_product
from trl_step.head.tiles import HOSTS, wide

NARROWED_AT_ONCE = 1 << 24
"""Numbers that are turned into the weight's dtype together."""


class WeightGradient:
    """A sum [V, D] that is handed out in the dtype of the weight.

    If that has half the bytes, the sum lies in two tensors of V / 2 rows each, and what is handed out takes the memory
    of the first: the two dtypes never exist side by side.

    Args:
        weight: [V, D]
        dtype: of the products that are added
        empty: no product will follow
    """

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype, empty: bool) -> None:
        self._shape, self._dtype = weight.shape, weight.dtype
        sums, count = wide(dtype), len(weight)
        middle = -(-count // 2) if 2 * weight.dtype.itemsize == sums.itemsize else count
        self._places = [slice(0, middle)] + [slice(middle, count)] * (middle < count)
        self._sums = [
            torch.empty(weight[place].shape, dtype=sums, device=weight.device)  # contiguous, whatever the weight is
            for place in self._places
        ]
        if empty:
            for total in self._sums:
                total.zero_()

    def add(self, columns: slice, left: torch.Tensor, right: torch.Tensor, first: bool) -> None:
        """Rows `columns` of the sum += left [v, n] @ right [n, D]; over what was there if it is the `first`."""
        for place, total in zip(self._places, self._sums, strict=True):
            start, stop = max(columns.start, place.start), min(columns.stop, place.stop)
            if start < stop:
                part = left[start - columns.start : stop - columns.start]
                add_product(total[start - place.start : stop - place.start], part, right, first)

    def add_rows(self, labels: torch.Tensor, rows: torch.Tensor) -> None:
        """Row labels[i] of the sum += rows[i], for labels [n] int64 and rows [n, D] in its dtype."""
        for place, total in zip(self._places, self._sums, strict=True):
            index, addend = labels, rows
            if len(self._sums) > 1:
                inside = (labels >= place.start) & (labels < place.stop)
                # zeros for the other half's labels go to any row
                index, addend = (labels - place.start) % len(total), rows * inside.unsqueeze(1)
            if total.device.type in HOSTS:  # on either device, the one that adds in a fixed order
                total.index_add_(0, index, addend)
            else:
                total.index_put_((index,), addend, accumulate=True)

    def handed_out(self, factor: torch.Tensor | None) -> torch.Tensor:
        """The sum times `factor` (0-d) in the dtype of the weight. To be called once: the memory of the sum is used."""
        if factor is not None:
            for total in self._sums:
                total.mul_(factor)
        first, *rest = self._sums
        if not rest:
            return first.to(self._dtype)
        narrow = first.view(-1).view(self._dtype)[: self._shape.numel()].view(self._shape)
        rows = max(NARROWED_AT_ONCE // self._shape[1], 1)
        for start in range(0, len(first), rows):  # from the front: what is written lies before what is not yet read
            narrow[start : min(start + rows, len(first))] = first[start : start + rows].to(self._dtype)
        narrow[len(first) :] = rest[0]
        return narrow
