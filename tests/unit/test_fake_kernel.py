"""Kernel in memory and real kernel: same steps, same results."""

import pytest
from attrs import evolve

from nftpolicy.kernel.errors import StepRefused
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.netstate.nft import (
    ACCEPT,
    Chain,
    CounterRef,
    Hook,
    Match,
    Meta,
    NamedCounter,
    Rule,
    Set,
    SetRef,
    Table,
    Verdict,
    VerdictMap,
)
from nftpolicy.netstate.operations import (
    ChainRules,
    IpRuleChange,
    NftOperation,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    SetElements,
    SysctlChange,
)
from nftpolicy.netstate.routing import TABLE_MAIN, IpRule, Route, Sysctl
from nftpolicy.netstate.state import CounterValue, NetState
from nftpolicy.netstate.transition import EBUSY_TEXT, EEXIST_TEXT, ENOENT_TEXT, EOPNOTSUPP_TEXT, ESRCH_TEXT
from tests.unit.forked_namespace import clear, kernel, linux, normal, observe

NAME = "nftpolicy"
HOOK = Hook("filter", "postrouting", 10, "drop")
TABLE, CHAIN, BASE = Table("inet", NAME), Chain("one"), Chain("base", hook=HOOK)
PORTS = Set("ports", ("inet_service",))
COUNTER = NamedCounter("seen")
USES_SET = Rule((Match(Meta("l4proto"), "tcp"), Match(Meta("mark"), SetRef("marks")), ACCEPT))
MARKS = Set("marks", ("mark",))
JUMP, COUNT = Rule((Verdict("jump", "one"),)), Rule((CounterRef("seen"), ACCEPT))
MAP = Rule((VerdictMap(Meta("oifname"), frozenset({("eth0", Verdict("goto", "one"))})),))
LINK = Chain("link", hook=Hook("filter", "egress", 10, "accept", "eth0"))
NO_LINK = Chain("link", hook=Hook("filter", "egress", 10, "accept", "absent0"))
SYSCTL = "net/ipv4/conf/eth0/arp_ignore"


def nft(*operations, family="inet"):
    return NftTransaction(tuple(NftOperation(verb, family, NAME, item) for verb, item in operations), ())


def add(*items, family="inet"):
    return nft(*(("add", item) for item in items), family=family)


def delete(item):
    return nft(("delete", item))


BASIS = add(TABLE, CHAIN, BASE, MARKS, COUNTER)
RULE = IpRule(4, 700, table=7, mark=1, mask=1)
ROUTE = Route(4, 7, kind="unreachable", metric=9)
VIA = Route(4, 7, gateway="192.0.2.1", device="eth0", metric=5, onlink=True)
VIA6 = Route(6, 7, gateway="fe80::1", device="eth0", metric=5, onlink=True)

# What is done, step by step, and what the kernel says: None is "done".
CASES = {
    "a table twice": [(add(TABLE), None), (add(TABLE), None)],
    "no table to delete": [(delete(TABLE), ENOENT_TEXT)],
    "a chain in no table": [(add(CHAIN), ENOENT_TEXT)],
    "a set in no table": [(add(MARKS), ENOENT_TEXT)],
    "a counter in no table": [(add(COUNTER), ENOENT_TEXT)],
    "a rule in no chain": [(add(TABLE), None), (add(ChainRules(CHAIN, (Rule((ACCEPT,)),))), ENOENT_TEXT)],
    "elements of no set": [(add(TABLE), None), (add(SetElements(MARKS, frozenset({1}))), ENOENT_TEXT)],
    "no chain to delete": [(add(TABLE), None), (delete(CHAIN), ENOENT_TEXT)],
    "no chain to flush": [(add(TABLE), None), (nft(("flush", CHAIN)), ENOENT_TEXT)],
    "no set to delete": [(add(TABLE), None), (delete(MARKS), ENOENT_TEXT)],
    "no counter to delete": [(add(TABLE), None), (delete(COUNTER), ENOENT_TEXT)],
    "all things twice": [(BASIS, None), (BASIS, None)],
    "another policy of a base chain": [
        (BASIS, None),
        (add(Chain("base", hook=Hook("filter", "postrouting", 10, "accept"))), None),
    ],
    "another priority of a base chain": [
        (BASIS, None),
        (add(Chain("base", hook=Hook("filter", "postrouting", 11, "drop"))), EOPNOTSUPP_TEXT),
    ],
    "another type of a set": [(BASIS, None), (add(Set("marks", ("inet_service",))), EEXIST_TEXT)],
    "an element twice": [
        (BASIS, None),
        (add(SetElements(MARKS, frozenset({1, 2}))), None),
        (add(SetElements(MARKS, frozenset({2, 3}))), None),
        (delete(SetElements(MARKS, frozenset({1, 3}))), None),
    ],
    "no element to delete": [(BASIS, None), (delete(SetElements(MARKS, frozenset({5}))), ENOENT_TEXT)],
    "a set in use": [
        (BASIS, None),
        (add(ChainRules(CHAIN, (USES_SET,))), None),
        (delete(MARKS), EBUSY_TEXT),
        (nft(("flush", CHAIN), ("delete", MARKS)), None),
    ],
    "a chain that is jumped to": [(BASIS, None), (add(ChainRules(BASE, (JUMP,))), None), (delete(CHAIN), EBUSY_TEXT)],
    "a chain in a verdict map": [(BASIS, None), (add(ChainRules(BASE, (MAP,))), None), (delete(CHAIN), EBUSY_TEXT)],
    "a counter in use": [(BASIS, None), (add(ChainRules(CHAIN, (COUNT,))), None), (delete(COUNTER), EBUSY_TEXT)],
    "a chain with rules": [(BASIS, None), (add(ChainRules(CHAIN, (COUNT, USES_SET))), None), (delete(CHAIN), None)],
    "a rule with no set": [(add(TABLE, CHAIN), None), (add(ChainRules(CHAIN, (USES_SET,))), ENOENT_TEXT)],
    "a jump to no chain": [(add(TABLE, BASE), None), (add(ChainRules(BASE, (JUMP,))), ENOENT_TEXT)],
    "no counter to count with": [(add(TABLE, CHAIN), None), (add(ChainRules(CHAIN, (COUNT,))), ENOENT_TEXT)],
    "all or nothing": [
        (add(TABLE, CHAIN, COUNTER, ChainRules(CHAIN, (COUNT,)), SetElements(MARKS, frozenset({1}))), ENOENT_TEXT),
        (add(TABLE), None),
    ],
    "rules keep their order": [
        (BASIS, None),
        (add(ChainRules(BASE, (COUNT, JUMP))), None),
        (add(ChainRules(BASE, (MAP,))), None),
    ],
    "the whole table goes": [(BASIS, None), (add(ChainRules(BASE, (JUMP, COUNT))), None), (delete(TABLE), None)],
    "the table goes and comes in one step": [(BASIS, None), (nft(("delete", TABLE), ("add", TABLE)), None)],
    "a hook on a device": [(add(TABLE, LINK, family="netdev"), None)],
    "no set to flush": [(add(TABLE), None), (nft(("flush", MARKS)), ENOENT_TEXT)],
    "a set flushed and filled": [
        (BASIS, None),
        (add(SetElements(MARKS, frozenset({1, 2}))), None),
        (nft(("flush", MARKS), ("add", SetElements(MARKS, frozenset({2, 3})))), None),
    ],
    "ip rules by priority": [
        (IpRuleChange("add", IpRule(4, 710, action="unreachable", mark=1, mask=1)), None),
        (IpRuleChange("add", RULE), None),
        (IpRuleChange("add", IpRule(6, 500, table=TABLE_MAIN, destination="fe80::/10")), None),
    ],
    "an ip rule twice": [(IpRuleChange("add", RULE), None), (IpRuleChange("add", RULE), EEXIST_TEXT)],
    "no ip rule to delete": [(IpRuleChange("delete", RULE), ENOENT_TEXT)],
    "an ip rule there and gone": [(IpRuleChange("add", RULE), None), (IpRuleChange("delete", RULE), None)],
    "a route twice": [(RouteChange("add", ROUTE), None), (RouteChange("add", ROUTE), EEXIST_TEXT)],
    "a route in another's place": [
        (RouteChange("add", VIA), None),
        (RouteChange("add", Route(4, 7, gateway="192.0.2.2", device="eth0", metric=5, onlink=True)), EEXIST_TEXT),
        (RouteChange("add", Route(4, 7, gateway="192.0.2.2", device="eth0", metric=6, onlink=True)), None),
    ],
    "an IPv6 route in another's place": [
        (RouteChange("add", Route(6, 7, gateway="fe80::1", device="eth0", metric=5, onlink=True)), None),
        (RouteChange("add", Route(6, 7, gateway="fe80::2", device="eth0", metric=5, onlink=True)), EEXIST_TEXT),
    ],
    "a route replaced": [
        (RouteChange("add", VIA), None),
        (RouteReplacement(VIA, evolve(VIA, gateway="192.0.2.2")), None),
    ],
    "an IPv6 route replaced": [
        (RouteChange("add", VIA6), None),
        (RouteReplacement(VIA6, evolve(VIA6, gateway="fe80::2")), None),
        (RouteReplacement(evolve(VIA6, gateway="fe80::2"), VIA6), None),
    ],
    "no route to delete": [(RouteChange("delete", ROUTE), ESRCH_TEXT)],
    "a route by no device": [
        (
            RouteChange("add", Route(4, 7, gateway="192.0.2.1", device="absent0", onlink=True)),
            "there is no device absent0",
        )
    ],
    "a sysctl": [(SysctlChange("0", Sysctl(SYSCTL, "2")), None), (SysctlChange("2", Sysctl(SYSCTL, "0")), None)],
    "no sysctl": [(SysctlChange("0", Sysctl("net/ipv4/conf/absent0/arp_ignore", "2")), ENOENT_TEXT)],
}


def outcomes(found, steps):
    """Return the result of each step, and the state after all steps."""
    results = []
    for step in steps:
        try:
            found.apply_step(step)
            results.append(None)
        except StepRefused as refused:
            assert refused.step is step
            reason = refused.reason.removeprefix("Could not process rule: ")  # nft's, for the kernel's errors
            # nft 1.1 compares a chain with the kernel's itself.
            results.append(EOPNOTSUPP_TEXT if "with different declaration" in reason else reason)
    return results, normal(observe(found, [SYSCTL]))


def in_linux(steps):
    found = linux()
    try:
        return outcomes(found, steps)
    finally:
        clear(found)


def fake():
    return FakeKernel(NetState(sysctls=(Sysctl(SYSCTL, "0"),)), devices=("eth0",))


@pytest.fixture(scope="module")
def namespace():
    with kernel() as forked:
        yield forked


@pytest.mark.parametrize("case", CASES)
def test_fake_kernel_gives_expected_results(case):
    results, _ = outcomes(fake(), [step for step, _ in CASES[case]])
    assert results == [wanted for _, wanted in CASES[case]]


@pytest.mark.kernel
@pytest.mark.parametrize("case", CASES)
def test_linux_gives_the_results_of_the_fake_kernel(namespace, case):
    steps = [step for step, _ in CASES[case]]
    assert namespace.call(in_linux, steps) == outcomes(fake(), steps)


@pytest.mark.kernel
def test_linux_answers_queries_as_the_fake_kernel(namespace):
    def query_linux():
        found = linux()
        found.apply_step(add(TABLE, COUNTER))
        try:
            return query_results(found)
        finally:
            clear(found)

    kernel_in_memory = fake()
    kernel_in_memory.apply_step(add(TABLE, COUNTER))
    assert namespace.call(query_linux) == query_results(kernel_in_memory)


def query_results(found):
    ports = dict(found.bridge_ports(["eth0", "absent0"]))
    return found.counters(NAME), found.ip_families(), ports, found.supports_egress_hook("eth0")


@pytest.mark.kernel
def test_linux_egress_hook_support_is_reported_correctly(namespace):
    step = add(TABLE, NO_LINK, family="netdev")

    def tried():
        found = linux()
        would = found.supports_egress_hook("absent0")
        try:
            return would, outcomes(found, [step])
        finally:
            clear(found)

    would, result = namespace.call(tried)
    kernel_in_memory = FakeKernel(
        NetState(sysctls=(Sysctl(SYSCTL, "0"),)), without_egress_hook=() if would else ("absent0",)
    )
    assert result == outcomes(kernel_in_memory, [step])


def test_refused_transaction_changes_nothing():
    kernel_in_memory = fake()
    kernel_in_memory.apply_step(BASIS)
    before, generation = kernel_in_memory.state, kernel_in_memory.generation
    with pytest.raises(StepRefused) as refused:
        kernel_in_memory.apply_step(add(ChainRules(CHAIN, (COUNT,)), SetElements(PORTS, frozenset({1}))))
    assert refused.value.object == SetElements(PORTS, frozenset({1}))
    assert (kernel_in_memory.state, kernel_in_memory.generation) == (before, generation)


def test_refuse_at_refuses_one_step_counted_from_zero():
    kernel_in_memory = FakeKernel(refuse_at=1)
    kernel_in_memory.apply_step(add(TABLE))
    with pytest.raises(StepRefused, match="Operation not permitted"):
        kernel_in_memory.apply_step(add(CHAIN))
    kernel_in_memory.apply_step(add(CHAIN))
    assert kernel_in_memory.generation == 2


def test_counters_keep_their_values_until_deleted():
    kernel_in_memory = fake()
    kernel_in_memory.apply_step(BASIS)
    place = ("inet", NAME, "seen")
    kernel_in_memory.counts[place] = CounterValue(3, 99)
    kernel_in_memory.apply_step(add(ChainRules(CHAIN, (COUNT,))))
    assert kernel_in_memory.counters(NAME)[place] == CounterValue(3, 99)
    kernel_in_memory.apply_step(nft(("flush", CHAIN), ("delete", COUNTER), ("add", COUNTER)))
    assert kernel_in_memory.counters(NAME)[place] == CounterValue(0, 0)


def test_observe_leaves_out_foreign_objects():
    foreign = (Table("inet", "fw4"), Table("ip", NAME))
    rules = (IpRule(4, 1, protocol=2), IpRule(4, 2))
    kernel_in_memory = FakeKernel(NetState(foreign, rules, (Route(4, 1, protocol=3),), (Sysctl("a", "1"),)))
    assert observe(kernel_in_memory, ["a", "b"]) == NetState((), rules[1:], (), (Sysctl("a", "1"),))
