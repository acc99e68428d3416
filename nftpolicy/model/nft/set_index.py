# SPDX-License-Identifier: BSD-2-Clause
"""Sets and maps with constant-time lookup: a packet must not scan ten thousand elements.

An element is an interval in each of its parts. Elements of one shape (exact in one part, a prefix
of N bits in another, some other range elsewhere) share a hash table. nft does not allow overlapping
elements in a set, so ranges behind one key are disjoint and a binary search finds them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from ...netstate.nft import Element
from .datatypes import DataType, Interval, parse_value

_RANGE = -1  # in a shape: neither exact nor a prefix

_ElementShape = tuple[int, ...]
_ElementKey = tuple[int, ...]


def _shift(low: int, high: int) -> int:
    """Return the number of host bits of the interval, or _RANGE if it is not a prefix."""
    size = high - low + 1
    is_prefix = size > 0 and not size & size - 1 and not low & size - 1
    return size.bit_length() - 1 if is_prefix else _RANGE


class SetIndex:
    """The data of `entries` by key. `is_complete`: all entries are supported."""

    def __init__(self, kinds: tuple[DataType, ...], entries: Iterable[tuple[Element, Any]]) -> None:
        self.is_complete = True
        self._default: Any = None
        self._tables: dict[_ElementShape, dict[_ElementKey, Any]] = {}
        self._elements: list[list[Interval]] = []
        for element, data in entries:
            if element == "*" and len(kinds) == 1:
                self._default = data
                continue
            values = element if isinstance(element, tuple) else (element,)
            parts = [parse_value(kind, value) for kind, value in zip(kinds, values, strict=False)]
            if len(values) != len(kinds) or None in parts:
                self.is_complete = False
                continue
            self._add([part for part in parts if part is not None], data)
        for table in self._tables.values():
            for content in table.values():
                if isinstance(content, _Ranges):
                    content.sort()
        self._lookups = [(shape if any(shape) else None, table) for shape, table in self._tables.items()]

    def _add(self, parts: list[Interval], data: Any) -> None:
        self._elements.append(parts)
        shape = tuple(_shift(low, high) for low, high in parts)
        pairs = list(zip(parts, shape, strict=True))
        key = tuple(low >> shift for (low, _), shift in pairs if shift != _RANGE)
        ranges = [part for part, shift in pairs if shift == _RANGE]
        table = self._tables.setdefault(shape, {})
        if ranges:
            table.setdefault(key, _Ranges()).add(ranges, data)
        else:
            table[key] = data

    def may_contain(self, values: list[int | None]) -> bool:
        """Return True if some element matches the values, of which None is any value.

        The cost is linear in the number of elements.
        """
        return self._default is not None or any(
            all(value is None or low <= value <= high for value, (low, high) in zip(values, parts, strict=True))
            for parts in self._elements
        )

    def find(self, values: tuple[int, ...]) -> Any:
        """Return the data of the element that contains `values`, or None."""
        for shape, table in self._lookups:
            if shape is None:  # exact in all parts
                data = table.get(values)
                if data is not None:
                    return data
                continue
            key = tuple(value >> shift for value, shift in zip(values, shape, strict=True) if shift != _RANGE)
            data = table.get(key)
            if isinstance(data, _Ranges):
                data = data.find([value for value, shift in zip(values, shape, strict=True) if shift == _RANGE])
            if data is not None:
                return data
        return self._default


class _Ranges:
    """Boxes of one or more dimensions; boxes of one dimension are disjoint."""

    def __init__(self) -> None:
        self._boxes: list[tuple[list[Interval], Any]] = []
        self._lows: list[int] = []

    def add(self, box: list[Interval], data: Any) -> None:
        self._boxes.append((box, data))

    def sort(self) -> None:
        self._boxes.sort(key=lambda item: item[0])
        self._lows = [box[0][0] for box, _ in self._boxes]

    def find(self, values: list[int]) -> Any:
        end = bisect_right(self._lows, values[0])
        candidates = self._boxes[max(end - 1, 0) : end] if len(values) == 1 else self._boxes[:end]
        for box, data in candidates:
            if all(low <= value <= high for value, (low, high) in zip(values, box, strict=True)):
                return data
        return None
