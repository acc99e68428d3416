# SPDX-License-Identifier: BSD-2-Clause
"""Partition of the 32 mark bits into groups that no rule or mask distinguishes."""

from __future__ import annotations

from collections.abc import Iterable

from ...netstate.nft import FULL_MASK
from .box import Box, Ranges, complement, points


def bit_groups(masks: Iterable[int]) -> tuple[int, ...]:
    """Return the coarsest partition of 32 bits of which every mask is a union.

    A group is given as a mask.
    """
    partition = [FULL_MASK]
    for mask in set(masks):
        partition = [part for group in partition for part in (group & mask, group & ~mask) if part]
    return tuple(sorted(partition))


def pack_bits(value: int, group: int) -> int:
    """Return the bits of `value` that are in `group`, moved together."""
    if not value & group:
        return 0
    result = position = 0
    while group:
        low = group & -group
        if value & low:
            result |= 1 << position
        position += 1
        group ^= low
    return result


def unpack_bits(bits: int, group: int) -> int:
    """Return the mark bits for a packed value: the inverse of `pack_bits`."""
    result = 0
    while bits:
        low = group & -group
        if bits & 1:
            result |= low
        bits >>= 1
        group ^= low
    return result


def field_name(mark: str, group: int) -> str:
    """Return the name of the field of a group; `mark` is "mark" or "ctmark"."""
    return f"{mark}:{group:#x}"


def max_value(group: int) -> int:
    """Return the highest value of a group's field."""
    return (1 << group.bit_count()) - 1


def equal_boxes(mark: str, partition: Iterable[int], mask: int, value: int) -> list[Box]:
    """Return the boxes of `mark` & mask == value: one, or none if no mark satisfies it."""
    if value & ~mask:
        return []
    return [{field_name(mark, group): points(pack_bits(value, group)) for group in partition if group & mask}]


def unequal_boxes(mark: str, partition: Iterable[int], mask: int, value: int) -> list[Box]:
    """Return the boxes of `mark` & mask != value.

    They are disjoint: each has another first differing group.
    """
    if value & ~mask:
        return [{}]
    boxes: list[Box] = []
    equal_so_far: Box = {}
    for group in partition:
        if not group & mask:
            continue
        field, wanted = field_name(mark, group), points(pack_bits(value, group))
        other: Ranges = complement(wanted, max_value(group))
        if other:
            boxes.append({**equal_so_far, field: other})
        equal_so_far = {**equal_so_far, field: wanted}
    return boxes
