"""A few examples of every fuzz target; script/fuzz runs as many as there is time for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_target(target):
    @settings(max_examples=50)
    @given(target.inputs)
    def one(value):
        target.check(value)

    one()


@given(st.data())
def test_targets_see_good_policies_and_bad_ones(data):
    target = data.draw(st.sampled_from(TARGETS))
    data.draw(target.inputs)
