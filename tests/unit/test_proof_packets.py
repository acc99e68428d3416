"""Packets of a proof: from a region to one packet, from a route to a packet that takes it, and which are allowed."""

from types import SimpleNamespace

import pytest
from attrs import evolve

from nftpolicy.model.packet import FORWARD, FRAME, KERNEL, SOCKET, CtInfo, Packet, parse_address
from nftpolicy.netstate.nft import Chain, Hook, Table
from nftpolicy.netstate.routing import IpRule, Nexthop, Route
from nftpolicy.netstate.state import NetState
from nftpolicy.proof.candidates import candidate_packets
from nftpolicy.proof.concretize import choose, concretize, host_ranges
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.counterexample import is_entitled, is_exempt
from nftpolicy.proof.exemption_spec import exemption
from nftpolicy.proof.lemmas import Violation
from nftpolicy.proof.spec import UplinkSpec
from nftpolicy.proof.verdict import describe_packet
from tests.unit.proved_policy import STATE

UPLINK = UplinkSpec("wan", ("wan",), 1, 0xFF, 7)
CONTEXT = ProofContext(STATE, UPLINK.devices, (UPLINK.mask,))
REMOTE = {4: parse_address("198.51.100.9"), 6: parse_address("2001:db8:9::9")}


def one(value):
    return ((value, value),)


def span(family, text):
    low, _, high = text.partition("-")
    return ((parse_address(low), parse_address(high or low)),)


# --- a packet of a region -------------------------------------------------------------------


def test_choice_is_the_first_preferred_value_that_is_allowed():
    assert choose(None, 7, 8) == 7
    assert choose(((1, 3), (8, 9)), 7, 8) == 8
    assert choose(((1, 3), (8, 9)), 7, 3) == 3
    assert choose(((1, 3), (8, 9)), 7, 4) == 1


@pytest.mark.parametrize("family", [4, 6])
def test_packet_of_any_region_has_usual_values(family):
    space = CONTEXT.space(family)
    assert concretize(space, {}, SOCKET) == Packet(family, REMOTE[family], uid=65534, gid=65534)
    assert concretize(space, {}, SOCKET, "wan").bound == "wan"
    assert concretize(space, {}, FORWARD, "wan").bound is None


@pytest.mark.parametrize(
    ("family", "box", "expected"),
    [
        (4, {"protocol": one(6)}, {"protocol": 6, "fields": {("tcp", "flags"): 2}}),
        (4, {"protocol": one(6), "tcp.syn": one(0), "tcp.ack": one(1)}, {"fields": {("tcp", "flags"): 0x10}}),
        (4, {"protocol": ((1, 16),)}, {"protocol": 6}),
        (4, {"protocol": ((0, 255),)}, {"protocol": 17}),
        (4, {"sport": ((1, 9),), "dport": ((53, 60),)}, {"sport": 1, "dport": 53}),
        (4, {"sport": ((1, 65535),), "dport": ((1, 60),)}, {"sport": 40000, "dport": 9}),
        (4, {"ttl": ((1, 255),)}, {"fields": {("ip", "ttl"): 64}}),
        (6, {"ttl": one(255)}, {"fields": {("ip6", "hoplimit"): 255}}),
        (4, {"icmp.type": ((0, 255),), "icmp.code": ((0, 255),)}, {"fields": {("icmp", "type"): 8, ("icmp", "code"): 0}}),
        (6, {"icmpv6.type": ((0, 255),)}, {"fields": {("icmpv6", "type"): 128}}),
        (6, {"icmpv6.type": one(135), "icmpv6.code": one(0)}, {"fields": {("icmpv6", "type"): 135, ("icmpv6", "code"): 0}}),
        (4, {"igmp.type": ((0, 255),)}, {"fields": {("igmp", "type"): 0x22}}),
        (4, {"uid": ((0, 70000),), "gid": one(800)}, {"uid": 65534, "gid": 800}),
        (4, {"mark:0x1": one(1), "mark:0xfc": one(1), "mark:0xffffff00": one(1)}, {"mark": 0x105}),
        (4, {"ct.direction": one(1)}, {"flow": CtInfo("new", "reply")}),
        (4, {"ct.state": ((1, 4),)}, {"flow": CtInfo("established")}),
        (4, {"ct.state": one(2), "ct.confirmed": ((0, 1),)}, {"flow": CtInfo("related", is_confirmed=False)}),
        (4, {"ct.state": one(1), "ct.confirmed": one(1)}, {"flow": CtInfo("established", is_confirmed=True)}),
    ],
    ids=str,
)  # fmt: skip
def test_packet_of_a_region_has_its_values(family, box, expected):
    packet = concretize(CONTEXT.space(family), box, SOCKET)
    assert {name: getattr(packet, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("family", "region", "source", "destination"),
    [
        (4, "0.0.0.0-255.255.255.255", "1.0.0.0", "198.51.100.9"),
        (4, "10.0.0.0-10.255.255.255", "10.0.0.0", "10.0.0.9"),
        (4, "10.0.0.5-10.0.0.6", "10.0.0.5", "10.0.0.6"),
        (4, "127.0.0.1-128.0.0.3", "128.0.0.0", "128.0.0.3"),
        (4, "224.0.0.1-224.0.0.9", "224.0.0.1", "224.0.0.9"),
        (4, "0.0.0.0", "0.0.0.0", "0.0.0.0"),
        (4, "0.0.0.0-0.0.0.9", "0.0.0.9", "0.0.0.9"),
        (6, "fe80::-fe80::ffff", "fe80::", "fe80::9"),
        (6, "::-ffff::", "2000::", "2001:db8:9::9"),
    ],
)
def test_packet_of_a_region_is_between_two_hosts(family, region, source, destination):
    space, ranges = CONTEXT.space(family), span(family, region)
    packet = concretize(space, {"saddr": ranges, "daddr": ranges}, SOCKET)
    assert (packet.source, packet.destination) == (parse_address(source), parse_address(destination))


def test_host_ranges_hold_no_loopback_and_no_groups():
    everything = ((0, (1 << 32) - 1),)
    assert host_ranges(4, everything) == (
        *span(4, "1.0.0.0-126.255.255.255"),
        *span(4, "128.0.0.0-223.255.255.255"),
    )
    assert host_ranges(4, span(4, "127.0.0.1-127.0.0.5")) == span(4, "127.0.0.1-127.0.0.5")


def test_packet_of_another_host_arrives_by_its_device():
    space = CONTEXT.space(4)
    number = space.devices.index("lan")
    arrived = concretize(space, {"iif": one(number), "mark:0xff": one(1)}, FORWARD)
    assert (arrived.iif, arrived.mark) == ("lan", 0)
    assert concretize(space, {"iif": one(number)}, SOCKET).iif is None
    assert concretize(space, {"iif": one(0)}, FORWARD).iif is None


@pytest.mark.parametrize(
    ("box", "ethertype", "fields"),
    [
        ({}, 0x88B5, {}),
        ({"ethertype": one(0x806)}, 0x806, {}),
        ({"ethertype": one(0x806), "ether.type": ((0, 0xFFFF),)}, 0x806, {}),
        ({"ethertype": one(0x806), "ether.type": ((0, 0x805),)}, 0x806, {("ether", "type"): 0x800}),
        ({"ethertype": one(0x806), "ether.type": one(0x86DD)}, 0x806, {("ether", "type"): 0x86DD}),
        ({"ether.readable": ((0, 1),), "oiftype": ((0, 9),)}, 0x88B5, {}),
        ({"ether.readable": one(0)}, 0x88B5, {("ether", "readable"): 0}),
        ({"oiftype": one(512)}, 0x88B5, {("meta", "oiftype"): 512}),
    ],
    ids=str,
)
def test_frame_of_a_region_has_its_ethertypes(box, ethertype, fields):
    frame = concretize(CONTEXT.space(None), box, FRAME)
    assert (frame.family, frame.ethertype, frame.fields) == (4, ethertype, fields)


def test_frame_of_an_ip_family_has_its_ethertype():
    assert concretize(CONTEXT.space(6), {"ether.type": one(0x86DD)}, FRAME).fields == {}
    assert concretize(CONTEXT.space(6), {"ether.type": one(0x800)}, FRAME).fields == {("ether", "type"): 0x800}
    assert concretize(CONTEXT.space(6), {"ether.type": one(0x800)}, SOCKET).fields == {}


# Hooks in the order in which a packet passes them (Netfilter's packet flow); a higher priority comes later.
PASSED = (
    *(("filter", "ingress", priority) for priority in (-500, 500)),
    *(("filter", "prerouting", priority) for priority in (-500, -100)),
    *(("nat", "prerouting", 0), ("filter", "prerouting", -99)),  # NF_IP_PRI_NAT_DST is -100, whatever nft says
    *(("filter", "forward", priority) for priority in (-500, 500)),
    *(("filter", "postrouting", priority) for priority in (-500, 99)),
    *(("nat", "postrouting", 0), ("filter", "postrouting", 101)),  # NF_IP_PRI_NAT_SRC is 100
    ("filter", "egress", -500),
)


def base_chain(place):
    kind, hook, priority = place
    return Table("inet", "t"), Chain("c", (), Hook(kind, hook, priority))


@pytest.mark.parametrize("number", range(len(PASSED)))
def test_chains_come_in_the_order_of_the_kernel(number):
    chain = base_chain(PASSED[number])
    later = [CONTEXT.is_at_or_after(base_chain(other), chain) for other in PASSED]
    first = number - 1 if PASSED[number][0] == "nat" and "prerouting" in PASSED[number] else number
    assert later == [other >= first for other in range(len(PASSED))]


@pytest.mark.parametrize("hook", ["input", "output"])
def test_local_hooks_come_between_prerouting_and_postrouting(hook):
    local = base_chain(("filter", hook, 0))
    assert CONTEXT.is_at_or_after(local, base_chain(("filter", "prerouting", 500)))
    assert CONTEXT.is_at_or_after(base_chain(("filter", "postrouting", -500)), local)
    assert not CONTEXT.is_at_or_after(local, base_chain(("filter", "postrouting", -500)))
    assert not CONTEXT.is_at_or_after(base_chain(("filter", "prerouting", 500)), local)


# --- packets that a route takes to a device -------------------------------------------------

DEFAULT = Route(4, 9, device="wan")
LOCAL = Route(4, 255, "10.0.0.1/32", "local", device="lan")


def tried(rule=None, *routes, origin=SOCKET, box=None, family=4, uplink=UPLINK):
    """Return the candidates for packets that leave by wan in a state with one ip rule."""
    state = NetState((), (rule,) if rule else (), (*(routes or (DEFAULT,)), LOCAL))
    context = ProofContext(state, uplink.devices, (uplink.mask,))
    violations = [Violation(family, box, "", ())] if box is not None else []
    return list(candidate_packets(context, uplink, origin, family, "wan", violations))


def test_socket_is_tried_by_route_and_bound_to_the_device():
    usual = Packet(4, REMOTE[4], uid=65534, gid=65534)
    bound = evolve(usual, bound="wan")
    assert tried() == [usual, bound, evolve(bound, uid=0, gid=0)]
    assert tried(origin=KERNEL) == [evolve(usual, origin=KERNEL)]
    assert tried(IpRule(4, 5, table=9)) == [usual, usual, bound, evolve(bound, uid=0, gid=0)]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({"mark": 0x10, "mask": 0x30}, {"mark": 0x10}),
        ({"mark": 0x10, "mask": 0x30, "invert": True}, {"mark": 0}),
        ({"uids": (5, 6)}, {"uid": 5}),
        ({"l4proto": 6}, {"protocol": 6}),
        ({"dports": (53, 54)}, {"dport": 53}),
        ({"sports": (68, 69)}, {"sport": 68}),
        ({"oif": "wan"}, {"bound": "wan"}),
        ({"iif": "lo"}, {"iif": None, "origin": SOCKET}),
        ({"iif": "lan"}, {"iif": "lan", "origin": FORWARD, "source": REMOTE[4] + 1}),
        ({"iif": "lan", "source": "10.3.0.0/16"}, {"iif": "lan", "source": parse_address("10.3.0.1")}),
        ({"source": "10.0.0.0/8"}, {"source": parse_address("10.0.0.1")}),
        ({"source": "10.3.0.0/16"}, {"source": parse_address("10.3.0.1")}),
        ({"source": "10.3.0.0/32"}, {"source": parse_address("10.3.0.0")}),
        ({"source": "10.3.0.0/16", "invert": True}, {"source": None}),
        ({"destination": "10.3.0.0/16"}, {"destination": parse_address("10.3.0.9")}),
        ({"destination": "10.3.0.0/30"}, {"destination": parse_address("10.3.0.3")}),
    ],
    ids=str,
)
def test_packet_matches_the_selectors_of_the_ip_rule(selector, expected):
    packet = tried(IpRule(4, 5, table=9, **selector))[0]
    assert {name: getattr(packet, name) for name in expected} == expected


def test_mark_of_an_ip_rule_keeps_the_other_bits():
    box = {"mark:0xff": one(0xC1)}
    assert tried(IpRule(4, 5, table=9, mark=0x10, mask=0xF0), box=box)[0].mark == 0x11


@pytest.mark.parametrize(
    ("route", "destination"),
    [
        (DEFAULT, "198.51.100.9"),
        (evolve(DEFAULT, destination="203.0.113.0/24"), "203.0.113.9"),
        (evolve(DEFAULT, destination="203.0.113.0/31"), "203.0.113.1"),
        (evolve(DEFAULT, destination="198.51.100.0/24"), "198.51.100.9"),
        (evolve(DEFAULT, device=None, nexthops=(Nexthop("lan"), Nexthop("wan")), destination="203.0.113.0/24"),
         "203.0.113.9"),
    ],
)  # fmt: skip
def test_packet_goes_where_the_route_leads(route, destination):
    assert tried(IpRule(4, 5, table=9), route)[0].destination == parse_address(destination)


@pytest.mark.parametrize(
    "route",
    [
        evolve(DEFAULT, destination="203.0.113.0/24", table=8),
        evolve(DEFAULT, destination="203.0.113.0/24", device="lan"),
        evolve(DEFAULT, destination="203.0.113.0/24", kind="unreachable"),
        Route(6, 9, "2001:db8:5::/64", device="wan"),
    ],
)
def test_route_elsewhere_gives_no_candidate(route):
    assert {packet.destination for packet in tried(IpRule(4, 5, table=9), route)} == {REMOTE[4]}
    assert len(tried(IpRule(4, 5, "nop", table=9), DEFAULT)) == 3


def test_many_routes_are_three_candidates_with_the_default_route():
    routes = [evolve(DEFAULT, destination=f"203.0.{number}.0/24") for number in range(9)]
    found = tried(IpRule(4, 5, table=9), *routes, DEFAULT)[:3]
    assert [packet.destination for packet in found] == [
        *(parse_address(f"203.0.{number}.9") for number in (1, 2)),
        REMOTE[4],
    ]


def test_frame_is_bound_to_the_device_and_has_an_address_of_ours():
    (frame,) = tried(origin=FRAME)
    assert (frame.origin, frame.bound, frame.source) == (FRAME, "wan", parse_address("10.0.0.1"))
    (frame,) = tried(origin=FRAME, box={"saddr": span(4, "10.9.9.9")})
    assert frame.source == parse_address("10.9.9.9")


def test_packet_of_another_host_arrives_by_an_inside_device():
    routes = [DEFAULT, *(Route(4, 254, f"10.{number}.0.0/16", device=f"in{number}") for number in range(4))]
    found = tried(None, *routes, Route(4, 254, "127.0.0.0/8", device="lo"), origin=FORWARD)
    assert [(packet.iif, packet.source) for packet in found] == [(f"in{number}", REMOTE[4] + 1) for number in range(3)]


def test_packet_of_another_host_arrives_by_a_named_device():
    found = candidate_packets(CONTEXT, UPLINK, FORWARD, 4, "wan", [])
    assert list(dict.fromkeys(packet.iif for packet in found))[:2] == ["lan", "lte"]


def test_supported_violation_is_tried_first():
    context = ProofContext(NetState(), UPLINK.devices, (UPLINK.mask,))
    violations = [
        Violation(4, {"dport": one(1)}, "", ("fwd",)),
        Violation(6, {"dport": one(2)}, "", ()),
        Violation(4, {"dport": one(3)}, "", ()),
    ]
    found = candidate_packets(context, UPLINK, KERNEL, 4, "wan", violations)
    assert [packet.dport for packet in found] == [3, 1]


# --- allowed packets ------------------------------------------------------------------------

PACKET = Packet(4, REMOTE[4])


@pytest.mark.parametrize(
    ("packet", "entitled"),
    [
        (PACKET, False),
        (evolve(PACKET, mark=0x101), True),
        (evolve(PACKET, mark=3), False),
        (evolve(PACKET, flow=CtInfo("established", mark=0x201)), True),
        (evolve(PACKET, flow=CtInfo("established", mark=2)), False),
        (evolve(PACKET, origin=FORWARD, iif="wan"), True),
        (evolve(PACKET, origin=FORWARD, iif="lan"), False),
        (evolve(PACKET, origin=FORWARD, iif="lan", flow=CtInfo("established", mark=1)), True),
    ],
)
def test_packet_with_the_mark_is_entitled(packet, entitled):
    assert is_entitled(packet, UPLINK) is entitled


DHCP = Packet(4, parse_address("255.255.255.255"), 0, sport=68, dport=67)
NDP = Packet(6, parse_address("ff02::1"), parse_address("fe80::1"), 58, origin=KERNEL,
             fields={("icmpv6", "type"): 136, ("ip6", "hoplimit"): 255})  # fmt: skip


def leaves(packet):
    return SimpleNamespace(packet=packet, source=packet.source, destination=packet.destination, dport=packet.dport)


@pytest.mark.parametrize(
    ("name", "packet", "exempt"),
    [
        ("dhcpv4", DHCP, True),
        ("dhcpv4", evolve(DHCP, protocol=6), False),
        ("dhcpv4", evolve(DHCP, sport=67), False),
        ("dhcpv4", evolve(DHCP, dport=53), False),
        ("dhcpv4", evolve(DHCP, fields={("ip", "frag-off"): 1}), False),
        ("dhcpv4", evolve(DHCP, destination=REMOTE[4], source=5), False),
        ("dhcpv4", evolve(DHCP, origin=FRAME), True),
        ("dhcpv4", evolve(DHCP, origin=FRAME, ethertype=0x800), True),
        ("dhcpv4", evolve(DHCP, origin=FRAME, ethertype=0x86DD), False),
        ("dhcpv4", evolve(DHCP, origin=FRAME, ethertype=0x806), False),
        ("dhcpv4", evolve(DHCP, origin=FRAME, ethertype=0x806, fields={("ether", "type"): 0x800}), False),
        ("dhcpv4", evolve(DHCP, origin=FRAME, fields={("ether", "type"): 0x806}), False),
        ("ndp", NDP, True),
        ("ndp", evolve(NDP, fields={**NDP.fields, ("icmpv6", "type"): 137}), False),
        ("ndp", evolve(NDP, fields={**NDP.fields, ("ip6", "hoplimit"): 64}), False),
        ("ndp", evolve(NDP, fields={**NDP.fields, ("icmpv6", "code"): 1}), False),
        ("ndp", evolve(NDP, fields={("icmpv6", "type"): 136}), False),
        ("arp", DHCP, False),
        ("arp", evolve(DHCP, origin=FRAME, ethertype=0x806), True),
        ("arp", evolve(DHCP, origin=FRAME, fields={("ether", "type"): 0x806}), True),
        ("arp", evolve(DHCP, ethertype=0x806), False),
    ],
)
def test_packet_of_an_exemption_is_exempt_as_a_whole(name, packet, exempt):
    assert is_exempt(leaves(packet), evolve(UPLINK, exemptions=(exemption(name),))) is exempt
    assert not is_exempt(leaves(packet), UPLINK)


# --- text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (Packet(4, REMOTE[4], uid=5, gid=6), "IPv4 UDP to 198.51.100.9 port 9 from a socket of user 5, group 6, mark 0x0"),
        (Packet(6, REMOTE[6], protocol=6, dport=80, origin=KERNEL, mark=1), "IPv6 TCP to 2001:db8:9::9 port 80 from the kernel, mark 0x1"),
        (Packet(4, REMOTE[4], protocol=1, origin=FORWARD, iif="lan", source=parse_address("10.0.0.1")),
         "IPv4 ICMP to 198.51.100.9 from another host, arriving by lan, source 10.0.0.1"),
        (Packet(4, REMOTE[4], protocol=47, origin=FORWARD), "IPv4 protocol 47 to 198.51.100.9 from another host"),
        (Packet(6, REMOTE[6], protocol=58, origin=FRAME, bound="wan"),
         "IPv6 ICMPv6 to 2001:db8:9::9 from an AF_PACKET socket with mark 0x0, bound to wan"),
        (Packet(4, REMOTE[4], protocol=2, origin=KERNEL, flow=CtInfo("related", "reply")),
         "IPv4 IGMP to 198.51.100.9 from the kernel, mark 0x0, of a related flow (reply)"),
        (Packet(4, REMOTE[4], origin=FRAME, ethertype=0x806, bound="wan"),
         "a frame of ethertype 0x0806 that an AF_PACKET socket sends by wan"),
        (Packet(4, REMOTE[4], origin=FRAME, fields={("ether", "type"): 0x806}),
         "a frame of ethertype 0x0806 that an AF_PACKET socket sends as 0x0800"),
    ],
)  # fmt: skip
def test_description_of_a_packet_is_one_line(packet, text):
    assert describe_packet(packet) == text


def test_details_of_a_packet_are_its_port_and_fields():
    packet = Packet(4, REMOTE[4], protocol=6, sport=7, origin=KERNEL, fields={("ip", "ttl"): 1, ("tcp", "flags"): 2})
    line = "IPv4 TCP to 198.51.100.9 port 9 from the kernel, mark 0x0"
    assert describe_packet(packet, True) == f"{line}, source port 7, ip ttl 1, tcp flags 2"
    icmp = evolve(packet, protocol=1, fields={})
    assert describe_packet(icmp, True) == "IPv4 ICMP to 198.51.100.9 from the kernel, mark 0x0"
