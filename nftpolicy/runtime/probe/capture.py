# SPDX-License-Identifier: BSD-2-Clause
"""Packet capture of a leak test, while its probes are sent and a while longer."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from ...kernel.packet_capture import PacketCapture
from .arrivals import ForwardControl
from .observed_packet import ObservedPacket
from .probe_index import ProbeIndex
from .report import ControlPacket

# Seconds.
_CONTROL_TIMEOUT = 0.6  # for control packets: the kernel may have to resolve a neighbour first
_BEST_CONTROL_TIMEOUT = 0.25  # for the best control packet of each device and family
_LATE = 0.15  # for late packets, after the control packets
_POLL = 0.02
_LONGEST_WAIT = 1.0


class ProbeCapture:
    """Captures on the devices to test, and one on all devices. A context manager.

    `captured_on`: by token, the first packet on each device to test. `captured_anywhere`: by token,
    device and packet of each capture, in order. `arrived`: tokens of the packets that arrived from the
    MAC address `arriving_from`.
    """

    def __init__(self, devices: Iterable[str], arriving_from: bytes) -> None:
        self.devices = tuple(dict.fromkeys(devices))
        self.index = ProbeIndex(())
        self.captured_on: dict[bytes, dict[str, ObservedPacket]] = {}
        self.captured_anywhere: dict[bytes, list[tuple[str, ObservedPacket]]] = {}
        self.arrived: set[bytes] = set()
        self._arriving_from = arriving_from

    def __enter__(self) -> ProbeCapture:
        with ExitStack() as stack:
            self._captures = {device: stack.enter_context(PacketCapture(device)) for device in self.devices}
            self._capture_all = stack.enter_context(PacketCapture())
            self._arrivals = stack.enter_context(PacketCapture(arriving_from=self._arriving_from))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def collect_until(self, descriptor: int) -> None:
        """Wait for a descriptor or for packets, and process the packets."""
        self._wait(_LONGEST_WAIT, [descriptor])

    def collect_controls(self, controls: Sequence[ControlPacket], forwarded: Sequence[ForwardControl]) -> None:
        """Wait for the best control packets, after a timeout for any; then for late packets.

        `forwarded`: control packets of forwards, of which one of each forward and family is enough.
        """
        best: dict[tuple[str, int], bytes] = {}
        all_tokens: dict[tuple[str, int], list[bytes]] = {}
        for control in controls:
            best.setdefault(control.key, control.probe.token)
            all_tokens.setdefault(control.key, []).append(control.probe.token)
        start = time.monotonic()

        def is_captured(key: tuple[str, int], token: bytes) -> bool:
            device, _ = key
            return device in self.captured_on.get(token, {})

        while (elapsed := time.monotonic() - start) < _CONTROL_TIMEOUT:
            if all(is_captured(key, token) for key, token in best.items()):
                break
            any_of_each = all(any(is_captured(key, token) for token in tokens) for key, tokens in all_tokens.items())
            if elapsed > _BEST_CONTROL_TIMEOUT and any_of_each:
                break
            self._wait(_POLL)
        self._wait_for_forwards(forwarded, start + _CONTROL_TIMEOUT)
        end = time.monotonic() + _LATE
        while (now := time.monotonic()) < end:
            self._wait(end - now)

    def _wait_for_forwards(self, controls: Sequence[ForwardControl], end: float) -> None:
        while time.monotonic() < end:
            captured = {control.key for control in controls if control.probe.token in self.captured_on}
            if all(control.key in captured for control in controls):
                return
            self._wait(_POLL)

    def incomplete(self) -> dict[str, str]:
        """Return the reason for each device whose capture is incomplete."""
        reasons = {}
        for device, capture in self._captures.items():
            if capture.lost_packets:
                reasons[device] = f"{device}: capture lost {capture.lost_packets} packets (too much traffic); try again"
            elif capture.device_gone:
                reasons[device] = f"{device} went down during the test"
        return reasons

    def _wait(self, seconds: float, descriptors: Sequence[int] = ()) -> None:
        captures = [*self._captures.values(), self._capture_all, self._arrivals]
        select.select([*(capture.fileno() for capture in captures), *descriptors], [], [], seconds)
        for device, capture in self._captures.items():
            for captured in capture.read_packets():
                if match := self.index.find(captured.ethertype, captured.data):
                    probe, packet = match
                    self.captured_on.setdefault(probe.token, {}).setdefault(device, packet)
        for captured in self._capture_all.read_packets():
            if match := self.index.find(captured.ethertype, captured.data):
                probe, packet = match
                self.captured_anywhere.setdefault(probe.token, []).append((captured.device, packet))
        for captured in self._arrivals.read_packets():
            if match := self.index.find(captured.ethertype, captured.data):
                self.arrived.add(match[0].token)
