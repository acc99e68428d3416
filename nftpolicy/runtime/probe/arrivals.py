# SPDX-License-Identifier: BSD-2-Clause
"""Probes of forwarded packets: packets of other machines, by the device of their arrival. Pure.

Their addresses are those of probe_types.py, and unused addresses in the networks of the device and of a
forward's `source` and `to`. They arrive with a hop limit of 2, so the next router drops one that leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address

from attrs import frozen

from ...kernel.packet_sender import ProbePacket
from ...policy.objects import Forward, Network, Policy, Port, Publish
from ...policy.scalars import matching_pattern
from .probe_types import ARRIVING, DISCARD, OTHER_MACHINE, TOKEN_SIZE, Probe, ProbeFactory, ProbeType

_FORMS = {"udp": "UDP", "tcp": "TCP SYN", "echo": "ICMP echo"}
_REPLIES = {"tcp": ("syn-ack", "TCP SYN/ACK"), "udp": ("udp", "UDP")}
_PROTOCOLS = {"echo": "ping", "syn-ack": "tcp"}  # form -> protocol of a Port, if it has another name
_HEADER_SIZES = {"udp": 8, "tcp": 20, "syn-ack": 20, "echo": 8}  # bytes
_SPORT = 40000
_MOST_DESTINATIONS = 8  # devices inside whose network a packet from an uplink is for
_SMALLEST_NETWORK = 8  # addresses; all of a smaller one are probably in use


@frozen
class ArrivalDevice:
    """Device by which probes arrive. `uplink`: the uplink that it belongs to, or ""."""

    device: str
    uplink: str = ""
    interfaces: tuple[IPv4Interface | IPv6Interface, ...] = ()


@frozen
class ForwardControl:
    """Packet of a forward, which may leave by its uplink. `reason`: why it cannot, if that is known."""

    probe: Probe
    forward: str
    captured: bool = False
    reason: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Forward and family that it is a control of."""
        return self.forward, self.probe.packet.family


@frozen
class ArrivalTest:
    """Probes and control packets that arrive by one device."""

    arrival: ArrivalDevice
    probes: tuple[Probe, ...]
    controls: tuple[ForwardControl, ...] = ()

    @property
    def all_probes(self) -> list[Probe]:
        """Probes and control packets."""
        return [*self.probes, *(control.probe for control in self.controls)]


def covering_forward(policy: Policy, device: str, packet: ProbePacket) -> str | None:
    """Return the forward that a packet belongs to if it arrives by the device; None without one."""
    source, destination = ip_address(packet.source or ""), ip_address(packet.destination)
    family = packet.family
    if any(_contains(forward.networks("source", family), destination) for forward in policy.forward.values()):
        return None  # between networks inside
    for name, forward in policy.forward.items():
        if matching_pattern(device, forward.devices) is None or family not in forward.families:
            continue
        in_networks = all(
            not getattr(forward, key) or _contains(forward.networks(key, family), address)
            for key, address in (("source", source), ("to", destination))
        )
        has_port = not forward.ports or any(_has_port(port, packet.form, packet.dport) for port in forward.ports)
        if in_networks and has_port:
            return name
    return None


def _contains(networks: Sequence[Network], address: object) -> bool:
    return any(address in network for network in networks)


def _has_port(port: Port, form: str, number: int) -> bool:
    protocol = _PROTOCOLS.get(form, form)
    return port.protocol == protocol and (form == "echo" or port.low <= number <= port.high)


def arrival_test(
    policy: Policy | None, arrival: ArrivalDevice, inside: Sequence[ArrivalDevice], factory: ProbeFactory
) -> ArrivalTest:
    """Return the probes and control packets for a device; without a policy, all are probes.

    `inside`: the devices that are not of an uplink.
    """
    if arrival.uplink:
        return ArrivalTest(arrival, tuple(_probes_of_uplink(policy, arrival, inside, factory) if policy else ()))
    probes: list[Probe] = []
    controls: list[ForwardControl] = []
    for probe in _probes_of_device(policy, arrival, factory):
        name = covering_forward(policy, arrival.device, probe.packet) if policy else None
        if name is None:
            probes.append(probe)
        elif probe.packet.form != "syn-ack":  # connection tracking knows no request to it
            controls.append(ForwardControl(probe, name))
    return ArrivalTest(arrival, tuple(probes), tuple(controls))


# --- packets that arrive by a device inside ---------------------------------------------------


def _probes_of_device(policy: Policy | None, arrival: ArrivalDevice, factory: ProbeFactory) -> Iterator[Probe]:
    forwards = {
        name: forward
        for name, forward in (policy.forward.items() if policy else ())
        if matching_pattern(arrival.device, forward.devices) is not None
    }
    publishes = [
        publish
        for publish in (policy.publish.values() if policy else ())
        if publish.to == arrival.device and publish.port.protocol in _REPLIES
    ]
    for family in factory.families:
        sources = dict(_sources(forwards, arrival, family, factory))
        for form, title in _FORMS.items():
            for to_label, destination, dport in _targets(forwards, form, family, factory):
                for from_label, source in sources.items():
                    label = f"{title}, {from_label}{to_label}"
                    yield _probe(factory, form, label, arrival.device, source, destination, dport)
        for publish in publishes:
            yield from _replies(publish, arrival.device, sources, family, factory)


def _sources(
    forwards: dict[str, Forward], arrival: ArrivalDevice, family: int, factory: ProbeFactory
) -> Iterator[tuple[str, str]]:
    chosen = [factory.addresses.destination("documentation", family)]
    yield "documentation source", chosen[0]
    if (own := _unused_address(arrival, family, factory)) is not None:
        chosen.append(own)
        yield "source in the device's network", own
    for name, forward in forwards.items():
        networks = forward.networks("source", family)
        if networks and not any(_contains(networks, ip_address(address)) for address in chosen):
            used = _addresses(arrival)
            if (address := factory.addresses.unused_host(networks[0], used)) is not None:
                chosen.append(address)
                yield f"source of forward {name}", address


def _addresses(arrival: ArrivalDevice) -> frozenset[str]:
    return frozenset(str(interface.ip) for interface in arrival.interfaces)


def _unused_address(arrival: ArrivalDevice, family: int, factory: ProbeFactory) -> str | None:
    """Return an address in a network of the device; None without a network that is large enough."""
    for interface in arrival.interfaces:
        network = interface.network
        if network.version == family and not interface.is_link_local and network.num_addresses >= _SMALLEST_NETWORK:
            return factory.addresses.unused_host(network, _addresses(arrival))
    return None


def _targets(
    forwards: dict[str, Forward], form: str, family: int, factory: ProbeFactory
) -> Iterator[tuple[str, str, int]]:
    """Yield title, destination and port: outside of `to` and `ports` of the forwards, and inside."""
    documentation = factory.addresses.destination("documentation", family)
    targets = {("", documentation, DISCARD): None}
    for name, forward in forwards.items():
        if family not in forward.families:
            continue
        destinations = [("", documentation)]
        networks = forward.networks("to", family)
        if networks and not _contains(networks, ip_address(documentation)):
            address = factory.addresses.unused_host(networks[0], frozenset())
            destinations += [(f", destination of forward {name}", address)] if address else []
        ports = dict.fromkeys((DISCARD, *(port.low for port in forward.ports if port.protocol == form)))
        for label, destination in destinations:
            for port in ports:
                port_label = f", port {port}" if port != DISCARD else ""
                targets[f"{label}{port_label}", destination, port] = None
    yield from targets


def _replies(
    publish: Publish, device: str, sources: dict[str, str], family: int, factory: ProbeFactory
) -> Iterator[Probe]:
    """Yield replies of a published port to no request."""
    form, title = _REPLIES[publish.port.protocol]
    destination = factory.addresses.destination("documentation", family)
    for label, source in sources.items():
        title_of_reply = f"{title} from port {publish.port.low}, {label}"
        yield _probe(factory, form, title_of_reply, device, source, destination, DISCARD, publish.port.low)


# --- packets that arrive by an uplink ---------------------------------------------------------


def _probes_of_uplink(
    policy: Policy, arrival: ArrivalDevice, inside: Sequence[ArrivalDevice], factory: ProbeFactory
) -> Iterator[Probe]:
    published = [publish.port for publish in policy.publish.values() if publish.uplink == arrival.uplink]
    used = {publish.to for publish in policy.publish.values()}
    networks = sorted(inside, key=lambda arrival: arrival.device not in used)[:_MOST_DESTINATIONS]
    for family in factory.families:
        source = _unused_address(arrival, family, factory) or factory.addresses.destination("documentation", family)
        destinations = {"a documentation address": factory.addresses.destination("documentation", family)}
        for other in networks:
            if (address := _unused_address(other, family, factory)) is not None:
                destinations[f"the network of {other.device}"] = address
        for label, destination in destinations.items():
            for form, title in _FORMS.items():
                if (port := _unpublished_port(form, published)) is not None:
                    yield _probe(factory, form, f"{title} to {label}", arrival.device, source, destination, port)


def _unpublished_port(form: str, published: Sequence[Port]) -> int | None:
    for number in range(DISCARD, 1 << 16):
        if not any(_has_port(port, form, number) for port in published):
            return number
    return None


def _probe(
    factory: ProbeFactory,
    form: str,
    title: str,
    device: str,
    source: str,
    destination: str,
    dport: int,
    sport: int = _SPORT,
) -> Probe:
    token = factory.run_token + factory.addresses.random(TOKEN_SIZE - len(factory.run_token))
    kind = ProbeType(f"forwarded {title}", title, form=form, method=ARRIVING, foreign_source=True)
    packet = ProbePacket(
        form,
        ip_address(destination).version,
        destination,
        token,
        dport=dport,
        sport=sport,
        method=ARRIVING,
        device=device,
        source=source,
    )
    return Probe(kind, OTHER_MACHINE, packet, token, _HEADER_SIZES[form])
