# SPDX-License-Identifier: BSD-2-Clause
"""Filters of rtnetlink notifications in the kernel, so that a flood of routes wakes no process.

Classic BPF on a netlink socket sees struct nlmsghdr and the header behind it. It loads numbers as
big-endian ones; the kernel writes them in the byte order of this machine.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Sequence

from ..bpf.classic import (
    JUMP_IF_EQUAL,
    JUMP_IF_SET,
    LOAD_BYTE,
    LOAD_HALF,
    LOAD_WORD,
    RETURN,
    ClassicFilter,
    Instruction,
    skip_if_any,
)
from . import constants as nl

_TYPE, _FLAGS, _PORT = 4, 6, 12  # struct nlmsghdr
_TABLE, _PROTOCOL, _KIND = (
    nl.NLMSGHDR.size + offset for offset in (nl.RTMSG_TABLE_OFFSET, nl.RTMSG_PROTOCOL_OFFSET, nl.RTMSG_TYPE_OFFSET)
)
_ACCEPT: Instruction = (RETURN, 0, 0, 0xFFFFFFFF)
_DROP: Instruction = (RETURN, 0, 0, 0)


def _half(value: int) -> int:
    return int.from_bytes(struct.pack("=H", value), "big")


def _word(value: int) -> int:
    return int.from_bytes(struct.pack("=I", value), "big")


def attach_damage_filter(notifications: socket.socket, protocol: int) -> None:
    """Let only those messages about routes pass that can mean damage: to routes of a routing protocol.

    These are routes that are deleted, and any route that replaces another one. Other messages pass.
    """
    program = (
        (LOAD_HALF, 0, 0, _TYPE),
        (JUMP_IF_EQUAL, 2, 0, _half(nl.RTM_NEWROUTE)),
        (JUMP_IF_EQUAL, 3, 0, _half(nl.RTM_DELROUTE)),
        _ACCEPT,
        (LOAD_HALF, 0, 0, _FLAGS),
        (JUMP_IF_SET, 2, 3, _half(nl.NLM_F_REPLACE)),
        (LOAD_BYTE, 0, 0, _PROTOCOL),
        (JUMP_IF_EQUAL, 0, 1, protocol),
        _ACCEPT,
        _DROP,
    )
    _attach(notifications, program)


def attach_news_filter(notifications: socket.socket, own_ports: Collection[int]) -> None:
    """Let only addresses pass, and new unicast routes outside table local by other netlink ports."""
    ports = sorted(own_ports)
    program = (
        (LOAD_HALF, 0, 0, _TYPE),
        (JUMP_IF_EQUAL, 3, 0, _half(nl.RTM_NEWROUTE)),
        (JUMP_IF_EQUAL, 1, 0, _half(nl.RTM_NEWADDR)),
        (JUMP_IF_EQUAL, 0, len(ports) + 7, _half(nl.RTM_DELADDR)),
        _ACCEPT,
        (LOAD_BYTE, 0, 0, _TABLE),
        (JUMP_IF_EQUAL, len(ports) + 4, 0, nl.RT_TABLE_LOCAL),
        (LOAD_BYTE, 0, 0, _KIND),
        (JUMP_IF_EQUAL, 0, len(ports) + 2, nl.RTN_UNICAST),
        (LOAD_WORD, 0, 0, _PORT),
        *skip_if_any([_word(port) for port in ports]),
        _ACCEPT,
        _DROP,
    )
    _attach(notifications, program)


def _attach(notifications: socket.socket, program: Sequence[Instruction]) -> None:
    memory = ClassicFilter(program)
    notifications.setsockopt(socket.SOL_SOCKET, nl.SO_ATTACH_FILTER, memory.program)
