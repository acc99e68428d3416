"""Messages of rtnetlink as Linux 6.18 sent them, and each attribute that the model lacks."""

import socket
import struct

import attrs
import pytest

from nftpolicy.kernel.netlink import rtnl_decode
from nftpolicy.kernel.netlink.attributes import attribute
from nftpolicy.netstate.routing import IpRule, Nexthop, Route

NAMES = {2: "lan", 3: "a0"}

# Words of `ip rule add`, and what the kernel then sends: struct fib_rule_hdr and its attributes.
RULES = [
    (
        "not from 10.0.0.0/8 fwmark 0x10/0xff00 lookup 1000",
        "02000800fc0000010200000008000f00e803000008000e00ffffffff0500150000000000080006000a000000"
        "08000a00100000000800100000ff0000080002000a000000",
        IpRule(4, 10, table=1000, mark=0x10, mask=0xFF00, source="10.0.0.0/8", invert=True, protocol=0),
    ),
    (
        "to 10.1.0.0/16 iif lo lookup main suppress_prefixlength 0",
        "02100000fe0000010000000008000f00fe00000008000e00000000000500150000000000070003006c6f0000"
        "080006000b000000080001000a010000",
        IpRule(4, 11, table=254, destination="10.1.0.0/16", iif="lo", suppress_prefix=0, protocol=0),
    ),
    (
        "lookup 100 suppress_ifgroup 3",
        "02000000640000010000000008000f006400000008000e00ffffffff0500150000000000080006000d00000008000d0003000000",
        IpRule(4, 13, table=100, suppress_group=3, protocol=0),
    ),
    (
        "uidrange 5-6 ipproto tcp sport 7-8 dport 53 lookup 100",
        "02000000640000010000000008000f006400000008000e00ffffffff0500150000000000080006000e000000"
        "0c00140005000000060000000800170007000800080018003500350006001d00ffff00000500160006000000",
        IpRule(4, 14, table=100, uids=(5, 6), l4proto=6, sports=(7, 8), dports=(53, 53), protocol=0),
    ),
    (
        "oif a0 tos 0x10 prohibit",
        "02000010000000080000000008000f000000000008000e00ffffffff05001500000000000700110061300000080006000f000000",
        IpRule(4, 15, "prohibit", oif="a0", tos=16, protocol=0),
    ),
    (
        "blackhole",
        "02000000000000060000000008000f000000000008000e00ffffffff05001500000000000800060010000000",
        IpRule(4, 16, "blackhole", protocol=0),
    ),
    (
        "l3mdev",
        "02000000000000010000000008000f000000000008000e00ffffffff050015000000000008000600110000000500130001000000",
        IpRule(4, 17, l3mdev=True, protocol=0),
    ),
    (
        "nop",
        "02000000000000030000000008000f000000000008000e00ffffffff05001500000000000800060012000000",
        IpRule(4, 18, "nop", protocol=0),
    ),
    (
        "unreachable",
        "02000000000000070000000008000f000000000008000e00ffffffff05001500000000000800060013000000",
        IpRule(4, 19, "unreachable", protocol=0),
    ),
    (
        "ipproto udp realms 5 lookup 100 protocol 78",
        "02000000640000010000000008000f006400000008000e00ffffffff050015004e0000000800060014000000"
        "050016001100000008000b0005000000",
        IpRule(4, 20, table=100, l4proto=17, protocol=78),
    ),
    (
        "goto 5000, which does not exist",
        "02000000000000020400000008000f000000000008000e00ffffffff050015000000000008000600150000000800040088130000",
        IpRule(4, 21, "goto", goto=5000, protocol=0),
    ),
    (
        "IPv6: from 2001:db8::/32 to fe80::/10 lookup 1000",
        "0a0a2000fc0000010000000008000f00e803000008000e00ffffffff0500150000000000080006000a000000"
        "14000100fe8000000000000000000000000000001400020020010db8000000000000000000000000",
        IpRule(6, 10, table=1000, source="2001:db8::/32", destination="fe80::/10", protocol=0),
    ),
]

# Words of `ip route add`, and what the kernel then sends: struct rtmsg and its attributes.
ROUTES = [
    (
        "198.51.100.0/24 via 10.1.0.3 dev a0 metric 5 table 1000 proto 78",
        "02180000fc4e00010000000008000f00e803000008000100c63364000800060005000000080005000a0100030800040003000000",
        Route(4, 1000, "198.51.100.0/24", gateway="10.1.0.3", device="a0", metric=5),
    ),
    (
        "default nexthop via 10.1.0.3 dev a0 weight 3 nexthop via inet6 2001:db8:1::9 dev a0 onlink",
        "02000000fe0300010000000008000f00fe000000340009001000000203000000080005000a01000320000400"
        "03000000160012000a0020010db80001000000000000000000090000",
        Route(
            4,
            254,
            protocol=3,
            nexthops=(Nexthop("a0", "10.1.0.3", 3), Nexthop("a0", "2001:db8:1::9", onlink=True)),
        ),
    ),
    (
        "10.1.0.0/16, as an address brings it",
        "02100000fe02fd010000000008000f00fe000000080001000a010000080007000a0100010800040003000000",
        Route(4, 254, "10.1.0.0/16", device="a0", prefsrc="10.1.0.1", scope="link", protocol=2),
    ),
    (
        "unreachable 192.0.2.0/24 metric 7",
        "02180000fe0300070000000008000f00fe00000008000100c00002000800060007000000",
        Route(4, 254, "192.0.2.0/24", "unreachable", metric=7, protocol=3),
    ),
    (
        "192.0.3.0/24 tos 0x10 dev a0 scope link",
        "02180010fe03fd010000000008000f00fe00000008000100c00003000800040003000000",
        Route(4, 254, "192.0.3.0/24", device="a0", tos=16, scope="link", protocol=3),
    ),
    (
        "192.0.4.0/24 via 172.16.0.1 dev a0 onlink mtu 1400",
        "02180000fe0300010400000008000f00fe00000008000100c00004000c000800080002007805000008000500"
        "ac1000010800040003000000",
        Route(4, 254, "192.0.4.0/24", gateway="172.16.0.1", device="a0", onlink=True, protocol=3),
    ),
    (
        "192.0.6.0/24 nhid 5, which is via 10.1.0.3 dev a0",
        "02180000fe0300010000000008000f00fe00000008000100c000060008001e0005000000080005000a0100030800040003000000",
        Route(4, 254, "192.0.6.0/24", gateway="10.1.0.3", device="a0", protocol=3),
    ),
    (
        "203.0.113.0/24 via inet6 2001:db8:1::9 dev a0 src 10.1.0.1",
        "02180000fe0300010000000008000f00fe00000008000100cb007100080007000a010001160012000a002001"
        "0db800010000000000000000000900000800040003000000",
        Route(4, 254, "203.0.113.0/24", gateway="2001:db8:1::9", device="a0", prefsrc="10.1.0.1", protocol=3),
    ),
    (
        "broadcast, as an address brings it",
        "02200000ff02fd030000000008000f00ff000000080001000a01ffff080007000a0100010800040003000000",
        Route(4, 255, "10.1.255.255/32", "broadcast", device="a0", prefsrc="10.1.0.1", scope="link", protocol=2),
    ),
    (
        "IPv6: default dev a0 pref low table 100",
        "0a000000640300010000000008000f00640000000800060000040000080004000300000024000c0000000000"
        "000000000000000000000000000000000000000000000000000000000500140003000000",
        Route(6, 100, device="a0", metric=1024, preference="low", protocol=3),
    ),
    (
        "IPv6: 2001:db8:2::/48 from 2001:db8:3::/48 via 2001:db8:1::9 dev a0 pref high expires 30 metric 3",
        "0a303000fe0300010000000008000f00fe0000001400010020010db800020000000000000000000014000200"
        "20010db800030000000000000000000008000600030000001400050020010db8000100000000000000000009"
        "080004000300000024000c000000000000000000b00b00000000000000000000000000000000000000000000"
        "0500140001000000",
        Route(
            6,
            254,
            "2001:db8:2::/48",
            gateway="2001:db8:1::9",
            device="a0",
            metric=3,
            source="2001:db8:3::/48",
            preference="high",
            protocol=3,
            expires=29,
        ),
    ),
]


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def decoded_rule(raw: bytes) -> IpRule:
    return rtnl_decode.decode_rule(b"head" + raw + b"tail", 4, 4 + len(raw))


def decoded_route(raw: bytes) -> Route:
    return rtnl_decode.decode_route(b"head" + raw + b"tail", 4, 4 + len(raw), NAMES)


@pytest.mark.parametrize(("raw", "rule"), [row[1:] for row in RULES], ids=[row[0] for row in RULES])
def test_rule_of_the_kernel_is_decoded_whole(raw: str, rule: IpRule) -> None:
    assert attrs.asdict(decoded_rule(bytes.fromhex(raw))) == attrs.asdict(rule)


@pytest.mark.parametrize(("raw", "route"), [row[1:] for row in ROUTES], ids=[row[0] for row in ROUTES])
def test_route_of_the_kernel_is_decoded_whole(raw: str, route: Route) -> None:
    expected = attrs.evolve(route, scope=route.scope or "global")
    assert attrs.asdict(decoded_route(bytes.fromhex(raw))) == attrs.asdict(expected)


# Attributes and flags by number, as include/uapi/linux/fib_rules.h and rtnetlink.h have them.


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (12, number(9), "tun_id 9"),
        (25, b"\x08", "dscp 8"),
        (26, number(5), "flowlabel 5"),
        (27, number(6), "flowlabel mask 6"),
        (28, b"\xf0\xff", "sport mask 65520"),
        (29, b"\x00\xff", "dport mask 65280"),
        (30, b"\x0c", "dscp mask 12"),
        (99, bytes(7) + b"\x01" + b"more", f"selector 99 {1 << 56}"),
    ],
)
def test_selector_that_the_model_lacks_is_kept(kind: int, value: bytes, text: str) -> None:
    header = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 100, 0, 0, 1, 0)
    assert decoded_rule(header + attribute(kind, value)).unknown == (text,)


@pytest.mark.parametrize("kind", [11, 18])
def test_rule_attribute_that_changes_no_lookup_is_ignored(kind: int) -> None:
    header = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 100, 0, 0, 1, 0)
    assert decoded_rule(header + attribute(kind, number(7))).unknown == ()


@pytest.mark.parametrize("kind", [28, 29])
def test_port_mask_of_all_bits_is_no_selector(kind: int) -> None:
    header = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 100, 0, 0, 1, 0)
    assert decoded_rule(header + attribute(kind, b"\xff\xff")).unknown == ()


@pytest.mark.parametrize(("ports", "mask"), [(23, 28), (24, 29)])
def test_rule_with_a_port_mask_may_match_other_ports(ports: int, mask: int) -> None:
    header = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 100, 0, 0, 1, 0)
    rule = decoded_rule(header + attribute(ports, b"\x01\x00\x01\x00") + attribute(mask, b"\x01\x00"))
    assert (rule.sports, rule.dports, len(rule.unknown)) == (None, None, 1)


def test_state_flags_of_a_rule_are_no_selectors() -> None:
    states = 0x1 | 0x4 | 0x8 | 0x10  # permanent, unresolved, input and output device absent
    rule = decoded_rule(struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 100, 0, 0, 1, states | 0x60))
    assert (rule.invert, rule.unknown) == (False, ("flags 0x60",))


def test_rule_action_that_no_kernel_has_is_kept() -> None:
    rule = decoded_rule(struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 100, 0, 0, 4, 0))
    assert (rule.action, rule.table, rule.unknown) == ("action-4", 0, ("action 4",))


def route_header(kind: int = 1, flags: int = 0) -> bytes:
    return struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 100, 3, 0, kind, flags)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (route_header() + attribute(19, number(7)), "newdst 7"),
        (route_header() + attribute(21, b"\x02\0"), "encap type 2"),
        (route_header() + attribute(22, b"\x01"), "encap 1"),
        (route_header() + attribute(30, number(7)), "nhid 7"),
        (route_header() + attribute(77, number(7)), "attribute 77 7"),
        (route_header(flags=0x20), "flag unresolved"),
        (route_header(kind=12), "type 12"),
    ],
)
def test_route_attribute_that_the_model_lacks_is_kept(raw: bytes, text: str) -> None:
    assert decoded_route(raw).unknown == (text,)


@pytest.mark.parametrize("kind", [3, 8, 11, 12, 16, 23, 24, 25, 26])
def test_route_attribute_that_changes_no_lookup_is_ignored(kind: int) -> None:
    assert decoded_route(route_header() + attribute(kind, number(7))).unknown == ()


def test_unknown_attribute_beside_a_nexthop_object_stays() -> None:
    raw = route_header() + attribute(30, number(7)) + attribute(77, number(1)) + attribute(4, number(3))
    assert decoded_route(raw).unknown == ("attribute 77 1",)


@pytest.mark.parametrize(("flags", "state"), [(0x1, (True, False)), (0x10, (False, True)), (0x4, (False, False))])
def test_route_without_carrier_is_dead(flags: int, state: tuple[bool, bool]) -> None:
    route = decoded_route(route_header(flags=flags))
    assert (route.dead, route.linkdown, route.onlink) == (*state, flags == 0x4)


def nexthop(flags: int, index: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack("=HBBi", 8 + len(body), flags, 1, index) + body


def test_state_of_each_nexthop_is_kept() -> None:
    hops = nexthop(0x11, 2, attribute(21, b"\x02\0")) + nexthop(0, 9, attribute(5, socket.inet_aton("192.0.2.1")))
    found = decoded_route(route_header() + attribute(9, hops) + attribute(30, number(7)))
    first, second = found.nexthops
    assert attrs.astuple(first) == ("lan", None, 2, False, True, True)
    assert attrs.astuple(second) == ("9", "192.0.2.1", 2, False, False, False)
    assert found.unknown == ("encap type 2",)


@pytest.mark.parametrize("length", [0, 4, 7])
def test_nexthop_that_is_too_short_ends_the_list(length: int) -> None:
    raw = struct.pack("=HBBi", length, 0, 0, 3) + nexthop(0, 2) + b"rest"
    assert [hop.device for hop in decoded_route(route_header() + attribute(9, raw)).nexthops] == ["a0", "lan"]


@pytest.mark.parametrize(("ticks", "seconds"), [(0, None), (1, 1), (150, 1), (250, 2), (3000, 30), (-100, 1)])
def test_expiry_of_a_route_is_at_least_a_second(ticks: int, seconds: int | None) -> None:
    cache = struct.pack("=IIiI", 0, 0, ticks, 0)
    assert decoded_route(route_header() + attribute(12, cache)).expires == seconds


def test_expiry_needs_a_whole_cache_entry() -> None:
    assert decoded_route(route_header() + attribute(12, struct.pack("=IIi", 0, 0, 300))).expires == 3
    assert decoded_route(route_header() + attribute(12, struct.pack("=IIh", 0, 0, 300))).expires is None


def test_route_by_a_device_without_name_has_its_index() -> None:
    assert decoded_route(route_header() + attribute(4, number(9))).device == "9"
