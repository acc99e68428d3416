# SPDX-License-Identifier: BSD-2-Clause
"""P3: every word of a policy can be used by a packet. Each is a packet and what must become of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, product

from attrs import frozen

from ..model.box import Ranges, only, without
from ..model.packet import FORWARD, FRAME, KERNEL, SOCKET, TCP, UDP, Flow, Packet, changed, interval, number
from ..model.walk import Walk
from ..netstate.nft import Origin
from ..netstate.state import NetState
from .claim import BOTH, Claim, Region, Service, UplinkClaim
from .ground import Ground
from .surroundings import TABLE_LOCAL, inside_device
from .witness import REMOTE, hosts, packet_of, pick
from .worn import DNS

_RST = {("tcp", "flags"): 4}
_ALL_NODES = number("ff02::1")  # RFC 4291 2.7.1

_OTHER_HOST = 3  # PACKET_OTHERHOST, include/uapi/linux/if_packet.h
_MOST_PARTS = 64
_MANY = 64  # services of an uplink that are tried with every kind of packet
_EVERYBODY = {4: ("224.0.0.1", "255.255.255.255"), 6: ("ff02::1",)}


def _nobody(claim: Claim) -> int:
    """A user and group that the claim does not name."""
    named = {owner.number for one in claim.uplinks for service in one.services for owner in service.owners}
    named |= {one.names.user for one in claim.uplinks if one.names is not None}
    return next(number for number in count(65533) if number not in named)


def _free_port(claim: Claim) -> int:
    """A port where no resolver listens."""
    taken = {port for one in claim.uplinks if one.names is not None for _, _, port in one.names.listen}
    return next(port for port in count(9) if port not in taken)


@frozen
class Word:
    """`packet` must have `outcome` by `device`; with `mark` (value, mask), if that is told, at its end.

    `word` is what a person reads, `to` the address and port at the end, `shared` whether both
    families must agree on it.
    """

    property: str
    uplink: str
    word: str
    origin: Origin
    packet: Packet
    outcome: str
    device: str | None = None
    mark: tuple[int, int] | None = None
    to: tuple[int, int] | None = None
    flow_mark: tuple[int, int] | None = None
    borrowed: bool = False  # no worse than the same packet without its mark is enough
    refused: str | None = None  # an outcome that is not "leaves" by this device is enough
    firewalled: bool = False  # dropped by a rule of others, once it wears the mark, is enough

    def holds(self, walk: Walk) -> bool:
        """Whether the walk is as the word wants."""
        if self.refused is not None:
            return not (walk.outcome in ("leaves", "unknown") and walk.device in (self.refused, None))
        if walk.outcome != self.outcome or (self.device is not None and walk.device != self.device):
            return False
        return self.wears(walk) and (self.to is None or (walk.destination, walk.dport) == self.to)

    def wears(self, walk: Walk) -> bool:
        """Whether packet and flow have the marks at the end of the walk that the word wants."""
        wanted = ((self.mark, walk.mark), (self.flow_mark, walk.flow_mark))
        return all(mark is None or worn & mark[1] == mark[0] for mark, worn in wanted)


def _sample(ground: Ground, family: int, region: Region, origin: str, bound: str | None = None) -> Packet:
    boxes = region.boxes(ground.space(family))
    return packet_of(ground.space(family), boxes[0] if boxes else {}, origin, bound)


def _parts(family: int, region: Region, ends: bool = False) -> Iterator[Region]:
    """The region by each range of its fields, and each type: what a rule or a set has a row for. With `ends` the
    last values of ranges too, since two rows can be neighbours."""
    parts: dict[str, list[Ranges]] = {}
    for name, wanted in region.fields.items():
        usual = hosts(family, wanted) if name == "daddr" else wanted
        parts[name] = [((low, high),) for low, high in usual]
        if name.endswith(".type"):
            parts[name] = [only(value) for low, high in wanted for value in range(low, high + 1)]
        elif ends:
            parts[name] += [only(high) for low, high in usual if high > low]
    for chosen in islice(product(*parts.values()), _MOST_PARTS):
        yield Region(dict(zip(parts, chosen, strict=True)), region.marks)


def words(ground: Ground, claim: Claim) -> Iterator[Word]:
    """All words of a claim."""
    for one in claim.uplinks:
        yield from _services(ground, one, claim)
        yield from _holes(ground, one, claim)
        yield from _replies(ground, one, claim)
        yield from _arrivals(ground, one, claim)
        yield from _frames(one)
        if one.names is not None:
            yield from _names(one, claim)
    yield from _inside(claim)


def _services(ground: Ground, one: UplinkClaim, claim: Claim) -> Iterator[Word]:
    worn, device, nobody = (one.value, one.mask), one.devices[0], _nobody(claim)
    for at, service in enumerate(one.services):
        title = f"service {service.name}"
        if at >= _MANY:
            yield from _service_in_short(ground, one, service)
            continue
        for family, regions in service.regions.items():
            for region in (part for whole in regions for part in _parts(family, whole, ends=True)):
                plain = changed(_sample(ground, family, region, SOCKET), mark=one.value)
                if family == 6 and (plain.destination >> 118 == 0x3FA or plain.destination >> 120 == 0xFF):
                    plain = changed(plain, bound=device)  # such an address means nothing without a device
                ports = without(region.fields.get("dport", ((1, 0xFFFF),)), only(DNS))
                plain = changed(plain, dport=pick(ports, plain.dport) if ports else DNS)
                # Of a service that asks for names alone the words about names tell.
                for owner in service.owners if ports or one.names is None else ():
                    mine = changed(plain, mark=_sent_with(one, service), **{owner.key: owner.number})
                    yield Word("P3", one.name, title, service.origin, mine, "leaves", device, worn)
                if service.kernel:
                    own = changed(plain, origin=KERNEL)
                    if own.protocol == UDP:
                        yield Word("P3", one.name, title, service.origin, own, "leaves", device, worn)
                if service.kernel and region.fields:
                    wrapped = changed(plain, uid=nobody, gid=nobody)
                    tunnel = f"{title}: what a process sends through it"
                    yield Word("P3", one.name, tunnel, service.origin, wrapped, "leaves", device, worn)
                closed = changed(plain, origin=KERNEL, protocol=TCP, flow=Flow("established"), fields={})
                yield Word(
                    "P3", one.name, f"{title}: the rest of a closed connection", service.origin, closed, "leaves",
                    device, worn,
                )  # fmt: skip


def _sent_with(one: UplinkClaim, service: Service) -> int:
    """The mark of a service's sockets."""
    return 0 if service.unmarked else one.value


def _service_in_short(ground: Ground, one: UplinkClaim, service: Service) -> Iterator[Word]:
    """One packet for each family: of hundreds of services all are rows of the same sets."""
    for family, regions in service.regions.items():
        plain = changed(_sample(ground, family, regions[0], SOCKET), mark=one.value)
        if service.owners and plain.dport != DNS:
            first = service.owners[0]
            mine = changed(plain, mark=_sent_with(one, service), **{first.key: first.number})
            title, worn = f"service {service.name}", (one.value, one.mask)
            yield Word("P3", one.name, title, service.origin, mine, "leaves", one.devices[0], worn)


def _holes(ground: Ground, one: UplinkClaim, claim: Claim) -> Iterator[Word]:
    hooked = ground.hooked_devices()
    for hole in one.holes:
        title = f"exemption {hole.name}"
        for device in (*one.devices, *one.ports):
            for ethertype in hole.frames:
                frame = Packet(4, 0, origin=FRAME, bound=device, ethertype=ethertype)
                yield Word("P3", one.name, title, hole.origin, frame, "leaves", device)
            for family, regions in hole.headers.items():
                for region in (part for whole in regions for part in _parts(family, whole)):
                    frame = _sample(ground, family, region, FRAME, device)
                    if family == 6:
                        near = frame.source or _link_local(ground.state, device)
                        to = frame.destination if "daddr" in region.fields else _ALL_NODES
                        frame = changed(frame, source=near, destination=to)
                    if device in hooked:
                        yield Word("P3", one.name, title, hole.origin, frame, "leaves", device)
                    if device not in one.devices:
                        continue
                    plain = changed(frame, origin=KERNEL)
                    yield Word("P3", one.name, title, hole.origin, plain, "leaves", device)
                    if hole.report:
                        worn = changed(plain, mark=one.value)
                        yield Word("P3", one.name, f"{title}, marked by accident", hole.origin, worn, "leaves", device)
    yield from _strays(ground, one, claim)


def _strays(ground: Ground, one: UplinkClaim, claim: Claim) -> Iterator[Word]:
    """Reports of the kernel wear marks by accident; inside they must not be lost for it."""
    from .promise import REPORTS, hole

    for word in REPORTS if claim.inside else ():
        for family, regions in hole(word, one.name).headers.items():
            device = inside_device(claim.inside[0])  # type: ignore[index]
            for region in _parts(family, regions[0]):
                worn = changed(_sample(ground, family, region, KERNEL, device), mark=one.value)
                worn = changed(worn, source=_link_local(ground.state, device) if family == 6 else worn.source)
                yield Word("P3", one.name, f"{word} inside", ("inside",), worn, "leaves", device)


def _replies(ground: Ground, one: UplinkClaim, claim: Claim) -> Iterator[Word]:
    device, worn = one.devices[0], (one.value, one.mask)
    flow = Flow("established", "reply", one.value)
    for reply in one.replies:
        for family, regions in reply.headers.items():
            plain = changed(_sample(ground, family, regions[0], SOCKET), flow=flow, uid=0, gid=0, dport=40000)
            if plain.protocol == TCP:
                plain = changed(plain, fields={("tcp", "flags"): 16})
            own = changed(plain, origin=KERNEL, mark=one.value)
            # Accepted sockets have the mark of their SYN (tcp_fwmark_accept). Others, and those that are older than
            # the policy, need some route before the flow's mark leads them back. Only the kernel answers pings.
            sent = [changed(plain, mark=one.value)] if plain.protocol == TCP else []
            sent += [plain] if plain.protocol in (TCP, UDP) and claim.inside else []
            for answer in (own, *sent):
                yield Word("P3", one.name, f"answer {reply.name}", reply.origin, answer, "leaves", device, worn)
    for family in BOTH if one.resets else ():
        reset = Packet(family, REMOTE[family], None, TCP, 81, 40000, KERNEL, one.value, flow=flow, fields=_RST)
        yield Word("P3", one.name, "answer: closed ports", ("uplink", one.name, "answer"), reset, "leaves", device)


def _arrivals(ground: Ground, one: UplinkClaim, claim: Claim) -> Iterator[Word]:
    """What arrives by the uplink: marked, for this machine alone; elsewhere the mark is not accepted."""
    worn, origin = (one.value, one.mask), ("uplink", one.name, "answer")
    for family in BOTH:
        for device in one.devices:
            mine = address_of(ground.state, family, device)
            if mine is None:
                continue
            come = Packet(family, mine, REMOTE[family], UDP, 40000, 40001, FORWARD, iif=device)
            yield Word("P3", one.name, "what arrives is marked", origin, come, "delivered", None, worn, None, worn,
                       firewalled=True)  # fmt: skip
            inside = _inside_address(ground.state, family, claim)
            if inside is not None:
                asked = changed(come, destination=inside)
                yield Word("P2", one.name, "no word about addresses inside", origin, asked, "dropped")
            for everybody in _EVERYBODY[family]:
                told = changed(come, destination=number(everybody))
                yield Word(
                    "P3", one.name, "what arrives is marked", origin, told, "delivered", None, worn, firewalled=True
                )
            through = changed(come, destination=REMOTE[family] + 1)
            yield Word("P2", one.name, "nothing is passed on", origin, through, "dropped")
        for pattern in (claim.inside or ())[:1]:
            reply = Packet(family, REMOTE[family], None, UDP, 81, flow=Flow("established", "reply", one.value))
            yield Word(
                "P2", one.name, "no word inside to who asked by the uplink", origin, reply, "dropped",
                refused=inside_device(pattern),
            )  # fmt: skip
            lent = Packet(
                family, REMOTE[family], REMOTE[family] + 1, UDP, origin=FORWARD, mark=one.value,
                iif=inside_device(pattern),
            )  # fmt: skip
            yield Word(
                "P1", one.name, "nobody inside borrows the mark", origin, lent, "leaves",
                inside_device(pattern), (0, one.mask), borrowed=True,
            )  # fmt: skip


def _frames(one: UplinkClaim) -> Iterator[Word]:
    """What has the mark passes the link layer too, and so does what a bridge carries from port to port."""
    for device in (*one.devices, *one.ports):
        for family in BOTH:
            frame = Packet(family, REMOTE[family], origin=FRAME, mark=one.value, bound=device)
            yield Word(
                "P3", one.name, f"marked frames by {device}", ("uplink", one.name, "mark"), frame, "leaves", device
            )
            if device in one.ports:
                carried = changed(frame, mark=0, fields={("meta", "pkttype"): _OTHER_HOST})
                where = ("uplink", one.name, "devices")
                yield Word("P3", one.name, f"what the bridge carries to {device}", where, carried, "leaves", device)


def _names(one: UplinkClaim, claim: Claim) -> Iterator[Word]:
    names, device, nobody = one.names, one.devices[0], _nobody(claim)
    assert names is not None
    for family in BOTH:
        for protocol in (UDP, TCP):
            ask = Packet(family, REMOTE[family], None, protocol, dport=DNS)
            up = changed(ask, uid=names.user, gid=nobody, mark=one.value)
            yield Word("P3", one.name, "the resolver asks", names.origin, up, "leaves", device, (one.value, one.mask))
            for service in one.services[:_MANY]:
                for owner in service.owners:
                    # Without the mark a question to a server elsewhere needs some route before it is redirected.
                    for mark in (0, one.value) if claim.inside else (one.value,):
                        mine = changed(ask, mark=mark, **{"uid": nobody, "gid": nobody, owner.key: owner.number})
                        places = names.at(family)
                        if places:
                            yield Word(
                                "P5", one.name, f"names for service {service.name}", names.origin, mine, "delivered",
                                None, None, places[0],
                            )  # fmt: skip
                    for address, port in names.at(family):
                        direct = changed(ask, destination=address, dport=port, **{owner.key: owner.number})
                        yield Word(
                            "P5", one.name, f"names for service {service.name}", names.origin, direct, "delivered"
                        )
            for address, port in names.at(family):
                closed = Packet(family, address, address, protocol, dport=port, origin=KERNEL, flow=Flow("established"))
                yield Word(
                    "P3", one.name, "the resolver: the rest of a closed connection", names.origin, closed, "delivered"
                )


def _everybody(claim: Claim, packet: Packet) -> Iterator[tuple[UplinkClaim, Service, Packet]]:
    """The packet as each service's socket sends it."""
    for one in claim.uplinks:
        for service in one.services[:_MANY]:
            for owner in service.owners:
                yield one, service, changed(packet, **{owner.key: owner.number})


def _inside(claim: Claim) -> Iterator[Word]:
    nobody, free = _nobody(claim), _free_port(claim)
    for family in BOTH:
        here = REMOTE[family]
        for pattern in claim.inside or ():
            device = inside_device(pattern)
            plain = Packet(family, here, None, UDP, uid=nobody, gid=nobody, bound=device if family == 4 else None)
            if family == 4 or pattern == (claim.inside or ())[0]:
                asks = changed(plain, dport=DNS)
                yield Word("P3", "", f"inside {pattern}", ("inside",), plain, "leaves", device)
                yield Word("P3", "", f"names inside {pattern}", ("inside",), asks, "leaves", device)
                for one, service, mine in _everybody(claim, plain):
                    where = (here, mine.dport)
                    title = f"service {service.name} inside"
                    if service.unmarked:
                        yield Word("P2", one.name, title, service.origin, mine, "dropped", refused=device)
                        continue
                    yield Word("P3", one.name, title, service.origin, mine, "leaves", device, None, where)
        lo = {4: 0x7F000001, 6: 1}[family]
        plain = Packet(family, lo, lo, UDP, dport=free, uid=nobody, gid=nobody)
        yield Word("P3", "", "loopback", (), plain, "delivered")
        yield Word("P3", "", "names on loopback", (), changed(plain, dport=DNS), "delivered")
        for one, service, mine in _everybody(claim, plain):
            title = f"service {service.name} on loopback"
            yield Word("P3", one.name, title, service.origin, mine, "delivered", None, None, (lo, free))
        for one in claim.uplinks:
            kept = changed(plain, mark=one.value)
            yield Word("P3", one.name, "loopback keeps marks", (), kept, "delivered", None, (one.value, one.mask))


def _link_local(state: NetState, device: str) -> int:
    """The link-local address on a device."""
    low, high = interval("fe80::/10", 6)
    for route in state.routes:
        if (route.family, route.table, route.kind, route.device) == (6, TABLE_LOCAL, "local", device):
            address, _ = interval(route.destination, 6)
            if low <= address <= high:
                return address
    return low + 2


def address_of(state: NetState, family: int, device: str) -> int | None:
    """An address that the machine has on a device."""
    for route in state.routes:
        if (route.family, route.table, route.kind, route.device) == (family, TABLE_LOCAL, "local", device):
            low, _ = interval(route.destination, family)
            if family == 4 or low >> 118 != 0x3FA:  # not link-local
                return low
    return None


def _inside_address(state: NetState, family: int, claim: Claim) -> int | None:
    uplinks = {device for one in claim.uplinks for device in one.devices}
    for route in state.routes:
        local = (route.family, route.table, route.kind) == (family, TABLE_LOCAL, "local")
        if local and route.device and route.device not in (*uplinks, "lo"):
            return address_of(state, family, route.device)
    return None
