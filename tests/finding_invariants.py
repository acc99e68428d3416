"""Invariants of the findings of every proof: what each verdict has to carry."""

import re

from nftpolicy.proof.spec import Spec
from nftpolicy.proof.verdict import REFUTED, UNKNOWN, Finding, Proof

PYTHON = re.compile(r"\b[A-Z][A-Za-z]+\([a-z_]+=|frozenset|<class |\bNone\b|0x[0-9a-f]{9,}>")

SENDERS = {
    "sockets": "socket",
    "forwarded packets": "forward",
    "AF_PACKET sockets": "frame",
    "frames of other ethertypes": "frame",
}


def assert_findings_are_sound(proof: Proof, spec: Spec) -> None:
    """Check that a refutation has a packet that shows it, an unknown one a reason, and that no text is Python's."""
    devices = {device for uplink in spec.uplinks for device in (*uplink.devices, *uplink.ports)}
    for finding in proof.findings:
        assert (finding.verdict == REFUTED) == bool(finding.examples), finding
        assert finding.verdict != UNKNOWN or finding.detail, finding
        assert not any(PYTHON.search(text) for text in (finding.detail, *finding.unsupported)), finding
        for example in finding.examples:
            assert example.reason
            assert example.trace.packet == example.packet
            assert _shows_violation(finding, example.trace, devices), (finding.subject, example)


def _shows_violation(finding: Finding, trace, devices: set[str]) -> bool:
    """Return True if the trace ends in what the property forbids; for P3 and P4, if the packet has no open question."""
    match finding.property:
        case "P1" if finding.uplink and "without the mark" in finding.subject:
            sender = SENDERS[finding.subject.partition(":")[0]]
            return trace.outcome == "leaves" and trace.device in devices and trace.packet.origin == sender
        case "P1":
            return trace.outcome == "leaves"
        case "P5" if "no route" in finding.subject:
            return trace.outcome in ("unroutable", "dropped")
        case "P2" | "P5":
            return trace.outcome in ("leaves", "delivered")
    return trace.outcome != "unknown"
