# SPDX-License-Identifier: BSD-2-Clause
"""Packets entitled to an uplink's mark on egress.

Packets of unmarked users count as entitled.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from ..model.packet import ICMPV6, KERNEL, SOCKET, UDP, Packet
from ..model.symbolic.box import intersect_boxes, points
from ..model.symbolic.field_values import CT_STATES
from ..netstate.nft.symbols import CT_DIRECTIONS
from .spec import Region, UplinkSpec

DNS_PORT = 53
_ESTABLISHED = points(CT_STATES["established"])
_RELATED = points(CT_STATES["related"])
_ORIGINAL, _REPLY = 0, 1  # ct.direction


def entitled_regions(uplink: UplinkSpec, family: int) -> Iterator[Region]:
    """Yield the packets that may carry the mark at the uplink."""
    if uplink.clat is None:
        yield from _entitled_regions(uplink, family)
        return
    # No IPv6 packet of this machine has to be translated.
    elsewhere = uplink.clat_devices if family == 6 else ()
    for region in _entitled_regions(uplink, family):
        yield evolve(region, not_oifname=(*region.not_oifname, *elsewhere))
    yield from translated_regions(uplink, family)


def translated_regions(uplink: UplinkSpec, family: int) -> Iterator[Region]:
    """Yield the packets of the CLAT, and the answers to them: from the prefix, and errors of any router (RFC 4443)."""
    clat = uplink.clat
    if clat is None or family == 4:
        return
    yield Region({"daddr": clat.prefix}, oifname=clat.network, iifname=(clat.device,))
    is_reply = {"ct.direction": points(_REPLY)}
    error = {"protocol": points(ICMPV6), "fragment": points(0), "icmpv6.type": points(1, 2, 3, 4)}
    for fields in ({"saddr": clat.prefix}, {**error, "ct.state": _RELATED}):
        yield Region({**is_reply, **fields}, oifname=(clat.device,), iifname=clat.network)


def _entitled_regions(uplink: UplinkSpec, family: int) -> Iterator[Region]:
    for service in uplink.services:
        for region in service.regions.get(family, ()):
            if region.fields:
                for owner in service.owners:
                    yield Region({**region.fields, **owner.match_fields}, region.marks)
            if service.kernel:
                yield region if region.fields else _kernel_udp()
    unrestricted = [
        service for service in uplink.services if any(not region.fields for region in service.regions.get(family, ()))
    ]
    anywhere = [owner for service in unrestricted for owner in service.owners]
    yield from (Region(owner.match_fields) for owner in anywhere if owner.marked)
    for key in ("gid", "uid"):
        numbers = [owner.number for owner in anywhere if owner.key == key and not owner.marked]
        if numbers:
            yield Region({"socket": points(1), key: points(*numbers)})
    # Last packets of closed connections that this machine began.
    yield Region(
        {"socket": points(0), "ct.state": _ESTABLISHED, "ct.direction": points(_ORIGINAL)},
        not_iifname=uplink.forward_devices,
    )
    yield from forwarded_regions(uplink, family)
    if uplink.resolver is not None:
        for queries in uplink.resolver.upstream.get(family, ()):
            yield queries.narrowed(socket=points(1), uid=points(uplink.resolver.uid))
    yield from reply_regions(uplink, family)
    for exemption in uplink.exemptions:
        if exemption.is_report:
            yield from exemption.headers.get(family, ())


def reply_regions(uplink: UplinkSpec, family: int) -> Iterator[Region]:
    """Yield the replies of flows that began at the uplink."""
    fields, marks = {"ct.direction": points(_REPLY)}, (uplink.flow_has_mark,)
    for reply in uplink.replies:
        for region in reply.headers.get(family, ()):
            yield Region({**region.fields, **fields}, marks)
    for region in uplink.resets.get(family, ()):
        yield Region({**region.fields, **fields}, marks)


def forwarded_regions(uplink: UplinkSpec, family: int) -> Iterator[Region]:
    """Yield the forwarded packets, and the replies of published ports, that may leave by the uplink."""
    for forward in uplink.forwards:
        for region in forward.leaving.get(family, ()):
            fields = {**region.fields, "socket": points(0), "ct.direction": points(_ORIGINAL)}
            yield Region(fields, iifname=forward.devices)
    for publish in uplink.publishes:
        fields = {**publish.replies.fields, "ct.direction": points(_REPLY)}
        yield Region(fields, (uplink.flow_has_mark,), iifname=(publish.device,))


def arriving_regions(uplink: UplinkSpec, family: int) -> Iterator[Region]:
    """Yield the packets of other machines that a rule may mark: they arrive by the device of a forward."""
    for forward in uplink.forwards:
        for region in forward.arriving.get(family, ()):
            yield Region({**region.fields, "ct.direction": points(_ORIGINAL)}, iifname=forward.devices)


def tunnel_regions(uplink: UplinkSpec, family: int) -> Iterator[Region]:
    """Yield the kernel's packets that this machine sends without the mark, by destination: no device received them."""
    for service in uplink.services:
        if service.kernel and service.unmarked:
            for region in service.regions.get(family, ()):
                yield region.narrowed(iif=points(0))


def is_of_tunnel(packet: Packet, uplink: UplinkSpec) -> bool:
    """Return True if this machine sends the packet, and it is one that the kernel sends to such a destination."""
    values = {
        "protocol": packet.protocol,
        "fragment": int(bool(packet.fields.get(("ip", "frag-off"), 0))),
        "daddr": packet.destination,
        "sport": packet.sport,
        "dport": packet.dport,
        "socket": int(packet.has_socket),
        "ct.direction": CT_DIRECTIONS[packet.flow.direction],
        "iif": 0,
    }
    return packet.origin in (SOCKET, KERNEL) and any(
        region.holds(values) for region in tunnel_regions(uplink, packet.family)
    )


def _kernel_udp() -> Region:
    return Region({"socket": points(0), "protocol": points(UDP)})


def unmarked_user_regions(uplink: UplinkSpec, family: int) -> Iterator[Region]:
    """Yield the packets that unmarked users may send: the entitled packets, without the mark."""
    sockets = {"socket": points(1), "uid": points(*uplink.unmarked_uids)}
    for region in entitled_regions(uplink, family) if uplink.unmarked_uids else ():
        fields = intersect_boxes(region.fields, sockets)
        if fields is not None:
            yield evolve(region, fields=fields)
