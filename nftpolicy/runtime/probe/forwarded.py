# SPDX-License-Identifier: BSD-2-Clause
"""Verdicts on packets of other machines: which devices they arrive by, and where they left."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from ...kernel.packet_injection import disabled_forwarding
from ...kernel.packet_sender import ARPHRD_ETHER, ARPHRD_RAW, SendOutcome
from ...netstate.state import Device, ports_of_devices
from ...policy.objects import Policy
from ...policy.scalars import matching_pattern
from .arrivals import ArrivalDevice, ArrivalTest, ForwardControl, arrival_test, covering_forward
from .capture import ProbeCapture
from .observed_packet import ObservedPacket
from .probe_types import Probe, ProbeFactory
from .report import ELSEWHERE, LEAKED, STOPPED, UNTESTED, ForwardedResult, ProbeResult, ProbeTarget

if TYPE_CHECKING:
    from ...kernel.netlink.rtnetlink import RouteLookups

# Types of devices (ARPHRD_*): Ethernet, IP packets as frames, IPIP, IPv6 tunnel, GRE of IPv4 and of IPv6.
_LINK_TYPES = frozenset((ARPHRD_ETHER, *ARPHRD_RAW, 768, 769, 778, 823))
_UNARRIVED, _WAITS = "did not arrive", "waits for a neighbour"


def arrival_tests(
    policy: Policy | None, links: Sequence[Device], targets: Sequence[ProbeTarget], factory: ProbeFactory
) -> tuple[ArrivalTest, ...]:
    """Return the tests of all devices that are up, except lo and the ports of bridges and bonds."""
    uplinks = {target.device: target.uplink for target in targets}
    ports = {
        port for of_device in ports_of_devices(links, [link.name for link in links]).values() for port in of_device
    }
    arrivals = [
        ArrivalDevice(link.name, uplinks.get(link.name, ""), tuple(map(ip_interface, link.addresses)))
        for link in links
        if link.up and link.name not in ports and link.link_type in _LINK_TYPES
    ]
    inside = [arrival for arrival in arrivals if not arrival.uplink]
    return tuple(arrival_test(policy, arrival, inside, factory) for arrival in arrivals)


def absent_forwards(policy: Policy | None, tests: Sequence[ArrivalTest]) -> tuple[str, ...]:
    """Return the forwards by whose devices no packet arrives in any test."""
    devices = [test.arrival.device for test in tests]
    forwards = policy.forward.items() if policy else ()
    return tuple(
        name for name, forward in forwards if not any(matching_pattern(device, forward.devices) for device in devices)
    )


@frozen
class ForwardedJudge:
    """Verdicts on the tests of a run. `named`: devices that the policy names; `silent`: neighbours that do not answer.

    `uplinks`: the uplink of each captured device. `outcomes`: of the injection, by token.
    """

    policy: Policy | None
    named: frozenset[str] | None
    uplinks: Mapping[str, str]
    outcomes: Mapping[bytes, SendOutcome]
    capture: ProbeCapture
    silent: frozenset[tuple[str, str]]
    lookups: RouteLookups

    def result(self, test: ArrivalTest) -> ForwardedResult:
        """Return the results of a device."""
        results = tuple(self._probe_result(probe, test.arrival) for probe in test.probes)
        controls = tuple(map(self._control, test.controls))
        strays = tuple(stray for control in test.controls if (stray := self._stray(control)) is not None)
        device_result = ForwardedResult(test.arrival.device, (*results, *strays), controls)
        errors = {error for probe in test.all_probes if (error := self.outcomes[probe.token].error)}
        if errors:
            hint = "" if "ENODEV" in errors else "; this needs Linux 5.18 and CAP_BPF"
            reason = f"{', '.join(sorted(errors))}{hint}"
            note = f"forwarded packets are not tested: the kernel does not let packets arrive ({reason})"
            return evolve(device_result, notes=(note,))
        return evolve(device_result, faults=tuple(_faults(device_result)), notes=tuple(_notes(device_result)))

    def _probe_result(self, probe: Probe, arrival: ArrivalDevice) -> ProbeResult:
        if (error := self.outcomes[probe.token].error) is not None:
            return ProbeResult(probe, UNTESTED, error)
        by_uplink = self.capture.captured_on.get(probe.token, {})
        anywhere = self.capture.captured_anywhere.get(probe.token, [])
        for device, packet in (*by_uplink.items(), *anywhere[:1]):
            return self._departure(probe, arrival, tuple(by_uplink) or (device,), packet)
        if probe.token not in self.capture.arrived:
            return ProbeResult(probe, UNTESTED, _UNARRIVED)
        if self._is_waiting(probe):
            return ProbeResult(probe, UNTESTED, _WAITS)
        is_off = disabled_forwarding(arrival.device, probe.packet.family) is not None
        return ProbeResult(probe, STOPPED, "forwarding is off" if is_off else "")

    def _departure(
        self, probe: Probe, arrival: ArrivalDevice, devices: tuple[str, ...], packet: ObservedPacket
    ) -> ProbeResult:
        uplinks = {self.uplinks.get(device) for device in devices}
        if not arrival.uplink and (name := self._forward_of(probe, packet)) is not None:
            assert self.policy is not None
            if uplinks == {self.policy.forward[name].uplink}:
                return ProbeResult(probe, UNTESTED, f"another rule makes it a packet of forward {name}", (), packet)
        if uplinks != {None}:
            return ProbeResult(probe, LEAKED, captured_on=devices, packet=packet)
        if arrival.uplink:
            detail = f"a packet from uplink {arrival.uplink} is forwarded"
        elif self.named is None or matching_pattern(devices[0], self.named) is not None:
            return ProbeResult(probe, ELSEWHERE, devices[0], devices, packet)
        else:
            detail = "by a device that the policy does not name"
        return ProbeResult(probe, LEAKED, detail, devices, packet)

    def _forward_of(self, probe: Probe, packet: ObservedPacket) -> str | None:
        """Return the forward of a packet as it left, since another program may have changed its destination."""
        if self.policy is None:
            return None
        dport = packet.ports[1] if packet.ports else probe.packet.dport
        left = evolve(probe.packet, destination=packet.destination, dport=dport)
        return covering_forward(self.policy, probe.packet.device or "", left)

    def _is_waiting(self, probe: Probe, mark: int = 0) -> bool:
        packet = probe.packet
        if any(address == packet.destination for _, address in self.silent):
            return True
        route = self.lookups.get_route(packet.family, packet.destination, packet.source, mark, packet.device)
        return not isinstance(route, int) and (route.device, route.gateway or packet.destination) in self.silent

    # --- control packets ----------------------------------------------------------------------

    def _control(self, control: ForwardControl) -> ForwardControl:
        assert self.policy is not None
        forward = self.policy.forward[control.forward]
        mark = self.policy.uplink[forward.uplink].mark.value
        captured = self.capture.captured_on.get(control.probe.token, {})
        if any(self.uplinks[device] == forward.uplink for device in captured):
            return evolve(control, captured=True)
        packet = control.probe.packet
        if self._is_waiting(control.probe, mark):
            return evolve(control, reason=_WAITS)
        route = self.lookups.get_route(packet.family, packet.destination, packet.source, mark, packet.device)
        return evolve(control, reason=os.strerror(route) if isinstance(route, int) else "")

    def _stray(self, control: ForwardControl) -> ProbeResult | None:
        """Return the leak of a control packet: by another uplink, or without source NAT; None without one."""
        assert self.policy is not None
        forward = self.policy.forward[control.forward]
        captured = self.capture.captured_on.get(control.probe.token, {})
        for device, packet in captured.items():
            if self.uplinks[device] != forward.uplink:
                detail = f"forward {control.forward} uses uplink {forward.uplink}"
                return ProbeResult(control.probe, LEAKED, detail, (device,), packet)
            if forward.masquerade and packet.source == control.probe.packet.source:
                detail = f"forward {control.forward} has masquerade"
                return ProbeResult(control.probe, LEAKED, detail, (device,), packet)
        return None


def _faults(device_result: ForwardedResult) -> Iterator[str]:
    """Yield the reasons why the silence of an uplink proves nothing about a device's packets."""
    device = device_result.device
    for detail, sentence in ((_UNARRIVED, "did not arrive"), (_WAITS, "wait for a neighbour that does not answer")):
        if count := sum(result.detail == detail for result in device_result.results):
            yield f"{device}: {count} packets of other machines {sentence}"
    for (forward, family), reasons in device_result.missing_controls().items():
        if disabled_forwarding(device, family) is None and not reasons.isdisjoint({"", _WAITS}):
            reason = _WAITS if _WAITS in reasons else "does another rule drop it?"
            yield f"{device}: no IPv{family} packet of forward {forward} captured, so silence proves nothing ({reason})"


def _notes(device_result: ForwardedResult) -> Iterator[str]:
    device = device_result.device
    probes = [result.probe for result in device_result.results] + [control.probe for control in device_result.controls]
    for family in sorted({probe.packet.family for probe in probes}):
        if (sysctl := disabled_forwarding(device, family)) is not None:
            yield f"forwarding is off ({sysctl} = 0): no IPv{family} packet of another machine can leave"
    for (forward, family), reasons in device_result.missing_controls().items():
        if disabled_forwarding(device, family) is None and reasons.isdisjoint({"", _WAITS}):
            reason = ", ".join(sorted(reasons))
            yield f"forward {forward}: its IPv{family} packets by {device} have no route, or fail rp_filter ({reason})"
