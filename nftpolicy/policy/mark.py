# SPDX-License-Identifier: BSD-2-Clause
"""Packet marks (fwmark value and mask) and their arithmetic."""

from __future__ import annotations

import re

from attrs import frozen

from .errors import quote_excerpt

FULL_MASK = 0xFFFFFFFF
_NUMBER = r"0x[0-9a-fA-F]{1,8}|[1-9][0-9]{0,9}|0"
_SYNTAX = re.compile(rf"({_NUMBER})(?:/({_NUMBER}))?\Z")


@frozen
class Mark:
    """Mark of 32 bits. A packet carries it if fwmark & `mask` == `value`; `value` is within `mask`."""

    value: int
    mask: int

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"

    def matches(self, fwmark: int) -> bool:
        """Return True if a packet with this fwmark carries the mark."""
        return fwmark & self.mask == self.value

    def apply_to(self, fwmark: int) -> int:
        """Return the fwmark with this mark set; bits outside the mask stay."""
        return fwmark & ~self.mask & FULL_MASK | self.value

    def overlaps(self, other: Mark) -> bool:
        """Return True if one fwmark can carry both marks."""
        return (self.value ^ other.value) & self.mask & other.mask == 0


def parse_mark(text: object) -> Mark:
    """Return the mark for "VALUE/MASK" or "VALUE" (hexadecimal with 0x, or decimal).

    Raises:
        ValueError: the text is not a valid mark; the message has the fix.
    """
    parts = _SYNTAX.match(text) if isinstance(text, str) else None
    if not parts:
        raise ValueError(f'expected a mark such as "0x1/0x1", got {quote_excerpt(text)}')
    value, mask = (int(part, 0) if part else FULL_MASK for part in parts.groups())
    if value > FULL_MASK or mask > FULL_MASK:
        raise ValueError(f"a mark has 32 bits, {text} has more")
    if value & ~mask:
        raise ValueError(f'{text} has bits outside its mask; write "{value & mask:#x}/{mask:#x}" or widen the mask')
    if value == 0:
        raise ValueError(f"{text} matches unmarked packets; set at least one bit")
    return Mark(value, mask)
