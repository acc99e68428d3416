# SPDX-License-Identifier: BSD-2-Clause
"""Marks (fwmark value and mask) and their arithmetic, written once."""

from __future__ import annotations

import re

from attrs import frozen

from .errors import quoted

FULL = 0xFFFFFFFF
_SYNTAX = re.compile(r"(0x[0-9a-fA-F]{1,8}|[1-9][0-9]{0,9}|0)(?:/(0x[0-9a-fA-F]{1,8}|[1-9][0-9]{0,9}|0))?\Z")


@frozen
class Mark:
    """A packet wears the mark if its fwmark and `mask` is `value` (32 bits, `value` within `mask`)."""

    value: int
    mask: int

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"

    def worn_by(self, fwmark: int) -> bool:
        """Whether a packet with this fwmark wears the mark."""
        return fwmark & self.mask == self.value

    def put_on(self, fwmark: int) -> int:
        """The fwmark with this mark put on; foreign bits stay."""
        return fwmark & ~self.mask & FULL | self.value

    def overlaps(self, other: Mark) -> bool:
        """Whether one fwmark can wear both."""
        return (self.value ^ other.value) & self.mask & other.mask == 0


def parse(text: object) -> Mark:
    """A mark from "VALUE/MASK" or "VALUE" (hexadecimal with 0x, or decimal).

    Raises:
        ValueError: with a sentence that says what to write instead.
    """
    found = _SYNTAX.match(text) if isinstance(text, str) else None
    if not found:
        raise ValueError(f'expected a mark such as "0x1/0x1", got {quoted(text)}')
    value, mask = (int(part, 0) if part else FULL for part in found.groups())
    if value > FULL or mask > FULL:
        raise ValueError(f"a mark has 32 bits, {text} has more")
    if value & ~mask:
        raise ValueError(f'{text} has bits outside its mask; write "{value & mask:#x}/{mask:#x}" or widen the mask')
    if value == 0:
        raise ValueError(f"{text} is worn by packets that nobody marked; a mark needs at least one bit")
    return Mark(value, mask)
