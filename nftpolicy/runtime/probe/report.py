# SPDX-License-Identifier: BSD-2-Clause
"""Results of a leak test: of each probe, of each device of an uplink, and of the run. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from attrs import Factory, frozen

from ...kernel.packet_capture import LinkInfo
from .arrivals import ForwardControl
from .observed_packet import ObservedPacket
from .probe_types import DISCARD, Probe

NO_LEAK, LEAKS, INCONCLUSIVE = "held", "leaks", "inconclusive"

# Verdicts on one probe. LEAKED: it left by an uplink. BLOCKED: the kernel returned an error to its
# sender. STOPPED: the kernel accepted it, and it left by no device. ELSEWHERE: it left by a device
# of no uplink. UNTESTED: no result.
LEAKED, BLOCKED, STOPPED, ELSEWHERE, UNTESTED = (
    "leaked",
    "blocked",
    "stopped",
    "elsewhere",
    "not tested",
)
TESTED = frozenset({LEAKED, BLOCKED, STOPPED, ELSEWHERE})


@frozen
class EntitledSender:
    """Sender entitled to an uplink, by the IDs of its socket, and a destination port it may use."""

    name: str
    uid: int
    gid: int
    dport: int = DISCARD


@frozen
class ProbeTarget:
    """Current state of an uplink's device. `link` is None if the device does not exist."""

    uplink: str
    mark: int
    device: str
    link: LinkInfo | None
    ports: tuple[str, ...] = ()
    source: Mapping[int, str] = Factory(dict)
    identity: EntitledSender | None = None

    @property
    def untestable_reason(self) -> str:
        """Reason why the device cannot be tested; "" if it can."""
        if self.link is None:
            return f"device {self.device} does not exist"
        if not self.link.is_up:
            return f"{self.device} is down"
        return "" if self.link.has_carrier else f"{self.device} has no carrier"

    @property
    def captured_devices(self) -> tuple[str, ...]:
        """Device, and its ports if it is a bridge; () if it cannot be tested."""
        return () if self.untestable_reason else (self.device, *self.ports)


@frozen
class ControlPacket:
    """Control packet: one that may leave.

    `sender` describes its sender, `captured` is True if it left.
    """

    probe: Probe
    sender: str
    captured: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """Device and family that it is a control of."""
        return self.probe.packet.device or "", self.probe.packet.family


@frozen
class ProbeResult:
    """Verdict on a probe.

    `detail`: the reason (an errno, a device, a sentence). `captured_on`: devices that it left by.
    `packet`: the first captured packet.
    """

    probe: Probe
    verdict: str
    detail: str = ""
    captured_on: tuple[str, ...] = ()
    packet: ObservedPacket | None = None


@frozen
class DeviceResult:
    """Results for one device of an uplink. `faults`: reasons why no capture proves nothing.

    `leaked`: a count.
    """

    target: ProbeTarget
    results: tuple[ProbeResult, ...] = ()
    controls: tuple[ControlPacket, ...] = ()
    faults: tuple[str, ...] = ()
    leaked: int = 0

    @property
    def verdict(self) -> str:
        """NO_LEAK, LEAKS or INCONCLUSIVE."""
        if self.leaked:
            return LEAKS
        return INCONCLUSIVE if self.faults else NO_LEAK

    def captured_control(self, family: int, device: str | None = None) -> ControlPacket | None:
        """Return the best control packet that was captured on the device (or a port of it).

        None without one.
        """
        key = (device or self.target.device, family)
        return next((control for control in self.controls if control.captured and control.key == key), None)


@frozen
class ForwardedResult:
    """Results for the packets of other machines that arrive by one device.

    `faults`: reasons why silence proves nothing. `notes`: reasons why such packets cannot leave, or were not tested.
    """

    device: str
    results: tuple[ProbeResult, ...] = ()
    controls: tuple[ForwardControl, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def missing_controls(self) -> dict[tuple[str, int], set[str]]:
        """Return by forward and family the reasons of control packets, where none was captured."""
        captured = {control.key for control in self.controls if control.captured}
        missing: dict[tuple[str, int], set[str]] = {}
        for control in self.controls:
            if control.key not in captured:
                missing.setdefault(control.key, set()).add(control.reason)
        return missing


@frozen
class ProbeReport:
    """Results of the whole run. `routed`: results of probes without a device, sent by the routes.

    `forwarded`: results of packets of other machines. `absent_forwards`: those of which no packet can arrive.
    """

    devices: tuple[DeviceResult, ...]
    routed: tuple[ProbeResult, ...]
    seconds: float = 0.0
    forwarded: tuple[ForwardedResult, ...] = ()
    absent_forwards: tuple[str, ...] = ()

    @property
    def results(self) -> list[ProbeResult]:
        """Results of all probes."""
        by_device = [device.results for device in self.devices] + [device.results for device in self.forwarded]
        return [*self.routed, *chain.from_iterable(by_device)]

    @property
    def leaks(self) -> list[ProbeResult]:
        """Results of the probes that leaked."""
        return [result for result in self.results if result.verdict == LEAKED]

    @property
    def faults(self) -> list[str]:
        """Reasons why the run is inconclusive, as sentences."""
        sentences = (f"{device.target.uplink}: {fault}" for device in self.devices for fault in device.faults)
        return list(dict.fromkeys((*sentences, *(fault for device in self.forwarded for fault in device.faults))))

    @property
    def notes(self) -> list[str]:
        """Reasons why packets of other machines cannot leave, or were not tested, as sentences."""
        absent = (f"forward {name} is not tested: no device of 'from' is up" for name in self.absent_forwards)
        return list(dict.fromkeys((*absent, *(note for device in self.forwarded for note in device.notes))))

    @property
    def verdict(self) -> str:
        """LEAKS if any probe leaked, else INCONCLUSIVE if anything is uncertain, else NO_LEAK."""
        if self.leaks:
            return LEAKS
        return INCONCLUSIVE if self.faults or not self.devices else NO_LEAK
