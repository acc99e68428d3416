"""Immutable sets of boxes that share their storage."""

import pytest

from nftpolicy.model.symbolic.box import points
from nftpolicy.model.symbolic.box_set import BoxSet

TOPS = {"dport": 0xFFFF}
MANY = [{"dport": points(number)} for number in range(60)]  # enough for an index
EVERYTHING = {"dport": ((0, 0xFFFF),)}


@pytest.fixture
def growing():
    """Return the sets of the first 0, 1, 2, ... boxes, each grown from the one before."""
    sets = [BoxSet(TOPS)]
    for box in MANY:
        sets.append(sets[-1].with_boxes([box]))
    return sets


def test_smaller_set_has_no_box_of_a_larger_one(growing):
    assert growing[-1].overlapping(EVERYTHING) == MANY
    assert [boxes.overlapping(EVERYTHING) for boxes in growing] == [MANY[:length] for length in range(len(growing))]


def test_set_can_grow_in_two_ways(growing):
    parent, other = growing[40], {"dport": points(9999)}
    assert parent.with_boxes([other]).overlapping(EVERYTHING) == [*MANY[:40], other]
    assert growing[-1].overlapping(EVERYTHING) == MANY
    assert parent.overlapping(EVERYTHING) == MANY[:40]


def test_empty_set_is_empty(growing):
    assert growing[0].is_empty
    assert growing[0].with_boxes([]).is_empty
    assert not growing[1].is_empty


def test_deferred_boxes_are_made_once_at_the_first_query():
    calls = []

    def make():
        calls.append(1)
        return MANY[:2]

    before = BoxSet(TOPS).with_boxes(MANY[5:6])
    boxes = before.with_deferred(make).with_boxes(MANY[9:10])
    assert before.overlapping(EVERYTHING) == MANY[5:6]
    assert calls == []
    assert boxes.overlapping(EVERYTHING) == [MANY[5], *MANY[:2], MANY[9]]
    assert boxes.overlapping({"dport": points(0)}) == boxes.overlapping(EVERYTHING)
    assert calls == [1]
