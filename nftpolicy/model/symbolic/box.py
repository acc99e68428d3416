# SPDX-License-Identifier: BSD-2-Clause
"""Sets of packets as boxes, and the basic query of a proof: do these boxes cover that box?

A box maps fields to ranges: a sorted tuple of disjoint, not adjacent (first, last) pairs. A field
that a box does not name may have any value. A box is a product of sets of integers, and the packets
that a rule matches are nearly always one box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log2

Ranges = tuple[tuple[int, int], ...]
Box = dict[str, Ranges]


def merge_ranges(values: Iterable[tuple[int, int]]) -> Ranges:
    """Merge intervals, in any order, into the form that boxes use."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(values):
        if merged and low <= merged[-1][1] + 1:
            if high > merged[-1][1]:
                merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return tuple(merged)


def points(*values: int) -> Ranges:
    """Return the ranges of exactly these values."""
    if len(values) == 1:
        return ((values[0], values[0]),)
    return merge_ranges((value, value) for value in values)


def intersect_ranges(left: Ranges, right: Ranges) -> Ranges:
    """Return the values that are in both."""
    if len(left) == 1 and len(right) == 1:
        (a, b), (c, d) = left[0], right[0]
        low, high = a if a > c else c, b if b < d else d
        return ((low, high),) if low <= high else ()
    both: list[tuple[int, int]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        low, high = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if low <= high:
            both.append((low, high))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(both)


def subtract_ranges(ranges_: Ranges, removed: Ranges) -> Ranges:
    """Return the values of `ranges_` that are not in `removed`."""
    left: list[tuple[int, int]] = []
    for low, high in ranges_:
        for a, b in removed:
            if b < low:
                continue
            if a > high:
                break
            if a > low:
                left.append((low, a - 1))
            low = b + 1
        if low <= high:
            left.append((low, high))
    return tuple(left)


def complement(ranges_: Ranges, top: int) -> Ranges:
    """Return the values from 0 to `top` that are not in `ranges_`."""
    return subtract_ranges(((0, top),), ranges_)


def count_values(ranges_: Ranges) -> int:
    """Return the number of values."""
    return sum(high - low + 1 for low, high in ranges_)


def intersect_boxes(left: Mapping[str, Ranges], right: Mapping[str, Ranges]) -> Box | None:
    """Return the intersection of two boxes, or None if it is empty."""
    result = dict(left)
    for field, wanted in right.items():
        present = result.get(field)
        if present is None or present == wanted:
            result[field] = wanted
            continue
        both = intersect_ranges(present, wanted)
        if not both:
            return None
        result[field] = both
    return result


def subtract_boxes(
    box: Box, removed: Iterable[Mapping[str, Ranges]], tops: Mapping[str, int], limit: int
) -> list[Box] | None:
    """Return the parts of `box` in no box of `removed`, as boxes.

    None if there are more than `limit`.
    """
    pieces = [box]
    for cover in removed:
        left: list[Box] = []
        for piece in pieces:
            if intersect_boxes(piece, cover) is None:
                left.append(piece)
                continue
            inner = dict(piece)
            for field, wanted in cover.items():
                present = inner.get(field) or ((0, tops[field]),)
                remaining = subtract_ranges(present, wanted)
                if remaining:
                    left.append({**inner, field: remaining})
                inner[field] = intersect_ranges(present, wanted)
        pieces = left
        if len(pieces) > limit:
            return None
    return pieces


def _is_unusual(field: str) -> bool:
    """Return True if a condition on the field makes no packet that is easily sent."""
    return field[0] == "?" or field == "fragment" or field.endswith("readable")


def find_uncovered(box: Box, covers: Sequence[Mapping[str, Ranges]], tops: Mapping[str, int]) -> Box | None:
    """Return a part of `box` that is in no cover, or None if the covers contain the whole box.

    Exact. Splits on the cover that contains most of the remaining part, so that big parts are
    closed first: of the orders that were measured, this one stays fast when a thousand small boxes
    cover one. `tops` gives the highest value of each field.
    """
    pending = [(box, covers)]
    while pending:
        part, candidates = pending.pop()
        relevant: list[Box] = []
        best: Box = {}
        least = float("inf")
        closed = False
        find = part.get
        for cover in candidates:
            clipped: Box = {}
            shrink = 0.0
            for field, wanted in cover.items():
                present = find(field)
                if present is None:
                    clipped[field] = wanted
                    whole = tops[field] + 1
                elif present == wanted:
                    continue
                elif len(present) == 1 and len(wanted) == 1:  # the usual case, inlined for speed
                    (low, high), (first, last) = present[0], wanted[0]
                    if first > high or last < low:
                        break
                    if first <= low and last >= high:
                        continue
                    whole = high - low + 1
                    low, high = max(low, first), min(high, last)
                    clipped[field] = ((low, high),)
                    shrink += log2(whole / (high - low + 1))
                    continue
                else:
                    both = intersect_ranges(present, wanted)
                    if not both:
                        break
                    if both == present:
                        continue
                    clipped[field] = wanted = both
                    whole = count_values(present)
                overlap = wanted[0][1] - wanted[0][0] + 1 if len(wanted) == 1 else count_values(wanted)
                shrink += log2(whole / overlap)
            else:
                if not clipped:
                    closed = True
                    break
                relevant.append(clipped)
                if shrink < least:
                    least, best = shrink, clipped
        if closed:
            continue
        if not relevant:
            return part
        inner = dict(part)
        for field in sorted(best, key=_is_unusual):
            wanted = best[field]
            present = inner.get(field) or ((0, tops[field]),)
            remaining = subtract_ranges(present, wanted)
            if remaining:
                piece = dict(inner)
                piece[field] = remaining
                # The last piece is examined first.
                pending.insert(0 if _is_unusual(field) else len(pending), (piece, relevant))
            inner[field] = wanted
        # `inner` is within `best`, so it is covered.
    return None
