"""FIB lookups of the model. tests/kernel/test_lookup_differential.py compares them with the kernel."""

import struct
import time

import pytest
from attrs import evolve

from nftpolicy.kernel.netlink import rtnl_decode
from nftpolicy.kernel.netlink.attributes import attribute
from nftpolicy.model.fib.lookup import RouteResult
from nftpolicy.model.fib.router import Router
from nftpolicy.model.packet import parse_address
from nftpolicy.netstate.formats import ip_text
from nftpolicy.netstate.routing import IpRule, Nexthop, Route, Sysctl
from nftpolicy.netstate.state import Device, NetState

OWN_ROUTES = (
    Route(4, 255, "127.0.0.0/8", "local", device="lo", prefsrc="127.0.0.1", protocol=2),
    Route(4, 255, "10.1.0.1/32", "local", device="a0", prefsrc="10.1.0.1", protocol=2),
    Route(4, 255, "10.1.255.255/32", "broadcast", device="a0", prefsrc="10.1.0.1", protocol=2),
    Route(4, 254, "10.1.0.0/16", device="a0", prefsrc="10.1.0.1", protocol=2),
    Route(4, 255, "10.2.0.1/32", "local", device="b0", prefsrc="10.2.0.1", protocol=2),
    Route(6, 255, "::1/128", "local", device="lo", protocol=2),
    Route(6, 255, "2001:db8:1::1/128", "local", device="a0", protocol=2),
    Route(6, 255, "ff00::/8", "multicast", device="a0", metric=256, protocol=2),
    Route(6, 255, "ff00::/8", "multicast", device="b0", metric=256, protocol=2),
    Route(6, 254, "fe80::/64", device="a0", metric=256, protocol=2),
    Route(6, 254, "fe80::/64", device="b0", metric=256, protocol=2),
)
DEFAULTS = (
    Route(4, 254, gateway="10.1.0.254", device="a0"),
    Route(6, 254, gateway="fe80::1", device="a0", metric=1024),
)
UPLINK = (Route(4, 100, gateway="192.0.2.1", device="wan"), Route(6, 100, gateway="fe80::2", device="wan", metric=1))
FAR = {4: "203.0.113.77", 6: "2a00::77"}
# Rules as they are once somebody has touched them: IPv4 searches local and main one after the other.
LOCAL = tuple(IpRule(family, 0, table=255) for family in (4, 6))
MAIN = tuple(IpRule(family, 32766, table=254) for family in (4, 6))


def router(*rules, routes=UPLINK, **state):
    return Router(NetState((), (*LOCAL, *rules, *MAIN), (*OWN_ROUTES, *DEFAULTS, *routes), **state))


def lookup(router, destination, source=None, **words):
    family = 6 if ":" in destination else 4
    return router.lookup(family, parse_address(destination), source=parse_address(source) if source else None, **words)


def device_or_error(routed):
    return routed.error or (routed.outcome if routed.outcome in ("local", "unknown") else routed.device)


# Rules: each selector with a packet that it takes and one that it leaves

SELECTORS = [
    ({"mark": 1, "mask": 0xFF}, {"mark": 0x101}, {"mark": 2}),
    ({"mark": 0, "mask": 0xFF}, {"mark": 0x100}, {"mark": 1}),
    ({"iif": "lo"}, {}, None),
    ({"iif": "b0"}, None, {}),
    ({"oif": "wan"}, {"oif": "wan"}, {}),
    ({"uids": (1000, 1001)}, {"uid": 1001}, {"uid": 1002}),
    ({"l4proto": 6}, {"protocol": 6}, {"protocol": 17}),
    ({"sports": (5, 6)}, {"sport": 6}, {"sport": 7}),
    ({"dports": (53, 53)}, {"dport": 53}, {"dport": 54}),
    ({"tos": 0x10}, {"tos": 0x10}, {"tos": 0x8}),
    ({"invert": True}, None, {}),
    ({"invert": True, "mark": 1, "mask": 1}, {}, {"mark": 1}),
    ({"unknown": (), "l3mdev": False}, {}, None),
]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("selector", "matching", "other"), SELECTORS, ids=lambda one: str(one))
def test_selector_matches_only_its_packets(family, selector, matching, other):
    found = router(IpRule(family, 100, table=100, **selector))
    if matching is not None:
        assert device_or_error(lookup(found, FAR[family], **matching)) == "wan"
    if other is not None:
        assert device_or_error(lookup(found, FAR[family], **other)) == "a0"


@pytest.mark.parametrize(
    ("family", "key", "prefix", "inside", "outside"),
    [
        (4, "source", "10.1.0.0/24", "10.1.0.1", "10.2.0.1"),
        (6, "source", "2001:db8:1::/64", "2001:db8:1::1", "2001:db8:2::1"),
        (4, "destination", "203.0.112.0/23", "203.0.113.1", "203.0.114.1"),
        (6, "destination", "2a00::/16", "2a00::1", "2a01::1"),
    ],
)
def test_prefix_selector_matches_only_its_addresses(family, key, prefix, inside, outside):
    found = router(IpRule(family, 100, table=100, **{key: prefix}))
    for address, device in ((inside, "wan"), (outside, "a0")):
        asked = (address,) if key == "destination" else (FAR[family], address)
        assert device_or_error(lookup(found, *asked)) == device


def test_source_rule_does_not_match_without_source():
    found = router(IpRule(4, 100, table=100, source="10.1.0.0/24"), IpRule(6, 100, table=100, source="2001:db8::/32"))
    assert {device_or_error(lookup(found, FAR[family])) for family in (4, 6)} == {"a0"}


def test_iif_rule_matches_forwarded_packets_only():
    found = router(IpRule(4, 100, table=100, iif="b0"), IpRule(6, 100, table=100, iif="b0"))
    sources = {4: "10.3.0.1", 6: "2001:db8:7::1"}
    assert {device_or_error(lookup(found, FAR[of], sources[of], iif="b0", forwarded=True)) for of in (4, 6)} == {"wan"}
    assert {device_or_error(lookup(found, FAR[of], sources[of], iif="c0", forwarded=True)) for of in (4, 6)} == {"a0"}


def test_forwarded_packet_has_uid_0():
    found = router(IpRule(4, 100, table=100, uids=(0, 0)))
    assert device_or_error(lookup(found, FAR[4], "10.3.0.1", iif="b0", uid=1000, forwarded=True)) == "wan"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("action", "error"),
    [("unreachable", "ENETUNREACH"), ("prohibit", "EACCES"), ("blackhole", "EINVAL"), ("nop", None)],
)
def test_rule_action_gives_its_error(family, action, error):
    found = lookup(router(IpRule(family, 100, action)), FAR[family])
    assert (found.outcome, found.error) == ((action, error) if error else ("unicast", None))


def test_goto_skips_rules_and_invalid_goto_continues():
    rules = (IpRule(4, 100, "goto", goto=300), IpRule(4, 200, "prohibit"), IpRule(4, 300, table=100))
    assert device_or_error(lookup(router(*rules), FAR[4])) == "wan"
    assert device_or_error(lookup(router(evolve(rules[0], goto=301), *rules[1:]), FAR[4])) == "EACCES"
    assert device_or_error(lookup(router(evolve(rules[0], goto=50), *rules[1:]), FAR[4])) == "EACCES"


@pytest.mark.parametrize("family", [4, 6])
def test_suppressed_route_is_skipped(family):
    short = IpRule(family, 100, table=100, suppress_prefix=0)
    assert device_or_error(lookup(router(short), FAR[family])) == "a0"
    group = IpRule(family, 100, table=100, suppress_group=7)
    devices = (Device("wan", group=7), Device("a0"))
    assert device_or_error(lookup(router(group, devices=devices), FAR[family])) == "a0"
    assert device_or_error(lookup(router(evolve(group, suppress_group=8), devices=devices), FAR[family])) == "wan"
    found = lookup(router(group), FAR[family])
    assert (found.outcome, set(found.devices)) == ("unknown", {"a0", "wan"})


def test_default_ip_rules_apply_without_listed_rules():
    found = Router(NetState((), (), (*OWN_ROUTES, *DEFAULTS, Route(4, 253, "9.0.0.0/8", device="b0"))))
    assert [device_or_error(lookup(found, one)) for one in ("10.1.0.1", FAR[4], FAR[6], "::1")] == [
        "local",
        "a0",
        "a0",
        "local",
    ]
    bare = Router(NetState((), (), (*OWN_ROUTES, Route(4, 253, device="b0"), Route(6, 253, device="b0"))))
    assert device_or_error(lookup(bare, FAR[4])) == "b0"
    assert device_or_error(lookup(bare, FAR[6], exact=True)) == "ENETUNREACH"


# What is not understood forks, and only what all forks agree on is said


def test_unknown_selector_makes_the_route_unknown():
    strange = IpRule(4, 100, table=100, unknown=("tun_id 5",))
    found = lookup(router(strange), FAR[4])
    assert (found.outcome, set(found.devices)) == ("unknown", {"a0", "wan"})
    assert "tun_id 5" in found.unsupported[0]
    assert device_or_error(lookup(router(evolve(strange, mark=1, mask=1)), FAR[4])) == "a0"
    assert device_or_error(lookup(router(evolve(strange, table=254)), FAR[4])) == "a0"


def test_unknown_selector_before_unreachable_is_unknown():
    found = lookup(router(IpRule(4, 100, table=100, unknown=("dscp 4",)), IpRule(4, 101, "unreachable")), FAR[4])
    assert (found.outcome, found.devices) == ("unknown", ("wan",))


def test_unsupported_route_leads_to_any_device():
    found = lookup(router(IpRule(4, 100, table=100), routes=(Route(4, 100, unknown=("nhid 7",)),)), FAR[4])
    assert (found.outcome, found.devices) == ("unknown", ())
    assert "nhid 7" in found.unsupported[0]


def test_unsupported_action_leads_to_any_device():
    found = lookup(router(IpRule(6, 100, "action-9", unknown=("action 9",))), FAR[6])
    assert (found.outcome, found.devices) == ("unknown", ())


def test_vrf_lookup_is_unknown():
    rule = IpRule(4, 100, table=0, l3mdev=True)
    assert lookup(router(rule), FAR[4]).outcome == "unknown"
    assert device_or_error(lookup(router(rule, devices=(Device("a0"),)), FAR[4])) == "a0"
    vrf = (Device("red", kind="vrf"), Device("a0", master="red"), Device("wan"))
    assert lookup(router(devices=vrf), FAR[4], oif="a0").outcome == "unknown"
    assert device_or_error(lookup(router(devices=vrf), FAR[4], oif="wan")) == "wan"


def test_untouched_kernel_merges_local_and_main():
    narrow = Route(4, 254, "127.5.0.0/16", device="wan")
    found = lookup(Router(NetState((), (), (*OWN_ROUTES, narrow))), "127.5.0.1")
    assert (found.outcome, found.devices) == ("unknown", ("wan",))
    assert device_or_error(lookup(router(IpRule(4, 5, "nop"), routes=(narrow,)), "127.5.0.1")) == "local"


def test_untouched_kernel_may_find_a_route_in_either_table():
    """Name no table, rule or route where the lookup of an untouched kernel finds another one."""
    narrow = Route(4, 254, "127.5.0.0/16", "local", device="lo")
    found = lookup(Router(NetState((), (), (*OWN_ROUTES, narrow))), "127.5.0.1")
    assert (found.outcome, found.device) == ("local", "lo")
    assert (found.table, found.rule, found.route) == (None, None, None)


# Routes


@pytest.mark.parametrize(
    ("kind", "error"), [("unreachable", "EHOSTUNREACH"), ("prohibit", "EACCES"), ("blackhole", "EINVAL")]
)
@pytest.mark.parametrize("family", [4, 6])
def test_refusing_route_gives_its_error(family, kind, error):
    found = lookup(router(IpRule(family, 100, table=100), routes=(Route(family, 100, kind=kind),)), FAR[family])
    assert (found.outcome, found.error, found.table) == (kind, error, 100)


@pytest.mark.parametrize("family", [4, 6])
def test_throw_route_continues_with_the_next_rule(family):
    narrow = {4: "203.0.113.0/24", 6: "2a00::/16"}[family]
    routes = (*UPLINK, Route(family, 100, narrow, "throw"))
    assert device_or_error(lookup(router(IpRule(family, 100, table=100), routes=routes), FAR[family])) == "a0"


def test_route_choice_is_by_prefix_tos_and_metric():
    routes = [Route(4, 100, "203.0.113.0/24", device=f"m{metric}", metric=metric) for metric in (2, 1, 3)]
    routes += [
        Route(4, 100, "203.0.0.0/16", device="wide"),
        Route(4, 100, "203.0.113.0/24", device="t", metric=9, tos=16),
    ]
    found = router(IpRule(4, 100, table=100), routes=routes)
    assert device_or_error(lookup(found, FAR[4])) == "m1"
    assert device_or_error(lookup(found, FAR[4], tos=0x10)) == "t"
    assert device_or_error(lookup(found, "203.0.1.1")) == "wide"
    assert device_or_error(lookup(found, FAR[4], oif="m3")) == "m3"


def test_dead_route_is_skipped():
    routes = (
        Route(4, 100, "203.0.113.0/24", device="down", dead=True, linkdown=True),
        Route(4, 100, "203.0.0.0/16", device="up", linkdown=True),
    )
    assert device_or_error(lookup(router(IpRule(4, 100, table=100), routes=routes), FAR[4])) == "up"


@pytest.mark.parametrize("family", [4, 6])
def test_multipath_route_leads_to_any_live_nexthop(family):
    ways = (Nexthop("a0", weight=3), Nexthop("wan"), Nexthop("d0", dead=True))
    found = router(IpRule(family, 100, table=100), routes=(Route(family, 100, nexthops=ways),))
    routed = lookup(found, FAR[family])
    assert (routed.outcome, routed.devices) == ("unknown", ("a0", "wan"))
    assert not routed.unsupported
    assert device_or_error(lookup(found, FAR[family], oif="wan")) == "wan"
    same = Route(family, 100, nexthops=(Nexthop("wan", "fe80::1"), Nexthop("wan", "fe80::2")))
    routed = lookup(router(IpRule(family, 100, table=100), routes=(same,)), FAR[family])
    assert (routed.outcome, routed.device, routed.gateway) == ("unicast", "wan", None)


def test_equal_ipv4_defaults_lead_to_either_device():
    routes = (Route(4, 100, gateway="192.0.2.1", device="a0"), Route(4, 100, gateway="192.0.2.2", device="wan"))
    assert set(lookup(router(IpRule(4, 100, table=100), routes=routes), FAR[4]).devices) == {"a0", "wan"}
    later = (routes[0], evolve(routes[1], metric=1))
    assert device_or_error(lookup(router(IpRule(4, 100, table=100), routes=later), FAR[4])) == "a0"


# Devices


def test_bound_ipv4_socket_ignores_rules_and_routes():
    for rules in ((), (IpRule(4, 100, "prohibit"),), (IpRule(4, 100, "unreachable"),)):
        log = []
        found = lookup(router(*rules), FAR[4], oif="wan", log=log)
        assert (found.outcome, found.device, found.route) == ("unicast", "wan", None)
        assert any("bound to wan" in one.text for one in log)


def test_bound_ipv4_socket_sends_to_a_group_from_its_device():
    """Select the source before the lookup, so that ip rules can test it."""
    rule = IpRule(4, 100, table=100, source="10.1.0.1/32")
    devices = (Device("a0", ("10.1.0.1/16",)),)
    found = lookup(router(rule, routes=(Route(4, 100, device="a0"),), devices=devices), "239.1.1.1", oif="a0")
    assert (found.outcome, found.device, found.source, found.table) == ("multicast", "a0", "10.1.0.1", 100)


def test_bound_ipv6_socket_needs_a_route():
    assert device_or_error(lookup(router(routes=()), FAR[6], oif="wan")) == "ENETUNREACH"
    assert device_or_error(lookup(router(IpRule(6, 100, table=100)), FAR[6], oif="wan")) == "wan"


def test_bound_device_must_exist_and_be_up():
    devices = (Device("a0"), Device("b0", up=False))
    found = router(devices=devices)
    assert [device_or_error(lookup(found, FAR[4], oif=one)) for one in ("a0", "b0", "c0")] == [
        "a0",
        "ENETUNREACH",
        "ENETUNREACH",
    ]


@pytest.mark.parametrize(
    ("destination", "words", "outcome", "device"),
    [
        ("255.255.255.255", {"oif": "wan"}, "broadcast", "wan"),
        ("255.255.255.255", {}, "broadcast", "a0"),
        ("255.255.255.255", {"source": "10.2.0.1"}, "broadcast", "b0"),
        ("10.1.255.255", {}, "broadcast", "a0"),
        ("224.0.0.5", {"oif": "wan"}, "multicast", "wan"),
        ("239.1.1.1", {"oif": "wan"}, "multicast", "wan"),
        ("239.1.1.1", {}, "multicast", "a0"),
        ("239.1.1.1", {"source": "10.2.0.1"}, "multicast", "b0"),
        ("ff02::1", {"oif": "b0"}, "multicast", "b0"),
        ("ff02::1", {}, "multicast", "a0"),
        ("fe80::9", {"oif": "b0"}, "unicast", "b0"),
        ("fe80::9", {}, "unicast", "a0"),
        ("10.1.0.1", {}, "local", "lo"),
        ("127.0.0.1", {}, "local", "lo"),
        ("0.0.0.0", {}, "local", "lo"),
        ("::1", {}, "local", "lo"),
    ],
)
def test_special_destination_has_expected_outcome(destination, words, outcome, device):
    words = dict(words)
    found = lookup(router(), destination, words.pop("source", None), **words)
    assert (found.outcome, found.device) == (outcome, device)


def test_link_local_after_unreachable_rule_is_unroutable():
    assert device_or_error(lookup(router(IpRule(6, 100, "unreachable")), "fe80::9", oif="b0")) == "ENETUNREACH"


# Sources


def test_ipv4_source_must_be_a_local_address():
    found = router()
    assert device_or_error(lookup(found, FAR[4], "10.9.9.9")) == "ENETUNREACH"
    assert device_or_error(lookup(found, FAR[4], "10.9.9.9", any_source=True)) == "a0"
    assert device_or_error(lookup(found, FAR[4], "224.0.0.1")) == "EINVAL"
    # Where nothing is told of addresses, any may be ours.
    assert device_or_error(lookup(Router(NetState((), (), DEFAULTS)), FAR[4], "10.9.9.9")) == "a0"


def test_source_address_is_selected_as_linux_does():
    devices = (Device("lo", ("127.0.0.1/8",)), Device("a0", ("10.1.0.1/16", "10.5.0.1/24")), Device("wan"))
    routes = (Route(4, 100, "1.0.0.0/8", gateway="10.5.0.9", device="a0"), Route(4, 100, device="wan"))
    found = router(IpRule(4, 100, table=100), routes=routes, devices=devices)
    assert lookup(found, "1.1.1.1").source == "10.5.0.1"
    assert lookup(found, FAR[4]).source == "10.1.0.1"
    assert lookup(found, "10.1.0.1").source == "10.1.0.1"
    assert lookup(router(), FAR[4]).source == "10.1.0.1"
    assert lookup(router(), FAR[4], "10.2.0.1").source == "10.2.0.1"


def test_loopback_source_needs_route_localnet():
    assert device_or_error(lookup(router(), FAR[4], "127.0.0.1")) == "EINVAL"
    allowed = (Sysctl("net/ipv4/conf/a0/route_localnet", "1"),)
    assert device_or_error(lookup(router(sysctls=allowed), FAR[4], "127.0.0.1")) == "a0"


def test_ipv6_source_route_is_found_by_source_selection():
    special = Route(6, 254, source="2001:db8:1::/48", gateway="fe80::1", device="wan", metric=1)
    found = Router(NetState((), (*LOCAL, *MAIN), (*OWN_ROUTES, special)))
    assert device_or_error(lookup(found, FAR[6], "2001:db8:1::1")) == "wan"
    assert device_or_error(lookup(found, FAR[6], "2001:db8:2::1")) == "ENETUNREACH"
    assert device_or_error(lookup(found, FAR[6], exact=True)) == "ENETUNREACH"
    assert device_or_error(lookup(found, FAR[6])) == "wan"


def test_ipv6_source_route_elsewhere_leaves_the_plain_route():
    limited = Route(6, 100, "2a00::/16", device="a0", source="2001:db8:1::/48")
    found = router(IpRule(6, 100, table=100), routes=(limited, Route(6, 100, "2a00::/16", device="wan")))
    assert device_or_error(lookup(found, FAR[6], "2001:db8:1::1")) == "a0"
    assert device_or_error(lookup(found, FAR[6], "2001:db8:1::1", oif="wan")) == "wan"
    assert device_or_error(lookup(found, FAR[6], "2001:db8:2::1")) == "unknown"  # Linux skips the plain route too


def test_forwarded_packet_is_checked_by_rp_filter():
    back = (Sysctl("net/ipv4/conf/b0/rp_filter", "1"),)
    far, words = "198.51.100.9", {"iif": "b0", "forwarded": True}
    assert device_or_error(lookup(router(), FAR[4], far, **words)) == "a0"
    assert device_or_error(lookup(router(sysctls=back), FAR[4], far, **words)) == "EINVAL"
    assert device_or_error(lookup(router(sysctls=back), FAR[4], far, **(words | {"iif": "a0"}))) == "a0"
    assert device_or_error(lookup(router(), FAR[4], "10.1.0.1", **words)) == "EINVAL"
    closed = tuple(Sysctl(f"net/ipv4/conf/{one}/forwarding", "0") for one in ("a0", "b0"))
    assert device_or_error(lookup(router(sysctls=closed), FAR[4], far, **words)) == "EHOSTUNREACH"
    assert device_or_error(lookup(router(sysctls=closed), "10.1.0.1", far, **words)) == "local"
    six = (Sysctl("net/ipv6/conf/all/forwarding", "0"),)
    assert device_or_error(lookup(router(sysctls=six), FAR[6], "2001:db8:7::1", **words)) == "EHOSTUNREACH"


# Words


def test_lookup_log_names_matched_rules_and_the_route():
    origin = ("uplink", "wan", "mark")
    rules = (
        IpRule(4, 50, "nop"),
        IpRule(4, 60, table=77),
        IpRule(4, 70, table=100, suppress_prefix=0),
        IpRule(4, 80, table=9, mark=7, mask=7),
        IpRule(4, 90, table=100, origin=origin),
    )
    log = []
    found = lookup(router(*rules), FAR[4], log=log)
    assert found == RouteResult("unicast", "wan", "192.0.2.1", None, 100, rules[-1], UPLINK[0], ("wan",))
    assert [(one.kind, one.effect.split(" ")[0]) for one in log] == [
        ("ip-rule", "no"),  # the local table
        ("ip-rule", "continue"),
        ("ip-rule", "no"),
        ("ip-rule", "suppresses"),
        ("ip-rule", "found"),
        ("route", "leaves"),
    ]
    assert log[-2].text == ip_text.rule_text(rules[-1])
    assert (log[-2].origin, log[-1].subject) == (origin, UPLINK[0])


RENDERED = [
    (IpRule(4, 1, "lookup", 5, suppress_group=3, protocol=3), "priority 1 from all lookup 5 suppress_ifgroup 3 protocol 3"),
    (IpRule(4, 1, l3mdev=True, protocol=3), "priority 1 from all l3mdev protocol 3"),
    (
        Route(6, 7, "fd00::/8", "unicast", "fe80::1", "a0", 5, protocol=3, source="2001:db8::/32", prefsrc="2001:db8::1", preference="low"),
        "fd00::/8 from 2001:db8::/32 via fe80::1 dev a0 table 7 metric 5 src 2001:db8::1 pref low proto 3",
    ),
    (
        Route(4, 7, "1.0.0.0/8", tos=16, nexthops=(Nexthop("a0", "fe80::1", 2), Nexthop("b0", "1.1.1.1", onlink=True)), protocol=3),
        "1.0.0.0/8 tos 0x10 table 7 proto 3 nexthop via inet6 fe80::1 dev a0 weight 2 nexthop via 1.1.1.1 dev b0 weight 1 onlink",
    ),
    (Route(4, 255, "1.2.3.4/32", "local", device="lo", scope="host", protocol=3), "local 1.2.3.4/32 dev lo table 255 scope host proto 3"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "line"), RENDERED, ids=[line for _, line in RENDERED])
def test_rule_and_route_text_has_every_part(item, line):
    assert (ip_text.rule_text if isinstance(item, IpRule) else ip_text.route_text)(item) == line
    assert ip_text.display_text(item) == line


def test_batch_adds_connected_routes_before_gateways():
    lines = ip_text.batch_text((), (DEFAULTS[0], OWN_ROUTES[3], OWN_ROUTES[1]), 4).splitlines()
    assert [line.split()[2] for line in lines] == ["local", "10.1.0.0/16", "default"]


def test_batch_appends_second_route_of_equal_metric():
    lines = ip_text.batch_text((), (DEFAULTS[0], evolve(DEFAULTS[0], metric=1), evolve(DEFAULTS[0], device="b0")), 4)
    assert [line.split()[1] for line in lines.splitlines()] == ["add", "add", "append"]


# What the kernel sends, with things that are not known yet


def message(head, *parts):
    return struct.pack("=BBBBBBBBI", *head) + b"".join(attribute(*one) for one in parts)


def test_unknown_rule_attributes_are_kept():
    number = struct.Struct("=I").pack
    raw = message(
        (2, 0, 0, 0, 100, 0, 0, 1, 0x10000), (6, number(5)), (25, b"\x08"), (99, number(7)), (28, b"\xff\xff")
    )
    found = rtnl_decode.decode_rule(raw, 0, len(raw))
    assert found == IpRule(4, 5, table=100, protocol=0)
    assert found.unknown == ("dscp 8", "selector 99 7", "flags 0x10000")
    odd = message((10, 0, 0, 0, 0, 0, 0, 9, 0), (6, number(5)))
    assert rtnl_decode.decode_rule(odd, 0, len(odd)).unknown == ("action 9",)


def test_unknown_route_attributes_are_kept():
    number = struct.Struct("=I").pack
    raw = message((2, 0, 0, 0, 100, 3, 0, 1, 0), (4, number(2)), (21, b"\x02\0"), (77, number(1)), (12, bytes(32)))
    found = rtnl_decode.decode_route(raw, 0, len(raw), {2: "a0"})
    assert found == Route(4, 100, device="a0", protocol=3)
    assert found.unknown == ("encap type 2", "attribute 77 1")
    nexthop = message((2, 0, 0, 0, 100, 3, 0, 1, 0), (30, number(7)))
    assert rtnl_decode.decode_route(nexthop, 0, len(nexthop), {}).unknown == ("nhid 7",)
    odd = message((2, 0, 0, 0, 100, 3, 0, 12, 0))
    assert rtnl_decode.decode_route(odd, 0, len(odd), {}).unknown == ("type 12",)


def test_router_indexes_ten_thousand_routes_quickly():
    routes = tuple(Route(4, 254, f"10.{one >> 8}.{one & 255}.0/24", device="a0") for one in range(10_000))
    state = NetState((), (), routes)
    times = []
    for _ in range(3):
        began = time.process_time()
        found = Router(state)
        times.append(time.process_time() - began)
    assert min(times) < 0.15, "it is 15 ms on a quiet machine"
    assert device_or_error(lookup(found, "10.5.7.9")) == "a0"
