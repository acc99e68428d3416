# SPDX-License-Identifier: BSD-2-Clause
"""Immutable sets of boxes that share their storage, so that a larger one costs no copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from attrs import field, frozen, mutable

from .box import Box
from .box_index import BoxIndex

_Entry: TypeAlias = Sequence[Box] | Callable[[], Iterable[Box]]


@mutable(eq=False)
class _BoxLog:
    """Entries in the order of their addition: boxes, or functions that return boxes when a query needs them."""

    index: BoxIndex
    entries: list[_Entry]
    ends: list[int] = field(factory=list)  # the number of boxes after each entry that has been called

    def count_boxes(self, length: int) -> int:
        """Return the number of boxes in the first `length` entries, which are at least one."""
        while len(self.ends) < length:
            entry = self.entries[len(self.ends)]
            self.index.extend(entry() if callable(entry) else entry)
            self.ends.append(len(self.index))
        return self.ends[length - 1]


@frozen(eq=False)
class BoxSet:
    """The boxes of the first `_length` entries of a log. Entries behind them are those of larger sets.

    `_tops` has the highest value of each field.
    """

    _tops: dict[str, int]
    _log: _BoxLog | None = None  # None: an empty set
    _length: int = 0

    @property
    def is_empty(self) -> bool:
        """Return True if the set has no box."""
        return self._log is None or not self._log.count_boxes(self._length)

    def with_boxes(self, boxes: Sequence[Box]) -> BoxSet:
        """Return a set with more boxes."""
        return self._with_entry(boxes)

    def with_deferred(self, make: Callable[[], Iterable[Box]]) -> BoxSet:
        """Return a set with the boxes of `make` too, which is called at the first query that needs them."""
        return self._with_entry(make)

    def _with_entry(self, entry: _Entry) -> BoxSet:
        log = self._log
        if log is None:
            log = _BoxLog(BoxIndex((), self._tops), [])
        elif self._length < len(log.entries):  # another set grew from this one
            log = _BoxLog(BoxIndex((), self._tops), log.entries[: self._length])
        log.entries.append(entry)
        return BoxSet(self._tops, log, self._length + 1)

    def overlapping(self, box: Box) -> list[Box]:
        """Return a superset of the boxes that overlap `box`."""
        return [] if self._log is None else self._log.index.overlapping(box, self._log.count_boxes(self._length))
