# SPDX-License-Identifier: BSD-2-Clause
"""Routers that withdraw: router advertisements with a router lifetime of 0 (RFC 4861 4.2).

The kernel and the network managers then delete the default route from table main. They do not know
its copy in an uplink's table, which would last until its lifetime ends. The socket is an AF_PACKET
one, since a machine may process advertisements in the kernel or in any program.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from ipaddress import IPv6Address

from ..bpf.classic import JUMP_IF_EQUAL, LOAD_BYTE, LOAD_HALF, RETURN, ClassicFilter, Instruction
from . import constants as nl

_ETH_P_IPV6 = 0x86DD
_PACKET_OUTGOING = 4  # include/uapi/linux/if_packet.h
_NEXT_HEADER, _HOP_LIMIT, _SOURCE, _HEADER_SIZE = 6, 7, 8, 40  # struct ipv6hdr
_TYPE, _ROUTER_LIFETIME, _SIZE = _HEADER_SIZE, _HEADER_SIZE + 6, _HEADER_SIZE + 8
_NEIGHBOUR_HOP_LIMIT = 255  # RFC 4861 6.1.2
_ROUTER_ADVERTISEMENT = 134
_MAX_MESSAGES = 64  # that one read takes, so that a flood cannot starve the caller
_LENGTHS = {LOAD_BYTE: 1, LOAD_HALF: 2}  # bytes
_TESTS = (
    (LOAD_BYTE, _NEXT_HEADER, socket.IPPROTO_ICMPV6),
    (LOAD_BYTE, _HOP_LIMIT, _NEIGHBOUR_HOP_LIMIT),
    (LOAD_BYTE, _TYPE, _ROUTER_ADVERTISEMENT),
    (LOAD_HALF, _ROUTER_LIFETIME, 0),
)


class WithdrawalListener:
    """Receive these advertisements alone. Without the right to do so (CAP_NET_RAW) there are none."""

    def __init__(self) -> None:
        self._packets = _open_socket()
        self._poll = select.epoll()
        if self._packets is not None:
            self._poll.register(self._packets, select.EPOLLIN)

    def share_descriptor(self, other: socket.socket) -> None:
        """Let `descriptor` become readable when another socket does, too."""
        self._poll.register(other, select.EPOLLIN)

    @property
    def descriptor(self) -> int:
        """Return the descriptor that becomes readable at an advertisement."""
        return self._poll.fileno()

    def close(self) -> None:
        """Close all descriptors. Can be called twice."""
        self._poll.close()
        if self._packets is not None:
            self._packets.close()

    def read(self) -> set[tuple[str, str]]:
        """Return device and address of the routers that have withdrawn since the last read. Never blocks."""
        routers: set[tuple[str, str]] = set()
        if self._packets is None:
            return routers
        with suppress(OSError):  # BlockingIOError: no more; ENETDOWN: a device went down
            for _ in range(_MAX_MESSAGES):
                packet, (device, _, kind, *_) = self._packets.recvfrom(_SIZE)
                if kind != _PACKET_OUTGOING and (router := withdrawn_router(packet)):
                    routers.add((device, router))
        return routers


def withdrawn_router(packet: bytes) -> str | None:
    """Return the address of the router that withdraws by this IPv6 packet; None for another packet."""
    source = IPv6Address(packet[_SOURCE : _SOURCE + 16]) if len(packet) >= _SIZE else IPv6Address(0)
    is_withdrawal = source.is_link_local and all(
        int.from_bytes(packet[offset : offset + _LENGTHS[load]], "big") == value for load, offset, value in _TESTS
    )
    return str(source) if is_withdrawal else None


def _open_socket() -> socket.socket | None:
    """Return the socket; None if the kernel refuses. It may have received other packets before the filter was there."""
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        packets = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_IPV6))
    except OSError:
        return None
    memory = ClassicFilter(_program())
    packets.setsockopt(socket.SOL_SOCKET, nl.SO_ATTACH_FILTER, memory.program)
    return packets


def _program() -> tuple[Instruction, ...]:
    instructions: list[Instruction] = []
    for index, (load, offset, value) in enumerate(_TESTS):
        to_the_end = 2 * (len(_TESTS) - index) - 1  # to the last instruction, which drops the packet
        instructions += [(load, 0, 0, offset), (JUMP_IF_EQUAL, 0, to_the_end, value)]
    return (*instructions, (RETURN, 0, 0, _SIZE), (RETURN, 0, 0, 0))
