"""Counterexample search: the packets that a state lets go, with the reason, and what cannot be followed."""

import pytest
from attrs import evolve

from nftpolicy.model.packet import FORWARD, FRAME, KERNEL, SOCKET, parse_address
from nftpolicy.netstate.nft import ACCEPT, Chain, Fwd, Hook, Mangle, Match, Meta, Rule, Table
from nftpolicy.netstate.routing import IpRule, Route
from nftpolicy.netstate.state import NetState
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.counterexample import search_leaks, search_mark_misuse, search_outcome
from nftpolicy.proof.exemption_spec import exemption
from nftpolicy.proof.lemmas import Violation
from nftpolicy.proof.spec import UplinkSpec

UPLINK = UplinkSpec("wan", ("wan",), 1, 0xFF, 7)
LOCAL = tuple(IpRule(family, 0, table=255, protocol=2) for family in (4, 6))
MAIN = tuple(IpRule(family, 32766, table=254, protocol=2) for family in (4, 6))
ROUTES = (
    Route(4, 255, "127.0.0.0/8", "local", device="lo", prefsrc="127.0.0.1", protocol=2),
    Route(4, 255, "10.0.0.1/32", "local", device="lan", prefsrc="10.0.0.1", protocol=2),
    Route(4, 255, "192.0.2.1/32", "local", device="wan", prefsrc="192.0.2.1", protocol=2),
    Route(4, 254, "10.0.0.0/24", device="lan", prefsrc="10.0.0.1", protocol=2),
    Route(4, 254, device="wan"),
)
REMOTE, OURS, INSIDE = (parse_address(text) for text in ("198.51.100.9", "10.0.0.1", "10.0.0.9"))


def chain(*rules, hook="postrouting", kind="filter", policy="accept", device=None):
    return Table("netdev" if device else "inet", f"t-{hook}", (Chain("c", rules, Hook(kind, hook, 0, policy, device)),))


def context(*tables, rules=(), routes=ROUTES):
    return ProofContext(NetState(tables, (*LOCAL, *rules, *MAIN), routes), UPLINK.devices, (UPLINK.mask,))


def violation(**box):
    return Violation(4, {name.replace("_", "."): ((value, value),) for name, value in box.items()}, "", ())


def leaks(where, origin=SOCKET, violations=(), uplink=UPLINK, families=(4,), devices=("wan",), **words):
    return search_leaks(where, uplink, origin, families, devices, violations, **words)


SETS_MARK = Rule((Mangle(Meta("mark"), 1),))
OPEN = context()


# --- leaks ----------------------------------------------------------------------------------


def test_open_machine_leaks_by_route_and_by_bound_sockets():
    examples, unsupported = leaks(OPEN)
    assert [(one.reason, one.device, one.trace.outcome) for one in examples] == [
        ("routed: priority 32766 from all lookup main protocol 2", "wan", "leaves"),
        ("the socket is bound to wan", "wan", "leaves"),
    ]
    assert unsupported == []
    assert all(one.packet.destination == REMOTE and one.trace.packet == one.packet for one in examples)


@pytest.mark.parametrize(
    ("origin", "reasons"),
    [
        (KERNEL, ["routed: priority 32766 from all lookup main protocol 2"]),
        (FORWARD, ["routed: priority 32766 from all lookup main protocol 2"]),
        (FRAME, ["AF_PACKET frames pass only the netdev egress hook"]),
    ],
)
def test_leak_is_found_for_each_origin(origin, reasons):
    examples, _ = leaks(OPEN, origin)
    assert [one.reason for one in examples] == reasons
    assert {one.packet.origin for one in examples} == {origin}


def test_leak_by_a_rule_that_marks_names_the_rule():
    examples, _ = leaks(context(chain(SETS_MARK, hook="output", kind="route")))
    assert [one.reason for one in examples] == ["marked by a rule: meta mark set 0x1"]


def test_violations_on_the_same_path_are_one_leak():
    examples, _ = leaks(OPEN, KERNEL, [violation(dport=1), violation(dport=2)])
    assert [one.packet.dport for one in examples] == [1]


def test_number_of_leaks_is_limited():
    assert len(leaks(OPEN, most=1)[0]) == 1
    assert len(leaks(OPEN, most=2)[0]) == 2


def test_guarded_machine_leaks_nothing():
    assert leaks(context(chain(policy="drop"))) == ([], [])
    assert leaks(OPEN, KERNEL, devices=("lte",)) == ([], [])
    assert leaks(OPEN, families=()) == ([], [])


def test_packet_that_the_uplink_allows_is_no_leak():
    dhcp = violation(saddr=0, daddr=0xFFFFFFFF, protocol=17, sport=68, dport=67)
    assert leaks(OPEN, FRAME, [dhcp])[0] != []
    assert leaks(OPEN, FRAME, [dhcp], evolve(UPLINK, exemptions=(exemption("dhcpv4"),))) == ([], [])
    marked = Violation(4, {"mark:0xff": ((1, 1),)}, "", ())
    assert leaks(OPEN, KERNEL, [marked]) == ([], [])


def test_packet_that_cannot_be_followed_is_named():
    unknown = context(chain(Rule((Fwd("lan"),))))
    examples, unsupported = leaks(unknown, KERNEL, [violation(dport=1), violation(dport=2)])
    assert examples == []
    assert len(unsupported) == 1
    assert "fwd" in unsupported[0]


# --- packets of regions ---------------------------------------------------------------------


def oif(where, name):
    return where.space(4).devices.index(name)


WITH_DEVICES = context(chain(*(Rule((Match(Meta("oifname"), name), ACCEPT)) for name in ("lan", "wan", "lo"))))


@pytest.mark.parametrize(
    ("box", "outcome", "found"),
    [
        ({}, "leaves", [("wan", "it leaves by wan", SOCKET)]),
        ({"socket": 0}, "leaves", [("wan", "it leaves by wan", KERNEL)]),
        ({"socket": 1}, "leaves", [("wan", "it leaves by wan", SOCKET)]),
        ({"daddr": INSIDE}, "leaves", [("lan", "it leaves by lan", SOCKET)]),
        ({"daddr": OURS}, "leaves", []),
        ({"daddr": OURS}, "delivered", [("", "it is delivered", SOCKET)]),
        ({}, "delivered", []),
        ({"oif": "wan"}, "leaves", [("wan", "it leaves by wan", SOCKET)]),
        ({"oif": "lan"}, "leaves", [("lan", "it leaves by lan", SOCKET)]),
        ({"oif": "lo", "daddr": OURS}, "delivered", [("", "it is delivered", SOCKET)]),
        ({"iif": "lan", "saddr": INSIDE}, "leaves", [("wan", "it leaves by wan", FORWARD)]),
        ({"iif": "wan", "saddr": REMOTE, "daddr": OURS}, "delivered", [("", "it is delivered", FORWARD)]),
    ],
    ids=str,
)
def test_packet_of_a_region_with_an_outcome_is_found(box, outcome, found):
    numbers = {name: oif(WITH_DEVICES, value) if isinstance(value, str) else value for name, value in box.items()}
    examples, unsupported = search_outcome(WITH_DEVICES, [violation(**numbers)], outcome)
    assert [(one.device, one.reason, one.packet.origin) for one in examples] == found
    assert unsupported == []


def test_outcome_that_cannot_be_followed_is_named_once():
    unknown = context(chain(Rule((Fwd("lan"),))))
    examples, unsupported = search_outcome(unknown, [violation(dport=1), violation(dport=2)], "leaves")
    assert (examples, len(unsupported)) == ([], 1)


def marked(where, **box):
    ranges = {name: ((value, value),) for name, value in box.items()}
    return Violation(4, {"mark:0xff": ((1, 1),), **ranges}, "", ())


def test_stray_packet_leaves_with_the_mark_by_another_device():
    examples, unsupported = search_mark_misuse(WITH_DEVICES, UPLINK, [marked(WITH_DEVICES)], stray=True)
    assert [(one.device, one.packet.mark, one.reason) for one in examples] == [
        ("lan", 1, "it carries the mark and is routed or bound to lan")
    ]
    assert unsupported == []


def test_marked_packet_of_no_service_leaves_by_the_uplink():
    examples, _ = search_mark_misuse(WITH_DEVICES, UPLINK, [marked(WITH_DEVICES)], stray=False)
    assert [(one.device, one.packet.origin, one.reason) for one in examples] == [("wan", SOCKET, "it carries the mark")]
    examples, _ = search_mark_misuse(WITH_DEVICES, UPLINK, [marked(WITH_DEVICES, socket=0)], stray=False)
    assert [one.packet.origin for one in examples] == [KERNEL]
    assert search_mark_misuse(WITH_DEVICES, UPLINK, [violation(dport=1)], stray=False) == ([], [])


@pytest.mark.parametrize(("device", "stray"), [("lan", True), ("wan", False)])
def test_region_of_one_device_is_tried_there(device, stray):
    region = marked(WITH_DEVICES, oif=oif(WITH_DEVICES, device))
    for tried in (True, False):
        examples, _ = search_mark_misuse(WITH_DEVICES, UPLINK, [region], tried)
        assert [one.device for one in examples] == ([device] if tried is stray else [])


def test_misuse_that_cannot_be_followed_is_named():
    unknown = context(chain(Rule((Match(Meta("oifname"), "lan"), Fwd("lan")))))
    examples, unsupported = search_mark_misuse(unknown, UPLINK, [marked(unknown)] * 2, stray=True)
    assert (examples, len(unsupported)) == ([], 1)
