"""Programs of reproduction scripts: valid Python for all kinds of packets."""

from itertools import product

import pytest

from nftpolicy.model.packet import FORWARD, FRAME, ICMP, ICMPV6, KERNEL, SOCKET, TCP, UDP, CtInfo, Packet, parse_address
from nftpolicy.netstate.state import NetState
from nftpolicy.proof.reproduce.program import sender_program
from nftpolicy.proof.reproduce.topology import NotReproducible, build_topology

REMOTE = {4: parse_address("198.51.100.9"), 6: parse_address("2001:db8:9::9")}
FLOWS = (CtInfo(), CtInfo("established", "original", 1), CtInfo("established", "reply", 1))
PROTOCOLS = {4: (UDP, TCP, ICMP, 0, 47), 6: (UDP, TCP, ICMPV6, 0, 47)}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("origin", [SOCKET, FORWARD, FRAME, KERNEL])
def test_program_any_packet_compiles(family: int, origin: str) -> None:
    compiled = 0
    for protocol, flow, mark in product(PROTOCOLS[family], FLOWS, (0, 1)):
        packet = Packet(
            family,
            REMOTE[family],
            protocol=protocol,
            sport=40000,
            dport=80,
            origin=origin,
            mark=mark,
            uid=1,
            gid=1,
            iif="lan0" if origin == FORWARD else None,
            flow=flow,
        )
        try:
            source = sender_program(packet, "wan0", build_topology(NetState(), packet, "wan0"))
        except NotReproducible:
            continue
        compile(source, "program", "exec")
        compiled += 1
    assert compiled


@pytest.mark.parametrize("ethertype", [0x0806, 0x888E])
def test_program_frame_of_another_ethertype_compiles(ethertype: int) -> None:
    packet = Packet(4, 0, origin=FRAME, bound="wan0", ethertype=ethertype)
    compile(sender_program(packet, "wan0", build_topology(NetState(), packet, "wan0")), "program", "exec")
