# SPDX-License-Identifier: BSD-2-Clause
"""Result of a proof: proved, refuted with packets, or unknown with the unsupported constructs."""

from __future__ import annotations

import builtins
from collections.abc import Iterable

from attrs import field, frozen
from attrs.validators import min_len

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
class Proved:
    """Result: the statement holds for all packets."""


@frozen
class Refuted:
    """Result: the statement is false, as the packet of each counterexample shows; there is at least one."""

    counterexample: Counterexample
    further_counterexamples: tuple[Counterexample, ...] = ()


@frozen
class Unknown:
    """Result: neither proved nor refuted, for `reason`; `unsupported` are the constructs that it depends on."""

    reason: str = field(validator=min_len(1))
    unsupported: tuple[str, ...] = ()


ProofResult = Proved | Refuted | Unknown
_VERDICTS: dict[type, str] = {Proved: PROVED, Refuted: REFUTED, Unknown: UNKNOWN}


@frozen
class Finding:
    """Result of the proof of one statement of a property. If not `deciding`, it is only reported."""

    property: str
    uplink: str
    subject: str
    result: ProofResult
    deciding: bool = True
    origin: tuple[str, ...] = ()

    @builtins.property
    def verdict(self) -> str:
        """Return proved, refuted or unknown."""
        return _VERDICTS[type(self.result)]

    @builtins.property
    def detail(self) -> str:
        """Return the reason of the verdict; empty if it is proved."""
        match self.result:
            case Refuted(counterexample):
                return counterexample.reason
            case Unknown(reason):
                return reason
        return ""

    @builtins.property
    def examples(self) -> tuple[Counterexample, ...]:
        """Return the counterexamples; empty unless the verdict is refuted."""
        match self.result:
            case Refuted(counterexample, further_counterexamples):
                return (counterexample, *further_counterexamples)
        return ()

    @builtins.property
    def unsupported(self) -> tuple[str, ...]:
        """Return the constructs that an unknown verdict depends on."""
        return self.result.unsupported if isinstance(self.result, Unknown) else ()


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
    sender_type, frame_type = packet.protocol_number, packet.frame_type
    if packet.origin == "frame" and (packet.ethertype is not None or frame_type != sender_type):
        declared = f" as {sender_type:#06x}" if frame_type != sender_type else ""
        device = f" by {packet.bound}" if packet.bound else ""
        return f"a frame of ethertype {frame_type:#06x} that an AF_PACKET socket sends{declared}{device}"
    protocol = _PROTOCOL_NAMES.get(packet.protocol, f"protocol {packet.protocol}")
    port = f" port {packet.dport}" if packet.protocol in (TCP, UDP) else ""
    sender = {
        "socket": f"a socket of user {packet.uid}, group {packet.gid}, mark {packet.mark:#x}",
        "frame": f"an AF_PACKET socket with mark {packet.mark:#x}",
        "kernel": f"the kernel, mark {packet.mark:#x}",
        "forward": "another host" + (f", arriving by {packet.iif}" if packet.iif else ""),
    }[packet.origin]
    source = f", source {format_address(packet.family, packet.source)}" if packet.source is not None else ""
    bound = f", bound to {packet.bound}" if packet.bound else ""
    article = "a" if packet.flow.state == "related" else "an"
    flow = "" if packet.flow.state == "new" else f", of {article} {packet.flow.state} flow ({packet.flow.direction})"
    text = f"IPv{packet.family} {protocol} to {destination}{port} from {sender}{source}{bound}{flow}"
    if not with_details:
        return text
    source_port = [f"source port {packet.sport}"] if port else []
    return ", ".join([text, *source_port, *(f"{' '.join(name)} {value}" for name, value in packet.fields.items())])
