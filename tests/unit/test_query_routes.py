"""P5: the route of a DNS query, without which no hook redirects it."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.compiler.object_names import QUERY_RULE_PRIORITY
from nftpolicy.netstate.routing import IpRule, Route
from nftpolicy.netstate.state import Device
from nftpolicy.policy.validate import QUERY_TABLE
from nftpolicy.proof.prover import assumptions, prove
from nftpolicy.proof.query_routes import query_routing
from tests.unit.proved_policy import POLICY, SPEC, STATE

SUBJECT = "DNS queries of a service that have no route before they are redirected"
TCP, UDP = 6, 17
# A machine before its tunnel is up: addresses, and no default route outside the uplinks.
DEVICES = tuple(
    Device(name, addresses)
    for name, addresses in (
        ("lo", ("127.0.0.1/8", "::1/128")),
        ("wan", ("198.51.100.2/24", "2001:db8:1::2/64")),
        ("lte", ()),
        ("lan", ("10.1.0.1/24", "2001:db8:2::1/64")),
    )
)
LOCAL = (
    Route(4, 255, "127.0.0.0/8", "local", device="lo", protocol=2),
    Route(4, 255, "192.0.2.54/32", "local", device="lo", protocol=2),
    Route(6, 255, "::1/128", "local", device="lo", protocol=2),
)
KERNEL_RULES = tuple(
    IpRule(family, priority, table=table, protocol=2)
    for family in (4, 6)
    for priority, table in ((0, 255), (32766, 254), (32767, 253))
)


def in_order(*rules):
    return tuple(sorted(rules, key=lambda rule: (rule.family, rule.priority)))


MACHINE = evolve(STATE, rules=in_order(*STATE.rules, *KERNEL_RULES), routes=(*STATE.routes, *LOCAL), devices=DEVICES)


def finding(state, spec=SPEC):
    (found,) = (one for one in prove(state, spec, usability=False).findings if one.subject == SUBJECT)
    return found


def without_query_rules(state):
    return evolve(state, rules=tuple(rule for rule in state.rules if rule.priority != QUERY_RULE_PRIORITY))


def test_query_of_compiled_policy_has_a_route():
    assert finding(STATE).verdict == "proved"
    assert finding(MACHINE).verdict == "proved"


def test_query_without_route_is_refuted_by_a_packet():
    found = finding(without_query_rules(MACHINE))
    assert (found.verdict, found.deciding) == ("refuted", True)
    packets = [(one.packet.family, one.packet.protocol, one.packet.dport) for one in found.examples]
    assert set(packets) == {(family, protocol, 53) for family in (4, 6) for protocol in (UDP, TCP)}
    assert {one.trace.outcome for one in found.examples} == {"unroutable"}


def test_query_by_a_default_route_alone_is_unknown():
    state = without_query_rules(MACHINE)
    default = tuple(Route(family, 254, device="lan") for family in (4, 6))
    assert finding(evolve(state, routes=(*state.routes, *default))).verdict == "unknown"


@pytest.mark.parametrize("missing", ["rule", "route"])
@pytest.mark.parametrize("family", [4, 6])
def test_query_without_one_part_of_a_family_is_refuted(family, missing):
    rules = tuple(
        rule for rule in MACHINE.rules if missing != "rule" or (rule.family, rule.table) != (family, QUERY_TABLE)
    )
    routes = tuple(
        route for route in MACHINE.routes if missing != "route" or (route.family, route.table) != (family, QUERY_TABLE)
    )
    found = finding(evolve(MACHINE, rules=rules, routes=routes))
    assert {one.packet.family for one in found.examples} == {family}


def test_query_refused_by_rule_for_other_devices_has_no_route():
    """A query of a socket without a device matches `not oif`; one with `oif` does not."""
    rule = IpRule(4, 700, "prohibit", oif="lan", protocol=4)
    assert query_routing(evolve(MACHINE, rules=in_order(*MACHINE.rules, rule)), 4, UDP).refusals == ()
    inverted = evolve(rule, invert=True)
    assert query_routing(evolve(MACHINE, rules=in_order(*MACHINE.rules, inverted)), 4, UDP).refusals != ()


def test_query_refused_by_foreign_default_route_decides_nothing():
    refusing = Route(4, 254, kind="unreachable", protocol=4)
    found = finding(evolve(MACHINE, routes=(*MACHINE.routes, refusing)))
    assert (found.verdict, found.deciding) == ("refuted", False)
    rule = IpRule(4, 700, "prohibit", protocol=4)
    found = finding(evolve(MACHINE, rules=in_order(*MACHINE.rules, rule)))
    assert (found.verdict, found.deciding) == ("refuted", False)


@pytest.mark.parametrize(
    "refusing",
    [Route(4, 254, "10.0.0.0/8", "unreachable", protocol=4), IpRule(4, 700, "prohibit", destination="10.0.0.0/8")],
    ids=["route", "rule"],
)
def test_query_refused_for_some_servers_is_an_assumption(refusing):
    key, objects = ("routes", MACHINE.routes) if isinstance(refusing, Route) else ("rules", MACHINE.rules)
    state = evolve(MACHINE, **{key: (*objects, refusing) if key == "routes" else in_order(*objects, refusing)})
    assert finding(state).verdict == "proved"
    (text,) = (one for one in assumptions(state, SPEC) if "asks a DNS server" in one)
    assert "10.0.0.0/8" in text
    assert not any("asks a DNS server" in one for one in assumptions(MACHINE, SPEC))


@pytest.mark.parametrize(
    "change",
    [
        {"source": "10.0.0.0/8"},
        {"destination": "10.0.0.0/8"},
        {"oif": "lan"},
        {"iif": "lan"},
        {"uids": (5, 6)},
        {"sports": (5, 6)},
        {"dports": (54, 60)},
        {"l4proto": TCP},
        {"mark": 1, "mask": 1},
        {"tos": 16},
        {"invert": True},
        {"l3mdev": True},
        {"suppress_prefix": 0},
        {"suppress_group": 0},
        {"action": "goto", "goto": 40000},
        {"action": "unreachable"},
        {"unknown": ("dscp 8",)},
    ],
    ids=str,
)
def test_query_rule_for_some_queries_gives_no_route(change):
    rule = IpRule(4, QUERY_RULE_PRIORITY, table=QUERY_TABLE, iif="lo", l4proto=UDP, dports=(53, 53))
    assert query_routing(evolve(MACHINE, rules=(rule,)), 4, UDP).has_route
    assert not query_routing(evolve(MACHINE, rules=(evolve(rule, **change),)), 4, UDP).has_route


@pytest.mark.parametrize(
    "change",
    [{"device": "lan"}, {"destination": "0.0.0.0/1"}, {"kind": "unreachable"}, {"tos": 4}, {"dead": True},
     {"gateway": "10.1.0.2"}],
    ids=str,
)  # fmt: skip
def test_query_route_elsewhere_gives_no_route(change):
    routes = tuple(
        evolve(route, **change) if (route.family, route.table) == (4, QUERY_TABLE) else route
        for route in MACHINE.routes
    )
    assert not query_routing(evolve(MACHINE, routes=routes), 4, UDP).has_route


def test_query_of_no_service_without_route_is_skipped():
    """A refused query shows nothing of the entry `inside`: it has no route now, as other packets to there."""
    proof = prove(MACHINE, SPEC)
    assert "no route exists now for: DNS inside lan (IPv6)" in proof.assumptions
    assert {one.verdict for one in proof.findings if one.subject == "DNS inside lan"} == {"proved"}  # IPv4, bound to it
    default = tuple(Route(family, 254, device="lan") for family in (4, 6))
    found = prove(evolve(MACHINE, routes=(*MACHINE.routes, *default)), SPEC).findings
    assert {one.verdict for one in found if one.subject == "DNS inside lan"} == {"proved"}


def test_family_that_lo_lacks_has_no_query_route():
    without_ipv6 = HostFacts(loopback_families=(4,))
    state = compile_policy(POLICY, without_ipv6)
    assert {rule.family for rule in state.rules if rule.table == QUERY_TABLE} == {4, 6}
    assert {route.family for route in state.routes if route.table == QUERY_TABLE} == {4}  # the kernel refuses others
    assert finding(state).verdict == "unknown"  # only by the assumed default route
    assert finding(state, evolve(SPEC, loopback_families=(4,))).verdict == "proved"
    lo = Device("lo", ("127.0.0.1/8",))
    machine = evolve(MACHINE, rules=in_order(*state.rules, *KERNEL_RULES), devices=(lo, *DEVICES[1:]))
    assert finding(machine).verdict == "proved"
