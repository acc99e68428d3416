# SPDX-License-Identifier: BSD-2-Clause
"""Sets of packets as boxes, and the one question of every proof: is this box covered by those?

A box maps fields to ranges: a sorted tuple of disjoint, not adjacent (first, last) pairs. A field
that it does not name may have any value. So a box is a product of sets of integers, and what a rule
matches is nearly always one box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log2

Ranges = tuple[tuple[int, int], ...]
Box = dict[str, Ranges]


def ranges(values: Iterable[tuple[int, int]]) -> Ranges:
    """Intervals in any order, put in the form that boxes use."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(values):
        if merged and low <= merged[-1][1] + 1:
            if high > merged[-1][1]:
                merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return tuple(merged)


def only(*values: int) -> Ranges:
    """These values and no other."""
    if len(values) == 1:
        return ((values[0], values[0]),)
    return ranges((value, value) for value in values)


def common(one: Ranges, other: Ranges) -> Ranges:
    """What both have."""
    if len(one) == 1 and len(other) == 1:
        (a, b), (c, d) = one[0], other[0]
        low, high = a if a > c else c, b if b < d else d
        return ((low, high),) if low <= high else ()
    found: list[tuple[int, int]] = []
    i = j = 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low <= high:
            found.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def without(one: Ranges, other: Ranges) -> Ranges:
    """What `one` has and `other` has not."""
    found: list[tuple[int, int]] = []
    for low, high in one:
        for a, b in other:
            if b < low:
                continue
            if a > high:
                break
            if a > low:
                found.append((low, a - 1))
            low = b + 1
        if low <= high:
            found.append((low, high))
    return tuple(found)


def complement(one: Ranges, top: int) -> Ranges:
    """All values from 0 to `top` that `one` has not."""
    return without(((0, top),), one)


def size(one: Ranges) -> int:
    """The number of values."""
    return sum(high - low + 1 for low, high in one)


def meet(one: Mapping[str, Ranges], other: Mapping[str, Ranges]) -> Box | None:
    """The packets in both boxes, or None if there are none."""
    result = dict(one)
    for field, wanted in other.items():
        present = result.get(field)
        if present is None or present == wanted:
            result[field] = wanted
            continue
        both = common(present, wanted)
        if not both:
            return None
        result[field] = both
    return result


def outside(box: Box, others: Iterable[Mapping[str, Ranges]], tops: Mapping[str, int], most: int) -> list[Box] | None:
    """The parts of `box` that are in none of `others`, as boxes; None if there are more of them than `most`."""
    pieces = [box]
    for other in others:
        left: list[Box] = []
        for piece in pieces:
            if meet(piece, other) is None:
                left.append(piece)
                continue
            inner = dict(piece)
            for field, wanted in other.items():
                present = inner.get(field) or ((0, tops[field]),)
                rest = without(present, wanted)
                if rest:
                    left.append({**inner, field: rest})
                inner[field] = common(present, wanted)
        pieces = left
        if len(pieces) > most:
            return None
    return pieces


def uncovered(box: Box, covers: Sequence[Mapping[str, Ranges]], tops: Mapping[str, int]) -> Box | None:
    """A part of `box` that no cover has, or None if the covers have all of it.

    Exact. Splits on the cover that has most of what is left, so that big parts are closed first:
    of the orders that were measured the one that stays quick when a thousand small boxes cover one.
    `tops` gives the highest value of each field.
    """
    pending = [(box, covers)]
    while pending:
        rest, candidates = pending.pop()
        relevant: list[Box] = []
        best: Box = {}
        least = float("inf")
        closed = False
        find = rest.get
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
                elif len(present) == 1 and len(wanted) == 1:  # nearly always; spelled out, since all depends on it
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
                    both = common(present, wanted)
                    if not both:
                        break
                    if both == present:
                        continue
                    clipped[field] = wanted = both
                    whole = size(present)
                shrink += log2(whole / (wanted[0][1] - wanted[0][0] + 1 if len(wanted) == 1 else size(wanted)))
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
            return rest
        inner = dict(rest)
        for field, wanted in best.items():
            present = inner.get(field) or ((0, tops[field]),)
            outside = without(present, wanted)
            if outside:
                piece = dict(inner)
                piece[field] = outside
                pending.append((piece, relevant))
            inner[field] = wanted
        # `inner` is within `best`, so it is covered.
    return None
