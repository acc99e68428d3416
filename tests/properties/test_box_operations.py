"""Operations on boxes against single values, on a domain that can be listed completely."""

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftpolicy.model.symbolic import mark_bits
from nftpolicy.model.symbolic.box import (
    complement,
    count_values,
    find_uncovered,
    intersect_boxes,
    intersect_ranges,
    merge_ranges,
    points,
    subtract_boxes,
    subtract_ranges,
)
from nftpolicy.model.symbolic.box_index import BoxIndex

TOPS = {"a": 5, "b": 3, "c": 1}
HIGH = 9

pairs = st.tuples(st.integers(0, HIGH), st.integers(0, HIGH)).map(sorted).map(tuple)
some = st.lists(pairs, max_size=4).map(merge_ranges)


def values(one):
    return {value for low, high in one for value in range(low, high + 1)}


def ranges_of(name):
    end = st.integers(0, TOPS[name])
    return st.lists(st.tuples(end, end).map(sorted).map(tuple), min_size=1, max_size=2).map(merge_ranges)


boxes = st.fixed_dictionaries({}, optional={name: ranges_of(name) for name in TOPS})
POINTS = [dict(zip(TOPS, point, strict=True)) for point in product(*(range(top + 1) for top in TOPS.values()))]


def contains(box, point):
    return all(point[name] in values(wanted) for name, wanted in box.items())


def box_points(box):
    return [point for point in POINTS if contains(box, point)]


def is_canonical(one):
    """Return True if ranges are sorted, disjoint, not adjacent and not empty: equal sets are equal values."""
    return all(low <= high for low, high in one) and all(before[1] + 1 < after[0] for before, after in pairwise(one))


# --- ranges ----------------------------------------------------------------------------


@given(st.lists(pairs, max_size=5))
def test_merge_ranges_has_the_values_of_all_intervals(intervals):
    found = merge_ranges(intervals)
    assert values(found) == values(intervals)
    assert is_canonical(found)
    assert count_values(found) == len(values(found))


@given(some, some)
def test_range_operations_equal_set_operations(one, other):
    for found, expected in (
        (intersect_ranges(one, other), values(one) & values(other)),
        (subtract_ranges(one, other), values(one) - values(other)),
        (complement(one, HIGH), set(range(HIGH + 1)) - values(one)),
    ):
        assert values(found) == expected
        assert is_canonical(found)


@given(st.sets(st.integers(0, HIGH)))
def test_points_has_exactly_the_given_values(some_values):
    assert values(points(*some_values)) == some_values


# --- boxes -----------------------------------------------------------------------------


@given(boxes, boxes)
def test_intersect_boxes_has_the_common_points(one, other):
    both = intersect_boxes(one, other)
    expected = [point for point in box_points(one) if contains(other, point)]
    assert (box_points(both) if both is not None else []) == expected


@given(boxes, st.lists(boxes, max_size=6))
def test_find_uncovered_finds_points_outside_of_all_covers(box, covers):
    left = [point for point in box_points(box) if not any(contains(cover, point) for cover in covers)]
    found = find_uncovered(box, covers, TOPS)
    assert (found is None) == (not left)
    if found is not None:
        assert box_points(found)
        assert all(point in left for point in box_points(found))


@given(boxes, st.lists(boxes, max_size=4))
def test_subtract_boxes_returns_disjoint_pieces(box, others):
    pieces = subtract_boxes(box, others, TOPS, 1000)
    expected = [point for point in box_points(box) if not any(contains(other, point) for other in others)]
    found = [point for piece in pieces for point in box_points(piece)]
    assert sorted(map(str, found)) == sorted(map(str, expected))
    if len(pieces) > 1:
        assert subtract_boxes(box, others, TOPS, 1) is None


# --- many boxes ------------------------------------------------------------------------


several = st.lists(boxes, min_size=25, max_size=40), st.lists(boxes, min_size=1, max_size=4), st.integers(0, 60)


@given(*several)
def test_box_index_finds_every_overlapping_box(many, queries, early):
    check_overlapping(many, queries, early)


def check_overlapping(many, queries, early):
    covers = BoxIndex((), TOPS)
    for box in many[:early]:
        covers.append(box)
    covers.overlapping(queries[0])  # what comes later is added to an index that is there
    covers.extend(many[early:])
    for box in queries:
        found = covers.overlapping(box)
        assert all(one in found for one in many if intersect_boxes(one, box) is not None)
        assert all(one in many for one in found)
        assert (find_uncovered(box, found, TOPS) is None) == (find_uncovered(box, many, TOPS) is None)


@given(st.lists(boxes, min_size=30, max_size=60), boxes, st.integers(0, 60))
def test_box_index_limit_restricts_to_the_first_boxes(many, box, until):
    until = min(until, len(many))
    found = BoxIndex(many, TOPS).overlapping(box, until)
    assert all(one in found for one in many[:until] if intersect_boxes(one, box) is not None)
    assert all(one in many[:until] for one in found)


# --- marks -----------------------------------------------------------------------------

masks = st.integers(0, 0xFF) | st.sampled_from((0xFFFFFFFF, 0xFF000000))


@given(st.lists(masks, max_size=4))
def test_bit_groups_partition_all_masks(some_masks):
    groups = mark_bits.bit_groups(some_masks)
    assert sum(groups) == 0xFFFFFFFF
    assert all(not one & other for at, one in enumerate(groups) for other in groups[:at])
    for mask in some_masks:
        assert all(group & mask in (0, group) for group in groups)


@given(masks.filter(bool), st.integers(0, 0xFFFFFFFF))
def test_pack_bits_round_trips(group, value):
    packed = mark_bits.pack_bits(value, group)
    assert mark_bits.unpack_bits(packed, group) == value & group
    assert 0 <= packed <= mark_bits.max_value(group)


@given(st.lists(masks, min_size=1, max_size=3), st.integers(0, 0xFF), st.integers(0, 0xFF), st.data())
def test_mark_boxes_equal_the_mark_test(some_masks, wanted, value, data):
    mask = data.draw(st.sampled_from(some_masks))
    groups = mark_bits.bit_groups(some_masks)
    fields = {mark_bits.field_name("mark", group): mark_bits.pack_bits(value, group) for group in groups}

    def inside(some_boxes):
        return [
            box
            for box in some_boxes
            if all(intersect_ranges(wanted, points(fields[name])) for name, wanted in box.items())
        ]

    assert bool(inside(mark_bits.equal_boxes("mark", groups, mask, wanted))) == (value & mask == wanted)
    found = inside(mark_bits.unequal_boxes("mark", groups, mask, wanted))
    assert len(found) == (value & mask != wanted)  # the boxes are disjoint


def test_box_index_test_detects_a_missing_box(monkeypatch):
    monkeypatch.setattr(BoxIndex, "_bucket_range", lambda self, field, wanted: range(wanted[0][0], wanted[0][0] + 1))

    @settings(settings.get_profile("first"), max_examples=500)
    @given(*several)
    def search(many, queries, early):
        check_overlapping(many, queries, early)

    with pytest.raises(AssertionError):
        search()
