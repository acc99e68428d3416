"""Tests of rules as boxes of packets: a packet is in a box exactly if the interpreter of rules says that the test holds."""

from itertools import combinations

import pytest

from nftpolicy.model.packet import ICMP, TCP, UDP, Packet
from nftpolicy.model.packet_view import PacketView
from nftpolicy.model.symbolic import mark_bits
from nftpolicy.model.symbolic.field_values import CT_DIRECTIONS, CT_STATES
from nftpolicy.model.symbolic.header_space import HeaderSpace
from nftpolicy.model.symbolic.ruleset_scan import scan_ruleset
from nftpolicy.netstate.nft import (
    DROP,
    FULL_MASK,
    AnonymousSet,
    Bitwise,
    Chain,
    Concat,
    Ct,
    Hook,
    Match,
    Meta,
    Payload,
    Rule,
    Set,
    SetRef,
    Table,
)
from nftpolicy.netstate.nft.symbols import TCP_FLAG_BITS, TCP_FLAGS
from tests.unit.test_chains import DESTINATIONS, holds

MARK, FLOW_MARK, FLAGS = Meta("mark"), Ct("mark"), Payload("tcp", "flags")
ORDER = ("<", "<=", ">", ">=")
EDGES = (0, 1, 4, 5, 6, 9, 10, 0x105, FULL_MASK - 1, FULL_MASK)


def any_of(*elements):
    return AnonymousSet(frozenset(elements))


def boxes_of(match, family, sets=()):
    """Return the boxes of a test, and the partition of the marks."""
    table = Table("inet", "t", (Chain("base", (Rule((match, DROP)),), Hook("filter", "output", 0)),), sets)
    space = HeaderSpace(family, scan_ruleset((table,)), ("eth0", "wg7"))
    space.add_sets((table,))
    return space.match_boxes(table, match), space


def point(view, space):
    """Return the fields of one packet that is whole."""
    marks = {"mark": view.mark, "ctmark": view.ct_mark}
    flags = view.header_field("tcp", "flags") if view.protocol == TCP else 0
    return {
        **{
            mark_bits.field_name(name, group): mark_bits.pack_bits(value, group)
            for name, value in marks.items()
            for group in space.partition
        },
        **{f"tcp.{name}": int(bool(flags & TCP_FLAG_BITS[name])) for name in TCP_FLAGS},
        "ct.state": CT_STATES[view.ct_state],
        "nfproto": view.family,
        "protocol": view.protocol,
        "saddr": view.source,
        "daddr": view.destination,
        "sport": view.sport,
        "dport": view.dport,
        "ttl": 64,
        "socket": int(view.uid is not None),
        "uid": view.uid or 0,
        "gid": view.gid or 0,
        "oif": space.devices.index(view.oif),
        "ct.direction": CT_DIRECTIONS[view.ct_direction],
        "icmp.type": view.header_field("icmp", "type") or 0,
        "icmp.code": view.header_field("icmp", "code") or 0,
        "fragment": 0,
        "readable": 3,
    }


def assert_agreement(match, views, **more):
    for view in views:
        boxes, space = boxes_of(match, view.family, **more)
        fields = point(view, space)
        is_in_box = any(
            all(any(low <= fields[name] <= high for low, high in ranges) for name, ranges in box.items())
            for box in boxes
        )
        assert is_in_box is holds(match, view, **more), view


def view(family=4, **more):
    packet = Packet(family, DESTINATIONS[family], source=DESTINATIONS[family] + 1, uid=1000, gid=100)
    result = PacketView.from_packet(packet, packet.source, oif="eth0")
    for name, value in more.items():
        setattr(result, name, value)
    return result


MARK_TESTS = (
    *(Match(MARK, value, op) for value in (0, 5, FULL_MASK) for op in ("==", "!=", *ORDER)),
    *(Match(MARK, "5-9", op) for op in ("==", "!=")),
    *(Match(MARK, any_of(*values), op) for values in ((1, 5, 9), (0, "5-9"), ("4-5", 10)) for op in ("==", "!=")),
    *(Match(Bitwise(MARK, and_mask=mask), 4, op) for mask in (0x4, 0x104, 0xF) for op in ("==", "!=")),
    *(Match(Bitwise(MARK, and_mask=0x105), any_of(4, 0x101, 0x20), op) for op in ("==", "!=")),
)


@pytest.mark.parametrize("match", MARK_TESTS)
def test_mark_is_in_the_boxes_of_its_tests(match):
    assert_agreement(match, [view(mark=mark) for mark in EDGES])


@pytest.mark.parametrize("match", [Match(FLOW_MARK, 5, op) for op in ("==", "!=", *ORDER)])
def test_mark_of_a_flow_needs_a_flow(match):
    states = ("new", "established", "related", "invalid", "untracked")
    assert_agreement(match, [view(ct_mark=mark, ct_state=state) for mark in (0, 5, 9) for state in states])


FLAG_TESTS = (
    *(Match(FLAGS, value, op) for value in ("syn", "syn,ack") for op in ("==", "!=", "in", "!")),
    *(Match(FLAGS, any_of("syn", "fin,ack"), op) for op in ("==", "!=", "in")),
    *(
        Match(Bitwise(FLAGS, and_mask=mask), value, op)
        for mask, value in (("syn", "syn"), ("syn,ack", "syn"), ("syn,ack", 0), ("syn", "ack"))
        for op in ("==", "!=")
    ),
)
SEGMENTS = [
    view(family, protocol=TCP, fields={("tcp", "flags"): sum(TCP_FLAG_BITS[name] for name in names)})
    for family in (4, 6)
    for number in (0, 1, 2)
    for names in combinations(("fin", "syn", "rst", "ack"), number)
]


@pytest.mark.parametrize("match", FLAG_TESTS)
def test_segment_is_in_the_boxes_of_tests_of_its_flags(match):
    assert_agreement(match, [*SEGMENTS, view(protocol=UDP)])


DADDR, DPORT = Payload("ip", "daddr"), Payload("udp", "dport")
HEADER_TESTS = (
    *(Match(DPORT, value, op) for value in (0, 53, 65535) for op in ("==", "!=", *ORDER)),
    *(Match(DPORT, "53-60", op) for op in ("==", "!=")),
    *(Match(Payload("ip", "ttl"), 64, op) for op in ("==", "!=", *ORDER)),
    *(Match(DADDR, value, op) for value in ("192.0.2.1", "192.0.2.0/24", "192.0.2.2-192.0.2.9") for op in ("==", "!=")),
    *(
        Match(Concat((DADDR, DPORT)), any_of(*elements), op)
        for elements in (
            (("192.0.2.1", 53),),
            (("192.0.2.1", "53-60"), ("192.0.2.2", 54)),
            (("192.0.2.0/24", 53), ("192.0.2.1", 54), ("0.0.0.0/0", "60-65535")),
        )
        for op in ("==", "!=")
    ),
    *(
        Match(Concat((DADDR, Payload("ip6", "daddr"))), any_of(("192.0.2.1", "2001:db8::1")), op)  # of no packet
        for op in ("==", "!=")
    ),
    *(Match(Concat((Meta("skuid"), Meta("oifname"))), any_of((1000, "eth0"), (0, "wg7")), op) for op in ("==", "!=")),
)
PORTS = (0, 52, 53, 54, 60, 61, 65535)
DATAGRAMS = [
    view(family, protocol=protocol, dport=port, destination=DESTINATIONS[family] + host)
    for family in (4, 6)
    for protocol in (UDP, ICMP)
    for port in PORTS
    for host in (0, 1)
] + [view(protocol=UDP, uid=uid, gid=uid, oif=oif) for uid in (0, 1000, None) for oif in ("eth0", "wg7")]


@pytest.mark.parametrize("match", HEADER_TESTS)
def test_datagram_is_in_the_boxes_of_tests_of_its_header(match):
    assert_agreement(match, DATAGRAMS)


STATES = ("new", "established", "related", "invalid", "untracked")
STATE_TESTS = (
    *(Match(Ct("state"), value, op) for value in STATES for op in ("==", "!=", "in", "!")),
    *(Match(Ct("state"), any_of("established", "related"), op) for op in ("==", "!=")),
    *(Match(Ct("state"), "established,related", op) for op in ("in", "!")),
    *(Match(Ct("direction"), direction, op) for direction in ("original", "reply") for op in ("==", "!=")),
    *(Match(Meta("oifname"), name, op) for name in ("eth0", "wg*", "wg7", "tun0") for op in ("==", "!=")),
    *(Match(Meta("oifname"), any_of("wg*", "eth0"), op) for op in ("==", "!=")),
    *(Match(Payload("icmp", "type"), value, op) for value in ("echo-request", 0, "3-5") for op in ("==", "!=")),
    *(Match(Payload("icmp", "type"), 3, op) for op in ORDER),
    *(Match(Payload("icmp", "code"), 0, op) for op in ("==", "!=", ">")),
)


@pytest.mark.parametrize("match", STATE_TESTS)
def test_packet_is_in_the_boxes_of_tests_of_its_flow_and_device(match):
    views = [
        view(family, ct_state=state, ct_direction=direction, oif=oif, protocol=protocol)
        for family, protocol in ((4, ICMP), (4, UDP), (6, UDP))
        for state in STATES
        for direction in ("original", "reply")
        for oif in ("eth0", "wg7")
    ]
    assert_agreement(match, views)


@pytest.mark.parametrize("op", ["==", "!="])
def test_datagram_is_in_the_boxes_of_a_named_set(op):
    named = Set("s", ("ipv4_addr", "inet_service"), frozenset({("192.0.2.1", 53), ("192.0.2.0/24", "60-61")}))
    assert_agreement(Match(Concat((DADDR, DPORT)), SetRef("s"), op), DATAGRAMS, sets=(named,))
