"""Plans between any two policies, in memory: they reach the goal, keep the guard, and can be undone."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.errors import StepRefused
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.netstate.routing import Sysctl
from nftpolicy.netstate.state import CounterValue, NetState
from nftpolicy.planner.plan import Plan, plan
from nftpolicy.runtime.apply.executor import run_plan
from tests import policy_strategies
from tests.unit.forked_namespace import normal, observe

ALL = st.sampled_from(policy_strategies.COMMON)
ENDS = st.tuples(st.none(), policy_strategies.policies(ALL))
PAIRS = st.one_of(policy_strategies.pairs(ALL), policy_strategies.pairs(ALL), ENDS, ENDS.map(lambda pair: pair[::-1]))


def state_of(policy):
    return NetState() if policy is None else compile_policy(policy)


def kernel_with(state, *others):
    """Return a kernel that holds a state. The other sysctls have foreign values."""
    paths = {one.path: "7" for other in others for one in other.sysctls} | {
        one.path: one.value for one in state.sysctls
    }
    return FakeKernel(NetState(state.tables, state.rules, state.routes, tuple(Sysctl(*one) for one in paths.items())))


def plan_to(kernel, wanted):
    return plan(observe(kernel, [one.path for one in wanted.sysctls]), wanted)


def has_guard(state):
    table = state.table("inet", "nftpolicy")
    hooks = [chain.hook for chain in table.chains if chain.hook] if table else []
    return any((one.hook, one.policy, one.priority) == ("postrouting", "drop", 10000) for one in hooks)


@given(PAIRS)
def test_plan_reaches_the_desired_state_and_is_idempotent(pair):
    old, new = map(state_of, pair)
    kernel = kernel_with(old, new)
    run_plan(kernel, plan_to(kernel, new))
    assert normal(observe(kernel, [one.path for one in new.sysctls])) == normal(new)
    assert plan_to(kernel, new) == Plan(())


@given(PAIRS)
def test_inverse_steps_restore_the_first_state(pair):
    old, new = map(state_of, pair)
    kernel = kernel_with(old, new)
    before = normal(kernel.state)
    todo = plan_to(kernel, new)
    run_plan(kernel, todo)
    for step in reversed(todo.steps):
        kernel.apply_step(step.inverse())
        assert step.inverse().inverse() == step
    assert normal(kernel.state) == before


@given(PAIRS)
def test_guard_exists_after_every_step(pair):
    old, new = map(state_of, pair)
    kernel = kernel_with(old, new)
    steps = plan_to(kernel, new).steps
    for number, step in enumerate(steps, 1):
        kernel.apply_step(step)
        last = number == len(steps)
        assert has_guard(kernel.state) or (pair[1] is None and last)
        if not last:  # until the guard goes, no rule or route leads anywhere without it
            assert kernel.state.tables


@given(PAIRS, st.data())
def test_refusal_at_any_step_restores_the_first_state(pair, data):
    old, new = map(state_of, pair)
    steps = len(plan_to(kernel_with(old, new), new).steps)
    assume(steps)
    numbers = range(steps) if steps < 8 else data.draw(st.lists(st.integers(0, steps - 1), min_size=3, max_size=6))
    for number in numbers:
        kernel = kernel_with(old, new)
        kernel.refuse_at, before = number, normal(kernel.state)
        with pytest.raises(StepRefused):
            run_plan(kernel, plan_to(kernel, new))
        assert normal(kernel.state) == before


def ends_and_lookups(state):
    """Return the tables with an unreachable route, and those that a rule of a mark leads to."""
    ends = {(one.family, one.table) for one in state.routes if one.kind == "unreachable"}
    # Link-local destinations of marked packets are looked up in table main.
    by_mark = (one for one in state.rules if one.action == "lookup" and one.mask and one.destination is None)
    return ends, {(one.family, one.table) for one in by_mark}


@given(PAIRS)
def test_tables_are_filled_before_their_rules_are_added(pair):
    old, new = map(state_of, pair)
    kernel = kernel_with(old, new)
    endless = {table for ends, led in map(ends_and_lookups, (kernel.state, new)) for table in led - ends}
    for step in plan_to(kernel, new).steps:
        kernel.apply_step(step)
        filled, led = ends_and_lookups(kernel.state)
        assert led - endless <= filled


@given(PAIRS)
def test_counters_of_both_policies_keep_their_values(pair):
    old, new = map(state_of, pair)
    kernel = kernel_with(old, new)
    numbers = {place: CounterValue(index + 1, 40 * index) for index, place in enumerate(kernel.counters("nftpolicy"))}
    kernel.counts = dict(numbers)
    run_plan(kernel, plan_to(kernel, new))
    after = kernel.counters("nftpolicy")
    assert {place: after[place] for place in numbers.keys() & after.keys()} == {
        place: numbers[place] for place in numbers.keys() & after.keys()
    }


@given(policy_strategies.policies())
def test_unchanged_policy_has_an_empty_plan_in_any_order(policy):
    state = state_of(policy)
    assert plan(normal(state), state) == Plan(())
