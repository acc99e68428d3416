# SPDX-License-Identifier: BSD-2-Clause
"""What came of a proof: proved, refuted with packets, or unknown with what was not understood."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from ..model.packet import Packet, shown
from ..model.walk import Walk

PROVED, REFUTED, UNKNOWN = "proved", "refuted", "unknown"
_RANK = {PROVED: 0, UNKNOWN: 1, REFUTED: 2}

PROPERTIES = {
    "P1": "no leak",
    "P2": "no stray",
    "P3": "no dead word",
    "P4": "parity",
    "P5": "names",
}


@frozen
class Counterexample:
    """A packet that shows the opposite of what is claimed, with its way; `device` is the one that it leaves by."""

    packet: Packet
    walk: Walk
    device: str
    why: str


@frozen
class Finding:
    """One part of a property. `deciding` is false for what is only reported."""

    property: str
    uplink: str
    subject: str
    verdict: str
    detail: str = ""
    examples: tuple[Counterexample, ...] = ()
    doubts: tuple[str, ...] = ()
    deciding: bool = True
    origin: tuple[str, ...] = ()


@frozen
class Proof:
    """All findings, and what they rest on."""

    findings: tuple[Finding, ...]
    assumptions: tuple[str, ...] = ()
    exemptions: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The worst of the findings that decide."""
        return worst(one.verdict for one in self.findings if one.deciding)

    def of(self, name: str) -> str:
        """The verdict on one property."""
        return worst(one.verdict for one in self.findings if one.property == name)


def worst(verdicts: Any) -> str:
    """The worst of some verdicts; proved if there are none."""
    return max(verdicts, key=_RANK.__getitem__, default=PROVED)


def described(packet: Packet) -> str:
    """A packet in a line."""
    to = shown(packet.family, packet.destination)
    if packet.origin == "frame" and packet.ethertype is not None:
        return f"a frame of ethertype {packet.ethertype:#06x} that an AF_PACKET socket sends by {packet.bound}"
    name = {6: "TCP", 17: "UDP", 1: "ICMP", 58: "ICMPv6", 2: "IGMP"}.get(packet.protocol, f"protocol {packet.protocol}")
    port = f" port {packet.dport}" if packet.protocol in (6, 17) else ""
    who = {
        "socket": f"a socket of user {packet.uid}, group {packet.gid}, mark {packet.mark:#x}",
        "frame": f"an AF_PACKET socket with mark {packet.mark:#x}",
        "kernel": f"the kernel, mark {packet.mark:#x}",
        "forward": f"another host, arriving by {packet.iif}",
    }[packet.origin]
    source = f", source {shown(packet.family, packet.source)}" if packet.source is not None else ""
    bound = f", bound to {packet.bound}" if packet.bound else ""
    flow = "" if packet.flow.state == "new" else f", of an {packet.flow.state} flow ({packet.flow.direction})"
    return f"IPv{packet.family} {name} to {to}{port} from {who}{source}{bound}{flow}"
