"""Route lookups of the model against those that a kernel has answered; see tests/kernel/recorded_lookups.py."""

import pytest

from nftpolicy.model.fib.router import Router
from nftpolicy.netstate.state import NetState
from tests.kernel.lookup_differential import difference, model_answer
from tests.kernel.recorded_lookups import RecordedLookup, recorded

STATES = recorded()


@pytest.mark.parametrize(("state", "lookups"), STATES, ids=[str(number) for number in range(len(STATES))])
def test_recorded_lookups_have_the_answer_of_the_kernel(state: NetState, lookups: list[RecordedLookup]) -> None:
    router, has_rules = Router(state), any(rule.priority not in (0, 32766, 32767) for rule in state.rules)
    for lookup in lookups:
        found = model_answer(router, lookup.query)
        assert difference(lookup.query, lookup.answer, found, has_rules) is None, (lookup, found)
        assert (found.outcome == "unknown") == lookup.is_open, (lookup, found)
