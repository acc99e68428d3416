# SPDX-License-Identifier: BSD-2-Clause
"""P3 and P4: for each policy entry, packets that use it and the outcome that each must have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from attrs import evolve

from ..model.packet import (
    FORWARD,
    FRAME,
    KERNEL,
    SOCKET,
    TCP,
    UDP,
    CtInfo,
    Packet,
    evolve_packet,
    parse_address,
)
from ..model.symbolic.box import intersect_boxes, merge_ranges, points, subtract_ranges
from .answer_cases import answer_cases
from .assumptions import device_matches, sample_device
from .clat_cases import by_clat, clat_cases, into_clat
from .concretize import REMOTE_ADDRESS, choose, remote_address
from .context import ProofContext
from .entitlement import DNS_PORT
from .exemption_cases import exemption_cases
from .forward_cases import forward_cases
from .lan_cases import lan_cases
from .peer_flow_cases import peer_flow_cases
from .reply_cases import service_replies
from .spec import IP_FAMILIES, ResolverSpec, ServiceSpec, Spec, UplinkSpec
from .tunnel_cases import tunnel_cases
from .usability_case import (
    UsabilityCase,
    device_address,
    free_port,
    free_source_port,
    inside_address,
    is_loopback,
    known_address,
    needs_device,
    region_parts,
    resolver_ports,
    sample_packet,
)

_DHCPV4_EXEMPTIONS = ("dhcpv4", "dhcpv4-unicast")
_PACKET_OTHERHOST = 3  # include/uapi/linux/if_packet.h
_MAX_SERVICES = 64  # of an uplink that are tried with every kind of packet
_GROUPS = {4: ("224.0.0.1", "255.255.255.255"), 6: ("ff02::1",)}


def _unnamed_id(spec: Spec) -> int:
    """Return a user and group ID that the specification does not name."""
    used_ids = {owner.number for uplink in spec.uplinks for service in uplink.services for owner in service.owners}
    used_ids |= {uplink.resolver.uid for uplink in spec.uplinks if uplink.resolver is not None}
    return next(number for number in count(65533) if number not in used_ids)


def usability_cases(context: ProofContext, spec: Spec, inside: tuple[str, ...] = ()) -> Iterator[UsabilityCase]:
    """Yield all cases of a specification.

    `inside`: the devices and patterns of the policy, of which `spec` may have only those that are there now.
    """
    for uplink in spec.uplinks:
        for case in _services(context, uplink, spec):
            yield by_clat(context, uplink, _by_any_device(uplink, case))
            yield from into_clat(uplink, case)
        yield from clat_cases(context, uplink)
        yield from exemption_cases(context, uplink, spec)
        yield from lan_cases(context, uplink)
        yield from answer_cases(context, uplink, spec)
        yield from service_replies(context, uplink, resolver_ports(spec))
        yield from _arrivals(context, uplink, spec, inside)
        yield from _frames(uplink)
        if uplink.resolver is not None:
            yield from (by_clat(context, uplink, _by_any_device(uplink, case)) for case in _dns(uplink, spec))
        yield from forward_cases(context, uplink, spec)
    yield from _inside(context, spec, inside)


def _by_any_device(uplink: UplinkSpec, case: UsabilityCase) -> UsabilityCase:
    """Return a case whose packet may leave by each device of the uplink, if its routes choose among them."""
    if case.outcome != "leaves" or case.device not in uplink.devices or case.packet.bound is not None:
        return case
    return evolve(case, alternatives=(*case.alternatives, *uplink.devices))


def _services(context: ProofContext, uplink: UplinkSpec, spec: Spec) -> Iterator[UsabilityCase]:
    mark, device, unnamed = (uplink.value, uplink.mask), uplink.devices[0], _unnamed_id(spec)
    for index, service in enumerate(uplink.services):
        title = f"service {service.name}"
        if index >= _MAX_SERVICES:
            yield from _service_in_short(context, uplink, service)
            continue
        yield from peer_flow_cases(context, uplink, service)
        for family, regions in service.regions.items():
            for region in (
                part for full_region in regions for part in region_parts(family, full_region, with_ends=True)
            ):
                packet = evolve_packet(sample_packet(context, family, region, SOCKET), mark=uplink.value)
                if family == 6 and needs_device(packet.destination):
                    packet = evolve_packet(packet, bound=device)  # link-local and group addresses need a device
                ports = subtract_ranges(region.fields.get("dport", ((1, 0xFFFF),)), points(DNS_PORT))
                packet = evolve_packet(packet, dport=choose(ports, packet.dport) if ports else DNS_PORT)
                # _dns has the cases of a service that sends only DNS queries.
                for owner in service.owners if ports or uplink.resolver is None else ():
                    by_owner = evolve_packet(packet, mark=_sent_with(uplink, service), **{owner.key: owner.number})
                    yield UsabilityCase("P3", uplink.name, title, service.origin, by_owner, "leaves", device, mark)
                if service.kernel and service.unmarked:
                    yield from tunnel_cases(uplink, service, packet, spec)
                elif service.kernel:
                    by_kernel = evolve_packet(packet, origin=KERNEL)
                    if by_kernel.protocol == UDP:
                        yield UsabilityCase("P3", uplink.name, title, service.origin, by_kernel, "leaves", device, mark)
                if service.kernel and region.fields and not service.unmarked:
                    through_tunnel = evolve_packet(packet, uid=unnamed, gid=unnamed)
                    tunnel = f"{title}: packets that a process sends through it"
                    yield UsabilityCase(
                        "P3", uplink.name, tunnel, service.origin, through_tunnel, "leaves", device, mark
                    )
                closed = evolve_packet(packet, origin=KERNEL, protocol=TCP, flow=CtInfo("established"), fields={})
                last_packets = f"{title}: last packets of a closed connection"
                yield UsabilityCase("P3", uplink.name, last_packets, service.origin, closed, "leaves", device, mark)


def _is_kernel_udp(service: ServiceSpec) -> bool:
    return service.kernel and not service.unmarked


def _sent_with(uplink: UplinkSpec, service: ServiceSpec) -> int:
    """Return the mark that a service's sockets set."""
    return 0 if service.unmarked else uplink.value


def _service_in_short(context: ProofContext, uplink: UplinkSpec, service: ServiceSpec) -> Iterator[UsabilityCase]:
    """Yield one packet for each family: hundreds of services are rows of the same sets."""
    for family, regions in service.regions.items():
        packet = evolve_packet(sample_packet(context, family, regions[0], SOCKET), mark=uplink.value)
        if service.owners and packet.dport != DNS_PORT:
            first = service.owners[0]
            by_owner = evolve_packet(packet, mark=_sent_with(uplink, service), **{first.key: first.number})
            title, mark = f"service {service.name}", (uplink.value, uplink.mask)
            yield UsabilityCase("P3", uplink.name, title, service.origin, by_owner, "leaves", uplink.devices[0], mark)


def _arrivals(context: ProofContext, uplink: UplinkSpec, spec: Spec, names: tuple[str, ...]) -> Iterator[UsabilityCase]:
    """Yield packets that arrive by the uplink, which are marked and only for this machine.

    Packets with the mark that arrive by another device do not keep it.
    """
    mark, origin = (uplink.value, uplink.mask), ("uplink", uplink.name, "answer")
    title = "arriving packets are marked"
    is_udp = {"protocol": points(UDP)}
    published = [each.replies.fields for each in uplink.publishes if intersect_boxes(each.replies.fields, is_udp)]
    ports = subtract_ranges(((1, 0xFFFF),), merge_ranges(pair for fields in published for pair in fields["sport"]))
    forward_devices = [device for other in spec.uplinks for device in other.forward_devices]
    for family in IP_FAMILIES:
        for device in uplink.devices:
            own_address = device_address(context.state, family, device)
            if own_address is None:
                continue
            arriving = Packet(
                family,
                own_address,
                REMOTE_ADDRESS[family],
                UDP,
                40000,
                choose(ports or None, 40001),
                FORWARD,
                iif=device,
            )
            if ports:
                yield UsabilityCase(
                    "P3", uplink.name, title, origin, arriving, "delivered", mark=mark, flow_mark=mark,
                    may_be_firewalled=True,
                )  # fmt: skip
            address_inside = inside_address(context.state, family, spec)
            if address_inside is not None:
                to_inside = evolve_packet(arriving, destination=address_inside)
                yield UsabilityCase(
                    "P2", uplink.name, "addresses inside are not reachable", origin, to_inside, "dropped"
                )
            for group in _GROUPS[family] if ports else ():
                to_group = evolve_packet(arriving, destination=parse_address(group))
                yield UsabilityCase(
                    "P3", uplink.name, title, origin, to_group, "delivered", mark=mark, may_be_firewalled=True
                )
            is_client = any(exemption.name in _DHCPV4_EXEMPTIONS for exemption in uplink.exemptions)
            if family == 4 and is_client and not any(map(_is_kernel_udp, uplink.services)):
                # A DHCP reply is for an address that the device will have: no arrival chain may drop it.
                # (The kernel's own packets may have any port, so a reply for another host would pass too.)
                offer = evolve_packet(arriving, destination=REMOTE_ADDRESS[4] + 2, sport=67, dport=68)
                title = "DHCP replies to the client on a bridge"
                yield UsabilityCase("P3", uplink.name, title, origin, offer, "dropped", mark=mark)
                title = "arriving packets are marked"
            known = known_address(context.state, uplink, family)
            if known is not None and ports:
                yield from _known_addresses(uplink, evolve_packet(arriving, destination=known))
            forwarded = evolve_packet(arriving, destination=REMOTE_ADDRESS[family] + 1)
            yield UsabilityCase("P2", uplink.name, "no packet is forwarded", origin, forwarded, "dropped")
        for pattern in (spec.inside or ())[:1]:
            reply = Packet(
                family,
                remote_address(family, spec),
                None,
                UDP,
                81,
                flow=CtInfo("established", "reply", uplink.value),
            )
            yield UsabilityCase(
                "P2", uplink.name, "replies to the uplink do not leave inside", origin, reply, "dropped",
                must_not_leave_by=sample_device(pattern), alternatives=names,
            )  # fmt: skip
            inside = map(sample_device, spec.inside or ())
            for iif in [name for name in inside if not any(device_matches(each, name) for each in forward_devices)][:1]:
                marked = Packet(
                    family, REMOTE_ADDRESS[family], REMOTE_ADDRESS[family] + 1, UDP, origin=FORWARD, mark=uplink.value,
                    iif=iif,
                )  # fmt: skip
                yield UsabilityCase(
                    "P1", uplink.name, "hosts inside cannot use the mark", origin, marked, "leaves",
                    sample_device(pattern), (0, uplink.mask), may_equal_unmarked=True, alternatives=names,
                )  # fmt: skip


def _known_addresses(uplink: UplinkSpec, arriving: Packet) -> Iterator[UsabilityCase]:
    """Yield a packet to an address of another device that the uplink knows, and the end of a connection from there."""
    mark, origin, title = (uplink.value, uplink.mask), ("uplink", uplink.name, "addresses"), "addresses"
    yield UsabilityCase(
        "P3", uplink.name, title, origin, arriving, "delivered", mark=mark, flow_mark=mark, may_be_firewalled=True
    )
    closed = evolve_packet(
        arriving, destination=arriving.source, source=arriving.destination, protocol=TCP, origin=KERNEL, iif=None,
        mark=uplink.value, flow=CtInfo("established"),
    )  # fmt: skip
    yield UsabilityCase("P3", uplink.name, title, origin, closed, "leaves", uplink.devices[0], mark)


def _frames(uplink: UplinkSpec) -> Iterator[UsabilityCase]:
    """Yield frames with the mark, and frames that a bridge forwards between its ports."""
    for device in (*uplink.devices, *uplink.ports):
        for family in IP_FAMILIES:
            frame = Packet(family, REMOTE_ADDRESS[family], origin=FRAME, mark=uplink.value, bound=device)
            origin = ("uplink", uplink.name, "mark")
            yield UsabilityCase("P3", uplink.name, f"marked frames by {device}", origin, frame, "leaves", device)
            if device in uplink.ports:
                bridged = evolve_packet(frame, mark=0, fields={("meta", "pkttype"): _PACKET_OTHERHOST})
                origin = ("uplink", uplink.name, "devices")
                title = f"frames that the bridge forwards to {device}"
                yield UsabilityCase("P3", uplink.name, title, origin, bridged, "leaves", device)


def _dns(uplink: UplinkSpec, spec: Spec) -> Iterator[UsabilityCase]:
    resolver, unnamed = uplink.resolver, _unnamed_id(spec)
    assert resolver is not None
    for family in IP_FAMILIES:
        for upstream in _upstream_queries(resolver, spec, family):
            packet = evolve_packet(upstream, uid=resolver.uid, gid=unnamed, mark=uplink.value)
            device, mark_test = uplink.devices[0], (uplink.value, uplink.mask)
            if family == 6 and needs_device(packet.destination):
                packet = evolve_packet(packet, bound=device)
            title = "queries of the resolver"
            yield UsabilityCase("P3", uplink.name, title, resolver.origin, packet, "leaves", device, mark_test)
        for protocol in (UDP, TCP):
            remote = remote_address(family, spec)
            query = Packet(family, remote, None, protocol, dport=DNS_PORT)
            for service in uplink.services[:_MAX_SERVICES]:
                title = f"DNS for service {service.name}"
                for owner in service.owners:
                    # A query to another server without the mark needs any route before it is redirected.
                    for mark in (0, uplink.value) if spec.inside and not owner.marked else (uplink.value,):
                        service_query = evolve_packet(
                            query, mark=mark, **{"uid": unnamed, "gid": unnamed, owner.key: owner.number}
                        )
                        endpoints = resolver.endpoints(family)
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
                    for address, port in resolver.endpoints(family):
                        mark = uplink.value if owner.marked else 0
                        sender = {"mark": mark, owner.key: owner.number}
                        direct = evolve_packet(query, destination=address, dport=port, **sender)
                        yield UsabilityCase("P5", uplink.name, title, resolver.origin, direct, "delivered")
            for address, port in resolver.endpoints(family):
                last_packet = Packet(
                    family, address, address, protocol, dport=port, origin=KERNEL, flow=CtInfo("established")
                )
                title = "resolver: last packets of a closed connection"
                yield UsabilityCase("P3", uplink.name, title, resolver.origin, last_packet, "delivered")


def _upstream_queries(resolver: ResolverSpec, spec: Spec, family: int) -> Iterator[Packet]:
    """Yield a query of a resolver to each server, over UDP and TCP, except to those on this machine."""
    own = {address for uplink in spec.uplinks if uplink.resolver for address, _ in uplink.resolver.endpoints(family)}
    for region in resolver.upstream.get(family, ()):
        ((address, _),) = region.fields.get("daddr", points(REMOTE_ADDRESS[family]))
        ((port, _),) = region.fields["dport"]
        for first, last in region.fields["protocol"]:
            for protocol in range(first, last + 1) if address not in own else ():
                if not is_loopback(family, address):
                    yield Packet(family, address, None, protocol, dport=port)


def _sent_by_services(spec: Spec, packet: Packet) -> Iterator[tuple[UplinkSpec, ServiceSpec, Packet]]:
    """Yield the packet as each service's socket sends it."""
    for uplink in spec.uplinks:
        for service in uplink.services[:_MAX_SERVICES]:
            for owner in service.owners:
                yield uplink, service, evolve_packet(packet, **{owner.key: owner.number})


def _inside_sender(context: ProofContext, spec: Spec, family: int, bound: str | None) -> tuple[int, int]:
    """Return the protocol and source port of packets that go inside: UDP, unless it may be an answer.

    From an answered port, and from an address of another device, it may be one to a client at the uplink.
    """
    sport = free_source_port(spec)
    remote = remote_address(family, spec)
    route = context.model.router.lookup(family, remote, oif=bound, protocol=UDP, sport=sport or 0)
    if sport is None:
        return TCP, 40000
    address_type = context.model.address_types.address_type
    is_own = route.source is not None and address_type(family, parse_address(route.source), route.device) == "local"
    return UDP if is_own else TCP, sport


def _inside(context: ProofContext, spec: Spec, patterns: tuple[str, ...]) -> Iterator[UsabilityCase]:
    unnamed, dport = _unnamed_id(spec), free_port(spec)
    for family in IP_FAMILIES:
        for pattern in spec.inside or ():
            remote, device = remote_address(family, spec), sample_device(pattern)
            bound = device if family == 4 else None
            chosen = () if bound else patterns  # without a bound device, routes choose
            sender = _inside_sender(context, spec, family, bound)
            packet = Packet(family, remote, None, *sender, uid=unnamed, gid=unnamed, bound=bound)
            if family == 4 or pattern == (spec.inside or ())[0]:
                query = evolve_packet(packet, dport=DNS_PORT)
                reply = evolve_packet(packet, protocol=TCP, flow=CtInfo("established", "reply"))
                plain = [(f"inside {pattern}", packet), (f"DNS inside {pattern}", query)]
                plain.append((f"replies to hosts inside {pattern}", reply))
                for title, each in plain:
                    yield UsabilityCase("P3", "", title, ("inside",), each, "leaves", device, alternatives=chosen)
                if any(each.has_marked_owner for uplink in spec.uplinks for each in uplink.services):
                    by_root, title = evolve_packet(query, uid=0, gid=0), f"DNS of root without a mark inside {pattern}"
                    yield UsabilityCase(
                        "P3", "", title, ("inside",), by_root, "leaves", device, endpoint=(remote, DNS_PORT),
                        alternatives=chosen,
                    )  # fmt: skip
                for uplink, service, by_service in _sent_by_services(spec, packet):
                    case = UsabilityCase(
                        "P3", uplink.name, f"service {service.name} inside", service.origin, by_service, "leaves",
                        device, endpoint=(remote, by_service.dport), alternatives=chosen,
                    )  # fmt: skip
                    if service.unmarked:
                        case = evolve(case, property="P2", outcome="dropped", device=None, must_not_leave_by=device)
                        case = evolve(case, endpoint=None)
                    yield case
        loopback = {4: 0x7F000001, 6: 1}[family]
        packet = Packet(family, loopback, loopback, UDP, dport=dport, uid=unnamed, gid=unnamed)
        yield UsabilityCase("P3", "", "loopback", (), packet, "delivered")
        yield UsabilityCase("P3", "", "DNS on loopback", (), evolve_packet(packet, dport=DNS_PORT), "delivered")
        for uplink, service, by_service in _sent_by_services(spec, packet):
            title = f"service {service.name} on loopback"
            endpoint = (loopback, dport)
            yield UsabilityCase("P3", uplink.name, title, service.origin, by_service, "delivered", endpoint=endpoint)
        for uplink in spec.uplinks:
            marked = evolve_packet(packet, mark=uplink.value)
            mark = (uplink.value, uplink.mask)
            yield UsabilityCase("P3", uplink.name, "loopback keeps marks", (), marked, "delivered", mark=mark)
