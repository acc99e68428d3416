"""Bytes of whole IP packets: headers and checksums."""

import struct

import pytest

from nftpolicy.kernel.ip_packet import checksum
from nftpolicy.kernel.packet_injection import ARRIVING_FORMS, arriving_packet
from nftpolicy.kernel.packet_sender import ProbePacket
from nftpolicy.runtime.probe.observed_packet import parse_packet

ADDRESSES = {4: ("198.51.100.1", "203.0.113.2"), 6: ("2001:db8::1", "2001:db8::2")}
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
PROTOCOLS = {"udp": (17, 17), "tcp": (6, 6), "syn-ack": (6, 6), "echo": (1, 58)}


def packet(family: int, form: str) -> bytes:
    source, destination = ADDRESSES[family]
    return arriving_packet(ProbePacket(form, family, destination, b"payload", dport=9, sport=40000, source=source))


@pytest.mark.parametrize("form", ARRIVING_FORMS)
@pytest.mark.parametrize("family", [4, 6])
def test_arriving_packet_has_valid_checksums(family: int, form: str) -> None:
    data = packet(family, form)
    header, segment = (data[:20], data[20:]) if family == 4 else (data[:40], data[40:])
    protocol = PROTOCOLS[form][family == 6]
    pseudo_header = header[-8 if family == 4 else -32 :] + struct.pack("!II", len(segment), protocol)
    assert family == 6 or checksum(header) == 0
    assert checksum(segment if protocol == 1 else pseudo_header + segment) == 0


@pytest.mark.parametrize("form", ARRIVING_FORMS)
@pytest.mark.parametrize("family", [4, 6])
def test_arriving_packet_is_parsed_again(family: int, form: str) -> None:
    found = parse_packet(ETHERTYPES[family], packet(family, form))
    assert (found.source, found.destination) == ADDRESSES[family]
    assert (found.protocol, found.hop_limit) == (PROTOCOLS[form][family == 6], 2)
    assert found.payload.endswith(b"payload")
    assert found.ports == (None if form == "echo" else (40000, 9))
    assert ("SYN/ACK" in str(found)) == (form == "syn-ack")


def test_checksum_is_that_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    assert checksum(b"\x01") == checksum(b"\x01\x00")
