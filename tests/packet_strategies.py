"""Hypothesis strategies for packets near the limits of a policy, and for kernels with foreign rules and routes."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

from attrs import evolve, frozen
from hypothesis import strategies as st

from nftpolicy.model.packet import ETHERTYPES as IP_TYPES
from nftpolicy.model.packet import (
    FORWARD,
    FRAME,
    ICMP,
    ICMPV6,
    IGMP,
    KERNEL,
    SOCKET,
    TCP,
    UDP,
    CtInfo,
    Packet,
    parse_address,
)
from nftpolicy.netstate.routing import TABLE_MAIN, IpRule, Route
from nftpolicy.policy.mark import FULL_MASK
from nftpolicy.policy.objects import Policy, Port
from nftpolicy.proof import assumptions

CLAT_ADDRESS = parse_address("2001:db8:77:ffff::9")  # of proof.assumptions
FAR = {4: parse_address("198.51.100.9"), 6: parse_address("2001:db8:9::9")}
NOBODY = 65533
TTL = {4: ("ip", "ttl"), 6: ("ip6", "hoplimit")}
ECHO = {4: ("icmp", "type"), 6: ("icmpv6", "type")}
REPORT = ("igmp", "type")
TUNNELS = {"ipip": 4, "6in4": 41, "gre": 47, "esp": 50, "l2tp": 115}
ETHERTYPES = (0x0806, 0x888E, 0x8863, 0x8864, 0x88B5, 0x8100)
SYN, RST, ACK = 2, 4, 16


@frozen
class Aims:
    """Values that a policy distinguishes, and their neighbours."""

    outer: tuple[str, ...]  # devices of uplinks, and ports of those that are bridges
    inner: tuple[str, ...]
    marks: tuple[int, ...]
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    addresses: dict[int, tuple[int, ...]]
    ports: tuple[int, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        return self.outer + self.inner


def aims(policy: Policy, ports: dict[str, tuple[str, ...]] | None = None) -> Aims:
    """Return the values to try in packets."""
    devices = [device for uplink in policy.uplink.values() for device in uplink.devices]
    outer = [*devices, *(port for device in devices for port in (ports or {}).get(device, ()))]
    inside = [assumptions.sample_device(pattern) for pattern in policy.inside]
    inner = [*inside, "nobody0"] if "nobody0" not in outer else inside
    users = [service.user.number for service in policy.service.values() if service.user]
    users += [uplink.resolver.user.number for uplink in policy.uplink.values() if uplink.resolver]
    users += [lan.user.number for lan in policy.lan.values() if lan.user]
    groups = [service.group.number for service in policy.service.values() if service.group]
    groups += [lan.group.number for lan in policy.lan.values() if lan.group]
    known = [port for service in policy.service.values() for port in service.ports]
    known += [port for forward in policy.forward.values() for port in forward.ports]
    known += [port for lan in policy.lan.values() for port in lan.ports]
    known += [publish.port for publish in policy.publish.values()]
    known += [answer.port for uplink in policy.uplink.values() for answer in uplink.answer if answer.port]
    numbers = {9, 53, 67, 68, 546, 547, 1001, 1900, 4789, 5353}
    for port in known:
        numbers |= {port.low - 1, port.low, port.high, port.high + 1}
    numbers |= {listen.port for _, listen in _listening(policy)}
    return Aims(
        tuple(outer),
        tuple(inner),
        tuple(sorted(_marks(policy))),
        _near(users),
        _near(groups),
        {family: _addresses(policy, family, [*devices, *inside]) for family in (4, 6)},
        tuple(sorted(one for one in numbers if 0 < one < 0x10000)),
    )


def _listening(policy: Policy) -> Iterator[tuple]:
    for uplink in policy.uplink.values():
        for listen in uplink.resolver.listen if uplink.resolver else ():
            yield uplink, listen


def _marks(policy: Policy) -> set[int]:
    """Return no mark, each mark with and without foreign bits, and marks that miss one bit."""
    found = {0, FULL_MASK}
    for uplink in policy.uplink.values():
        value, mask = uplink.mark.value, uplink.mark.mask
        found |= {value, value | ~mask & FULL_MASK, value ^ mask, value ^ (mask & -mask), value & (value - 1)}
        found |= {value ^ 1 << (value.bit_length() - 1), value | 0x80000000 & ~mask, ~mask & FULL_MASK}
    return found


def _near(numbers: list[int]) -> tuple[int, ...]:
    found = {0, NOBODY} | {near for number in numbers for near in (number - 1, number, number + 1)}
    return tuple(sorted(one for one in found if 0 <= one < FULL_MASK))


def _addresses(policy: Policy, family: int, devices: list[str]) -> tuple[int, ...]:
    """Return the ends of networks and their neighbours, the resolvers, and addresses of the host and of links."""
    top = (1 << (32 if family == 4 else 128)) - 1
    found = {FAR[family], parse_address("127.0.0.1" if family == 4 else "::1")}
    listed = [service.to for service in policy.service.values()]
    listed += [answer.source for uplink in policy.uplink.values() for answer in uplink.answer]
    listed += [networks for forward in policy.forward.values() for networks in (forward.source, forward.to)]
    listed += [lan.to for lan in policy.lan.values()]
    for networks in listed:
        for net in networks:
            if net.version == family:
                low, high = int(net.network_address), int(net.broadcast_address)
                found |= {low, high, max(low - 1, 1), min(high + 1, top)}
    found |= {int(one.address) for _, one in _listening(policy) if one.address.version == family}
    for uplink in policy.uplink.values():
        found |= {int(gateway) for gateway in uplink.gateways if gateway.version == family}
        servers = uplink.resolver.named_servers if uplink.resolver else ()
        found |= {int(server.address) for server in servers if server.address.version == family}
    found |= {assumptions.assumed_address(family, at) for at in range(len(devices))}
    if family == 6:
        found |= {assumptions.assumed_link_local(at) for at in range(len(devices))}
        found |= {
            parse_address(one) for one in ("fe80::99", "ff02::1", "ff02::16", "ff02::1:ff00:1", "ff05::1", "fec0::1")
        }
    else:
        found |= {
            parse_address(one) for one in ("224.0.0.1", "224.0.0.22", "239.1.2.3", "255.255.255.255", "169.254.1.1")
        }
    return tuple(sorted(found))


# --- packets -------------------------------------------------------------------------------


def _plain(aim: Aims, policy: Policy) -> Iterator[Packet]:
    """Yield packets near the policy: for each of its keys, and for each way in which Linux sends."""
    for family in (4, 6):
        anyone = Packet(family, FAR[family], uid=NOBODY, gid=NOBODY)
        yield anyone
        yield evolve(anyone, origin=KERNEL)
        for device in aim.outer:
            yield evolve(anyone, bound=device)
            yield evolve(anyone, bound=device, origin=FRAME)
            for ethertype in ETHERTYPES:
                yield evolve(anyone, bound=device, origin=FRAME, ethertype=ethertype)
                yield evolve(anyone, bound=device, origin=FRAME, fields={("ether", "type"): ethertype})
                yield evolve(
                    anyone,
                    bound=device,
                    origin=FRAME,
                    ethertype=ethertype,
                    fields={("ether", "type"): IP_TYPES[family]},
                )
            for one in exempt(family):
                yield evolve(one, bound=device)
                yield evolve(one, bound=device, origin=FRAME)
            yield Packet(family, FAR[family] + 1, FAR[family], origin=FORWARD, iif=device)
        for service in policy.service.values():
            for device in aim.devices if service.unmarked else ():
                assert service.user is not None
                yield evolve(anyone, uid=service.user.number, bound=device)
        for device in aim.inner:
            yield Packet(family, FAR[family], FAR[family] + 1, origin=FORWARD, iif=device)
        for uplink in policy.uplink.values():
            flow = CtInfo("established", "reply", uplink.mark.value)
            yield evolve(anyone, mark=uplink.mark.value)
            yield evolve(anyone, mark=uplink.mark.value, origin=KERNEL)
            yield evolve(anyone, mark=uplink.mark.value, origin=KERNEL, protocol=TCP, flow=CtInfo("established"))
            reset = Packet(family, FAR[family], protocol=TCP, origin=KERNEL, fields={("tcp", "flags"): RST | ACK})
            yield evolve(reset, mark=uplink.mark.value, flow=flow)
            for device in aim.devices:
                for one in exempt(family):
                    yield evolve(one, bound=device, mark=uplink.mark.value)
            for answer in uplink.answer:
                if answer.port:
                    protocol = {"tcp": TCP, "udp": UDP}[answer.port.protocol]
                    reply = evolve(anyone, protocol=protocol, sport=answer.port.low, dport=4000, flow=flow)
                    yield reply
                    yield evolve(reply, mark=uplink.mark.value)
                else:
                    echo = {ECHO[family]: 0 if family == 4 else 129}
                    protocol = ICMP if family == 4 else ICMPV6
                    yield evolve(anyone, protocol=protocol, origin=KERNEL, fields=echo, flow=flow)
            if uplink.resolver:
                user = uplink.resolver.user.number
                yield evolve(anyone, uid=user, mark=uplink.mark.value, dport=53)
                for server in uplink.resolver.named_servers:
                    if server.address.version == family:
                        query = evolve(anyone, uid=user, mark=uplink.mark.value, destination=int(server.address))
                        yield evolve(query, dport=server.port)
                        yield evolve(query, dport=server.port, protocol=TCP)
                        yield evolve(query, dport=server.port ^ 1)
                for listen in uplink.resolver.listen:
                    if listen.address.version == family:
                        yield evolve(anyone, destination=int(listen.address), dport=listen.port)
                        yield evolve(anyone, destination=int(listen.address), dport=listen.port, origin=KERNEL)
                        for device in aim.devices:
                            here = int(listen.address)
                            yield Packet(family, here, FAR[family], dport=listen.port, origin=FORWARD, iif=device)
        for service in policy.service.values():
            mine = evolve(anyone, mark=policy.uplink[service.uplink].mark.value)
            mine = evolve(mine, uid=service.user.number) if service.user else mine
            mine = evolve(mine, gid=service.group.number) if service.group else mine
            near = [int(net.network_address) for net in service.to if net.version == family]
            mine = evolve(mine, destination=near[0]) if near else mine
            if service.ports:
                mine = _to_port(mine, service.ports[0])
            if service.kernel:
                yield from (evolve(mine, mark=0), evolve(mine, mark=0, origin=KERNEL))
                yield from (evolve(mine, mark=0, origin=FORWARD, iif=device) for device in aim.devices)
                yield from (evolve(mine, mark=0, bound=device) for device in aim.inner)
            yield mine
            yield evolve(mine, dport=53, mark=0)
            yield evolve(mine, dport=53, mark=0, flow=CtInfo("untracked"))
        yield from _forwarded(policy, family)
    yield from _translated(policy)


def _to_port(packet: Packet, port: Port) -> Packet:
    if port.protocol == "ping":
        protocol, kind = (ICMP, 8) if packet.family == 4 else (ICMPV6, 128)
        return evolve(packet, protocol=protocol, fields={ECHO[packet.family]: kind})
    if port.protocol in TUNNELS:
        return evolve(packet, protocol=TUNNELS[port.protocol])
    return evolve(packet, protocol={"tcp": TCP, "udp": UDP}[port.protocol], dport=port.low)


def _forwarded(policy: Policy, family: int) -> Iterator[Packet]:
    """Yield packets of other machines that a forward names, and replies of published ports."""
    numbers = {"tcp": TCP, "udp": UDP}
    for forward in policy.forward.values():
        ends = {
            key: next((int(net.network_address) + 9 for net in networks if net.version == family), FAR[family] + shift)
            for key, networks, shift in (("source", forward.source, 1), ("destination", forward.to, 0))
        }
        port = {"protocol": numbers[forward.ports[0].protocol], "dport": forward.ports[0].low} if forward.ports else {}
        for device in map(assumptions.sample_device, forward.devices):
            packet = Packet(family, origin=FORWARD, iif=device, **ends, **port)
            yield packet
            yield evolve(packet, flow=CtInfo("established"))
            yield evolve(packet, flow=CtInfo("established", "reply"))
    for publish in policy.publish.values():
        flow = CtInfo("established", "reply", policy.uplink[publish.uplink].mark.value)
        protocol = numbers[publish.port.protocol]
        ends = {"destination": FAR[family], "source": FAR[family] + 1}
        yield Packet(
            family, **ends, protocol=protocol, sport=publish.port.low, origin=FORWARD, iif=publish.to, flow=flow
        )


def _translated(policy: Policy) -> Iterator[Packet]:
    """Yield packets of each CLAT and answers to it, and such packets in the other direction or to another place."""
    for uplink in policy.uplink.values():
        if uplink.clat is None:
            continue
        ends = {"source": int(uplink.clat.prefix.network_address) + 9, "destination": CLAT_ADDRESS}
        for device in (uplink.devices[0], uplink.clat.device):
            for flow in (CtInfo(), CtInfo("established", "reply"), CtInfo("related", "reply")):
                packet = Packet(6, **ends, origin=FORWARD, iif=device, flow=flow)
                yield packet
                yield evolve(packet, source=packet.destination, destination=packet.source)
                yield evolve(packet, source=FAR[6], protocol=ICMPV6, fields={("icmpv6", "type"): 2})


def exempt(family: int) -> Iterator[Packet]:
    """Yield a packet of each exemption of an IP family (RFC 2131, 8415, 4861, 3810, 3376, and Gluon's)."""
    origin = {"origin": KERNEL, "uid": NOBODY, "gid": NOBODY}
    if family == 4:
        yield Packet(4, parse_address("255.255.255.255"), 0, UDP, 68, 67, **{**origin, "origin": SOCKET})
        yield Packet(4, parse_address("192.0.2.1"), 0, UDP, 68, 67, **{**origin, "origin": SOCKET})
        for group, kind in (("224.0.0.22", 0x22), ("224.0.0.2", 0x17), ("239.1.2.3", 0x16)):
            yield Packet(4, parse_address(group), protocol=IGMP, fields={TTL[4]: 1, REPORT: kind}, **origin)
        return
    kinds = {"ff02::2": (132, 133), "ff02::1": (136,), "ff02::1:ff00:1": (131, 135), "ff02::16": (143,)}
    neighbour = parse_address("fe80::99")
    for near in map(assumptions.assumed_link_local, range(2)):  # of the first devices of uplinks
        for group, kind in ((group, kind) for group, of_group in kinds.items() for kind in of_group):
            fields = {ECHO[6]: kind, TTL[6]: 1 if kind in (131, 132, 143) else 255}
            yield Packet(6, parse_address(group), near, ICMPV6, fields=fields, **origin)
        for kind in (135, 136):
            yield Packet(6, FAR[6], near, ICMPV6, fields={ECHO[6]: kind, TTL[6]: 255}, **origin)
        yield Packet(6, parse_address("ff02::1:2"), near, UDP, 546, 547, **{**origin, "origin": SOCKET})
        yield Packet(6, neighbour, near, UDP, 40000, 4789, **origin)
        yield Packet(6, parse_address("ff02::1"), near, UDP, 40000, 1001, **{**origin, "origin": SOCKET})
        yield Packet(6, neighbour, near, UDP, 1001, 40000, **{**origin, "origin": SOCKET})


Edit = Callable[[Packet], Packet]


def _edits(aim: Aims) -> list[list[Edit]]:
    """Return every change of a packet in one respect, by respects."""

    def to(**values):
        names = sorted(values)
        drawn = product(*(values[name] for name in names))
        return [partial(evolve, **dict(zip(names, one, strict=True))) for one in drawn]

    def address(name):
        def put(at, packet):
            own = aim.addresses[packet.family]
            return evolve(packet, **{name: own[at % len(own)]})

        return [partial(put, at) for at in range(max(map(len, aim.addresses.values())))]

    def field(names, value):
        def put(packet):
            return evolve(packet, fields={**packet.fields, names[packet.family == 6]: value})

        return put

    kinds = (0, 1, 3, 8, 11, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 143)
    flags = [field((("tcp", "flags"),) * 2, value) for value in (SYN, RST, RST | ACK, ACK)]
    marks = [mark for mark in aim.marks if mark]
    flows = [CtInfo(state) for state in ("new", "established", "related", "invalid", "untracked")]
    flows += [CtInfo("new", "original", mark) for mark in marks]
    flows += [
        CtInfo(state, way, mark)
        for state in ("established", "related")
        for way in ("original", "reply")
        for mark in marks
    ]
    return [
        to(mark=aim.marks),
        to(uid=aim.uids, gid=aim.gids),
        to(uid=aim.uids),
        to(gid=aim.gids),
        address("destination"),
        address("source"),
        to(source=(None,)),
        to(dport=aim.ports),
        to(sport=aim.ports),
        to(protocol=(UDP, TCP, ICMP, ICMPV6, IGMP, *TUNNELS.values(), 132)),
        to(origin=(SOCKET, KERNEL, FRAME, FORWARD)),
        to(bound=(None, *aim.devices)),
        to(iif=aim.devices),
        to(flow=flows),
        [field((TTL[4], TTL[6]), value) for value in (1, 64, 254, 255)],
        [field((ECHO[4], ECHO[6]), value) for value in kinds],
        flags,
        [field((REPORT,) * 2, value) for value in (0x11, 0x12, 0x16, 0x17, 0x22)],
        [field((("ether", "type"),) * 2, value) for value in (0x0800, 0x86DD, 0x0806, 0x8100)],
        [field((("ether", "readable"),) * 2, 0), field((("meta", "oiftype"),) * 2, 512)],
        [field((("ip", "frag-off"),) * 2, 100), field((("meta", "pkttype"),) * 2, 3)],
    ]


def whole(packet: Packet, aim: Aims) -> Packet:
    """Return a packet with all fields that its origin needs, and no field that it cannot have."""
    bound, iif, source = packet.bound, None, packet.source
    if packet.origin == FRAME:
        bound = bound or aim.outer[0]
    if packet.origin == FORWARD:
        bound, iif = None, packet.iif or aim.devices[-1]
        source = FAR[packet.family] + 2 if source is None else source
    ethertype = packet.ethertype if packet.origin == FRAME else None
    protocol = {(4, ICMPV6): ICMP, (6, ICMP): ICMPV6, (6, IGMP): UDP}.get(
        (packet.family, packet.protocol), packet.protocol
    )
    fields = {
        name: value
        for name, value in packet.fields.items()
        if {"ip": 4, "ip6": 6, "icmp": 4, "icmpv6": 6}.get(name[0], packet.family) == packet.family
        and (name[0] not in ("meta", "ether") or packet.origin == FRAME)
    }
    return evolve(
        packet, bound=bound, iif=iif, source=source, ethertype=ethertype, protocol=protocol, fields=fields
    )  # fmt: skip


def packets(policy: Policy, ports: dict[str, tuple[str, ...]] | None = None) -> st.SearchStrategy:
    """Generate packets near a policy: one that it names, with up to four changes."""
    aim = aims(policy, ports)
    starts: dict[str, list[Packet]] = {}
    for packet in _plain(aim, policy):
        starts.setdefault(packet.origin, []).append(packet)
    ways = [starts[origin] for origin in (SOCKET, SOCKET, KERNEL, FORWARD, FRAME)]
    changes = st.lists(st.one_of(*map(st.sampled_from, _edits(aim))), max_size=4)
    begun = st.one_of(*map(st.sampled_from, ways))
    return _packets(aim, begun, changes)


@st.composite
def _packets(draw, aim, begun, changes):
    return _made(aim, draw(begun), draw(changes))


def _made(aim: Aims, packet: Packet, edits: Sequence[Edit]) -> Packet:
    for edit in edits:
        packet = edit(packet)
    return whole(packet, aim)


def some_packets(policy: Policy, count: int, ports: dict[str, tuple[str, ...]] | None = None) -> list[Packet]:
    """Return the same packets in each run: all that the policy names, and `count` changed ones."""
    aim, chance = aims(policy, ports), random.Random(count)
    plain, edits = list(_plain(aim, policy)), _edits(aim)
    changed = [
        _made(aim, chance.choice(plain), [chance.choice(chance.choice(edits)) for _ in range(chance.randint(1, 3))])
        for _ in range(count)
    ]
    return [whole(packet, aim) for packet in plain] + changed


# --- machines ------------------------------------------------------------------------------


@st.composite
def machines(draw, policy: Policy):
    """Generate foreign rules and routes that lead other packets by uplinks."""
    uplinks = [(uplink, device) for uplink in policy.uplink.values() for device in uplink.devices]
    rules, routes = [], []
    for family in (4, 6):
        for uplink, device in draw(st.lists(st.sampled_from(uplinks), max_size=2)):
            table = draw(st.sampled_from((TABLE_MAIN, TABLE_MAIN, uplink.table, 4242)))
            metric = draw(st.sampled_from((1, 100, 2000)))
            to = draw(st.sampled_from(("default", "default", "198.51.100.0/24" if family == 4 else "2001:db8::/32")))
            routes.append(Route(family, table, to, device=device, metric=metric, protocol=4))
            selector = draw(st.sampled_from(({}, {"uids": (0, NOBODY)}, {"oif": device}, {"l4proto": UDP})))
            if draw(st.booleans()):
                priority = draw(st.integers(1, 1200))
                rules.append(IpRule(family, priority, table=table, protocol=4, **selector))
    return tuple(rules), tuple(dict.fromkeys(routes))


def joined(state, extra):
    """Return a compiled state with foreign rules and routes."""
    rules = sorted([*state.rules, *extra[0]], key=lambda rule: (rule.family, rule.priority))
    return evolve(state, rules=tuple(rules), routes=(*state.routes, *extra[1]))
