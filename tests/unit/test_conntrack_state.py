"""Packets that begin a flow, as connection tracking sees them, and the packets of counterexamples."""

import pytest

from nftpolicy.model.conntrack import can_begin_flow
from nftpolicy.model.packet import FRAME, ICMP, ICMPV6, SOCKET, TCP, UDP, CtInfo, Packet
from nftpolicy.netstate.state import NetState
from nftpolicy.proof.reproduce.program import sender_program, unreproduced_parts
from nftpolicy.proof.reproduce.topology import build_topology

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))


@pytest.mark.parametrize("flags", [SYN, SYN | URG, SYN | ECE | CWR, ACK, ACK | PSH, ACK | URG])
def test_segment_with_these_flags_begins_a_flow(flags: int) -> None:
    assert can_begin_flow(4, TCP, {("tcp", "flags"): flags})


@pytest.mark.parametrize("flags", [0, FIN, FIN | ACK, RST, RST | ACK, SYN | ACK, SYN | FIN, SYN | RST, PSH, URG])
def test_segment_with_other_flags_is_invalid(flags: int) -> None:
    assert not can_begin_flow(4, TCP, {("tcp", "flags"): flags})


@pytest.mark.parametrize(
    ("protocol", "kind", "begins"),
    [(ICMP, 8, True), (ICMP, 13, True), (ICMP, 0, False), (ICMP, 3, False), (ICMP, 14, False)]
    + [(ICMPV6, 128, True), (ICMPV6, 139, True), (ICMPV6, 129, False), (ICMPV6, 1, False), (ICMPV6, 135, True)],
)  # fmt: skip
def test_requests_and_untracked_types_are_not_invalid(protocol: int, kind: int, begins: bool) -> None:
    family, layer = {ICMP: (4, "icmp"), ICMPV6: (6, "icmpv6")}[protocol]
    assert can_begin_flow(family, protocol, {(layer, "type"): kind}) == begins
    assert not can_begin_flow(10 - family, protocol, {(layer, "type"): kind}), "the protocol of the other family"


def test_packets_with_usual_fields_begin_a_flow() -> None:
    assert all(can_begin_flow(4, protocol, {}) for protocol in (TCP, UDP, ICMP, 47, 50, 253))
    assert all(can_begin_flow(6, protocol, {}) for protocol in (TCP, UDP, ICMPV6, 47, 50, 253))


def test_script_makes_the_invalid_flow_of_a_segment() -> None:
    segment = Packet(4, 0xC6336409, None, TCP, origin=SOCKET, flow=CtInfo("invalid"), fields={("tcp", "flags"): 0})
    assert unreproduced_parts(segment) == []
    datagram = Packet(4, 0xC6336409, None, UDP, origin=SOCKET, flow=CtInfo("invalid"))
    assert unreproduced_parts(datagram) == ["the script does not make its flow invalid"]


def test_vlan_frame_has_the_claimed_ip_header() -> None:
    packet = Packet(6, 9, None, UDP, 40000, 9, origin=FRAME, bound="wan0", fields={("ether", "type"): 0x8100})
    program = sender_program(packet, "wan0", build_topology(NetState(), packet, "wan0"))
    (line,) = [line for line in program.splitlines() if "sock.send(" in line]
    assert "b'\\x81\\x00' + TOKEN" not in line and "inet_pton" in program
