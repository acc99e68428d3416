# SPDX-License-Identifier: BSD-2-Clause
"""Marks are bits, not numbers: the groups of bits that a state never tells apart."""

from __future__ import annotations

from collections.abc import Iterable

from ..netstate.nft import FULL
from .box import Box, Ranges, complement, only


def groups(masks: Iterable[int]) -> tuple[int, ...]:
    """The coarsest split of 32 bits of which every mask is a union; each group as a mask."""
    found = [FULL]
    for mask in set(masks):
        found = [part for group in found for part in (group & mask, group & ~mask) if part]
    return tuple(sorted(found))


def packed(value: int, group: int) -> int:
    """The bits of `value` that are in `group`, pushed together."""
    if not value & group:
        return 0
    result = at = 0
    while group:
        low = group & -group
        if value & low:
            result |= 1 << at
        at += 1
        group ^= low
    return result


def spread(bits: int, group: int) -> int:
    """The opposite of packed."""
    result = 0
    while bits:
        low = group & -group
        if bits & 1:
            result |= low
        bits >>= 1
        group ^= low
    return result


def name(of: str, group: int) -> str:
    """The field of a group: of is "mark" or "ctmark"."""
    return f"{of}:{group:#x}"


def top(group: int) -> int:
    """The highest value of a group's field."""
    return (1 << group.bit_count()) - 1


def equal(of: str, partition: Iterable[int], mask: int, value: int) -> list[Box]:
    """The boxes of `of` & mask == value: one, or none if no value is so."""
    if value & ~mask:
        return []
    return [{name(of, group): only(packed(value, group)) for group in partition if group & mask}]


def differs(of: str, partition: Iterable[int], mask: int, value: int) -> list[Box]:
    """The boxes of `of` & mask != value, disjoint: the first group that differs is another in each."""
    if value & ~mask:
        return [{}]
    found: list[Box] = []
    same: Box = {}
    for group in partition:
        if not group & mask:
            continue
        field, wanted = name(of, group), only(packed(value, group))
        other: Ranges = complement(wanted, top(group))
        if other:
            found.append({**same, field: other})
        same = {**same, field: wanted}
    return found
