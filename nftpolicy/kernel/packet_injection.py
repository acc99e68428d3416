# SPDX-License-Identifier: BSD-2-Clause
"""Let packets arrive by a device, as if another machine had sent them.

The kernel runs an XDP program, which passes each frame, in "live" mode (Linux 5.18): it receives the frame
by that device (xdp_test_run_batch, net/bpf/test_run.c). The program is attached to nothing, so the
configuration stays as it is, and the program ends with its descriptor.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from .bpf import assembler as asm
from .bpf.assembler import Op, assemble
from .bpf.syscall import XDP, load, run_on_frame
from .errors import Unavailable
from .ip_packet import ACK, ICMP, ICMPV6, SYN, TCP, UDP, echo_request, ip_packet, tcp_segment, udp_segment
from .packet_capture import link_info
from .packet_sender import ETHERTYPES, ProbePacket, SendOutcome

ARRIVING_FORMS = ("udp", "tcp", "syn-ack", "echo")
ARRIVING_HOP_LIMIT = 2  # 1 after this machine: the next router drops the packet
_PROC_SYS_NET = Path("/proc/sys/net")
_XDP_PASS = 2  # include/uapi/linux/bpf.h
_LOCAL_MAC = b"\x02"  # a locally administered address
_MAC_SIZE = 6


def random_mac() -> bytes:
    """Return a random MAC address, by which a capture recognizes the frames of this run."""
    return _LOCAL_MAC + os.urandom(_MAC_SIZE - 1)


def arriving_packet(probe_packet: ProbePacket) -> bytes:
    """Return the IP packet of another machine, of one of the ARRIVING_FORMS."""
    assert probe_packet.source is not None
    family, payload = probe_packet.family, probe_packet.payload
    ports = probe_packet.sport, probe_packet.dport
    if probe_packet.form == "udp":
        protocol, segment = UDP, udp_segment(*ports, payload)
    elif probe_packet.form == "echo":
        protocol, segment = {4: ICMP, 6: ICMPV6}[family], echo_request(family, payload)
    else:
        flags = SYN if probe_packet.form == "tcp" else SYN | ACK
        protocol, segment = TCP, tcp_segment(*ports, flags, payload)
    return ip_packet(family, probe_packet.source, probe_packet.destination, protocol, segment, ARRIVING_HOP_LIMIT)


def inject_all(packets: Iterable[ProbePacket], source_mac: bytes) -> list[SendOutcome]:
    """Let all packets arrive, each by its `device`. Return their outcomes in order."""
    try:
        program = load(XDP, assemble((Op(asm.MOVE, 0, value=_XDP_PASS), Op(asm.EXIT))), "nftp.arriving")
    except (OSError, Unavailable) as error:
        return [_failed(error)] * len(list(packets))
    try:
        return [_inject(program, packet, source_mac) for packet in packets]
    finally:
        os.close(program)


def disabled_forwarding(device: str, family: int) -> str | None:
    """Return the sysctl that keeps the kernel from forwarding what arrives by a device; None if it forwards.

    For IPv6 the sysctl of the device matters since Linux 6.17 only (ip6_forward, net/ipv6/ip6_output.c).
    """
    if family == 6:
        off = _is_zero("ipv6/conf/all/forwarding") and _is_zero(f"ipv6/conf/{device}/force_forwarding")
        return "net.ipv6.conf.all.forwarding" if off else None
    if not _is_zero(f"ipv4/conf/{device}/forwarding"):
        return None
    return "net.ipv4.ip_forward" if _is_zero("ipv4/ip_forward") else f"net.ipv4.conf.{device}.forwarding"


def _is_zero(sysctl: str) -> bool:
    """Return True if a sysctl is 0, or does not exist."""
    try:
        return (_PROC_SYS_NET / sysctl).read_text().strip() == "0"
    except OSError:
        return True


def _inject(program: int, probe_packet: ProbePacket, source_mac: bytes) -> SendOutcome:
    link = link_info(probe_packet.device or "")
    if link is None:
        return SendOutcome("open", "ENODEV")
    # The kernel reads an Ethernet header also on a device without one (eth_type_trans).
    header = link.mac + source_mac + struct.pack("!H", ETHERTYPES[probe_packet.family])
    try:
        run_on_frame(program, header + arriving_packet(probe_packet), link.index)
    except (OSError, Unavailable) as error:
        return _failed(error)
    return SendOutcome()


def _failed(error: OSError | Unavailable) -> SendOutcome:
    number = getattr(error, "errno", None)
    return SendOutcome("open", errno.errorcode.get(number, str(error)) if number else str(error))
