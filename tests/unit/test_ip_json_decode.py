"""Decoding of `ip -j`, as iproute2 6.1 prints it with and without -N and -d."""

import pytest

from nftpolicy.netstate.formats import ip_json_decode, ip_text
from nftpolicy.netstate.routing import IpRule, Nexthop, Route

# Each as `ip -j -N rule` prints it, and the words of `ip rule add` that made it.
RULES = [
    ({"priority": 0, "src": "all", "table": "255"}, "priority 0 from all lookup 255"),
    ({"priority": 0, "src": "all", "table": "local", "protocol": "kernel"}, "priority 0 from all lookup 255"),
    ({"priority": 9, "src": "all", "table": "main", "protocol": "unspec"}, "priority 9 from all lookup main"),
    ({"priority": 9, "src": "all", "table": "default"}, "priority 9 from all lookup 253"),
    (
        {"priority": 10, "not": None, "src": "10.0.0.0", "srclen": 8, "fwmark": "0x10", "fwmask": "0xff00", "table": "100"},
        "priority 10 not from 10.0.0.0/8 fwmark 0x10/0xff00 lookup 100",
    ),
    ({"priority": 6, "src": "all", "fwmark": "0x1", "table": "9"}, "priority 6 from all fwmark 0x1/0xffffffff lookup 9"),
    ({"priority": 6, "src": "all", "fwmark": "0", "fwmask": "0xff", "table": "9"}, "priority 6 from all fwmark 0x0/0xff lookup 9"),
    ({"priority": 20, "src": "all", "goto": 100}, "priority 20 from all goto 100"),
    ({"priority": 53, "src": "all", "goto": 5000, "unresolved": None}, "priority 53 from all goto 5000"),
    (
        {"priority": 30, "src": "all", "table": "254", "suppress_ifgroup": "3", "suppress_prefixlen": 0},
        "priority 30 from all lookup main suppress_prefixlength 0 suppress_ifgroup 3",
    ),
    ({"priority": 30, "src": "all", "table": "254", "suppress_ifgroup": "default"}, "priority 30 from all lookup main suppress_ifgroup 0"),
    (
        {"priority": 40, "src": "all", "uid_start": 5, "uid_end": 6, "ipproto": "ipproto-6", "sport_start": 5, "sport_end": 6,
         "dport": 53, "table": "1000"},
        "priority 40 from all uidrange 5-6 ipproto 6 sport 5-6 dport 53 lookup 1000",
    ),
    ({"priority": 40, "src": "all", "ipproto": "tcp", "table": "1000"}, "priority 40 from all ipproto 6 lookup 1000"),
    ({"priority": 50, "src": "all", "tos": "0x10", "oif": "a0", "action": "8"}, "priority 50 from all tos 0x10 oif a0 prohibit"),
    ({"priority": 51, "src": "all", "iif": "z", "iif_detached": None, "action": "blackhole"}, "priority 51 from all iif z blackhole"),
    ({"priority": 50, "src": "all", "dport": 53, "dport_mask": "0xffff", "table": "9"}, "priority 50 from all dport 53 lookup 9"),
    ({"priority": 51, "src": "all", "action": "7"}, "priority 51 from all unreachable"),
    ({"priority": 52, "src": "all", "l3mdev": None}, "priority 52 from all l3mdev"),
    ({"priority": 54, "src": "all", "nop": None}, "priority 54 from all nop"),
    ({"priority": 56, "src": "all", "table": "7", "flow_to": "3"}, "priority 56 from all lookup 7"),
    ({"priority": 57, "src": "1.1.1.1", "dst": "1.2.3.0", "dstlen": 24, "table": "7"}, "priority 57 from 1.1.1.1/32 to 1.2.3.0/24 lookup 7"),
]  # fmt: skip
ROUTES = [
    ({"dst": "default", "gateway": "192.0.2.1", "dev": "a0", "flags": []}, "default via 192.0.2.1 dev a0 table 254"),
    (
        {"type": "unicast", "dst": "10.0.0.0/24", "dev": "a0", "table": "main", "protocol": "kernel", "scope": "link",
         "prefsrc": "10.0.0.1", "flags": ["linkdown"]},
        "10.0.0.0/24 dev a0 table 254 src 10.0.0.1 scope link",
    ),
    ({"type": "9", "dst": "4.0.0.0/8", "table": "100", "flags": []}, "throw 4.0.0.0/8 table 100"),
    ({"type": "throw", "dst": "4.0.0.0", "table": "100", "flags": []}, "throw 4.0.0.0/32 table 100"),
    (
        {"dst": "2.0.0.0/8", "tos": "0x10", "gateway": "10.9.9.9", "dev": "a0", "metric": 5, "flags": ["onlink"]},
        "2.0.0.0/8 tos 0x10 via 10.9.9.9 dev a0 table 254 metric 5 onlink",
    ),
    (
        {"dst": "3.0.0.0/8", "via": {"family": "inet6", "host": "fe80::1"}, "dev": "a0", "flags": []},
        "3.0.0.0/8 via inet6 fe80::1 dev a0 table 254",
    ),
    (
        {"dst": "1.0.0.0/8", "table": "100", "flags": [],
         "nexthops": [{"gateway": "10.0.0.2", "dev": "a0", "weight": 3, "flags": []},
                      {"dev": "b0", "weight": 1, "flags": ["dead", "linkdown"]}]},
        "1.0.0.0/8 table 100 nexthop via 10.0.0.2 dev a0 weight 3 nexthop dev b0 weight 1",
    ),
    ({"dst": "5.0.0.0/8", "nhid": 5, "gateway": "10.0.0.3", "dev": "a0", "flags": []}, "5.0.0.0/8 via 10.0.0.3 dev a0 table 254"),
    ({"dst": "7.0.0.0/8", "dev": "a0", "scope": "253", "flags": [], "flow": {"to": "5"}, "metrics": [{"mtu": 1300}]},
     "7.0.0.0/8 dev a0 table 254 scope link"),
]  # fmt: skip
ROUTES_6 = [
    (
        {"dst": "default", "from": "2001:db8::/64", "gateway": "fe80::1", "dev": "a0", "metric": 1024, "flags": [], "expires": 99,
         "pref": "high"},
        "default from 2001:db8::/64 via fe80::1 dev a0 table 254 metric 1024 pref high",
    ),
    ({"type": "unreachable", "dst": "fd00::/48", "dev": "lo", "table": "254", "metric": 9, "flags": [], "pref": "medium"},
     "unreachable fd00::/48 dev lo table 254 metric 9"),
]  # fmt: skip


def words(line):
    return (
        line.removesuffix(" protocol 0").removesuffix(" protocol 2").removesuffix(" proto 3").removesuffix(" proto 2")
    )


@pytest.mark.parametrize(("item", "line"), RULES, ids=[line for _, line in RULES])
def test_rule_json_decodes_to_its_line(item, line):
    (found,) = ip_json_decode.decode_rules([item], 4)
    assert words(ip_text.rule_text(found)) == line


@pytest.mark.parametrize(("item", "line", "family"), [(*one, 4) for one in ROUTES] + [(*one, 6) for one in ROUTES_6])
def test_route_json_decodes_to_its_line(item, line, family):
    (found,) = ip_json_decode.decode_routes([item], family)
    assert words(ip_text.route_text(found)).replace(" proto 3", "") == line


def test_dead_and_linkdown_flags_of_nexthops_are_read():
    (found,) = ip_json_decode.decode_routes([ROUTES[6][0]], 4)
    assert [(hop.dead, hop.linkdown) for hop in found.all_nexthops] == [(False, False), (True, True)]
    (found,) = ip_json_decode.decode_routes([ROUTES[1][0]], 4)
    assert (found.linkdown, found.dead, found.protocol) == (True, False, 2)


@pytest.mark.parametrize(
    ("item", "unknown"),
    [
        ({"tun_id": 5}, "tun_id 5"),
        ({"flowlabel": "0x5"}, "flowlabel 0x5"),
        ({"dscp": "EF"}, "dscp EF"),
        ({"dport": 1, "dport_mask": "0x1"}, "dport mask 1"),  # and so it matches port 3, too
        ({"ipproto": "hopopt6"}, "ipproto hopopt6"),
        ({"suppress_ifgroup": "wan"}, "suppress_ifgroup wan"),
    ],
)
def test_unknown_rule_selector_is_named(item, unknown):
    (found,) = ip_json_decode.decode_rules([{"priority": 5, "src": "all", "table": "9"} | item], 6)
    assert found.unknown == (unknown,)
    with pytest.raises(ValueError, match=unknown.split()[0]):
        ip_text.rule_text(found)
    assert ip_text.display_text(found).endswith(f"lookup 9 protocol 0 [{unknown}]")


@pytest.mark.parametrize(
    ("item", "unknown"),
    [
        ({"nhid": 7}, "nhid 7"),
        ({"dev": "a0", "encap": "seg6"}, "encap seg6"),
        ({"dev": "a0", "type": "12"}, "type 12"),
        ({"dev": "a0", "pref": "lowest"}, "pref lowest"),
        ({"dev": "a0", "flags": ["onlink", "strange"]}, "flag strange"),
        ({"nexthops": [{"dev": "a0", "weight": 1, "flags": [], "encap": "mpls"}]}, "encap mpls"),
    ],
)
def test_unknown_route_attribute_is_named(item, unknown):
    (found,) = ip_json_decode.decode_routes([{"dst": "default", "flags": []} | item], 6)
    assert found.unknown == (unknown,)


def test_unknown_parts_do_not_affect_equality():
    assert IpRule(4, 1, unknown=("tun_id 5",)) == IpRule(4, 1)
    assert Route(4, 1, unknown=("nhid 7",), dead=True, scope="link") == Route(4, 1)
    assert Nexthop("a0", dead=True) == Nexthop("a0")


@pytest.mark.parametrize(
    ("reader", "document", "family"),
    [
        (ip_json_decode.decode_rules, [{"priority": 9, "src": "10.0.0.1", "table": "9"}], 4),
        (
            ip_json_decode.decode_rules,
            [{"priority": 9, "src": "all", "table": "9"}, {"priority": 9, "dst": "fe80::", "table": "9"}],
            6,
        ),
        (ip_json_decode.decode_rules, [{"priority": 9, "src": "all", "table": "9", "family": "inet6"}], 6),
        (
            ip_json_decode.decode_routes,
            [{"dst": "default", "dev": "a0"}, {"dst": "default", "gateway": "fe80::1", "dev": "a0"}],
            6,
        ),
    ],
)
def test_family_is_derived_from_addresses(reader, document, family):
    assert {one.family for one in reader(document)} == {family}


def test_empty_listing_decodes_without_family():
    assert (
        ip_json_decode.decode_rules([])
        == ip_json_decode.decode_routes([])
        == ip_json_decode.decode_rules([{}], 6)
        == ()
    )


@pytest.mark.parametrize(
    ("reader", "document", "message"),
    [
        (ip_json_decode.decode_rules, {"rules": []}, 'expected the JSON of "ip -j -N rule": a list of objects'),
        (ip_json_decode.decode_routes, [1], 'expected the JSON of "ip -j -N route": a list of objects'),
        (ip_json_decode.decode_rules, [{"priority": 1, "src": "all", "table": "7"}], "no rule contains an address, so the family (IPv4 or IPv6) is unknown"),
        (ip_json_decode.decode_rules, [{"priority": 1, "src": "10.0.0.1", "table": "wan"}], "table wan is not a number; use ip -N"),
        (ip_json_decode.decode_rules, [{"priority": 1, "src": "10.0.0.1"}], "not an ip rule: KeyError 'table'"),
        (ip_json_decode.decode_rules, [{"priority": -1, "src": "10.0.0.1", "table": "7"}], "-1 is not between"),
        (ip_json_decode.decode_rules, [{"priority": True, "src": "10.0.0.1", "table": "7"}], "True is not a number"),
        (ip_json_decode.decode_rules, [{"priority": 1, "src": "10.0.0.256", "table": "7"}], "not an ip rule: "),
        (ip_json_decode.decode_rules, [{"priority": 1, "src": "10.0.0.1", "srclen": 33, "table": "7"}], "33 is not between 0 and 32"),
        (ip_json_decode.decode_rules, [{"priority": 1, "src": "10.0.0.1", "iif": 5, "table": "7"}], "5 is not a device"),
        (ip_json_decode.decode_routes, [{"dst": "10.0.0.1", "flags": "dead"}], "'dead' is not a list of flags"),
        (ip_json_decode.decode_routes, [{"dst": "10.0.0.1", "via": {"family": "bridge", "host": "1"}}], "KeyError 'bridge'"),
        (ip_json_decode.decode_routes, [{"dst": "1.1.1.1", "encap": "ip", "dev": "a0"}], "the route has a tunnel encapsulation"),
        (ip_json_decode.decode_routes, [{"gateway": "1.1.1.1"}], "KeyError 'dst'"),
    ],
)  # fmt: skip
def test_invalid_listing_raises_one_line(reader, document, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        reader(document)
    assert message in str(caught.value)
