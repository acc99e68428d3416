"""Packets that use the entries of a policy. Those of four policies are golden files (packets.txt)."""

from collections.abc import Mapping
from pathlib import Path
from socket import PACKET_OTHERHOST

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.model.packet import format_address, parse_address
from nftpolicy.model.symbolic.box import points
from nftpolicy.netstate.nft import DROP, Bitwise, Chain, Ct, Hook, Match, Rule, Table
from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.assumptions import add_assumed_environment
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.lan_cases import lan_cases, lan_notes
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.spec import Region, Spec, UplinkSpec
from nftpolicy.proof.usability_case import (
    device_address,
    inside_address,
    link_local_address,
    needs_device,
    region_parts,
)
from nftpolicy.proof.usability_cases import usability_cases
from nftpolicy.proof.verdict import PROVED, REFUTED
from tests import state_mutants

GOLDEN = Path(__file__).parents[1] / "golden"
UPLINK = """\
name = "p"
inside = ["lan"]
[uplink.wan]
devices = ["wan"]
mark = "0x1/0xff"
table = 7
"""


def service(number: int, more: str = 'marks = "itself"') -> str:
    return f'[service.s{number}]\nuplink = "wan"\ngroup = {800 + number}\n{more}\n'


def cases_of(text: str, ports: Mapping[str, tuple[str, ...]] | None = None):
    policy = load(text.encode())[0]
    spec = build_spec(policy, ports or {})
    state = add_assumed_environment(compile_policy(policy, HostFacts(ports or {})), spec)[0]
    return list(usability_cases(ProofContext(state, spec.devices, spec.masks), spec))


def test_service_behind_the_first_64_is_tried_in_short():
    last = service(64, 'marks = "itself"\nto = ["198.51.100.7", "2001:db8:7::7"]')
    cases = [case for case in cases_of(UPLINK + "".join(map(service, range(64))) + last) if case.entry == "service s64"]
    assert [(case.packet.destination, case.packet.gid, case.packet.mark) for case in cases] == [
        (parse_address("198.51.100.7"), 864, 1),
        (parse_address("2001:db8:7::7"), 864, 1),
    ]
    assert {(case.property, case.outcome, case.device, case.mark) for case in cases} == {
        ("P3", "leaves", "wan", (1, 255))
    }


def test_64_services_are_tried_with_every_packet():
    cases = cases_of(UPLINK + "".join(map(service, range(64))))
    entries = [case.entry for case in cases if case.entry.startswith("service s63")]
    assert {"service s63", "service s63: last packets of a closed connection"} <= set(entries)


@pytest.mark.parametrize(("device", "verdict"), [("tun0", PROVED), ("other", REFUTED)])
def test_any_device_inside_may_have_the_default_route(device: str, verdict: str):
    """A router whose first device inside is its LAN: the tunnel has the default route."""
    policy = load((UPLINK.replace('["lan"]', '["lan", "tun*"]') + service(0)).encode())[0]
    state, spec = compile_policy(policy), build_spec(policy)
    default = tuple(Route(family, 254, "default", device=device) for family in (4, 6))
    proof = prove(evolve(state, routes=(*state.routes, *default)), spec)
    assert {proof.property_verdict(name) for name in ("P3", "P4")} == {verdict}
    refuted = {finding.subject for finding in proof.findings if finding.verdict == REFUTED}
    assert refuted == (
        {"inside lan", "DNS inside lan", "replies to hosts inside lan", "service s0 inside"}
        if verdict == REFUTED
        else set()
    )


def test_replies_to_hosts_inside_have_to_leave():
    policy = load((UPLINK + service(0)).encode())[0]
    state, spec = compile_policy(policy), build_spec(policy)
    hook = Hook("filter", "output", -10)
    rule = Rule((Match(Ct("direction"), "reply"), Match(Ct("mark"), 0), DROP))
    foreign = Table("inet", "foreign", (Chain("out", (rule,), hook),))
    proof = prove(evolve(state, tables=(*state.tables, foreign)), spec)
    refuted = {(finding.property, finding.subject) for finding in proof.findings if finding.verdict == REFUTED}
    assert refuted == {("P3", "replies to hosts inside lan")}


@pytest.mark.parametrize(
    "users", [service(0, ""), '[service.wg]\nuplink = "wan"\nkernel = true\nsport = ["udp/51820"]\n']
)
def test_service_may_send_in_a_flow_that_its_peer_began(users: str):
    """After a flush of connection tracking the peer's packet may be the first, and the service's are replies."""
    policy = load((UPLINK + users).encode())[0]
    state, spec = compile_policy(policy), build_spec(policy)
    name = next(iter(policy.service))
    hook = Hook("filter", "output", -10)
    rule = Rule((Match(Ct("direction"), "reply"), Match(Bitwise(Ct("mark"), 0xFF), 1), DROP))
    foreign = Table("inet", "foreign", (Chain("out", (rule,), hook),))
    proof = prove(evolve(state, tables=(*state.tables, foreign)), spec)
    refuted = {(finding.property, finding.subject) for finding in proof.findings if finding.verdict == REFUTED}
    assert refuted == {("P3", f"service {name}: packets in a flow that the peer began")}


def test_kernel_service_without_sport_has_an_assumption():
    """The guard cannot distinguish its replies from those of other sockets of the kernel."""
    policy = load((UPLINK + '[service.wg]\nuplink = "wan"\nkernel = true\n').encode())[0]
    proof = prove(compile_policy(policy), build_spec(policy))
    assert not [finding for finding in proof.findings if finding.verdict == REFUTED]
    assert any(each.startswith("peers of wg begin no flow") for each in proof.assumptions)


def test_unmarked_query_of_root_keeps_its_server():
    """The redirect of a service of root is for its marked queries."""
    policy = load((GOLDEN / "16-root-services/policy.toml").read_bytes())[0]
    start = "match gone: inet nftpolicy dns-redirect: meta skuid 0 meta mark "
    state, spec = compile_policy(policy), build_spec(policy)
    mutants = [
        each for each in state_mutants.mutants(state) if str(each).startswith(start) and "[meta mark" in str(each)
    ]
    assert len(mutants) == 2  # of IPv4 and IPv6
    for each in mutants:
        refuted = {finding.subject for finding in prove(each.state, spec).findings if finding.verdict == REFUTED}
        assert any(subject.startswith("DNS of root without a mark inside ") for subject in refuted)


@pytest.mark.parametrize(("device", "verdict"), [("under0", PROVED), ("other", REFUTED)])
def test_any_device_of_the_uplink_may_have_the_route(device: str, verdict: str):
    """A tunnel and its lower device are one uplink: the lower device has a connected route of its own."""
    policy = load((UPLINK.replace('["wan"]', '["wan", "under0"]') + service(0)).encode())[0]
    state, spec = compile_policy(policy), build_spec(policy)
    connected = (Route(4, 7, "198.51.100.0/24", device=device), Route(6, 7, "2001:db8:9::/64", device=device))
    finding = next(
        each
        for each in prove(evolve(state, routes=(*state.routes, *connected)), spec).findings
        if (each.property, each.subject) == ("P3", "service s0")
    )
    assert finding.verdict == verdict


# --- parts of regions -----------------------------------------------------------------------


def test_frame_that_a_bridge_forwards_is_for_another_host():
    cases = cases_of(UPLINK.replace('["wan"]', '["br0"]'), {"br0": ("p0", "p1")})
    forwarded = [case.packet for case in cases if "the bridge forwards" in case.entry]
    assert {(frame.family, frame.bound) for frame in forwarded} == {(4, "p0"), (4, "p1"), (6, "p0"), (6, "p1")}
    for frame in forwarded:
        assert (frame.mark, frame.fields) == (0, {("meta", "pkttype"): PACKET_OTHERHOST})


def parts(fields, with_ends=False):
    return [region.fields for region in region_parts(4, Region(fields), with_ends)]


def test_region_has_a_part_for_each_range_and_type():
    assert parts({"dport": ((1, 5), (9, 9)), "icmp.type": ((3, 4),)}) == [
        {"dport": ((1, 5),), "icmp.type": points(3)},
        {"dport": ((1, 5),), "icmp.type": points(4)},
        {"dport": points(9), "icmp.type": points(3)},
        {"dport": points(9), "icmp.type": points(4)},
    ]


def test_ends_of_ranges_are_parts_on_request():
    assert parts({"dport": ((1, 5), (9, 9))}, True) == [
        {"dport": ((1, 5),)},
        {"dport": points(9)},
        {"dport": points(5)},
    ]
    assert parts({"icmp.type": ((3, 4),)}, True) == [{"icmp.type": points(3)}, {"icmp.type": points(4)}]


def test_destinations_of_parts_are_hosts():
    (part,) = parts({"daddr": ((0, parse_address("1.0.0.9")),)})
    assert part == {"daddr": ((parse_address("1.0.0.0"), parse_address("1.0.0.9")),)}


def test_parts_of_a_region_are_limited():
    assert len(parts({"dport": tuple((number, number) for number in range(0, 400, 2))})) == 64


# --- addresses ------------------------------------------------------------------------------

STATE = NetState(
    routes=(
        Route(6, 255, "fe80::5/128", "local", device="other"),
        Route(6, 254, "fe80::6/128", "local", device="wan"),
        Route(6, 255, "fe80::7/128", "unicast", device="wan"),
        Route(4, 255, "192.0.2.1/32", "local", device="wan"),
        Route(6, 255, "2001:db8::1/128", "local", device="wan"),
        Route(6, 255, "fe80::8/128", "local", device="wan"),
        Route(4, 255, "127.0.0.1/32", "local", device="lo"),
        Route(4, 255, "169.254.0.1/32", "local", device="lan"),
        Route(6, 255, "fe80::9/128", "local", device="lan"),
        Route(6, 255, "2001:db8:2::1/128", "local", device="lan"),
    )
)


@pytest.mark.parametrize(("device", "address"), [("wan", "fe80::8"), ("lan", "fe80::9"), ("none", "fe80::2")])
def test_link_local_address_is_of_the_device(device, address):
    assert link_local_address(STATE, device) == parse_address(address)


@pytest.mark.parametrize(
    ("family", "device", "address"),
    [(4, "wan", "192.0.2.1"), (6, "wan", "2001:db8::1"), (4, "lan", "169.254.0.1"), (6, "lan", "2001:db8:2::1")],
)
def test_device_address_is_not_link_local_in_ipv6(family, device, address):
    assert device_address(STATE, family, device) == parse_address(address)


def test_device_without_address_has_none():
    assert device_address(STATE, 6, "other") is None
    assert device_address(STATE, 4, "other") is None


def test_inside_address_is_of_no_uplink_and_not_of_lo():
    spec = Spec((UplinkSpec("wan", ("wan", "other"), 1, 1),))
    assert inside_address(STATE, 4, spec) == parse_address("169.254.0.1")
    assert inside_address(STATE, 6, spec) == parse_address("2001:db8:2::1")
    assert inside_address(STATE, 4, Spec((UplinkSpec("wan", ("wan", "lan"), 1, 1),))) is None


@pytest.mark.parametrize(
    ("address", "needed"),
    [
        ("fe80::1", True),
        ("febf::1", True),
        ("fec0::1", False),
        ("ff02::1", True),
        ("ff0e::1", True),
        ("fd00::1", False),
    ],
)
def test_link_local_and_group_addresses_need_a_device(address, needed):
    assert needs_device(parse_address(address)) is needed


def test_lan_is_tried_by_connected_routes_of_the_uplink():
    lan = '[lan.nas]\nuplink = "wan"\nto = ["192.168.1.0/24", "fd77::/64"]\nuser = 1000\nports = ["tcp/445"]\n'
    cases = [case for case in cases_of(UPLINK + lan) if case.entry == "lan nas"]
    assert [(case.packet.destination, case.packet.uid, case.packet.dport, case.packet.mark) for case in cases] == [
        (parse_address("192.168.1.1"), 1000, 445, 0),
        (parse_address("fd77::1"), 1000, 445, 0),
    ]
    assert {(case.property, case.outcome, case.device) for case in cases} == {("P3", "leaves", "wan")}


def test_lan_without_connected_route_is_noted():
    policy = load((UPLINK + '[lan.nas]\nuplink = "wan"\nto = ["192.168.1.0/24"]\n').encode())[0]
    state = NetState(routes=(Route(4, 254, "192.168.1.0/24", device="lan"),))
    spec = build_spec(policy)
    context = ProofContext(state, spec.devices, spec.masks)
    assert list(lan_cases(context, spec.uplinks[0])) == []
    assert list(lan_notes(context, spec)) == [
        "no IPv4 packet was tried for lan nas: none of its networks is connected now"
    ]


def test_exempt_packet_that_needs_a_route_is_no_kernel_case():
    cases = cases_of(UPLINK + 'exempt = ["mdns", "ndp"]\n')
    kernel = [case.packet for case in cases if case.entry.startswith("exemption") and case.packet.origin == "kernel"]
    unicast = [packet for packet in kernel if packet.family == 6 and packet.destination >> 120 not in (0xFF, 0xFE)]
    assert unicast  # neighbour solicitations, which the kernel sends without a route
    assert {packet.protocol for packet in unicast} == {58}


@pytest.mark.parametrize(
    "more",
    [
        '[publish.all]\nuplink = "wan"\nport = "udp/1-65535"\nto = "lan"\n',
        '[uplink.wan.resolver]\nlisten = ["192.0.2.2:53"]\nservers = ["198.51.100.53"]\nuser = 1\n'
        '[service.kernel]\nuplink = "wan"\nkernel = true\nsport = ["udp/53-443"]\n',
    ],
    ids=["each port is published", "a kernel service shares the resolver's port"],
)
def test_port_of_another_entry_is_no_case(more: str) -> None:
    policy = load((UPLINK + more).encode())[0]
    assert prove(compile_policy(policy), build_spec(policy)).verdict == PROVED


def test_reply_is_not_tried_to_this_machine():
    """The host that would be tried is this machine's own address."""
    policy = load(
        UPLINK.replace("table = 7", 'table = 7\nanswer = [{ name = "ping", source = ["192.0.2.0/24"] }]').encode()
    )[0]
    spec = build_spec(policy)
    state = add_assumed_environment(compile_policy(policy), spec)[0]

    def tried(*routes):
        context = ProofContext(evolve(state, routes=(*state.routes, *routes)), spec.devices, spec.masks)
        cases = [case for case in usability_cases(context, spec) if case.entry == "answer ping"]
        return {case.packet.destination for case in cases}

    (first,) = tried()
    (other,) = tried(Route(4, 255, f"{format_address(4, first)}/32", "local", device="wan"))
    assert parse_address("192.0.2.1") <= other <= parse_address("192.0.2.254") and other != first


def test_answer_to_this_machine_alone_is_not_tried():
    text = UPLINK.replace(
        "table = 7",
        'table = 7\nanswer = [{ name = "ping", source = ["198.51.100.7/32"] }]\naddresses = ["198.51.100.7/32"]',
    )
    policy = load(text.encode())[0]
    proof = prove(compile_policy(policy), build_spec(policy))
    assert {one.verdict for one in proof.findings} == {PROVED}
    assert "no other machine has an address of: answer ping (IPv4)" in proof.assumptions


LANS = """
[uplink.lte]
devices = ["lte"]
mark = "0x2/0xff"
table = 8
[lan.first]
uplink = "wan"
to = ["10.0.0.0/8"]
[lan.other]
uplink = "lte"
to = ["10.0.0.0/8"]
"""


@pytest.mark.parametrize(
    ("others", "tried"),
    [
        (("10.0.0.0/24", None), {("first", "10.0.0.1")}),  # the first route of two that are equal
        (("10.0.0.0/25", None), {("first", "10.0.0.128"), ("other", "10.0.0.1")}),  # the more specific one
        (("10.0.1.0/24", None), {("first", "10.0.0.1"), ("other", "10.0.1.1")}),
    ],
)
def test_lan_is_tried_where_the_route_leads(others, tried):
    policy = load((UPLINK + LANS).encode())[0]
    spec = build_spec(policy)
    compiled = compile_policy(policy)
    routes = [Route(4, 254, "10.0.0.0/24", device="wan"), Route(4, 254, others[0], device="lte", metric=others[1])]
    state = evolve(compiled, routes=(*compiled.routes, *routes))
    context = ProofContext(state, spec.devices, spec.masks)
    cases = [case for uplink in spec.uplinks for case in lan_cases(context, uplink) if case.packet.family == 4]
    assert {(case.entry.removeprefix("lan "), case.packet.destination) for case in cases} == {
        (name, parse_address(address)) for name, address in tried
    }
