# SPDX-License-Identifier: BSD-2-Clause
"""From the failure of a lemma to a packet: candidates, each walked before it is shown.

Candidates take from the lemma what headers and sockets they need, and from the ip rules and routes
what leads to the uplink. Only a packet that the walk shows leaving counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import evolve

from ..model import bits, values
from ..model.box import Box, Ranges, common
from ..model.packet import FORWARD, FRAME, KERNEL, SOCKET, TCP, UDP, WIDTH, Flow, Packet, interval, number
from ..model.space import Space
from ..model.walk import Walk
from ..netstate.nft import FULL
from ..netstate.routing import IpRule, Route
from ..netstate.state import NetState
from .claim import UplinkClaim
from .ground import Ground
from .lemmas import Hit
from .verdict import Counterexample
from .worn import of_users

# Addresses for documentation (RFC 5737, RFC 3849), where nothing else decides.
REMOTE = {4: number("198.51.100.9"), 6: number("2001:db8:9::9")}
# Neither "this host", loopback, groups (RFC 6890), nor anything else that is not a host elsewhere.
_USUAL = {
    4: tuple(interval(one, 4) for one in ("1.0.0.0-126.255.255.255", "128.0.0.0-223.255.255.255")),
    6: (interval("2000::/3", 6),),
}
_ROUTES_EACH = 3
_STATES = {index: name for name, index in values.STATES.items()}
_DIRECTIONS = {index: name for name, index in values.DIRECTIONS.items()}


def pick(wanted: Ranges | None, *liked: int) -> int:
    """One value: the first liked one that is in the ranges, else their lowest."""
    if wanted is None:
        return liked[0]
    for value in liked:
        if any(low <= value <= high for low, high in wanted):
            return value
    return wanted[0][0]


def packet_of(space: Space, box: Box, origin: str, device: str | None = None) -> Packet:
    """A packet of a box, with plain values where the box leaves a choice; bound to `device`."""
    family = space.family or 4
    frame_type = None
    if not space.family:
        frame_type = pick(box.get("ethertype"), 0x88B5)
    source = box.get("saddr")
    protocol = pick(box.get("protocol"), UDP, TCP)
    fields: dict[tuple[str, str], int] = {}
    if "ttl" in box:
        fields["ip" if family == 4 else "ip6", "ttl" if family == 4 else "hoplimit"] = pick(box["ttl"], 64)
    for name in ("icmp.type", "icmp.code", "icmpv6.type", "icmpv6.code"):
        if name in box:
            first, _, second = name.partition(".")
            fields[first, second] = pick(box[name], 8 if first == "icmp" else 128)
    if protocol == TCP:
        set_ = (pick(box.get(f"tcp.{flag}"), int(flag == "syn")) << at for at, flag in enumerate(values.TCP_FLAGS))
        fields["tcp", "flags"] = sum(set_)
    arrived = pick(box.get("iif"), 0)
    return Packet(
        family,
        _destination(family, box.get("daddr")),
        pick(source, 0) if source else None,
        protocol,
        pick(box.get("sport"), 40000),
        pick(box.get("dport"), 9),
        origin,
        _mark(space, box, "mark"),
        pick(box.get("uid"), 65534),
        pick(box.get("gid"), 65534),
        None,
        device if origin != FORWARD else None,
        values.representative(space.devices[arrived]) if origin == FORWARD and arrived else None,
        Flow(
            _STATES[pick(box.get("ct.state"), 0, 1)],
            _DIRECTIONS[pick(box.get("ct.direction"), 0)],
            _mark(space, box, "ctmark"),
        ),
        frame_type,
        fields,
    )


def _destination(family: int, wanted: Ranges | None) -> int:
    """An address of another host, if there is one in the ranges."""
    if wanted is None:
        return REMOTE[family]
    usual = hosts(family, wanted)
    low, high = usual[0]
    return pick(usual, REMOTE[family], min(low + 9, high))


def hosts(family: int, wanted: Ranges) -> Ranges:
    """Those of some addresses that hosts have; if there are none, all of them."""
    return common(wanted, _USUAL[family]) or wanted


def _mark(space: Space, box: Box, of: str) -> int:
    return sum(bits.spread(pick(box.get(bits.name(of, group)), 0), group) for group in space.partition)


# --- where routing alone leads ----------------------------------------------------------


def _rules(state: NetState, family: int) -> list[IpRule]:
    return [rule for rule in state.rules if rule.family == family]


def _devices_of(route: Route) -> set[str]:
    hops = {hop.device for hop in getattr(route, "nexthops", ()) if hop.device}
    return hops | ({route.device} if route.device else set())


def _ways(state: NetState, family: int, device: str) -> Iterator[tuple[IpRule | None, Route]]:
    """Each ip rule with a few routes of its table that lead to the device."""
    by_table: dict[int, list[Route]] = {}
    for route in state.routes:
        if route.family == family and route.kind == "unicast" and device in _devices_of(route):
            found = by_table.setdefault(route.table, [])
            if len(found) < _ROUTES_EACH or route.destination == "default":
                found.append(route)
    for rule in _rules(state, family):
        for route in by_table.get(rule.table, ())[-_ROUTES_EACH:] if rule.action == "lookup" else ():
            yield rule, route


def _locals(state: NetState, family: int, prefix: str | None) -> int | None:
    """An address of this machine, within the prefix."""
    low, high = interval(prefix, family) if prefix else (0, (1 << WIDTH[family]) - 1)
    for route in state.routes:
        if route.family == family and route.kind == "local":
            address = interval(route.destination, family)[0]
            if low <= address <= high and route.device != "lo":
                return address
    return low + 1 if prefix and "/" in prefix and high > low else (low if prefix else None)


def _led(state: NetState, packet: Packet, rule: IpRule, route: Route) -> Packet:
    """The packet with what it takes for the rule to match and the route to be the one."""
    family = packet.family
    low, high = interval(route.destination, family)
    changes: dict[str, object] = {}
    if not low <= packet.destination <= high or (route.destination == "default" and rule.destination):
        changes["destination"] = min(low + 9, high)
    if rule.destination:
        first, last = interval(rule.destination, family)
        changes["destination"] = min(max(first, low) + 9, last, high)
    if rule.source and not rule.invert:
        changes["source"] = _locals(state, family, rule.source)
    if rule.mask and not rule.invert and packet.origin != FORWARD:  # what arrives wears no mark
        changes["mark"] = packet.mark & ~rule.mask & FULL | rule.mark
    if rule.uids:
        changes["uid"] = rule.uids[0]
    if rule.l4proto:
        changes["protocol"] = rule.l4proto
    if rule.dports:
        changes["dport"] = rule.dports[0]
    if rule.sports:
        changes["sport"] = rule.sports[0]
    if rule.oif:
        changes["bound"] = rule.oif
    if rule.iif and rule.iif != "lo":
        changes |= {"iif": rule.iif, "origin": FORWARD, "source": changes.get("source", REMOTE[family] + 1)}
    return evolve(packet, **changes)  # type: ignore[arg-type]


# --- the search ------------------------------------------------------------------------


def candidates(
    ground: Ground, uplink: UplinkClaim, origin: str, family: int, device: str, hits: Sequence[Hit]
) -> Iterator[Packet]:
    """Packets that may leave by the device without being entitled to, the plainest first."""
    state = ground.state
    space = ground.space(family)
    own = family or 4
    starts = [packet_of(space, hit.box, origin) for hit in hits if hit.family == family and not hit.doubts]
    starts += [packet_of(space, hit.box, origin) for hit in hits if hit.family == family and hit.doubts]
    starts = starts or [packet_of(space, {}, origin)]
    if origin == FRAME:
        yield from (evolve(one, bound=device, source=one.source or _locals(state, own, None)) for one in starts)
        return
    if origin == FORWARD:
        others = _others(ground, uplink, family)
        starts = [
            evolve(one, iif=one.iif or other, source=one.source or REMOTE[family] + 1)
            for one in starts
            for other in others
        ]
    for one in starts:
        for rule, route in _ways(state, family, device):
            if rule is not None:
                yield _led(state, one, rule, route)
        yield one
        if origin == SOCKET:
            yield evolve(one, bound=device)
            yield evolve(one, bound=device, uid=0, gid=0)


def _others(ground: Ground, uplink: UplinkClaim, family: int) -> list[str]:
    """Devices by which other hosts' packets may arrive."""
    known = {route.device for route in ground.state.routes if route.device and route.family == family}
    named = {values.representative(one) for one in ground.space(family).devices[1:]}
    found = sorted(known - {"lo", *uplink.devices}) or sorted(named - {"lo", *uplink.devices})
    return found[:3]


def entitled(packet: Packet, uplink: UplinkClaim) -> bool:
    """Whether a packet begins with the uplink's mark, or arrived by the uplink, or its flow has the mark already."""
    if packet.flow.mark & uplink.mask == uplink.value:
        return True
    if packet.origin == FORWARD:
        return packet.iif in uplink.devices
    return packet.mark & uplink.mask == uplink.value


def exempt(walk: Walk, uplink: UplinkClaim) -> bool:
    """Whether what leaves is what an exemption names, or of a user that needs no mark."""
    packet = walk.packet
    if packet.origin == FRAME and packet.ethertype is not None:
        return any(packet.ethertype in hole.frames for hole in uplink.holes)
    fields = {
        "protocol": packet.protocol,
        "fragment": int(bool(packet.fields.get(("ip", "frag-off"), 0))),
        "saddr": walk.source or 0,
        "daddr": walk.destination,
        "sport": packet.sport,
        "dport": walk.dport,
        "ttl": packet.fields.get(("ip", "ttl") if packet.family == 4 else ("ip6", "hoplimit"), 64),
        "icmpv6.type": packet.fields.get(("icmpv6", "type"), 128),
        "socket": int(packet.has_socket),
        "uid": packet.uid,
        "gid": packet.gid,
    }
    regions = [region for hole in uplink.holes for region in hole.headers.get(packet.family, ())]
    # Those that ask for the mark of a flow are none: see `entitled`.
    regions += [one for one in of_users(uplink, packet.family) if packet.origin == SOCKET and not one.marks]
    return any(
        all(any(low <= fields.get(name, -1) <= high for low, high in some) for name, some in region.fields.items())
        for region in regions
    )


def search(
    ground: Ground,
    uplink: UplinkClaim,
    origin: str,
    families: Iterable[int],
    devices: Iterable[str],
    hits: Sequence[Hit],
    most: int = 4,
) -> tuple[list[Counterexample], list[str]]:
    """Packets that leave by the uplink and may not, one for each way; and doubts of those that only may leave."""
    found: dict[object, Counterexample] = {}
    doubts: list[str] = []
    for family in families:
        for device in devices:
            for packet in candidates(ground, uplink, origin, family, device, hits):
                if packet.origin != origin or entitled(packet, uplink):
                    continue
                walk = ground.model.walk(packet)
                if walk.outcome == "unknown" and walk.device in (device, None):
                    doubts += walk.doubts
                if walk.outcome != "leaves" or walk.device != device or exempt(walk, uplink):
                    continue
                why, key = _why(walk, packet)
                found.setdefault((family, key), Counterexample(packet, walk, device, why))
                if len(found) >= most:
                    return list(found.values()), doubts
    return list(found.values()), list(dict.fromkeys(doubts))


def _why(walk, packet: Packet) -> tuple[str, object]:  # type: ignore[no-untyped-def]
    """What led the packet there, in words, and a key that tells different ways apart."""
    marked = [one for one in walk.decisions if one.effect.startswith("mark")]
    rules = [one for one in walk.decisions if one.kind == "ip-rule" and isinstance(one.thing, IpRule)]
    if packet.origin == FRAME:
        return "AF_PACKET frames pass no hook but netdev egress", FRAME
    if marked:
        return f"marked on the way: {marked[-1].text}", ("marked", marked[-1].text)
    if packet.bound:
        return f"the socket is bound to {packet.bound}", "bound"
    if rules:
        return f"routed: {rules[-1].text}", rules[-1].text
    return "routed", "routed"


def search_marked(
    ground: Ground, uplink: UplinkClaim, hits: Sequence[Hit], stray: bool
) -> tuple[list[Counterexample], list[str]]:
    """Packets that wear the mark and leave where they may not: by another device (`stray`), or without a service."""
    found: list[Counterexample] = []
    doubts: list[str] = []
    for hit in hits:
        space = ground.space(hit.family)
        for device in _outs(ground, space, hit, uplink, stray):
            for origin in (KERNEL,) if pick(hit.box.get("socket"), 1) == 0 else (SOCKET, KERNEL):
                packet = evolve(packet_of(space, hit.box, origin, device), iif=None)
                walk = ground.model.walk(packet)
                if walk.outcome == "unknown":
                    doubts += walk.doubts
                elif walk.outcome == "leaves" and walk.device == device and walk.mark & uplink.mask == uplink.value:
                    why = "it wears the mark" + (f" and is routed or bound to {device}" if stray else "")
                    found.append(Counterexample(packet, walk, device, why))
                    break
    return found[:4], list(dict.fromkeys(doubts))


def seen(ground: Ground, hits: Sequence[Hit], outcome: str) -> tuple[list[Counterexample], list[str]]:
    """Packets of the parts of regions, whatever their marks, with that outcome: "leaves" by the device of the part
    (for lo: "delivered" there), or "delivered"."""
    found: list[Counterexample] = []
    doubts: list[str] = []
    for hit in hits:
        space = ground.space(hit.family)
        outs, comes = hit.box.get("oif"), hit.box.get("iif")
        devices = [values.representative(space.devices[low]) for low, _ in outs or () if low]
        arrived = pick(comes, 0) if comes else 0
        for device in devices[:2] or [None]:
            origins = (KERNEL,) if pick(hit.box.get("socket"), 1) == 0 else (SOCKET,)
            bound = None if device == "lo" else device
            packet = packet_of(space, hit.box, FORWARD if arrived else origins[0], bound)
            walk = ground.model.walk(packet)
            if walk.outcome == "unknown":
                doubts += walk.doubts
            elif walk.outcome == outcome and device in (None, walk.device, "lo"):
                found.append(Counterexample(packet, walk, walk.device or "", f"it is {walk.outcome}"
                                            if outcome == "delivered" else f"it leaves by {walk.device}"))  # fmt: skip
    return found[:4], list(dict.fromkeys(doubts))


def _outs(ground: Ground, space: Space, hit: Hit, uplink: UplinkClaim, stray: bool) -> list[str]:
    """Devices that a part of a region leaves by."""
    wanted = hit.box.get("oif")
    classes = space.devices[1:] if wanted is None else [
        space.devices[at] for low, high in wanted for at in range(low, high + 1) if at
    ]  # fmt: skip
    names = [values.representative(one) for one in classes]
    if not stray:
        return [one for one in names if one in uplink.devices][:2]
    real = {route.device for route in ground.state.routes if route.device}
    known = [one for one in names if one in real and one not in uplink.devices]
    return (known or [one for one in names if one != "lo"])[:2]
