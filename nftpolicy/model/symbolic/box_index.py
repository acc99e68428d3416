# SPDX-License-Identifier: BSD-2-Clause
"""Index of many boxes that quickly finds the ones that overlap a given box.

Each field sorts the boxes into about a thousand buckets, as bits of integers; a box that leaves a
field open, or spans many buckets, counts in all of them. A query costs one AND for each field.
"""

from __future__ import annotations

from collections.abc import Iterable

from .box import Box, Ranges

_BUCKETS = 10  # bits
_SPAN = 32  # a box in more buckets counts as open
_FEW = 24  # with fewer boxes an index does not pay


class BoxIndex:
    """Collection of boxes that grows."""

    def __init__(self, boxes: Iterable[Box] = (), tops: dict[str, int] | None = None) -> None:
        self.boxes = list(boxes)
        self._tops = tops or {}
        self._indexed = 0
        self._open: dict[str, int] = {}
        self._buckets: dict[str, dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self.boxes)

    def append(self, box: Box) -> None:
        """Add a box."""
        self.boxes.append(box)

    def extend(self, boxes: Iterable[Box]) -> None:
        """Add boxes."""
        self.boxes.extend(boxes)

    def overlapping(self, box: Box, until: int | None = None) -> list[Box]:
        """Return a superset of the boxes, of the first `until`, that overlap `box`."""
        if len(self.boxes) < _FEW:
            return self.boxes if until is None else self.boxes[:until]
        self._index()
        candidates = (1 << (len(self.boxes) if until is None else until)) - 1
        for field, buckets in self._buckets.items():
            wanted = box.get(field)
            keys = None if wanted is None else self._bucket_range(field, wanted)
            if keys is None:
                continue
            overlapping = self._open[field]
            for key in keys:
                overlapping |= buckets.get(key, 0)
            candidates &= overlapping
        return [self.boxes[index] for index in _set_bits(candidates)]

    def _index(self) -> None:
        for index in range(self._indexed, len(self.boxes)):
            bit, box = 1 << index, self.boxes[index]
            for field in box:
                if field not in self._buckets:
                    self._buckets[field], self._open[field] = {}, bit - 1
            for field, buckets in self._buckets.items():
                wanted = box.get(field)
                keys = None if wanted is None else self._bucket_range(field, wanted)
                if keys is None:
                    self._open[field] |= bit
                else:
                    for key in keys:
                        buckets[key] = buckets.get(key, 0) | bit
        self._indexed = len(self.boxes)

    def _bucket_range(self, field: str, wanted: Ranges) -> Iterable[int] | None:
        """Return the buckets of the values; None if there are too many."""
        shift = max(self._tops.get(field, 0).bit_length() - _BUCKETS, 0)
        if len(wanted) == 1:
            low, high = wanted[0][0] >> shift, wanted[0][1] >> shift
            return range(low, high + 1) if high - low < _SPAN else None
        keys: set[int] = set()
        for first, last in wanted:
            low, high = first >> shift, last >> shift
            if high - low + len(keys) >= _SPAN:
                return None
            keys.update(range(low, high + 1))
        return keys


def _set_bits(number: int) -> list[int]:
    """Return the positions of the bits that are set."""
    positions, base = [], 0
    while number:
        word = number & 0xFFFFFFFFFFFFFFFF
        while word:
            low = word & -word
            positions.append(base + low.bit_length() - 1)
            word ^= low
        number >>= 64
        base += 64
    return positions
