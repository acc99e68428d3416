# SPDX-License-Identifier: BSD-2-Clause
"""Leak test of this host: sends packets that may not leave, and captures on the uplinks.

A run without a captured probe proves nothing by itself: on each device and in each family a control
packet, which may leave, must be captured too. The configuration is unchanged afterwards; the kernel
may keep conntrack and neighbour entries of a leak for a while.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from ...kernel.packet_capture import LinkInfo, failed_neighbours, link_info
from ...kernel.packet_injection import inject_all, random_mac
from ...kernel.packet_sender import ARPHRD_RAW, FRAME_SOCKETS, ProbePacket, SendOutcome, send_all
from ...netstate.state import Device
from ...policy.objects import Policy, Service
from ..verify import GivenUplink
from .capture import ProbeCapture
from .forwarded import ForwardedJudge, absent_forwards, arrival_tests
from .probe_index import ProbeIndex
from .probe_types import (
    DISCARD,
    DNS,
    RUN_TOKEN_SIZE,
    AddressPool,
    Probe,
    ProbeDevice,
    ProbeFactory,
    ProbeSender,
    ProbeType,
    SenderIds,
    unused_id,
)
from .report import (
    BLOCKED,
    ELSEWHERE,
    LEAKED,
    STOPPED,
    TESTED,
    UNTESTED,
    ControlPacket,
    DeviceResult,
    EntitledSender,
    ProbeReport,
    ProbeResult,
    ProbeTarget,
)

if TYPE_CHECKING:
    from ...kernel.interface import Kernel
    from ...kernel.netlink.rtnetlink import RouteLookups

_MAX_MTU = 9000  # bytes
_DEFAULT_MTU = 1500
_ENTITLED = "entitled"  # the sender of a control packet

_CONTROL_UNICAST = ProbeType("control", "UDP", method="bound")
_CONTROL_MULTICAST = ProbeType("control-group", "UDP multicast", method="bound", destination="group")
_CONTROL_FRAME = ProbeType("control-frame", "AF_PACKET frame", form="frame", foreign_source=True)


# --- the whole run --------------------------------------------------------------------


def probe(kernel: Kernel, links: Sequence[Device], wanted: Policy | Sequence[GivenUplink]) -> ProbeReport:
    """Run a leak test for a policy, or for these uplinks.

    `links`: devices of this host with their addresses.

    Raises PermissionError without CAP_NET_RAW.
    """
    from ...kernel.netlink.rtnetlink import RouteLookups

    start = time.monotonic()
    policy = wanted if isinstance(wanted, Policy) else None
    stranger = unused_id(_service_ids(policy))
    devices = list(probe_targets(wanted, links, stranger))
    testable = [target for target in devices if not target.untestable_reason]
    own = tuple(ip_interface(address).network for link in links for address in link.addresses)
    factory = ProbeFactory(AddressPool(os.urandom, own), os.urandom(RUN_TOKEN_SIZE), kernel.ip_families())
    with RouteLookups() as lookups:
        mtu = max((target.link.mtu for target in devices if target.link), default=_DEFAULT_MTU)
        routed = list(factory.routed_probes(SenderIds(stranger), min(mtu, _MAX_MTU)))
        by_device = {
            target.device: list(
                factory.device_probes(_probe_device(target), SenderIds(stranger, target.mark if policy else 0))
            )
            for target in testable
        }
        controls = [control for target in testable for control in _controls(factory, target, lookups)]
        tests = arrival_tests(policy, links, devices, factory)
        arriving = [probe for test in tests for probe in test.all_probes]
        captured_devices, mac = [device for target in devices for device in target.captured_devices], random_mac()
        with ProbeCapture(captured_devices, mac) as capture:
            probes = [*routed, *(probe for of_device in by_device.values() for probe in of_device)]
            capture.index = ProbeIndex([*probes, *arriving, *(control.probe for control in controls)])
            send_outcomes = send_all([probe.packet for probe in probes], capture.collect_until)
            outcomes = dict(zip((probe.token for probe in probes), send_outcomes, strict=True))
            injected = inject_all([probe.packet for probe in arriving], mac)
            send_all([control.probe.packet for control in controls], capture.collect_until)
            capture.collect_controls(controls, [control for test in tests for control in test.controls])
            incomplete = capture.incomplete()
        silent = frozenset().union(*(failed_neighbours(family) for family in factory.families))
        named = _named_devices(policy, devices)
        judge = _Judge(outcomes, capture, named, _waiting_test(lookups, silent, capture.devices))
        uplinks = {device: target.uplink for target in devices for device in target.captured_devices}
        arrivals = dict(zip((probe.token for probe in arriving), injected, strict=True))
        forwarded_judge = ForwardedJudge(policy, named, uplinks, arrivals, capture, silent, lookups)
        forwarded = tuple(map(forwarded_judge.result, tests))
        controls = [
            evolve(control, captured=control.key[0] in capture.captured_on.get(control.probe.token, {}))
            for control in controls
        ]
        results = {device: tuple(map(judge.result, probes)) for device, probes in by_device.items()}
        routed_results = tuple(map(judge.result, routed))
    all_results = [
        *routed_results,
        *(result for of_device in results.values() for result in of_device),
        *(result for of_device in forwarded for result in of_device.results),
    ]
    summaries = tuple(
        _device_result(
            target,
            results.get(target.device, ()),
            routed_results,
            all_results,
            controls,
            incomplete,
            factory.families,
        )
        for target in devices
    )
    return ProbeReport(
        summaries, routed_results, round(time.monotonic() - start, 2), forwarded, absent_forwards(policy, tests)
    )


def _probe_device(target: ProbeTarget) -> ProbeDevice:
    assert target.link is not None
    return ProbeDevice(target.device, target.ports, target.source, min(target.link.mtu, _MAX_MTU))


def _service_ids(policy: Policy | None) -> frozenset[int]:
    """Return the user and group IDs of services and resolvers."""
    if policy is None:
        return frozenset()
    services = (account for service in policy.service.values() for account in (service.group, service.user))
    resolvers = (uplink.resolver.user for uplink in policy.uplink.values() if uplink.resolver)
    return frozenset(account.number for account in (*services, *resolvers) if account is not None)


def probe_targets(
    wanted: Policy | Sequence[GivenUplink], links: Sequence[Device], stranger: int
) -> Iterator[ProbeTarget]:
    """Yield the devices of all uplinks with their current state."""
    policy: Policy | None = None
    if isinstance(wanted, Policy):
        policy = wanted
        uplinks: Sequence[GivenUplink] = [
            GivenUplink(name, uplink.devices, uplink.mark) for name, uplink in policy.uplink.items()
        ]
    else:
        uplinks = wanted
    links_by_name = {link.name: link for link in links}
    for uplink in uplinks:
        identity = entitled_sender(policy, uplink.name, stranger) if policy else EntitledSender("root", 0, 0)
        for device in uplink.devices:
            link = links_by_name.get(device)
            ports: tuple[str, ...] = ()
            if link and link.kind == "bridge":
                ports = tuple(sorted(port.name for port in links if port.master == device and _is_running(port.name)))
            yield ProbeTarget(
                uplink.name,
                uplink.mark.value,
                device,
                link_info(device) if link else None,
                ports,
                _source_addresses(link.addresses if link else ()),
                identity,
            )


def _is_running(device: str) -> bool:
    link = link_info(device)
    return link is not None and link.is_up and link.has_carrier


def _source_addresses(addresses: Iterable[str]) -> dict[int, str]:
    """Return by family the first address that needs no zone."""
    by_family: dict[int, str] = {}
    for text in addresses:
        address = ip_address(text.partition("/")[0])
        if not address.is_link_local:
            by_family.setdefault(address.version, str(address))
    return by_family


def entitled_sender(policy: Policy, uplink: str, stranger: int) -> EntitledSender | None:
    """Return a sender that may send UDP by the uplink to any address.

    None if the policy has none.
    """
    for name, service in policy.service.items():
        port = _udp_port(service) if service.uplink == uplink and not service.to else None
        if port is not None and service.group is not None:
            return EntitledSender(
                f"service {name}, group {service.group.number}",
                stranger,
                service.group.number,
                port,
            )
        if port is not None and service.user is not None:
            return EntitledSender(f"service {name}, user {service.user.number}", service.user.number, stranger, port)
    resolver = policy.uplink[uplink].resolver
    if resolver is not None:
        return EntitledSender(f"the resolver's user {resolver.user.number}", resolver.user.number, stranger, DNS)
    return None


def _udp_port(service: Service) -> int | None:
    """Return a UDP port that the service may send to, except DNS, which is redirected.

    None without one.
    """
    if not service.ports:
        return DISCARD
    ports = (port for entry in service.ports if entry.protocol == "udp" for port in (entry.low, entry.high))
    return next((port for port in ports if port != DNS), None)


def _controls(factory: ProbeFactory, target: ProbeTarget, lookups: RouteLookups) -> Iterator[ControlPacket]:
    """Yield the control packets of a device, best first: of a service, then frames."""
    assert target.link is not None
    for family in factory.families:
        identity = target.identity
        if identity is not None:
            sender = ProbeSender(identity.uid, identity.gid, True, target.mark)
            for kind in (_CONTROL_UNICAST, _CONTROL_MULTICAST):
                with_port = evolve(kind, dport=identity.dport)
                control = factory.build(with_port, family, _ENTITLED, sender, target.device)
                if kind is _CONTROL_MULTICAST or _has_nexthop(lookups, control.packet, target.link):
                    yield ControlPacket(control, identity.name)
        for device in (target.device, *target.ports):
            marked = ProbeSender(mark=target.mark)
            yield ControlPacket(factory.build(_CONTROL_FRAME, family, _ENTITLED, marked, device), "root")


def _has_nexthop(lookups: RouteLookups, probe_packet: ProbePacket, link: LinkInfo) -> bool:
    """Return True if a packet by this device has a next hop; its destination does not exist."""
    route = lookups.get_route(
        probe_packet.family,
        probe_packet.destination,
        mark=probe_packet.mark,
        oif=probe_packet.device,
        uid=probe_packet.uid,
    )
    return not isinstance(route, int) and (route.gateway is not None or link.hardware_type in ARPHRD_RAW)


# --- judging --------------------------------------------------------------------------


def _named_devices(policy: Policy | None, devices: Sequence[ProbeTarget]) -> frozenset[str] | None:
    """Return names and patterns of the devices that the policy names; None without a policy."""
    if policy is None:
        return None
    uplink_devices = (device for target in devices for device in (target.device, *target.ports))
    return frozenset(("lo", *policy.inside, *uplink_devices))


def _waiting_test(
    lookups: RouteLookups, silent: frozenset[tuple[str, str]], watched: Sequence[str]
) -> Callable[[ProbePacket], bool]:
    """Return a test for packets that wait for an unresolved neighbour, one of `silent`, on a watched device."""

    def is_waiting(probe_packet: ProbePacket) -> bool:
        if probe_packet.form in FRAME_SOCKETS or not silent or ip_address(probe_packet.destination).is_multicast:
            return False
        oif = probe_packet.device if probe_packet.method in ("bound", "unicast-if", "pktinfo") else None
        source = probe_packet.source if probe_packet.method == "source" else None
        route = lookups.get_route(
            probe_packet.family,
            probe_packet.destination,
            mark=probe_packet.mark,
            oif=oif,
            uid=probe_packet.uid,
            source=source,
        )
        if isinstance(route, int) or route.device not in watched:
            return False
        return (route.device, route.gateway or probe_packet.destination) in silent

    return is_waiting


@frozen
class _Judge:
    """Verdicts on the probes of a run. `named`: devices that the policy names; None: no policy."""

    outcomes: Mapping[bytes, SendOutcome]
    capture: ProbeCapture
    named: frozenset[str] | None
    is_waiting: Callable[[ProbePacket], bool] = field(repr=False)

    def result(self, probe: Probe) -> ProbeResult:
        """Return the verdict on a probe."""
        captured = self.capture.captured_on.get(probe.token, {})
        if captured:
            return ProbeResult(probe, LEAKED, captured_on=tuple(captured), packet=next(iter(captured.values())))
        for device, packet in self.capture.captured_anywhere.get(probe.token, ())[:1]:
            if self.named is None or any(_matches(device, pattern) for pattern in self.named):
                return ProbeResult(probe, ELSEWHERE, device, (device,), packet)
            return ProbeResult(probe, LEAKED, "by a device that the policy does not name", (device,), packet)
        outcome = self.outcomes[probe.token]
        if outcome.error:
            return ProbeResult(probe, UNTESTED if outcome.stage == "open" else BLOCKED, outcome.error)
        if self.is_waiting(probe.packet):
            return ProbeResult(probe, UNTESTED, "waits for a neighbour")
        return ProbeResult(probe, STOPPED)


def _matches(device: str, pattern: str) -> bool:
    return device.startswith(pattern[:-1]) if pattern.endswith("*") else device == pattern


def _device_result(
    target: ProbeTarget,
    own: tuple[ProbeResult, ...],
    routed: tuple[ProbeResult, ...],
    all_results: Iterable[ProbeResult],
    controls: Iterable[ControlPacket],
    incomplete: Mapping[str, str],
    families: Iterable[int],
) -> DeviceResult:
    """Return the results for one device. `own`: results of the probes that name it."""
    leaks = [result for result in all_results if result.verdict == LEAKED]
    leaked = sum(not set(target.captured_devices).isdisjoint(result.captured_on) for result in leaks)
    own_controls = tuple(control for control in controls if control.key[0] in target.captured_devices)
    device_result = DeviceResult(target, own, own_controls, leaked=leaked)
    return evolve(device_result, faults=tuple(_faults(device_result, routed, incomplete, families)))


def _faults(
    device_result: DeviceResult,
    routed: Iterable[ProbeResult],
    incomplete: Mapping[str, str],
    families: Iterable[int],
) -> Iterator[str]:
    """Yield the reasons why the test of a device is inconclusive."""
    target = device_result.target
    if target.untestable_reason:
        yield target.untestable_reason
        return
    yield from (incomplete[device] for device in target.captured_devices if device in incomplete)
    for family in families:
        for device in target.captured_devices:
            if device_result.captured_control(family, device) is None:
                yield f"{device}: no IPv{family} control packet captured, so silence proves nothing"
        results = (result for result in (*device_result.results, *routed) if result.probe.packet.family == family)
        if not any(result.verdict in TESTED for result in results):
            yield f"{target.device}: no type of IPv{family} probe could be tested"
