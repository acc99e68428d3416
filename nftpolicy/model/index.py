# SPDX-License-Identifier: BSD-2-Clause
"""Sets and maps, looked up as quickly as the kernel does: a packet must not scan ten thousand elements.

An element is an interval in each of its parts. Elements of one shape (exact here, a prefix of so many
bits there, some other range elsewhere) share a hash table; nft does not let elements of a set overlap, so
ranges behind one key are disjoint and can be searched by halves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from ..netstate.nft import Element
from .words import Interval, Kind, parse

_RANGE = -1  # in a shape: neither exact nor a prefix

Shape = tuple[int, ...]
Key = tuple[int, ...]


def _shift(low: int, high: int) -> int:
    """How many low bits the interval leaves open, if it is a prefix."""
    size = high - low + 1
    return size.bit_length() - 1 if size > 0 and not size & size - 1 and not low & size - 1 else _RANGE


class Index:
    """What `entries` say about keys. `whole`: all of them were understood."""

    def __init__(self, kinds: tuple[Kind, ...], entries: Iterable[tuple[Element, Any]]) -> None:
        self.whole = True
        self._default: Any = None
        self._tables: dict[Shape, dict[Key, Any]] = {}
        self._all: list[list[Interval]] = []
        for element, data in entries:
            if element == "*" and len(kinds) == 1:
                self._default = data
                continue
            values = element if isinstance(element, tuple) else (element,)
            parts = [parse(kind, value) for kind, value in zip(kinds, values, strict=False)]
            if len(values) != len(kinds) or None in parts:
                self.whole = False
                continue
            self._add([part for part in parts if part is not None], data)
        for table in self._tables.values():
            for found in table.values():
                if isinstance(found, _Ranges):
                    found.sort()
        self._searched = [(shape if any(shape) else None, table) for shape, table in self._tables.items()]

    def _add(self, parts: list[Interval], data: Any) -> None:
        self._all.append(parts)
        shape = tuple(_shift(low, high) for low, high in parts)
        key = tuple(low >> shift for (low, _), shift in zip(parts, shape, strict=True) if shift != _RANGE)
        ranges = [part for part, shift in zip(parts, shape, strict=True) if shift == _RANGE]
        table = self._tables.setdefault(shape, {})
        if ranges:
            table.setdefault(key, _Ranges()).add(ranges, data)
        else:
            table[key] = data

    def may_find(self, values: list[int | None]) -> bool:
        """Whether some element has these values, of which some are not known. Looks at all of them."""
        return self._default is not None or any(
            all(value is None or low <= value <= high for value, (low, high) in zip(values, parts, strict=True))
            for parts in self._all
        )

    def find(self, values: tuple[int, ...]) -> Any:
        """The data of the element that `values` are in, or None."""
        for shape, table in self._searched:
            if shape is None:  # exact in all parts
                found = table.get(values)
                if found is not None:
                    return found
                continue
            key = tuple(value >> shift for value, shift in zip(values, shape, strict=True) if shift != _RANGE)
            found = table.get(key)
            if isinstance(found, _Ranges):
                found = found.find([value for value, shift in zip(values, shape, strict=True) if shift == _RANGE])
            if found is not None:
                return found
        return self._default


class _Ranges:
    """Boxes of one or more dimensions, disjoint if there is but one."""

    def __init__(self) -> None:
        self._boxes: list[tuple[list[Interval], Any]] = []
        self._lows: list[int] = []

    def add(self, box: list[Interval], data: Any) -> None:
        self._boxes.append((box, data))

    def sort(self) -> None:
        self._boxes.sort(key=lambda item: item[0])
        self._lows = [box[0][0] for box, _ in self._boxes]

    def find(self, values: list[int]) -> Any:
        at = bisect_right(self._lows, values[0])
        candidates = self._boxes[max(at - 1, 0) : at] if len(values) == 1 else self._boxes[:at]
        for box, data in candidates:
            if all(low <= value <= high for value, (low, high) in zip(values, box, strict=True)):
                return data
        return None
