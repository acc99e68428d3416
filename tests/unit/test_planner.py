"""Plans: which nft operations and steps lead from one state to another, and in which order."""

import pytest
from attrs import evolve

from nftpolicy.netstate.formats.nft_text import operation_text
from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    Chain,
    Counter,
    Flowtable,
    Hook,
    Match,
    Meta,
    NamedCounter,
    Payload,
    Rule,
    Set,
    SetRef,
    Table,
    UnknownStatement,
    Verdict,
    VerdictMap,
)
from nftpolicy.netstate.operations import (
    IpRuleChange,
    NftOperation,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    SysctlChange,
)
from nftpolicy.netstate.routing import IpRule, Route, Sysctl
from nftpolicy.netstate.state import NetState
from nftpolicy.netstate.transition import StepRejected
from nftpolicy.planner import table_diff
from nftpolicy.planner.plan import Plan, candidate_plans, plan, plan_via_block, writable_part
from nftpolicy.planner.table_diff import diff_tables

DROPS, ACCEPTS = Rule((DROP,)), Rule((ACCEPT,))
OUTPUT = Hook("filter", "output", 0)
FROM_SET = Rule((Match(Payload("ip", "saddr"), SetRef("s")), DROP))
TO_SUB = Rule((Verdict("jump", "sub"),))
MAP_TO_SUB = Rule((VerdictMap(Meta("mark"), frozenset({(1, Verdict("goto", "sub")), (2, ACCEPT)})),))
SET_AND_MAP = Rule((*FROM_SET.statements[:1], *MAP_TO_SUB.statements))
ADDRESSES = Set("s", ("ipv4_addr",))


def table(*items: Chain | Set | NamedCounter, family: str = "inet", **words: object) -> Table:
    chains = tuple(item for item in items if isinstance(item, Chain))
    sets = tuple(item for item in items if isinstance(item, Set))
    counters = tuple(item for item in items if isinstance(item, NamedCounter))
    return Table(family, "t", chains, sets, counters, **words)  # type: ignore[arg-type]


def commands(old: Table | None, new: Table | None) -> list[str]:
    """Return the operations as commands of nft, without the name of the table."""
    lines = "\n".join(map(operation_text, diff_tables(old, new))).splitlines()
    return [line.replace(" inet t", "").replace("type filter hook output priority 0; ", "") for line in lines]


def elements(*addresses: str) -> Set:
    return evolve(ADDRESSES, elements=frozenset(addresses))


# --- tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (None, table(), ["add table"]),
        (table(), None, ["delete table"]),
        (table(Chain("c", (DROPS,))), table(Chain("c", (DROPS,))), []),
        (
            None,
            table(NamedCounter("n"), elements("192.0.2.1"), Chain("c", (FROM_SET, DROPS), OUTPUT)),
            [
                "add table",
                "add counter n",
                "add set s { type ipv4_addr; }",
                "add element s { 192.0.2.1 }",
                "add chain c { policy accept; }",
                "add rule c ip saddr @s drop",
                "add rule c drop",
            ],
        ),
        # Rules: of a changed chain all, of the others none.
        (
            table(Chain("c", (DROPS,)), Chain("d", (DROPS,))),
            table(Chain("c", (ACCEPTS,)), Chain("d", (DROPS,))),
            ["flush chain c", "add rule c accept"],
        ),
        (table(Chain("c")), table(Chain("c", (DROPS,))), ["add rule c drop"]),
        (table(Chain("c", (DROPS,))), table(Chain("c")), ["flush chain c"]),
        (table(Chain("c", (DROPS,))), table(), ["flush chain c", "delete chain c"]),
        (table(Chain("c")), table(), ["delete chain c"]),
        (table(), table(Chain("c")), ["add chain c"]),
        # Hooks: the policy changes in place; another type, hook or priority needs another chain.
        (
            table(Chain("c", (DROPS,), OUTPUT)),
            table(Chain("c", (DROPS,), evolve(OUTPUT, policy="drop"))),
            ["add chain c { policy drop; }"],
        ),
        (
            table(Chain("c", (DROPS,), OUTPUT)),
            table(Chain("c", (DROPS,))),
            ["flush chain c", "delete chain c", "add chain c", "add rule c drop"],
        ),
        (
            table(Chain("c", (DROPS,))),
            table(Chain("c", (DROPS,), OUTPUT)),
            ["flush chain c", "delete chain c", "add chain c { policy accept; }", "add rule c drop"],
        ),
        # A chain cannot be deleted while rules refer to it, nor can a set.
        (
            table(Chain("a", (TO_SUB,)), Chain("sub", (DROPS,), OUTPUT)),
            table(Chain("a", (TO_SUB,)), Chain("sub", (DROPS,))),
            [
                *("flush chain a", "flush chain sub", "delete chain sub"),
                *("add chain sub", "add rule a jump sub", "add rule sub drop"),
            ],
        ),
        (
            table(Chain("a", (MAP_TO_SUB,)), Chain("sub", (), OUTPUT)),
            table(Chain("a", (MAP_TO_SUB,)), Chain("sub")),
            [
                *("flush chain a", "delete chain sub"),
                *("add chain sub", "add rule a meta mark vmap { 1 : goto sub, 2 : accept }"),
            ],
        ),
        (
            table(Chain("a", (FROM_SET,)), Chain("b", (DROPS,)), elements("192.0.2.1")),
            table(Chain("a", (FROM_SET,)), Chain("b", (DROPS,)), evolve(elements("192.0.2.1"), type=("mark",))),
            [
                *("flush chain a", "delete set s", "add set s { type mark; }"),
                *("add element s { 192.0.2.1 }", "add rule a ip saddr @s drop"),
            ],
        ),
        (
            table(Chain("a", (SET_AND_MAP,)), Chain("sub"), elements("192.0.2.1")),
            table(Chain("a", (SET_AND_MAP,)), Chain("sub"), evolve(elements(), type=("mark",))),
            [
                *("flush chain a", "delete set s", "add set s { type mark; }"),
                "add rule a ip saddr @s meta mark vmap { 1 : goto sub, 2 : accept }",
            ],
        ),
        # Elements: only those that differ.
        (
            table(elements("192.0.2.1", "192.0.2.2")),
            table(elements("192.0.2.2", "192.0.2.3")),
            ["delete element s { 192.0.2.1 }", "add element s { 192.0.2.3 }"],
        ),
        (table(elements()), table(elements("192.0.2.1")), ["add element s { 192.0.2.1 }"]),
        (table(elements("192.0.2.1")), table(elements()), ["delete element s { 192.0.2.1 }"]),
        (table(elements("192.0.2.1")), table(), ["delete set s"]),
        # Counters keep their values.
        (
            table(NamedCounter("kept"), NamedCounter("old")),
            table(NamedCounter("kept"), NamedCounter("new")),
            ["delete counter old", "add counter new"],
        ),
    ],
)
def test_difference_of_tables_is_these_commands(old: Table | None, new: Table | None, expected: list[str]) -> None:
    assert commands(old, new) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"type": ("ipv4_addr", "mark")},
        {"flags": frozenset({"interval"})},
        {"timeout": 60},
        {"statements": (Counter(),)},
        {"conditional_elements": frozenset({"192.0.2.1"})},
    ],
    ids=str,
)
def test_set_that_differs_in_more_than_elements_is_replaced(change: dict[str, object]) -> None:
    operations = diff_tables(table(evolve(elements("192.0.2.1"), **change)), table(elements("192.0.2.1")))
    assert [operation.verb for operation in operations] == ["delete", "add", "add"]


def test_elements_that_packets_add_are_no_difference() -> None:
    of_packets = evolve(elements("192.0.2.1"), flags=frozenset({"dynamic", "timeout"}))
    empty = evolve(of_packets, elements=frozenset())
    assert diff_tables(table(of_packets), table(empty)) == []
    other = evolve(empty, timeout=60)
    assert [operation.verb for operation in diff_tables(table(of_packets), table(other))] == ["delete", "add"]


@pytest.mark.parametrize(
    "change",
    [{"type": "route"}, {"hook": "postrouting"}, {"priority": 1}, {"device": "wan"}, {"devices": frozenset({"wan"})}],
    ids=str,
)
def test_chain_of_another_hook_is_replaced(change: dict[str, object]) -> None:
    old, new = Chain("c", (DROPS,), evolve(OUTPUT, **change)), Chain("c", (DROPS,), OUTPUT)
    assert [operation.verb for operation in diff_tables(table(old), table(new))] == ["flush", "delete", "add", "add"]


@pytest.mark.parametrize("words", [{"unknown": ("{}",)}, {"flowtables": (Flowtable("f", 0, frozenset({"wan"})),)}])
def test_table_with_foreign_objects_is_replaced_whole(words: dict[str, object]) -> None:
    chain = Chain("c", (DROPS,))
    assert commands(table(chain, **words), table(chain)) == [
        *("delete table", "add table", "add chain c", "add rule c drop"),
    ]


def test_elements_with_wildcard_are_all_written_again() -> None:
    old, new = (Set("s", ("ifname",), frozenset(names)) for names in (("lan*", "wan"), ("wan", "tun0")))
    assert commands(table(old), table(new)) == ["flush set s", 'add element s { "tun0", "wan" }']
    assert commands(table(new), table(old)) == ["flush set s", 'add element s { "lan*", "wan" }']
    assert commands(table(old), table(old, Chain("c"))) == ["add chain c"]


def test_many_elements_are_several_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_diff, "_MAX_ELEMENTS", 2)
    assert commands(table(), table(elements("192.0.2.1", "192.0.2.2")))[1:] == [
        "add element s { 192.0.2.1, 192.0.2.2 }"
    ]
    assert commands(table(), table(elements("192.0.2.3", "192.0.2.1", "192.0.2.2")))[1:] == [
        "add element s { 192.0.2.1, 192.0.2.2 }",
        "add element s { 192.0.2.3 }",
    ]
    marks = Set("s", ("mark",), frozenset((7, "1-3", 5)))
    assert len(commands(table(), table(marks))) == 3
    pairs = Set("s", ("ipv4_addr", "mark"), frozenset(("192.0.2.1", number) for number in (3, 1, 2)))
    assert commands(table(pairs), table(evolve(pairs, elements=frozenset()))) == [
        "delete element s { 192.0.2.1 . 1, 192.0.2.1 . 2 }",
        "delete element s { 192.0.2.1 . 3 }",
    ]


# --- steps ----------------------------------------------------------------------------------

GUARD = table(Chain("c", (DROPS,), OUTPUT))
OTHER_GUARD = table(Chain("c", (ACCEPTS,), OUTPUT))
RULE, OTHER_RULE = IpRule(4, 5, table=100), IpRule(4, 6, table=101)
ROUTE, OTHER_ROUTE = Route(4, 100, device="wan"), Route(4, 101, device="wan")
OLD = NetState((GUARD,), (RULE,), (ROUTE,), (Sysctl("net/a", "0"), Sysctl("net/b", "1")))
NEW = NetState((OTHER_GUARD,), (OTHER_RULE,), (OTHER_ROUTE,), (Sysctl("net/a", "1"), Sysctl("net/b", "1")))
SYSCTL = SysctlChange("0", Sysctl("net/a", "1"))
MAKE = (RouteChange("add", OTHER_ROUTE), IpRuleChange("add", OTHER_RULE))
BREAK = (IpRuleChange("delete", RULE), RouteChange("delete", ROUTE))
SWITCH = NftTransaction(tuple(diff_tables(GUARD, OTHER_GUARD)), tuple(diff_tables(OTHER_GUARD, GUARD)))
ADD = NftTransaction(tuple(diff_tables(None, GUARD)), tuple(diff_tables(GUARD, None)))


def test_equal_states_need_no_step() -> None:
    assert candidate_plans(OLD, OLD) == (Plan((), switch=0),)
    assert plan_via_block(OLD, OLD, (table(),)) == Plan(())


def test_change_makes_before_break_or_puts_guard_first() -> None:
    assert candidate_plans(OLD, NEW) == (
        Plan((SYSCTL, *MAKE, SWITCH, *BREAK), "make before break", 4),
        Plan((SWITCH, SYSCTL, *MAKE, *BREAK), "guard first", 1),
    )
    assert plan(OLD, NEW) == candidate_plans(OLD, NEW)[0]


@pytest.mark.parametrize("tables", [(), (table(family="netdev"),)])
def test_first_guard_comes_before_all_else(tables: tuple[Table, ...]) -> None:
    observed = NetState(tables)
    (only,) = candidate_plans(observed, evolve(OLD, tables=(*tables, GUARD)))
    assert only == Plan((ADD, RouteChange("add", ROUTE), IpRuleChange("add", RULE)), "guard first", 1)


def test_guard_without_successor_goes_last() -> None:
    (only,) = candidate_plans(OLD, NetState())
    assert only == Plan((*BREAK, ADD.inverse()), "guard last", 3)


def test_change_via_block_begins_and_ends_with_its_tables() -> None:
    block = Table("netdev", "block")
    add, delete = tuple(diff_tables(None, block)), tuple(diff_tables(block, None))
    whole = plan_via_block(OLD, NEW, (block,))
    assert whole.steps == (
        NftTransaction(add, delete),
        *candidate_plans(OLD, NEW)[1].steps,
        NftTransaction(delete, add),
    )
    assert (whole.order, whole.switch) == ("via block", 2)


@pytest.mark.parametrize("key", [{"family": 6}, {"table": 9}, {"destination": "10.0.0.0/8"}, {"metric": 9}], ids=str)
def test_route_of_the_same_key_is_replaced(key: dict[str, object]) -> None:
    other_device = evolve(ROUTE, device="wan2")
    replaced = plan(NetState((), (), (ROUTE,)), NetState((), (), (other_device,)))
    assert replaced.steps == (RouteReplacement(ROUTE, other_device),)
    other = evolve(other_device, **key)
    assert set(plan(NetState((), (), (ROUTE,)), NetState((), (), (other,))).steps) == {
        RouteChange("add", other),
        RouteChange("delete", ROUTE),
    }


def test_sysctl_of_an_absent_device_is_left_out() -> None:
    assert plan(NetState(), NetState(sysctls=(Sysctl("net/ipv4/conf/wan/forwarding", "1"),))) == Plan(())


def test_table_that_is_not_desired_is_deleted() -> None:
    (step,) = plan(NetState((GUARD, table(family="ip"))), NetState((GUARD,))).steps
    assert isinstance(step, NftTransaction)
    assert [(item.verb, item.family) for item in step.operations] == [("delete", "ip")]


def test_undo_leaves_out_unwritable_rules() -> None:
    foreign = Rule((UnknownStatement("{}"),))
    observed = table(Chain("c", (foreign, DROPS)), elements("192.0.2.1"), unknown=("{}",))
    writable = table(Chain("c", (DROPS,)), elements("192.0.2.1"))
    assert writable_part(observed) == writable
    (step,) = plan(NetState((observed,)), NetState((GUARD,))).steps
    assert isinstance(step, NftTransaction)
    assert step.undo == tuple(diff_tables(GUARD, writable))


def test_states_of_a_plan_lead_from_old_to_new() -> None:
    steps = plan(OLD, NEW)
    states = steps.states(OLD)
    assert (states[0], len(states)) == (OLD, len(steps.steps) + 1)
    assert [state.table("inet", "t") for state in states] == [GUARD] * steps.switch + [OTHER_GUARD] * 3
    with pytest.raises(StepRejected):
        steps.states(NEW)


@pytest.mark.parametrize(
    "words",
    [
        {"chains": (Chain("a b"),)},
        {"counters": (NamedCounter('a"b'),)},
        {"sets": (Set("\udcff", ("ifname",)),)},
        {"sets": (Set("names", ("ifname",), frozenset({'a"b'})),)},
        {"chains": (Chain("c d", (), Hook("filter", "egress", 0, "accept", 'a"b')),)},
    ],
)
def test_table_with_unwritable_names_is_replaced_whole(words: dict[str, tuple[object, ...]]) -> None:
    """nft text cannot carry these names, so no operation can be about these objects."""
    desired = Table("netdev", "t", (Chain("c"),), (Set("names", ("ifname",)),))
    observed = evolve(desired, **words)
    (step,) = plan(NetState((observed,)), NetState((desired,))).steps
    assert isinstance(step, NftTransaction)
    assert step.operations[0] == NftOperation("delete", *observed.key, observed)
    for operation in (*step.operations, *step.undo):
        operation_text(operation)
