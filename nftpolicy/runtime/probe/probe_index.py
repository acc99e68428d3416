# SPDX-License-Identifier: BSD-2-Clause
"""Index that recognizes the probes of a run among captured packets."""

from __future__ import annotations

from collections.abc import Iterable

from ...kernel.ip_packet import TCP
from .observed_packet import ObservedPacket, may_be_syn, parse_packet
from .probe_types import RUN_TOKEN_SIZE, TOKEN_SIZE, Probe


class ProbeIndex:
    """Index that has the probe of a captured packet, also after address translation.

    A probe inside a tunnel does not count, even if it is readable: the token has to follow the
    outermost header.
    """

    def __init__(self, probes: Iterable[Probe]) -> None:
        self._run_token = b""
        self._by_token: dict[bytes, Probe] = {}
        self._by_destination: dict[tuple[str, int], Probe] = {}  # TCP SYN have no payload
        for probe in probes:
            self._run_token = probe.token[:RUN_TOKEN_SIZE]
            self._by_token[probe.token] = probe
            if probe.packet.form == "tcp":
                self._by_destination[probe.packet.destination, probe.packet.dport] = probe

    def find(self, ethertype: int, data: bytes) -> tuple[Probe, ObservedPacket] | None:
        """Return the probe that this packet is (a fragment of), and the parsed packet.

        None for other packets.
        """
        if self._run_token and self._run_token in data:
            return self._find_by_token(parse_packet(ethertype, data))
        if self._by_destination and may_be_syn(ethertype, data):
            return self._find_by_destination(parse_packet(ethertype, data))
        return None

    def _find_by_token(self, packet: ObservedPacket) -> tuple[Probe, ObservedPacket] | None:
        offset = packet.payload.find(self._run_token)
        probe = self._by_token.get(packet.payload[offset : offset + TOKEN_SIZE]) if offset >= 0 else None
        if probe is None:
            return None
        # A fragment begins anywhere in the repeated token.
        in_place = offset < TOKEN_SIZE if probe.probe_type.is_large else offset == probe.offset
        same_layer = (packet.protocol is None) == (probe.packet.family == 0)
        return (probe, packet) if in_place and same_layer else None

    def _find_by_destination(self, packet: ObservedPacket) -> tuple[Probe, ObservedPacket] | None:
        if packet.protocol != TCP or not packet.ports:
            return None
        probe = self._by_destination.get((packet.destination, packet.ports[1]))
        return (probe, packet) if probe else None
