# SPDX-License-Identifier: BSD-2-Clause
"""Result of a proof: proved, refuted with packets, or unknown with the unsupported constructs."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from ..model.packet import ICMP, ICMPV6, IGMP, TCP, UDP, Packet, format_address
from ..model.trace import Trace

PROVED, REFUTED, UNKNOWN = "proved", "refuted", "unknown"
_RANK = {PROVED: 0, UNKNOWN: 1, REFUTED: 2}

_PROTOCOL_NAMES = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6", IGMP: "IGMP"}

PROPERTIES = {
    "P1": "no leak",
    "P2": "mark confinement",
    "P3": "usable",
    "P4": "IPv4/IPv6 parity",
    "P5": "DNS isolation",
}


@frozen
class Counterexample:
    """Packet that violates a property, with its trace; `device` is the device that it leaves by."""

    packet: Packet
    trace: Trace
    device: str
    reason: str


@frozen
class Finding:
    """Verdict on one part of a property. If not `deciding`, it is only reported."""

    property: str
    uplink: str
    subject: str
    verdict: str
    detail: str = ""
    examples: tuple[Counterexample, ...] = ()
    unsupported: tuple[str, ...] = ()
    deciding: bool = True
    origin: tuple[str, ...] = ()


@frozen
class Proof:
    """Findings, with the assumptions and exemptions that they rest on."""

    findings: tuple[Finding, ...]
    assumptions: tuple[str, ...] = ()
    exemptions: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Return the worst verdict of the deciding findings."""
        return worst(finding.verdict for finding in self.findings if finding.deciding)

    def property_verdict(self, name: str) -> str:
        """Return the verdict on one property (P1 to P5)."""
        return worst(finding.verdict for finding in self.findings if finding.property == name)


def worst(verdicts: Iterable[str]) -> str:
    """Return the worst of the verdicts; proved if there are none."""
    return max(verdicts, key=_RANK.__getitem__, default=PROVED)


def describe_packet(packet: Packet, with_details: bool = False) -> str:
    """Return a packet as one line of text; the details are its source port and other header fields."""
    destination = format_address(packet.family, packet.destination)
    if packet.origin == "frame" and packet.ethertype is not None:
        return f"a frame of ethertype {packet.ethertype:#06x} that an AF_PACKET socket sends by {packet.bound}"
    protocol = _PROTOCOL_NAMES.get(packet.protocol, f"protocol {packet.protocol}")
    port = f" port {packet.dport}" if packet.protocol in (TCP, UDP) else ""
    sender = {
        "socket": f"a socket of user {packet.uid}, group {packet.gid}, mark {packet.mark:#x}",
        "frame": f"an AF_PACKET socket with mark {packet.mark:#x}",
        "kernel": f"the kernel, mark {packet.mark:#x}",
        "forward": f"another host, arriving by {packet.iif}",
    }[packet.origin]
    source = f", source {format_address(packet.family, packet.source)}" if packet.source is not None else ""
    bound = f", bound to {packet.bound}" if packet.bound else ""
    flow = "" if packet.flow.state == "new" else f", of an {packet.flow.state} flow ({packet.flow.direction})"
    text = f"IPv{packet.family} {protocol} to {destination}{port} from {sender}{source}{bound}{flow}"
    if not with_details:
        return text
    source_port = [f"source port {packet.sport}"] if port else []
    return ", ".join([text, *source_port, *(f"{' '.join(name)} {value}" for name, value in packet.fields.items())])
