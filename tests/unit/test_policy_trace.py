"""Shipped policy against every kind of leak, by traces of single packets."""

from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.packet import FORWARD, FRAME, ICMP, ICMPV6, IGMP, KERNEL, TCP, UDP, CtInfo, Packet, parse_address
from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from tests.lab import addresses as at
from tests.lab.leak_probes import CONNECTED_IN_MAIN, DEFAULT_IN_MAIN, KINDS, NOTHING

from .trace_helpers import (
    CLIENT,
    MAIN,
    MESH,
    NOBODY,
    NODE_WAN,
    SERVICE,
    WAN,
    connected,
    default,
    end,
    machine,
    packet,
    walk,
)


@pytest.fixture(params=at.FAMILIES, ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return request.param


# The shipped policy

GLUON = (Path(__file__).parents[2] / "rulesets" / "gluon-fastd.toml").read_bytes()


def guarded_node(*routes: Route) -> NetState:
    """Return the node with the shipped policy and its WAN routes in the uplink's table."""
    wanted = compile_policy(load(GLUON)[0])
    plain = machine()
    uplink = tuple(one for family in at.FAMILIES for one in (default(WAN, family, 1), connected(WAN, family, 1)))
    mesh = tuple(one for family in at.FAMILIES for one in (default(MESH, family), connected(MESH, family)))
    links = tuple(Route(6, MAIN, "fe80::/64", device=device) for device in (WAN, MESH, CLIENT))
    return evolve(
        plain,
        tables=wanted.tables,
        rules=(*plain.rules, *wanted.rules),
        routes=(*plain.routes, *wanted.routes, *uplink, *mesh, *links, *routes),
        sysctls=wanted.sysctls,
    )


def wan_routes_in_main(family: int) -> tuple[Route, ...]:
    """Return the WAN's routes in the main table, where they take precedence."""
    routes = (default(WAN, family), connected(WAN, family))
    return tuple(evolve(one, metric=0) for one in routes)


HOME = parse_address(at.NEIGHBOUR[4])


def probe(kind: str, family: int) -> Packet:
    """Return the packet of a kind of probe, unmarked and of user nobody."""
    on_wan = parse_address(NODE_WAN[family]) if family else None
    neighbour = at.NEIGHBOUR[family] if family else at.NEIGHBOUR[4]
    client = {"origin": FORWARD, "iif": CLIENT, "source": parse_address(at.CLIENT_ADDRESS[family]) if family else None}
    frame = {"origin": FRAME, "bound": WAN, "source": on_wan}
    icmp = {
        "protocol": {4: ICMP, 6: ICMPV6}[family or 4],
        "fields": {({4: "icmp", 6: "icmpv6"}[family or 4], "type"): {4: 8, 6: 128}[family or 4]},
    }
    group = {4: "239.1.2.3", 6: "ff05::1234"}[family or 4]
    link = {4: "224.0.0.251", 6: "ff02::1234"}[family or 4]
    made: dict[str, tuple[str | None, dict[str, object]]] = {
        "udp": (None, {}),
        "udp-connected": (None, {}),
        "udp-source": (None, {"source": on_wan}),
        "udp-source-pktinfo": (None, {"source": on_wan}),
        "udp-fragments": (None, {}),
        "udp-mapped": (None, {}),
        "udplite": (None, {"protocol": 136}),
        "tcp": (None, {"protocol": TCP}),
        "ping": (None, icmp),
        "ping-raw": (None, icmp),
        "raw-protocol": (None, {"protocol": 253, "sport": 0, "dport": 0}),
        "raw-header": (None, {"source": on_wan}),
        "udp-bound": (neighbour, {"bound": WAN}),
        "tcp-bound": (neighbour, {"bound": WAN, "protocol": TCP}),
        "udp-pktinfo": (neighbour, {"bound": WAN}),
        "udp-unicast-if": (neighbour, {"bound": WAN}),
        "udp-dontroute": (neighbour, {}),
        "multicast-site": (group, {"bound": WAN}),
        "multicast-link": (link, {"bound": WAN}),
        "multicast-scope": (link, {"bound": WAN}),
        "unicast-scope": (at.HOME_LINK_LOCAL, {"bound": WAN}),
        "broadcast-limited": ("255.255.255.255", {"bound": WAN}),
        "broadcast-directed": (at.HOME_BROADCAST, {"bound": WAN}),
        "packet": (neighbour, frame),
        "packet-bypass": (neighbour, frame),
        "packet-port": (neighbour, frame),
        "packet-private": (neighbour, {**frame, "ethertype": 0x88B5}),
        "forwarded-udp": (None, client),
        "forwarded-tcp": (None, {**client, "protocol": TCP}),
    }
    to, others = made[kind]
    return packet(family or 4, to or at.SERVER[family or 4], **others)


PROBES = [(kind, family) for kind, made in KINDS.items() for family in made.needs]


@pytest.mark.parametrize(("kind", "family"), PROBES)
def test_unmarked_probe_does_not_leave_by_the_uplink(kind: str, family: int) -> None:
    """Trace a probe with the routes that it needs: it leaves without the policy, and not with it."""
    sent = probe(kind, family)
    needs = KINDS[kind].needs[family]
    routes = {
        NOTHING: (),
        CONNECTED_IN_MAIN: (connected(WAN, family or 4),),
        DEFAULT_IN_MAIN: (default(WAN, family or 4),),
    }[needs]
    links = (Route(6, MAIN, "fe80::/64", device=WAN),)
    assert end(machine(routes=(*routes, *links)), sent) == WAN, "the control"
    for state in (guarded_node(), guarded_node(*wan_routes_in_main(family or 4))):
        assert end(state, sent) != WAN and walk(state, sent).outcome != "unknown"


@pytest.mark.parametrize(
    ("kind", "family"), [(kind, family) for kind, family in PROBES if KINDS[kind].origin == "node"]
)
def test_marked_probe_of_service_leaves_by_the_uplink(kind: str, family: int) -> None:
    sent = evolve(probe(kind, family), mark=1, gid=SERVICE)
    assert end(guarded_node(), sent) == WAN


def test_marked_packet_of_another_group_is_dropped(family: int) -> None:
    sent = packet(family, mark=1)
    assert end(guarded_node(), sent) == "dropped"
    assert end(guarded_node(), evolve(sent, gid=SERVICE)) == WAN


RESOLVER = {4: "127.0.0.1", 6: "::1"}


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_dns_query_of_service_reaches_the_resolver(family: int, protocol: int) -> None:
    somewhere = {4: "9.9.9.9", 6: "2620:fe::9"}[family]
    sent = packet(family, somewhere, dport=53, protocol=protocol, gid=SERVICE, mark=1)
    found = walk(guarded_node(), sent)
    assert (found.outcome, found.destination, found.dport) == ("delivered", parse_address(RESOLVER[family]), 54)
    other = walk(guarded_node(), evolve(sent, gid=NOBODY, mark=0))
    assert (other.outcome, other.device, other.dport) == ("leaves", MESH, 53)


def test_direct_query_to_resolver_needs_the_service_group(family: int) -> None:
    direct = packet(family, RESOLVER[family], dport=54)
    assert end(guarded_node(), direct) == "dropped"
    assert end(guarded_node(), evolve(direct, gid=SERVICE)) == "delivered"


def test_query_of_the_resolver_leaves_by_the_uplink(family: int) -> None:
    asked = packet(family, at.HOME[family], dport=53, mark=1)
    assert end(guarded_node(), asked) == WAN
    assert end(guarded_node(), evolve(asked, dport=9)) == "dropped"


def test_marked_packet_does_not_leave_by_the_mesh(family: int) -> None:
    sent = packet(family, at.GATEWAY[family], mark=1, gid=SERVICE, bound=MESH)
    assert end(guarded_node(), sent) in ("dropped", "unroutable")
    assert end(guarded_node(), evolve(sent, mark=0)) == MESH


def test_arriving_packet_is_marked_and_not_forwarded(family: int) -> None:
    to_us = packet(family, NODE_WAN[family], origin=FORWARD, iif=WAN, source=parse_address(at.HOME[family]))
    found = walk(guarded_node(), to_us)
    assert (found.outcome, found.mark) == ("delivered", 1)
    assert end(guarded_node(), evolve(to_us, destination=parse_address(at.SERVER[family]))) == "dropped"


@pytest.mark.parametrize(("sport", "expected"), [(22, WAN), (23, "dropped")])
def test_reply_leaves_if_the_policy_answers_its_port(family: int, sport: int, expected: str) -> None:
    flow = CtInfo("established", "reply", 1)
    fields = {("tcp", "flags"): 0x10}
    reply = packet(family, at.HOME[family], protocol=TCP, sport=sport, uid=0, gid=0, flow=flow, fields=fields)
    reply = evolve(reply, source=parse_address(NODE_WAN[family]))
    assert end(guarded_node(), reply) == expected


def test_exempt_kernel_packets_leave_unmarked() -> None:
    report = packet(
        4,
        "224.0.0.22",
        origin=KERNEL,
        protocol=IGMP,
        bound=WAN,
        source=parse_address(NODE_WAN[4]),
        fields={("ip", "ttl"): 1, ("igmp", "type"): 0x22},
    )
    assert end(guarded_node(), report) == WAN
    for change in ({("ip", "ttl"): 2}, {("igmp", "type"): 0x11}):
        assert end(guarded_node(), evolve(report, fields={**report.fields, **change})) == "dropped"
    assert end(guarded_node(), evolve(report, destination=parse_address("224.0.0.251"))) == "dropped"
    fields = {("icmpv6", "type"): 135, ("ip6", "hoplimit"): 255}
    question = packet(
        6, "ff02::1:ff00:50", origin=KERNEL, protocol=ICMPV6, bound=WAN, source=parse_address(NODE_WAN[6]), fields=fields,
        flow=CtInfo("untracked"),
    )  # fmt: skip
    assert end(guarded_node(), question) == WAN
    assert end(guarded_node(), evolve(question, fields={**fields, ("ip6", "hoplimit"): 64})) == "dropped"
    to_neighbour = evolve(question, destination=parse_address(at.HOME[6]))
    assert end(guarded_node(), to_neighbour) == WAN
    assert end(guarded_node(), evolve(to_neighbour, origin=FRAME)) == "dropped"


def test_packet_to_unnamed_device_is_dropped(family: int) -> None:
    state = guarded_node(Route(family, MAIN, at.SERVER_NET[family], device="usb0"))
    assert end(state, packet(family)) == "dropped"
