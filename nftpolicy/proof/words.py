# SPDX-License-Identifier: BSD-2-Clause
"""P3 and P4: for each policy entry, packets that use it and the outcome that each must have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from ..model.box import only, without
from ..model.packet import FORWARD, FRAME, KERNEL, SOCKET, TCP, UDP, Flow, Packet, changed, number
from .claim import BOTH, Claim, Service, UplinkClaim
from .ground import Ground
from .surroundings import inside_device
from .usability_case import (
    UsabilityCase,
    device_address,
    inside_address,
    link_local_address,
    needs_device,
    region_parts,
    sample_packet,
)
from .witness import REMOTE, pick
from .worn import DNS

_TCP_ACK = 0x10
_RST = {("tcp", "flags"): 0x04}
_ALL_NODES = number("ff02::1")  # RFC 4291 2.7.1

_PACKET_OTHERHOST = 3  # include/uapi/linux/if_packet.h
_MAX_SERVICES = 64  # of an uplink that are tried with every kind of packet
_GROUPS = {4: ("224.0.0.1", "255.255.255.255"), 6: ("ff02::1",)}


def _unnamed_id(claim: Claim) -> int:
    """Return a user and group ID that the specification does not name."""
    used_ids = {owner.number for uplink in claim.uplinks for service in uplink.services for owner in service.owners}
    used_ids |= {uplink.names.user for uplink in claim.uplinks if uplink.names is not None}
    return next(number for number in count(65533) if number not in used_ids)


def _free_port(claim: Claim) -> int:
    """Return a port that no resolver listens on."""
    resolver_ports = {
        port for uplink in claim.uplinks if uplink.names is not None for _, _, port in uplink.names.listen
    }
    return next(port for port in count(9) if port not in resolver_ports)


def words(ground: Ground, claim: Claim) -> Iterator[UsabilityCase]:
    """Yield all cases of a specification."""
    for uplink in claim.uplinks:
        yield from _services(ground, uplink, claim)
        yield from _exemptions(ground, uplink, claim)
        yield from _replies(ground, uplink, claim)
        yield from _arrivals(ground, uplink, claim)
        yield from _frames(uplink)
        if uplink.names is not None:
            yield from _dns(uplink, claim)
    yield from _inside(claim)


def _services(ground: Ground, uplink: UplinkClaim, claim: Claim) -> Iterator[UsabilityCase]:
    mark, device, unnamed = (uplink.value, uplink.mask), uplink.devices[0], _unnamed_id(claim)
    for index, service in enumerate(uplink.services):
        title = f"service {service.name}"
        if index >= _MAX_SERVICES:
            yield from _service_in_short(ground, uplink, service)
            continue
        for family, regions in service.regions.items():
            for region in (
                part for full_region in regions for part in region_parts(family, full_region, with_ends=True)
            ):
                packet = changed(sample_packet(ground, family, region, SOCKET), mark=uplink.value)
                if family == 6 and needs_device(packet.destination):
                    packet = changed(packet, bound=device)  # link-local and group addresses need a device
                ports = without(region.fields.get("dport", ((1, 0xFFFF),)), only(DNS))
                packet = changed(packet, dport=pick(ports, packet.dport) if ports else DNS)
                # _dns has the cases of a service that sends only DNS queries.
                for owner in service.owners if ports or uplink.names is None else ():
                    by_owner = changed(packet, mark=_sent_with(uplink, service), **{owner.key: owner.number})
                    yield UsabilityCase("P3", uplink.name, title, service.origin, by_owner, "leaves", device, mark)
                if service.kernel:
                    by_kernel = changed(packet, origin=KERNEL)
                    if by_kernel.protocol == UDP:
                        yield UsabilityCase("P3", uplink.name, title, service.origin, by_kernel, "leaves", device, mark)
                if service.kernel and region.fields:
                    through_tunnel = changed(packet, uid=unnamed, gid=unnamed)
                    tunnel = f"{title}: packets that a process sends through it"
                    yield UsabilityCase(
                        "P3", uplink.name, tunnel, service.origin, through_tunnel, "leaves", device, mark
                    )
                closed = changed(packet, origin=KERNEL, protocol=TCP, flow=Flow("established"), fields={})
                last_packets = f"{title}: last packets of a closed connection"
                yield UsabilityCase("P3", uplink.name, last_packets, service.origin, closed, "leaves", device, mark)


def _sent_with(uplink: UplinkClaim, service: Service) -> int:
    """Return the mark that a service's sockets set."""
    return 0 if service.unmarked else uplink.value


def _service_in_short(ground: Ground, uplink: UplinkClaim, service: Service) -> Iterator[UsabilityCase]:
    """Yield one packet for each family: hundreds of services are rows of the same sets."""
    for family, regions in service.regions.items():
        packet = changed(sample_packet(ground, family, regions[0], SOCKET), mark=uplink.value)
        if service.owners and packet.dport != DNS:
            first = service.owners[0]
            by_owner = changed(packet, mark=_sent_with(uplink, service), **{first.key: first.number})
            title, mark = f"service {service.name}", (uplink.value, uplink.mask)
            yield UsabilityCase("P3", uplink.name, title, service.origin, by_owner, "leaves", uplink.devices[0], mark)


def _exemptions(ground: Ground, uplink: UplinkClaim, claim: Claim) -> Iterator[UsabilityCase]:
    hooked = ground.hooked_devices()
    for exemption in uplink.holes:
        title = f"exemption {exemption.name}"
        for device in (*uplink.devices, *uplink.ports):
            for ethertype in exemption.frames:
                frame = Packet(4, 0, origin=FRAME, bound=device, ethertype=ethertype)
                yield UsabilityCase("P3", uplink.name, title, exemption.origin, frame, "leaves", device)
            for family, regions in exemption.headers.items():
                for region in (part for full_region in regions for part in region_parts(family, full_region)):
                    frame = sample_packet(ground, family, region, FRAME, device)
                    if family == 6:
                        source = frame.source or link_local_address(ground.state, device)
                        destination = frame.destination if "daddr" in region.fields else _ALL_NODES
                        frame = changed(frame, source=source, destination=destination)
                    if device in hooked:
                        yield UsabilityCase("P3", uplink.name, title, exemption.origin, frame, "leaves", device)
                    if device not in uplink.devices:
                        continue
                    by_kernel = changed(frame, origin=KERNEL)
                    yield UsabilityCase("P3", uplink.name, title, exemption.origin, by_kernel, "leaves", device)
                    if exemption.report:
                        marked = changed(by_kernel, mark=uplink.value)
                        by_accident = f"{title}, marked by accident"
                        yield UsabilityCase("P3", uplink.name, by_accident, exemption.origin, marked, "leaves", device)
    yield from _marked_reports(ground, uplink, claim)


def _marked_reports(ground: Ground, uplink: UplinkClaim, claim: Claim) -> Iterator[UsabilityCase]:
    """Yield membership reports inside: they may carry marks by accident and must not be lost."""
    from .promise import REPORTS, hole

    if not claim.inside:
        return
    for name in REPORTS:
        for family, regions in hole(name, uplink.name).headers.items():
            device = inside_device(claim.inside[0])
            for region in region_parts(family, regions[0]):
                report = changed(sample_packet(ground, family, region, KERNEL, device), mark=uplink.value)
                report = changed(
                    report, source=link_local_address(ground.state, device) if family == 6 else report.source
                )
                yield UsabilityCase("P3", uplink.name, f"{name} inside", ("inside",), report, "leaves", device)


def _replies(ground: Ground, uplink: UplinkClaim, claim: Claim) -> Iterator[UsabilityCase]:
    device, mark = uplink.devices[0], (uplink.value, uplink.mask)
    flow = Flow("established", "reply", uplink.value)
    for reply in uplink.replies:
        for family, regions in reply.headers.items():
            packet = changed(sample_packet(ground, family, regions[0], SOCKET), flow=flow, uid=0, gid=0, dport=40000)
            if packet.protocol == TCP:
                packet = changed(packet, fields={("tcp", "flags"): _TCP_ACK})
            by_kernel = changed(packet, origin=KERNEL, mark=uplink.value)
            # Accepted sockets have the mark of their SYN (tcp_fwmark_accept). Other sockets, and
            # sockets that are older than the policy, need any route before the flow's mark
            # reroutes them. Only the kernel answers pings.
            packets = [by_kernel]
            if packet.protocol == TCP:
                packets.append(changed(packet, mark=uplink.value))
            if packet.protocol in (TCP, UDP) and claim.inside:
                packets.append(packet)
            for answer in packets:
                yield UsabilityCase(
                    "P3", uplink.name, f"answer {reply.name}", reply.origin, answer, "leaves", device, mark
                )
    for family in BOTH if uplink.resets else ():
        reset = Packet(family, REMOTE[family], None, TCP, 81, 40000, KERNEL, uplink.value, flow=flow, fields=_RST)
        yield UsabilityCase(
            "P3", uplink.name, "answer: closed ports", ("uplink", uplink.name, "answer"), reset, "leaves", device
        )


def _arrivals(ground: Ground, uplink: UplinkClaim, claim: Claim) -> Iterator[UsabilityCase]:
    """Yield packets that arrive by the uplink, which are marked and only for this machine.

    Packets with the mark that arrive by another device do not keep it.
    """
    mark, origin = (uplink.value, uplink.mask), ("uplink", uplink.name, "answer")
    title = "arriving packets are marked"
    for family in BOTH:
        for device in uplink.devices:
            own_address = device_address(ground.state, family, device)
            if own_address is None:
                continue
            arriving = Packet(family, own_address, REMOTE[family], UDP, 40000, 40001, FORWARD, iif=device)
            yield UsabilityCase(
                "P3",
                uplink.name,
                title,
                origin,
                arriving,
                "delivered",
                mark=mark,
                flow_mark=mark,
                may_be_firewalled=True,
            )
            address_inside = inside_address(ground.state, family, claim)
            if address_inside is not None:
                to_inside = changed(arriving, destination=address_inside)
                yield UsabilityCase(
                    "P2", uplink.name, "addresses inside are not reachable", origin, to_inside, "dropped"
                )
            for group in _GROUPS[family]:
                to_group = changed(arriving, destination=number(group))
                yield UsabilityCase(
                    "P3", uplink.name, title, origin, to_group, "delivered", mark=mark, may_be_firewalled=True
                )
            forwarded = changed(arriving, destination=REMOTE[family] + 1)
            yield UsabilityCase("P2", uplink.name, "no packet is forwarded", origin, forwarded, "dropped")
        for pattern in (claim.inside or ())[:1]:
            reply = Packet(family, REMOTE[family], None, UDP, 81, flow=Flow("established", "reply", uplink.value))
            yield UsabilityCase(
                "P2", uplink.name, "replies to the uplink do not leave inside", origin, reply, "dropped",
                must_not_leave_by=inside_device(pattern),
            )  # fmt: skip
            marked = Packet(
                family, REMOTE[family], REMOTE[family] + 1, UDP, origin=FORWARD, mark=uplink.value,
                iif=inside_device(pattern),
            )  # fmt: skip
            yield UsabilityCase(
                "P1", uplink.name, "hosts inside cannot use the mark", origin, marked, "leaves",
                inside_device(pattern), (0, uplink.mask), may_equal_unmarked=True,
            )  # fmt: skip


def _frames(uplink: UplinkClaim) -> Iterator[UsabilityCase]:
    """Yield frames with the mark, and frames that a bridge forwards between its ports."""
    for device in (*uplink.devices, *uplink.ports):
        for family in BOTH:
            frame = Packet(family, REMOTE[family], origin=FRAME, mark=uplink.value, bound=device)
            origin = ("uplink", uplink.name, "mark")
            yield UsabilityCase("P3", uplink.name, f"marked frames by {device}", origin, frame, "leaves", device)
            if device in uplink.ports:
                bridged = changed(frame, mark=0, fields={("meta", "pkttype"): _PACKET_OTHERHOST})
                origin = ("uplink", uplink.name, "devices")
                title = f"frames that the bridge forwards to {device}"
                yield UsabilityCase("P3", uplink.name, title, origin, bridged, "leaves", device)


def _dns(uplink: UplinkClaim, claim: Claim) -> Iterator[UsabilityCase]:
    resolver, device, unnamed = uplink.names, uplink.devices[0], _unnamed_id(claim)
    assert resolver is not None
    for family in BOTH:
        for protocol in (UDP, TCP):
            query = Packet(family, REMOTE[family], None, protocol, dport=DNS)
            upstream = changed(query, uid=resolver.user, gid=unnamed, mark=uplink.value)
            title, mark_test = "queries of the resolver", (uplink.value, uplink.mask)
            yield UsabilityCase("P3", uplink.name, title, resolver.origin, upstream, "leaves", device, mark_test)
            for service in uplink.services[:_MAX_SERVICES]:
                title = f"DNS for service {service.name}"
                for owner in service.owners:
                    # A query to another server without the mark needs any route before it is redirected.
                    for mark in (0, uplink.value) if claim.inside else (uplink.value,):
                        service_query = changed(
                            query, mark=mark, **{"uid": unnamed, "gid": unnamed, owner.key: owner.number}
                        )
                        endpoints = resolver.at(family)
                        if endpoints:
                            yield UsabilityCase(
                                "P5",
                                uplink.name,
                                title,
                                resolver.origin,
                                service_query,
                                "delivered",
                                endpoint=endpoints[0],
                            )
                    for address, port in resolver.at(family):
                        direct = changed(query, destination=address, dport=port, **{owner.key: owner.number})
                        yield UsabilityCase("P5", uplink.name, title, resolver.origin, direct, "delivered")
            for address, port in resolver.at(family):
                last_packet = Packet(
                    family, address, address, protocol, dport=port, origin=KERNEL, flow=Flow("established")
                )
                title = "resolver: last packets of a closed connection"
                yield UsabilityCase("P3", uplink.name, title, resolver.origin, last_packet, "delivered")


def _sent_by_services(claim: Claim, packet: Packet) -> Iterator[tuple[UplinkClaim, Service, Packet]]:
    """Yield the packet as each service's socket sends it."""
    for uplink in claim.uplinks:
        for service in uplink.services[:_MAX_SERVICES]:
            for owner in service.owners:
                yield uplink, service, changed(packet, **{owner.key: owner.number})


def _inside(claim: Claim) -> Iterator[UsabilityCase]:
    unnamed, free_port = _unnamed_id(claim), _free_port(claim)
    for family in BOTH:
        remote = REMOTE[family]
        for pattern in claim.inside or ():
            device = inside_device(pattern)
            packet = Packet(family, remote, None, UDP, uid=unnamed, gid=unnamed, bound=device if family == 4 else None)
            if family == 4 or pattern == (claim.inside or ())[0]:
                query = changed(packet, dport=DNS)
                yield UsabilityCase("P3", "", f"inside {pattern}", ("inside",), packet, "leaves", device)
                yield UsabilityCase("P3", "", f"DNS inside {pattern}", ("inside",), query, "leaves", device)
                for uplink, service, by_service in _sent_by_services(claim, packet):
                    endpoint = (remote, by_service.dport)
                    title = f"service {service.name} inside"
                    if service.unmarked:
                        yield UsabilityCase(
                            "P2", uplink.name, title, service.origin, by_service, "dropped", must_not_leave_by=device
                        )
                        continue
                    yield UsabilityCase(
                        "P3", uplink.name, title, service.origin, by_service, "leaves", device, None, endpoint
                    )
        loopback = {4: 0x7F000001, 6: 1}[family]
        packet = Packet(family, loopback, loopback, UDP, dport=free_port, uid=unnamed, gid=unnamed)
        yield UsabilityCase("P3", "", "loopback", (), packet, "delivered")
        yield UsabilityCase("P3", "", "DNS on loopback", (), changed(packet, dport=DNS), "delivered")
        for uplink, service, by_service in _sent_by_services(claim, packet):
            title = f"service {service.name} on loopback"
            endpoint = (loopback, free_port)
            yield UsabilityCase("P3", uplink.name, title, service.origin, by_service, "delivered", endpoint=endpoint)
        for uplink in claim.uplinks:
            marked = changed(packet, mark=uplink.value)
            mark = (uplink.value, uplink.mask)
            yield UsabilityCase("P3", uplink.name, "loopback keeps marks", (), marked, "delivered", mark=mark)
