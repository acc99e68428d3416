"""Lookup in sets and maps: the index finds the element that a scan of all elements finds."""

from itertools import combinations, pairwise, product

import pytest

from nftpolicy.model.nft.datatypes import DataType
from nftpolicy.model.nft.set_index import SetIndex

NUMBER = DataType("number")
LAST = 9
INTERVALS = [(low, high) for low in range(LAST) for high in range(low, LAST)]


def element(*parts):
    texts = tuple(low if low == high else f"{low}-{high}" for low, high in parts)
    return texts if len(texts) > 1 else texts[0]


def scan(boxes, values):
    """Return the first box that contains the values; None if there is none."""
    for box in boxes:
        if all(low <= value <= high for value, (low, high) in zip(values, box, strict=True)):
            return box
    return None


def test_interval_contains_exactly_its_values():
    sets = (*combinations(INTERVALS, 1), *combinations(INTERVALS, 2), ((0, 1), (3, 4), (6, 8)))
    for intervals in sets:
        if any(low <= before for (_, before), (low, _) in pairwise(intervals)):
            continue  # nft refuses overlaps
        boxes = [(interval,) for interval in intervals]
        index = SetIndex((NUMBER,), [(element(*box), box) for box in boxes])
        assert index.is_complete
        for value in range(LAST + 1):
            assert index.find((value,)) == scan(boxes, (value,)), (intervals, value)
            assert index.may_contain([value]) == (scan(boxes, (value,)) is not None)


def test_concatenation_contains_exactly_its_values():
    few = [(2, 2), (4, 5), (3, 4), (0, 7), (5, 8)]
    for box in product(few, few):
        other = ((20, 20), (20, 23))
        index = SetIndex((NUMBER, NUMBER), [(element(*each), each) for each in (box, other)])
        for values in product(range(LAST + 1), repeat=2):
            assert index.find(values) == scan([box], values), (box, values)
        assert index.find((20, 21)) == other
        assert index.may_contain([None, box[1][0]])
        assert not index.may_contain([None, 19])


def test_asterisk_is_the_default_of_a_map():
    index = SetIndex((NUMBER,), [(3, "three"), ("*", "other")])
    assert [index.find((value,)) for value in (3, 4)] == ["three", "other"]
    assert index.may_contain([4])


@pytest.mark.parametrize("bad", ["no-number", (1, 2)])
def test_element_without_meaning_makes_the_index_incomplete(bad):
    index = SetIndex((NUMBER,), [(bad, "bad"), (3, "three")])
    assert not index.is_complete
    assert index.find((3,)) == "three"
