# SPDX-License-Identifier: BSD-2-Clause
"""Many boxes, and quickly those of them that meet a given one.

Each field has its boxes sorted into a few hundred buckets, as bits of integers; boxes that leave a
field open, or span many buckets, count in all of them. So a question costs an AND for each field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .box import Box, Ranges

_BUCKETS = 10  # bits
_SPAN = 32  # a box in more buckets than that counts as open
_FEW = 24  # below that an index is not worth its making


class Covers:
    """Boxes that are decided. `defer` takes boxes that are only worked out if somebody asks."""

    def __init__(self, boxes: Iterable[Box] = (), tops: dict[str, int] | None = None) -> None:
        self.boxes = list(boxes)
        self._tops = tops or {}
        self._deferred: list[Callable[[], Iterable[Box]]] = []
        self._indexed = 0
        self._open: dict[str, int] = {}
        self._buckets: dict[str, dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self.boxes)

    def append(self, box: Box) -> None:
        """One more."""
        self.boxes.append(box)

    def extend(self, boxes: Iterable[Box]) -> None:
        """Some more."""
        self.boxes.extend(boxes)

    def defer(self, make: Callable[[], Iterable[Box]]) -> None:
        """More, later."""
        self._deferred.append(make)

    def meeting(self, box: Box, until: int | None = None) -> list[Box]:
        """Those, of the first so many, that may have something in common with a box."""
        if self._deferred:
            for make in self._deferred:
                self.boxes.extend(make())
            self._deferred.clear()
        if len(self.boxes) < _FEW:
            return self.boxes if until is None else self.boxes[:until]
        self._index()
        found = (1 << (len(self.boxes) if until is None else until)) - 1
        for field, buckets in self._buckets.items():
            wanted = box.get(field)
            keys = None if wanted is None else self._keys(field, wanted)
            if keys is None:
                continue
            some = self._open[field]
            for key in keys:
                some |= buckets.get(key, 0)
            found &= some
        return [self.boxes[at] for at in _bits(found)]

    def _index(self) -> None:
        for at in range(self._indexed, len(self.boxes)):
            bit, box = 1 << at, self.boxes[at]
            for field in box:
                if field not in self._buckets:
                    self._buckets[field], self._open[field] = {}, bit - 1
            for field, buckets in self._buckets.items():
                wanted = box.get(field)
                keys = None if wanted is None else self._keys(field, wanted)
                if keys is None:
                    self._open[field] |= bit
                else:
                    for key in keys:
                        buckets[key] = buckets.get(key, 0) | bit
        self._indexed = len(self.boxes)

    def _keys(self, field: str, wanted: Ranges) -> Iterable[int] | None:
        """The buckets of some values; None if there are too many."""
        shift = max(self._tops.get(field, 0).bit_length() - _BUCKETS, 0)
        if len(wanted) == 1:
            low, high = wanted[0][0] >> shift, wanted[0][1] >> shift
            return range(low, high + 1) if high - low < _SPAN else None
        found: set[int] = set()
        for first, last in wanted:
            low, high = first >> shift, last >> shift
            if high - low + len(found) >= _SPAN:
                return None
            found.update(range(low, high + 1))
        return found


def _bits(number: int) -> list[int]:
    """The places of the bits that are set."""
    found, base = [], 0
    while number:
        word = number & 0xFFFFFFFFFFFFFFFF
        while word:
            low = word & -word
            found.append(base + low.bit_length() - 1)
            word ^= low
        number >>= 64
        base += 64
    return found
