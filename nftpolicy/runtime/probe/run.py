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

from ...kernel.emit import BARE, FRAMES, Outcome, Shot, fire
from ...kernel.tap import Card, card, unresolved
from ...netstate.state import Device as Link
from ...policy.objects import Policy, Service
from ..verify import Asked
from .kinds import (
    DISCARD,
    DNS,
    RUN_TOKEN_SIZE,
    AddressPool,
    Kind,
    Probe,
    ProbeDevice,
    ProbeFactory,
    ProbeSender,
    SenderIds,
    unused_id,
)
from .probe_index import ProbeIndex
from .report import (
    BLOCKED,
    ELSEWHERE,
    LEAKED,
    STOPPED,
    TESTED,
    UNTESTED,
    Control,
    Identity,
    OnDevice,
    Report,
    Result,
    Target,
)
from .taps import ProbeCapture

if TYPE_CHECKING:
    from ...kernel.interface import Kernel
    from ...kernel.rtnetlink import Lookups

_MAX_MTU = 9000  # bytes
_DEFAULT_MTU = 1500
_ENTITLED = "entitled"  # the sender of a control packet

_CONTROL_UNICAST = Kind("control", "UDP", way="bound")
_CONTROL_MULTICAST = Kind("control-group", "UDP multicast", way="bound", to="group")
_CONTROL_FRAME = Kind("control-frame", "AF_PACKET frame", form="frame", foreign=True)


# --- the whole run --------------------------------------------------------------------


def probe(kernel: Kernel, links: Sequence[Link], wanted: Policy | Sequence[Asked]) -> Report:
    """Run a leak test for a policy, or for these uplinks.

    `links`: devices of this host with their addresses.

    Raises PermissionError without CAP_NET_RAW.
    """
    from ...kernel.rtnetlink import Lookups

    start = time.monotonic()
    policy = wanted if isinstance(wanted, Policy) else None
    stranger = unused_id(_service_ids(policy))
    devices = list(probe_targets(wanted, links, stranger))
    testable = [target for target in devices if not target.why_not]
    own = tuple(ip_interface(address).network for link in links for address in link.addresses)
    factory = ProbeFactory(AddressPool(os.urandom, own), os.urandom(RUN_TOKEN_SIZE), kernel.ip_families())
    with Lookups() as lookups:
        mtu = max((target.card.mtu for target in devices if target.card), default=_DEFAULT_MTU)
        routed = list(factory.routed_probes(SenderIds(stranger), min(mtu, _MAX_MTU)))
        by_device = {
            target.device: list(
                factory.device_probes(_probe_device(target), SenderIds(stranger, target.mark if policy else 0))
            )
            for target in testable
        }
        controls = [control for target in testable for control in _controls(factory, target, lookups)]
        with ProbeCapture([device for target in devices for device in target.watched]) as capture:
            probes = [*routed, *(probe for of_device in by_device.values() for probe in of_device)]
            capture.index = ProbeIndex([*probes, *(control.probe for control in controls)])
            sent = fire([probe.shot for probe in probes], capture.collect_until)
            outcomes = dict(zip((probe.token for probe in probes), sent, strict=True))
            fire([control.probe.shot for control in controls], capture.collect_until)
            capture.collect_controls(controls)
            incomplete = capture.incomplete()
        is_waiting = _waiting_test(lookups, factory.families, capture.devices)
        judge = _Judge(outcomes, capture, _named_devices(policy, devices), is_waiting)
        controls = [
            evolve(control, seen=control.key[0] in capture.captured_on.get(control.probe.token, {}))
            for control in controls
        ]
        results = {device: tuple(map(judge.result, probes)) for device, probes in by_device.items()}
        routed_results = tuple(map(judge.result, routed))
    all_results = [
        *routed_results,
        *(result for of_device in results.values() for result in of_device),
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
    return Report(summaries, routed_results, round(time.monotonic() - start, 2))


def _probe_device(target: Target) -> ProbeDevice:
    assert target.card is not None
    return ProbeDevice(target.device, target.ports, target.source, min(target.card.mtu, _MAX_MTU))


def _service_ids(policy: Policy | None) -> frozenset[int]:
    """Return the user and group IDs of services and resolvers."""
    if policy is None:
        return frozenset()
    services = (account for service in policy.service.values() for account in (service.group, service.user))
    resolvers = (uplink.resolver.user for uplink in policy.uplink.values() if uplink.resolver)
    return frozenset(account.number for account in (*services, *resolvers) if account is not None)


def probe_targets(wanted: Policy | Sequence[Asked], links: Sequence[Link], stranger: int) -> Iterator[Target]:
    """Yield the devices of all uplinks with their current state."""
    policy: Policy | None = None
    if isinstance(wanted, Policy):
        policy = wanted
        uplinks: Sequence[Asked] = [Asked(name, uplink.devices, uplink.mark) for name, uplink in policy.uplink.items()]
    else:
        uplinks = wanted
    links_by_name = {link.name: link for link in links}
    for uplink in uplinks:
        identity = entitled_sender(policy, uplink.name, stranger) if policy else Identity("root", 0, 0)
        for device in uplink.devices:
            link = links_by_name.get(device)
            ports: tuple[str, ...] = ()
            if link and link.kind == "bridge":
                ports = tuple(sorted(port.name for port in links if port.master == device and _is_running(port.name)))
            yield Target(
                uplink.name,
                uplink.mark.value,
                device,
                card(device) if link else None,
                ports,
                _source_addresses(link.addresses if link else ()),
                identity,
            )


def _is_running(device: str) -> bool:
    link = card(device)
    return link is not None and link.up and link.running


def _source_addresses(addresses: Iterable[str]) -> dict[int, str]:
    """Return by family the first address that needs no zone."""
    by_family: dict[int, str] = {}
    for text in addresses:
        address = ip_address(text.partition("/")[0])
        if not address.is_link_local:
            by_family.setdefault(address.version, str(address))
    return by_family


def entitled_sender(policy: Policy, uplink: str, stranger: int) -> Identity | None:
    """Return a sender that may send UDP by the uplink to any address.

    None if the policy has none.
    """
    for name, service in policy.service.items():
        port = _udp_port(service) if service.uplink == uplink and not service.to else None
        if port is not None and service.group is not None:
            return Identity(
                f"service {name}, group {service.group.number}",
                stranger,
                service.group.number,
                port,
            )
        if port is not None and service.user is not None:
            return Identity(f"service {name}, user {service.user.number}", service.user.number, stranger, port)
    resolver = policy.uplink[uplink].resolver
    if resolver is not None:
        return Identity(f"the resolver's user {resolver.user.number}", resolver.user.number, stranger, DNS)
    return None


def _udp_port(service: Service) -> int | None:
    """Return a UDP port that the service may send to, except DNS, which is redirected.

    None without one.
    """
    if not service.ports:
        return DISCARD
    ports = (port for entry in service.ports if entry.protocol == "udp" for port in (entry.low, entry.high))
    return next((port for port in ports if port != DNS), None)


def _controls(factory: ProbeFactory, target: Target, lookups: Lookups) -> Iterator[Control]:
    """Yield the control packets of a device, best first: of a service, then frames."""
    assert target.card is not None
    for family in factory.families:
        identity = target.identity
        if identity is not None:
            sender = ProbeSender(identity.uid, identity.gid, True, target.mark)
            for kind in (_CONTROL_UNICAST, _CONTROL_MULTICAST):
                with_port = evolve(kind, dport=identity.dport)
                control = factory.build(with_port, family, _ENTITLED, sender, target.device)
                if kind is _CONTROL_MULTICAST or _has_nexthop(lookups, control.shot, target.card):
                    yield Control(control, identity.name)
        for device in (target.device, *target.ports):
            marked = ProbeSender(mark=target.mark)
            yield Control(factory.build(_CONTROL_FRAME, family, _ENTITLED, marked, device), "root")


def _has_nexthop(lookups: Lookups, shot: Shot, link: Card) -> bool:
    """Return True if a packet by this device has a next hop; its destination does not exist."""
    route = lookups.getroute(shot.family, shot.destination, mark=shot.mark, oif=shot.device, uid=shot.uid)
    return not isinstance(route, int) and (route.gateway is not None or link.kind in BARE)


# --- judging --------------------------------------------------------------------------


def _named_devices(policy: Policy | None, devices: Sequence[Target]) -> frozenset[str] | None:
    """Return names and patterns of the devices that the policy names; None without a policy."""
    if policy is None:
        return None
    uplink_devices = (device for target in devices for device in (target.device, *target.ports))
    return frozenset(("lo", *policy.inside, *uplink_devices))


def _waiting_test(lookups: Lookups, families: Iterable[int], watched: Sequence[str]) -> Callable[[Shot], bool]:
    """Return a test for packets that wait for an unresolved neighbour on a watched device."""
    silent = frozenset().union(*(unresolved(family) for family in families))

    def is_waiting(shot: Shot) -> bool:
        if shot.form in FRAMES or not silent or ip_address(shot.destination).is_multicast:
            return False
        oif = shot.device if shot.way in ("bound", "unicast-if", "pktinfo") else None
        source = shot.source if shot.way == "source" else None
        route = lookups.getroute(shot.family, shot.destination, mark=shot.mark, oif=oif, uid=shot.uid, source=source)
        if isinstance(route, int) or route.device not in watched:
            return False
        return (route.device, route.gateway or shot.destination) in silent

    return is_waiting


@frozen
class _Judge:
    """Verdicts on the probes of a run. `named`: devices that the policy names; None: no policy."""

    outcomes: Mapping[bytes, Outcome]
    capture: ProbeCapture
    named: frozenset[str] | None
    is_waiting: Callable[[Shot], bool] = field(repr=False)

    def result(self, probe: Probe) -> Result:
        """Return the verdict on a probe."""
        captured = self.capture.captured_on.get(probe.token, {})
        if captured:
            return Result(probe, LEAKED, seen=tuple(captured), packet=next(iter(captured.values())))
        for device, packet in self.capture.captured_anywhere.get(probe.token, ())[:1]:
            if self.named is None or any(_matches(device, pattern) for pattern in self.named):
                return Result(probe, ELSEWHERE, device, (device,), packet)
            return Result(probe, LEAKED, "by a device that the policy does not name", (device,), packet)
        outcome = self.outcomes[probe.token]
        if outcome.refused:
            return Result(probe, UNTESTED if outcome.at == "open" else BLOCKED, outcome.refused)
        if self.is_waiting(probe.shot):
            return Result(probe, UNTESTED, "waits for a neighbour")
        return Result(probe, STOPPED)


def _matches(device: str, pattern: str) -> bool:
    return device.startswith(pattern[:-1]) if pattern.endswith("*") else device == pattern


def _device_result(
    target: Target,
    own: tuple[Result, ...],
    routed: tuple[Result, ...],
    all_results: Iterable[Result],
    controls: Iterable[Control],
    incomplete: Mapping[str, str],
    families: Iterable[int],
) -> OnDevice:
    """Return the results for one device. `own`: results of the probes that name it."""
    leaks = [result for result in all_results if result.verdict == LEAKED]
    leaked = sum(not set(target.watched).isdisjoint(result.seen) for result in leaks)
    own_controls = tuple(control for control in controls if control.key[0] in target.watched)
    device_result = OnDevice(target, own, own_controls, leaked=leaked)
    return evolve(device_result, faults=tuple(_faults(device_result, routed, incomplete, families)))


def _faults(
    device_result: OnDevice,
    routed: Iterable[Result],
    incomplete: Mapping[str, str],
    families: Iterable[int],
) -> Iterator[str]:
    """Yield the reasons why the test of a device is inconclusive."""
    target = device_result.target
    if target.why_not:
        yield target.why_not
        return
    yield from (incomplete[device] for device in target.watched if device in incomplete)
    for family in families:
        for device in target.watched:
            if device_result.control(family, device) is None:
                yield f"{device}: no IPv{family} control packet captured, so silence proves nothing"
        results = (result for result in (*device_result.results, *routed) if result.probe.shot.family == family)
        if not any(result.verdict in TESTED for result in results):
            yield f"{target.device}: no type of IPv{family} probe could be tested"
