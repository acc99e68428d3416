# SPDX-License-Identifier: BSD-2-Clause
"""Boxes of a test of a mark, under a mask, for single values or ranges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...netstate import nft
from ...netstate.nft import FULL_MASK
from . import field_values, mark_bits
from .box import Box, complement, points

_ORDER = ("<", "<=", ">", ">=")


def parse_marks(elements: Iterable[nft.Element]) -> list[tuple[int, int]] | None:
    """Return the ranges of marks in the right side of a match; None: unsupported syntax."""
    pairs: list[tuple[int, int]] = []
    for element in elements:
        parsed = None if isinstance(element, tuple) else field_values.parse_number(element)
        if parsed is None:
            return None
        pairs += parsed
    return pairs


def mark_boxes(
    mark: str, partition: Sequence[int], mask: int, pairs: Sequence[tuple[int, int]], op: str
) -> list[Box] | None:
    """Return the boxes of `mark` & mask, compared by `op` with ranges of values; None: unsupported."""
    if op in (*field_values.EQUAL, "!=") and all(low == high for low, high in pairs):
        return _boxes_of_values(mark, partition, mask, [low for low, _ in pairs], op)
    if op in (*field_values.EQUAL, "!=", *_ORDER) and mask == FULL_MASK and mask in partition:
        return _boxes_of_ranges(mark, pairs, op)
    return None


def _boxes_of_values(
    mark: str, partition: Sequence[int], mask: int, wanted: Sequence[int], op: str
) -> list[Box] | None:
    """Return the boxes of a test for single values under a mask; None: unsupported."""
    if op != "!=":
        return [box for value in wanted for box in mark_bits.equal_boxes(mark, partition, mask, value)]
    wanted = [value for value in wanted if not value & ~mask]
    if len(wanted) < 2:
        return mark_bits.unequal_boxes(mark, partition, mask, wanted[0]) if wanted else [{}]
    groups = [group for group in partition if group & mask]
    if len(groups) != 1:
        return None
    (group,) = groups
    ranges = complement(points(*(mark_bits.pack_bits(value, group) for value in wanted)), mark_bits.max_value(group))
    return [{mark_bits.field_name(mark, group): ranges}] if ranges else []


def _boxes_of_ranges(mark: str, pairs: Sequence[tuple[int, int]], op: str) -> list[Box] | None:
    """Return the box of a test of the whole mark for ranges; None: unsupported."""
    field = mark_bits.field_name(mark, FULL_MASK)
    packed = ((mark_bits.pack_bits(low, FULL_MASK), mark_bits.pack_bits(high, FULL_MASK)) for low, high in pairs)
    texts = frozenset(f"{low}-{high}" for low, high in packed)
    top = mark_bits.max_value(FULL_MASK)
    wanted = field_values.matching_values(field_values.parse_number, texts, op, top) if texts else None
    if wanted is None:
        return None
    return [{field: wanted}] if wanted else []
