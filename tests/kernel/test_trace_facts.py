"""Minimal states from generated packets, in the kernel and in the model."""

from collections.abc import Iterator

import pytest
from attrs import evolve

from nftpolicy.model.packet import FORWARD, FRAME, ICMP, ICMPV6, TCP, CtInfo, Packet, parse_address
from nftpolicy.model.trace import Model, Trace
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import Chain, Ct, Dnat, Fib, Hook, Mangle, Match, Meta, Payload, Rule, Table
from nftpolicy.netstate.routing import TABLE_MAIN, IpRule, Route
from nftpolicy.netstate.state import NetState

from .packet_machine import HERE, PacketMachine, key, own
from .trace_differential import disagreements, send, traces

pytestmark = pytest.mark.kernel

FAR = {4: parse_address("198.18.1.1"), 6: parse_address("2001:db8:8:1::1")}
OTHER = {4: "198.18.9.9", 6: "2001:db8:8:9::9"}
IPS = {4: "ip", 6: "ip6"}
MARK, NOBODY = Meta("mark"), 65534


@pytest.fixture(scope="module")
def machine(egress: None) -> Iterator[PacketMachine]:
    with PacketMachine() as made:
        yield made


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return request.param


def chain(hook: str, *rules: tuple[nft.Statement, ...], kind: str = "filter", priority: int = 0, **how: str) -> Chain:
    return Chain(f"{kind}-{hook}", tuple(map(Rule, rules)), Hook(kind, hook, priority, **how))


def table(*chains: Chain, family: str = "inet") -> Table:
    return Table(family, "own", chains)


def by(device: str, family: int, table: int = TABLE_MAIN) -> Route:
    return Route(family, table, device=device, metric=7)


def found(machine: PacketMachine, state: NetState, sent: Packet) -> tuple[str, Trace]:
    """Return the device of arrival, "nowhere" or HERE, and the trace, which must agree."""
    sample = send(machine, 0, state, [sent])
    assert not disagreements(sample), str(disagreements(sample)[0])
    trace = traces(sample.state, sample.packets)[0]
    assert trace.outcome != "unknown", "nothing can be compared"
    where = {"leaves": trace.device, "delivered": HERE}.get(trace.outcome, "nowhere")
    return str(where), trace


def out(machine: PacketMachine, state: NetState, sent: Packet) -> str:
    return found(machine, state, sent)[0]


def test_trace_without_rules_sees_every_packet(machine: PacketMachine, family: int) -> None:
    """The control: each origin, each protocol, and a device for each."""
    state = NetState(routes=(by("wan", family),))
    ping = {4: (ICMP, 8), 6: (ICMPV6, 128)}[family]
    plain = Packet(family, FAR[family])
    fields = {({4: "icmp", 6: "icmpv6"}[family], "type"): ping[1]}
    packets = [
        plain,
        evolve(plain, protocol=TCP),
        evolve(plain, protocol=ping[0], fields=fields, sport=0, dport=0),
        evolve(plain, origin=FORWARD, iif="lan", source=parse_address(OTHER[family])),
        evolve(plain, origin=FRAME, bound="wan", source=own(family, "wan")),
    ]
    sample = send(machine, 0, state, packets)
    assert [one.where for seen in sample.seen.values() for one in seen] == ["wan"] * len(packets)
    assert not disagreements(sample)


def test_nat_chains_run_together_regardless_of_priority(machine: PacketMachine, family: int) -> None:
    """A nat chain at 50 has changed the port before a filter chain at 0 looks at it."""
    turn = chain(
        "output", (Match(Payload("udp", "dport"), 53), Dnat(IPS[family], OTHER[family], 54)), kind="nat", priority=50
    )
    look = chain("output", (Match(Payload("udp", "dport"), 54), nft.DROP))
    routes = (by("wan", family),)
    sent = Packet(family, FAR[family], dport=53)
    assert out(machine, NetState((table(turn),), routes=routes), sent) == "wan"
    assert out(machine, NetState((table(turn, look),), routes=routes), sent) == "nowhere"


def test_dnat_of_one_family_tracks_only_that_family(machine: PacketMachine, family: int) -> None:
    """An inet table with a nat chain for one family does not see packets of the other family."""
    routes = (by("wan", family),)
    for named, expected in ((family, "nowhere"), (10 - family, "wan")):
        turn = (Match(Payload("udp", "dport"), 53), Dnat(IPS[named], OTHER[named], 54))
        state = NetState((table(chain("output", turn, (nft.DROP,), kind="nat", priority=-100)),), routes=routes)
        assert out(machine, state, Packet(family, FAR[family], dport=9)) == expected


def test_second_lookup_ignores_protocol_in_iif_lo_rules(machine: PacketMachine, family: int) -> None:
    """If only rules for "iif lo" select by protocol or port, a packet that is routed again does not match them."""
    remark = table(chain("output", (Mangle(MARK, 1),), kind="route", priority=-150))
    rule = IpRule(family, 100, table=100, iif="lo", l4proto=17)
    routes = (by("wan", family, 100), by("mesh", family))
    sent = Packet(family, FAR[family])
    assert out(machine, NetState((), (rule,), routes), sent) == "wan"
    assert out(machine, NetState((remark,), (rule,), routes), sent) == "mesh"
    other = IpRule(family, 110, "nop", iif="lan", l4proto=17)
    assert out(machine, NetState((remark,), (rule, other), routes), sent) == "wan"


def test_bound_ipv6_socket_tries_source_of_other_devices(machine: PacketMachine) -> None:
    """A rule on the source may let it out after all."""
    neighbour = parse_address("2001:db8:3:0:ffff::1")  # nearest to the address of the mesh
    rule = IpRule(6, 100, table=100, source="2001:db8:3::/64")
    sample = send(machine, 0, NetState((), (rule,), (by("wan", 6, 100),)), [Packet(6, neighbour, bound="wan")])
    assert [one.where for seen in sample.seen.values() for one in seen] == ["wan"]
    assert {one.outcome for one in traces(sample.state, sample.packets)} == {"unknown"}
    assert out(machine, NetState((), (), (by("mesh", 6, 100),)), Packet(6, FAR[6], bound="wan")) == "nowhere"


def test_bound_socket_with_source_keeps_device(machine: PacketMachine) -> None:
    """A device from a control message only is a preference in IPv6."""
    sent = Packet(6, FAR[6], bound="wan", source=own(6, "wan"))
    assert out(machine, NetState(routes=(by("mesh", 6),)), sent) == "nowhere"
    assert out(machine, NetState(routes=(by("mesh", 6), evolve(by("wan", 6), metric=9))), sent) == "wan"


def test_fib_type_of_ipv6_address_follows_ip_rules(machine: PacketMachine) -> None:
    """`fib daddr type` is "unreachable" if the lookup for user 0 without mark fails, whatever its route."""
    unicast = table(chain("output", (Match(Fib("type", ("daddr",)), "unicast", "!="), nft.DROP)))
    rule = IpRule(6, 100, table=100, mark=1, mask=1)
    sent = Packet(6, FAR[6], mark=1)
    assert out(machine, NetState((unicast,), (rule,), (by("wan", 6, 100),)), sent) == "nowhere"
    assert out(machine, NetState((unicast,), (rule,), (by("wan", 6, 100), by("mesh", 6))), sent) == "wan"


def test_frame_on_lo_is_forwarded_like_foreign_frame(machine: PacketMachine, family: int) -> None:
    """A frame that a packet socket sends by lo arrives there with its mark, passes forward and leaves."""
    rule = IpRule(family, 100, table=100, mark=5, mask=7)
    state = NetState((), (rule,), (by("wan", family, 100),))
    sent = Packet(family, FAR[family], origin=FRAME, bound="lo", mark=5, source=parse_address(OTHER[family]))
    where, trace = found(machine, state, sent)
    assert (where, trace.mark) == ("wan", 5)
    stop = table(chain("forward", (Match(Meta("iifname"), "lo"), nft.DROP)))
    assert out(machine, evolve(state, tables=(stop,)), sent) == "nowhere"


def test_frame_on_lo_is_tracked_at_input(machine: PacketMachine, family: int) -> None:
    """Before that its state is invalid; that of a packet that lo brings back is known."""
    early = table(chain("prerouting", (Match(Ct("state"), "new", "!="), nft.DROP), priority=-300))
    state = NetState((early,), (), (by("wan", family),))
    frame = Packet(family, own(family, "wan"), origin=FRAME, bound="lo", source=parse_address(OTHER[family]))
    assert out(machine, state, frame) == "nowhere"
    assert out(machine, state, Packet(family, own(family, "wan"))) == HERE


def test_loopback_address_from_outside_is_dropped(machine: PacketMachine) -> None:
    """IPv6 drops it before any hook; the default route does not lead it on."""
    sent = Packet(6, 1, origin=FORWARD, iif="lan", source=parse_address(OTHER[6]))
    assert out(machine, NetState(routes=(by("wan", 6),)), sent) == "nowhere"
    assert out(machine, NetState(routes=(by("wan", 6),)), evolve(sent, destination=FAR[6])) == "wan"


def test_broadcast_copy_decides_translation(machine: PacketMachine) -> None:
    """IPv4 sends a copy to the machine first; a mark that a nat chain writes is written on that alone."""
    late = chain("postrouting", (Mangle(MARK, 5), nft.ACCEPT), (Match(Ct("state"), "new"),), kind="nat", priority=100)
    to_all = Packet(4, parse_address("255.255.255.255"), bound="wan", mark=2)
    sample = send(machine, 0, NetState((table(late),)), [to_all])
    marks = {one.where: one.mark for seen in sample.seen.values() for one in seen}
    assert marks == {"wan": 2, HERE: 5}
    assert [one.outcome for one in traces(sample.state, sample.packets)] == ["unknown"]


def test_route_by_lo_is_unreachable_in_ipv6(machine: PacketMachine, family: int) -> None:
    """IPv4 takes such a packet for the machine's own, IPv6 for unreachable."""
    state = NetState(routes=(by("lo", family),))
    assert out(machine, state, Packet(family, FAR[family])) == {4: HERE, 6: "nowhere"}[family]
    remark = table(chain("output", (Mangle(MARK, 1),), kind="route", priority=-150))
    again = evolve(state, tables=(remark,), rules=(IpRule(family, 100, table=100, mark=1, mask=1),))
    again = evolve(again, routes=(*again.routes, by("wan", family, 100)))
    assert out(machine, again, Packet(family, FAR[family])) == "wan"


def test_nat_chain_without_tracking_drops_nothing(machine: PacketMachine, family: int) -> None:
    """A nat chain with only a drop drops nothing until a rule needs connection tracking."""
    stop = chain("output", (Match(Meta("skuid"), NOBODY), nft.DROP), kind="nat", priority=-100)
    reader = chain("input", (Match(Ct("state"), "new"),))
    state = NetState(routes=(by("wan", family),))
    sent = Packet(family, FAR[family], uid=NOBODY)
    assert out(machine, evolve(state, tables=(table(stop),)), sent) == "wan"
    assert out(machine, evolve(state, tables=(table(stop, reader),)), sent) == "nowhere"


def test_later_packets_of_flow_keep_translation(machine: PacketMachine, family: int) -> None:
    """The destination of later packets changes too, although they pass no nat chain."""
    turn = (Match(Payload("udp", "dport"), 53), Dnat(IPS[family], OTHER[family], 54))
    state = NetState((table(chain("output", turn, kind="nat", priority=-100)),), (), (by("wan", family),))
    first = machine.with_new_identity(Packet(family, FAR[family], dport=53))
    reply = Packet(family, own(family, "wan"), source=parse_address(OTHER[family]), origin=FORWARD, iif="wan")
    for sent in (first, evolve(reply, sport=54, dport=first.sport), first):
        kernel, _ = machine.send(state, [sent])
        seen = machine.seen(1)
    state_of = evolve(first, flow=CtInfo("established"))
    trace = Model(kernel).trace(state_of)
    (one,) = seen[key(first)]
    assert (one.where, one.destination, one.dport) == ("wan", parse_address(OTHER[family]), 54)
    assert (trace.device, trace.destination, trace.dport) == (one.where, one.destination, one.dport)
