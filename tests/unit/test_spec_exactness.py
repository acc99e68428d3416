"""Each rule that lets slightly more pass than the policy says takes the proof away."""

import pytest
from attrs import evolve

from nftpolicy.compiler import object_names
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import (
    AnonymousSet,
    Bitwise,
    Ct,
    Match,
    Meta,
    Payload,
)
from nftpolicy.proof.exemption_spec import exemption
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove, prove_guard
from tests.unit.proved_policy import (
    EXEMPT,
    FRAGMENT,
    IPV4,
    IPV6,
    LTE,
    MARKED,
    POLICY,
    SPEC,
    STATE,
    UNMARKED,
    WAN,
    guard_verdict,
    udp,
    with_first_rule,
)


def test_state_is_proved_before_the_change():
    proof = prove(STATE, SPEC)
    assert [(one.property, one.subject) for one in proof.findings if one.verdict != "proved"] == []
    assert {one.property for one in proof.findings} == {"P1", "P2", "P3", "P4", "P5"}
    assert guard_verdict(with_first_rule(STATE, WAN, MARKED, Match(Meta("skuid"), 900))) == "proved"


# --- exemptions ----------------------------------------------------------------------------------


def icmpv6(kind, *more):
    return (IPV6, Match(Payload("icmpv6", "type"), kind), *more)


HOP_LIMIT, GROUP6 = Payload("ip6", "hoplimit"), Match(Payload("ip6", "daddr"), "ff02::/16")
LOCAL_SOURCE = Match(Payload("ip6", "saddr"), "fe80::/10")
LOCAL_TARGET = Match(Payload("ip6", "daddr"), "fe80::/10")
BROADCAST = Match(Payload("ip", "daddr"), "255.255.255.255")
IGMP_ROUTERS, NO_CODE = Match(Payload("ip", "daddr"), "224.0.0.22"), Match(Payload("icmpv6", "code"), 0)


def to6(destination):
    return Match(Payload("ip6", "daddr"), destination)


# What the standard allows, exactly.
EXACT = {
    "dhcpv4": (IPV4, BROADCAST, *udp(sport=68, dport=67)),
    "dhcpv6": (IPV6, LOCAL_SOURCE, to6("ff02::1:2"), *udp(sport=546, dport=547)),
    "mld report": icmpv6(143, Match(HOP_LIMIT, 1), LOCAL_SOURCE, to6("ff02::16")),
    "mld done": icmpv6(132, Match(HOP_LIMIT, 1), LOCAL_SOURCE, to6("ff02::2")),
    "mld version 1": icmpv6(131, Match(HOP_LIMIT, 1), LOCAL_SOURCE, GROUP6),
    "igmp": (IPV4, Match(Payload("ip", "ttl"), 1), IGMP_ROUTERS, Match(Payload("igmp", "type"), 0x22)),
    "ndp": icmpv6(135, NO_CODE, Match(HOP_LIMIT, 255), to6("ff02::1:ff00:0/104")),
    "vxlan-mesh": (IPV6, LOCAL_SOURCE, LOCAL_TARGET, *udp(dport=4789)),
    "vxlan-mesh to a group": (IPV6, LOCAL_SOURCE, GROUP6, *udp(dport=4789)),
    "respondd": (IPV6, LOCAL_SOURCE, LOCAL_TARGET, *udp(sport=1001)),
    "respondd query": (IPV6, LOCAL_SOURCE, GROUP6, *udp(dport=1001)),
}  # fmt: skip
# The same with one condition less, or one value more.
WIDER = {
    "dhcpv4 from any port": (IPV4, BROADCAST, *udp(dport=67)),
    "dhcpv4 to any port": (IPV4, BROADCAST, *udp(sport=68)),
    "dhcpv4 to any host": (IPV4, *udp(sport=68, dport=67)),
    "dhcpv4 the wrong way": (IPV4, BROADCAST, *udp(sport=67, dport=68)),
    "dhcpv4 over IPv6": (IPV6, *udp(sport=68, dport=67)),
    "dhcpv4 over TCP": (IPV4, Match(Payload("tcp", "sport"), 68), Match(Payload("tcp", "dport"), 67)),
    "dhcpv6 from a global address": (IPV6, *udp(sport=546, dport=547)),
    "dhcpv6 to any host": (IPV6, LOCAL_SOURCE, *udp(sport=546, dport=547)),
    "dhcpv6 from any port": (IPV6, LOCAL_SOURCE, to6("ff02::1:2"), *udp(dport=547)),
    "dhcpv6 to any port": (IPV6, LOCAL_SOURCE, to6("ff02::1:2"), *udp(sport=546)),
    "router advertisement": icmpv6(134, Match(HOP_LIMIT, 255)),
    "redirect": icmpv6(137, Match(HOP_LIMIT, 255)),
    "ndp from afar": icmpv6(135, Match(HOP_LIMIT, 254)),
    "ndp with any hop limit": icmpv6(136),
    "ndp solicitation of routers with any hop limit": icmpv6(133),
    "ndp with a code": icmpv6(135, Match(HOP_LIMIT, 255), to6("ff02::1:ff00:0/104")),
    "ndp to any group": icmpv6(135, NO_CODE, Match(HOP_LIMIT, 255), GROUP6),
    "ndp of a process to a global address": icmpv6(136, NO_CODE, Match(HOP_LIMIT, 255), Match(Meta("skuid"), 900)),
    "mld from a global address": icmpv6(143, Match(HOP_LIMIT, 1), to6("ff02::16")),
    "mld query": icmpv6(130, Match(HOP_LIMIT, 1), GROUP6),
    "mld with hop limit 2": icmpv6(143, Match(HOP_LIMIT, 2), GROUP6),
    "mld to a host": icmpv6(143, Match(HOP_LIMIT, 1)),
    "mld to a group of the site": icmpv6(143, Match(HOP_LIMIT, 1), Match(Payload("ip6", "daddr"), "ff05::/16")),
    "igmp with TTL 2": (IPV4, Match(Meta("l4proto"), 2), Match(Payload("ip", "ttl"), 2), Match(Payload("ip", "daddr"), "224.0.0.0/4")),
    "igmp to a host": (IPV4, Match(Meta("l4proto"), 2), Match(Payload("ip", "ttl"), 1)),
    "another protocol to a group": (IPV4, Match(Meta("l4proto"), 3), Match(Payload("ip", "ttl"), 1), Match(Payload("ip", "daddr"), "224.0.0.0/4")),
    "vxlan-mesh to a global address": (IPV6, LOCAL_SOURCE, *udp(dport=4789)),
    "vxlan-mesh from a global address": (IPV6, LOCAL_TARGET, *udp(dport=4789)),
    "vxlan-mesh from its port": (IPV6, LOCAL_SOURCE, LOCAL_TARGET, *udp(sport=4789)),
    "vxlan-mesh of IPv4": (IPV4, *udp(dport=4789)),
    "respondd from afar": (IPV6, *udp(sport=1001)),
    "the next port": (IPV6, LOCAL_SOURCE, LOCAL_TARGET, *udp(sport=1002)),
    "the port before": (IPV6, LOCAL_SOURCE, LOCAL_TARGET, *udp(dport=1000)),
    "all of ICMP": (IPV4, Match(Meta("l4proto"), "icmp")),
    "an echo request": (IPV4, Match(Payload("icmp", "type"), 8)),
    "a user": (Match(Meta("skuid"), 900),),
    "replies": (Match(Ct("state"), AnonymousSet(frozenset({"established"})), "in"),),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_exempt_packets_may_pass_unmarked(name):
    assert guard_verdict(with_first_rule(STATE, WAN, UNMARKED, *EXACT[name], hooks=("postrouting",))) == "proved"


@pytest.mark.parametrize("name", WIDER)
def test_more_than_exempt_packets_is_refuted(name):
    assert guard_verdict(with_first_rule(STATE, WAN, UNMARKED, *WIDER[name])) == "refuted"


@pytest.mark.parametrize("more", [(), (Match(Meta("l4proto"), "udp"),)], ids=["all", "UDP"])
def test_fragments_are_not_exempt(more):
    assert guard_verdict(with_first_rule(STATE, WAN, UNMARKED, IPV4, *more, FRAGMENT)) != "proved"


@pytest.mark.parametrize("name", EXACT)
def test_exempt_packets_of_another_uplink_are_refuted(name):
    state = with_first_rule(STATE, LTE, UNMARKED, *EXACT[name], devices=("lte",))
    assert guard_verdict(state) == "refuted"


@pytest.mark.parametrize("name", EXEMPT)
def test_exemption_that_the_policy_lacks_is_refuted(name):
    fewer = tuple(
        evolve(each, exemptions=tuple(one for one in each.exemptions if one.name != name)) for each in SPEC.uplinks
    )
    assert guard_verdict(STATE, evolve(SPEC, uplinks=fewer)) == "refuted"
    assert exemption(name).is_report == (name in ("mld", "igmp"))


@pytest.mark.parametrize(("ethertype", "verdict"), [(0x0806, "proved"), (0x888E, "proved"), (0x8863, "proved"), (0x8864, "proved"),
                                                    (0x8100, "refuted"), (0x88CC, "proved"), (0x88A2, "refuted"), (0x0807, "refuted")])  # fmt: skip
def test_frames_of_exempt_ethertypes_only_may_pass(ethertype, verdict):
    state = with_first_rule(STATE, Match(Payload("ether", "type"), ethertype), hooks=("egress",))
    assert guard_verdict(state) == verdict


def test_frame_that_its_sender_calls_arp_is_refuted():
    state = with_first_rule(STATE, Match(Meta("protocol"), 0x0806), hooks=("egress",))
    assert guard_verdict(state) == "refuted"


# --- link guard ----------------------------------------------------------------------------------


def without_link_guard(device):
    tables = tuple(
        evolve(
            table, chains=tuple(chain for chain in table.chains if chain.hook is None or chain.hook.device != device)
        )
        for table in STATE.tables
    )
    return evolve(STATE, tables=tables)


@pytest.mark.parametrize("device", ["wan", "lte"])
def test_uplink_without_link_guard_is_refuted_for_frames_only(device):
    proof = prove_guard(without_link_guard(device), SPEC)
    assert {(one.uplink, one.subject.split(":")[0]) for one in proof.findings if one.verdict == "refuted"} == {
        (device, "AF_PACKET sockets"),
        (device, "frames of other ethertypes"),
    }
    assumed = prove_guard(without_link_guard(device), evolve(SPEC, frames=False))
    assert assumed.verdict == "proved"
    assert sum(f"are not used on {device}" in one for one in assumed.assumptions) == 1


def test_frame_with_the_mark_of_another_uplink_is_refuted():
    other = Match(Bitwise(Meta("mark"), and_mask=0xFF), 2)
    assert guard_verdict(with_first_rule(STATE, other, hooks=("egress",))) == "refuted"
    assert guard_verdict(with_first_rule(STATE, MARKED, hooks=("egress",))) == "proved"


def test_each_port_of_a_bridge_needs_a_link_guard():
    ports = {"wan": ("port0", "port1")}
    assert guard_verdict(STATE, build_spec(POLICY, ports)) == "refuted"
    one_port = {"wan": ("port0",)}
    from nftpolicy.compiler.compile import HostFacts

    state = compile_policy(POLICY, HostFacts(ports))
    assert guard_verdict(state, build_spec(POLICY, ports)) == "proved"
    state = compile_policy(POLICY, HostFacts(one_port))
    assert guard_verdict(state, build_spec(POLICY, one_port)) == "proved"
    refuted = [one for one in prove_guard(state, build_spec(POLICY, ports)).findings if one.verdict == "refuted"]
    subjects = [one.subject.split(":")[0] for one in refuted]
    assert subjects == ["AF_PACKET sockets", "frames of other ethertypes"]
    assert {example.device for one in refuted for example in one.examples} == {"port1"}
    unhooked = evolve(build_spec(POLICY, ports), frames=False)
    assert sum("are not used on port" in one for one in prove_guard(state, unhooked).assumptions) == 2


# --- entitlement ---------------------------------------------------------------------------------

NET, USER = Match(Payload("ip", "daddr"), "198.51.100.0/24"), Match(Meta("skuid"), 900)
GROUP = Match(Meta("skgid"), 800)
REPLY, FLOW = Match(Ct("direction"), "reply"), Match(Bitwise(Ct("mark"), and_mask=0xFF), 1)
TO_SERVER = (IPV4, Match(Payload("ip", "daddr"), "192.0.2.53"))
ENTITLED = {
    "user": (USER,),
    "group to its network and ports": (GROUP, IPV4, NET, *udp(dport="10000-10010")),
    "resolver": (Match(Meta("skuid"), 77), *TO_SERVER, *udp(dport=53)),
    "resolver to a server of a domain": (Match(Meta("skuid"), 77), *TO_SERVER, *udp(dport=5353)),
    "resolver over TLS": (Match(Meta("skuid"), 77), *TO_SERVER, Match(Payload("tcp", "dport"), 853)),
    "reply of ssh": (REPLY, FLOW, Match(Payload("tcp", "sport"), 22)),
    "echo reply": (REPLY, FLOW, IPV4, Match(Payload("icmp", "type"), 0)),
    "echo reply of IPv6": (REPLY, FLOW, *icmpv6(129)),
    "igmp": EXACT["igmp"],
    "mld": EXACT["mld report"],
}
NOT_ENTITLED = {
    "any socket": (Match(Meta("skuid"), 0, ">="),),
    "another user": (Match(Meta("skuid"), 901),),
    "the user before": (Match(Meta("skuid"), 899),),
    "group of the user's number": (Match(Meta("skgid"), 900),),
    "user of the group's number": (Match(Meta("skuid"), 800),),
    "group to any network": (GROUP, *udp(dport=10000)),
    "group to the next port": (GROUP, IPV4, NET, *udp(dport=10011)),
    "group to the port before": (GROUP, IPV4, NET, *udp(dport=9999)),
    "group from the port": (GROUP, IPV4, NET, *udp(sport=10000)),
    "group by TCP": (GROUP, IPV4, NET, Match(Payload("tcp", "dport"), 10000)),
    "group by IPv6": (GROUP, IPV6, *udp(dport=10000)),
    "group to the next network": (GROUP, IPV4, Match(Payload("ip", "daddr"), "198.51.101.0/24"), *udp(dport=10000)),
    "port and network of any socket": (IPV4, NET, *udp(dport=10000)),
    "fragments of UDP": (IPV4, Match(Meta("l4proto"), "udp"), FRAGMENT),
    "resolver to any server": (Match(Meta("skuid"), 77), *udp(dport=53)),
    "resolver to another port": (Match(Meta("skuid"), 77), *TO_SERVER, *udp(dport=54)),
    "resolver from its port": (Match(Meta("skuid"), 77), *TO_SERVER, *udp(sport=53)),
    "resolver to the port of TLS by UDP": (Match(Meta("skuid"), 77), *TO_SERVER, *udp(dport=853)),
    "another user to a server": (Match(Meta("skuid"), 78), *TO_SERVER, *udp(dport=5353)),
    "queries of any socket": udp(dport=53),
    "replies of another port": (REPLY, FLOW, Match(Payload("tcp", "sport"), 23)),
    "requests from the port": (FLOW, Match(Payload("tcp", "sport"), 22)),
    "replies of ssh in other flows": (REPLY, Match(Payload("tcp", "sport"), 22)),
    "replies of ssh by UDP": (REPLY, FLOW, *udp(sport=22)),
    "replies to the port": (REPLY, FLOW, Match(Payload("tcp", "dport"), 22)),
    "echo requests": (REPLY, FLOW, IPV4, Match(Payload("icmp", "type"), 8)),
    "echo requests of IPv6": (REPLY, FLOW, *icmpv6(128)),
    "unreachable": (REPLY, FLOW, IPV4, Match(Payload("icmp", "type"), 3)),
    "all replies": (REPLY, FLOW),
    "dhcp with the mark": EXACT["dhcpv4"],
    "ndp with the mark": icmpv6(135, Match(HOP_LIMIT, 255)),
    "a new connection of no socket": (Match(Ct("state"), AnonymousSet(frozenset({"new"})), "in"),),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTITLED)
def test_entitled_packets_may_carry_the_mark(name):
    assert guard_verdict(with_first_rule(STATE, WAN, MARKED, *ENTITLED[name], hooks=("postrouting",))) == "proved"


@pytest.mark.parametrize("name", NOT_ENTITLED)
def test_more_than_entitled_packets_is_not_proved(name):
    state = with_first_rule(STATE, WAN, MARKED, *NOT_ENTITLED[name], hooks=("postrouting",))
    findings = [one for one in prove_guard(state, SPEC).findings if one.verdict != "proved"]
    assert {(one.property, one.uplink, one.subject.split(":")[0]) for one in findings} == {
        ("P1", "wan", "sockets of no service")
    }


def test_kernel_service_may_send_from_its_port_only():
    mark = Match(Bitwise(Meta("mark"), and_mask=0xFF), 2)
    hooks = {"hooks": ("postrouting",), "devices": ("lte",)}
    assert guard_verdict(with_first_rule(STATE, LTE, mark, *udp(sport=51820), **hooks)) == "proved"
    for port in (51819, 51821):
        assert guard_verdict(with_first_rule(STATE, LTE, mark, *udp(sport=port), **hooks)) != "proved"
    assert guard_verdict(with_first_rule(STATE, LTE, mark, *udp(dport=51820), **hooks)) != "proved"
    assert guard_verdict(with_first_rule(STATE, LTE, mark, Match(Payload("tcp", "sport"), 51820), **hooks)) != "proved"


# --- mark confinement and unnamed devices ----------------------------------------------------------


def test_marked_packets_by_an_inside_device_are_refuted():
    lan = Match(Meta("oifname"), "lan")
    assert guard_verdict(with_first_rule(STATE, lan, MARKED), name="P2") == "refuted"
    assert guard_verdict(with_first_rule(STATE, lan, MARKED, *EXACT["igmp"]), name="P2") == "proved"
    assert guard_verdict(with_first_rule(STATE, lan, MARKED, *EXACT["dhcpv4"]), name="P2") != "proved"
    assert guard_verdict(with_first_rule(STATE, Match(Meta("oifname"), "lo"), MARKED)) == "proved"
    assert guard_verdict(with_first_rule(STATE, LTE, MARKED, hooks=("postrouting",)), name="P2") != "proved"


@pytest.mark.parametrize("family", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_packets_by_an_unnamed_device_are_not_proved(family):
    state = with_first_rule(STATE, Match(Meta("oifname"), "usb0"), UNMARKED, family)
    findings = {one.subject: one.verdict for one in prove_guard(state, SPEC).findings if one.verdict != "proved"}
    assert set(findings) == {"packets that leave by a device that the policy does not name"}
    assert guard_verdict(with_first_rule(STATE, Match(Meta("oifname"), "lan"), UNMARKED, family)) == "proved"
    assert guard_verdict(state, evolve(SPEC, inside=("lan", "usb0"))) == "proved"


def test_guard_has_no_table_of_the_product():
    # The proof knows no names: the same tables under other names are proved too.
    renamed = tuple(evolve(table, name="other") for table in STATE.tables if table.name == object_names.TABLE)
    assert guard_verdict(evolve(STATE, tables=renamed)) == "proved"
