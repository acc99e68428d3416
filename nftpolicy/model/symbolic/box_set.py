# SPDX-License-Identifier: BSD-2-Clause
"""Immutable sets of boxes that share their storage, so that a larger one costs no copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import field, frozen, mutable

from .box import Box
from .box_index import BoxIndex


@mutable(eq=False)
class _BoxLog:
    """Entries in the order of their addition: functions that return boxes, each called when a query needs them."""

    tops: dict[str, int]
    entries: list[Callable[[], Iterable[Box]]] = field(factory=list)
    index: BoxIndex = field(init=False)
    ends: list[int] = field(factory=list, init=False)  # the number of boxes after each entry that has been called

    def __attrs_post_init__(self) -> None:
        self.index = BoxIndex((), self.tops)

    def count_boxes(self, length: int) -> int:
        """Return the number of boxes in the first `length` entries."""
        while len(self.ends) < length:
            self.index.extend(self.entries[len(self.ends)]())
            self.ends.append(len(self.index))
        return self.ends[length - 1] if length else 0


@frozen(eq=False)
class BoxSet:
    """The boxes of the first `length` entries of a log. Entries behind them are those of larger sets."""

    _log: _BoxLog
    _length: int = 0

    @classmethod
    def empty(cls, tops: dict[str, int]) -> BoxSet:
        """Return an empty set; `tops` has the highest value of each field."""
        return cls(_BoxLog(tops))

    @property
    def is_empty(self) -> bool:
        """Return True if the set has no box."""
        return not self._log.count_boxes(self._length)

    def with_boxes(self, boxes: Iterable[Box]) -> BoxSet:
        """Return a set with more boxes."""
        more = tuple(boxes)
        return self.with_deferred(lambda: more)

    def with_deferred(self, make: Callable[[], Iterable[Box]]) -> BoxSet:
        """Return a set with the boxes of `make` too, which is called at the first query that needs them."""
        log = self._log
        if self._length < len(log.entries):  # another set grew from this one
            log = _BoxLog(log.tops, log.entries[: self._length])
        log.entries.append(make)
        return BoxSet(log, self._length + 1)

    def overlapping(self, box: Box) -> list[Box]:
        """Return a superset of the boxes that overlap `box`."""
        return self._log.index.overlapping(box, self._log.count_boxes(self._length))
