# SPDX-License-Identifier: BSD-2-Clause
"""The two BPF programs of a cgroup: one marks sockets, one confines a service to its mark and devices.

A sock_create program runs in socket(2) of each process of the cgroup, before a route or source
address is chosen, and needs neither a library nor a capability in the process. A setsockopt program
runs for sockets that were created in the cgroup. Layouts are those of include/uapi/linux/bpf.h; the
meaning of optlen is in kernel/bpf/cgroup.c, __cgroup_bpf_run_filter_setsockopt().
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from ..netns import netns_cookie
from . import assembler as asm
from .assembler import Op, assemble
from .syscall import SETSOCKOPT, SOCK_CREATE, AttachType

# struct bpf_sock: bound_dev_if, family, type, protocol, mark. struct bpf_sockopt: sk, optval,
# optval_end, ...
_SOCK_MARK = 16
_SOCKOPT_OPTVAL, _SOCKOPT_OPTVAL_END, _SOCKOPT_LEVEL, _SOCKOPT_OPTNAME, _SOCKOPT_OPTLEN = 8, 16, 24, 28, 32
_BPF_FUNC_GET_NETNS_COOKIE = 122  # for both types of program, Linux 5.7
_SO_BINDTOIFINDEX, _IP_UNICAST_IF, _IPV6_UNICAST_IF = 62, 50, 76
# The kernel shows a program at most one page of an option. Of a longer option it takes the value
# that the program leaves only if optlen is 0: "unchanged" (before Linux 6.4 it refused the call).
_PAGE = 4096  # bytes
_LONGEST_OPTION = 64  # bytes; a mark and the name of a device are shorter
_IFNAMSIZ = 16


def _skip_other_namespaces(cookie: int | None, label: str) -> list[Op]:
    """Keep the context in r6, and go to `label` for a socket of another network namespace."""
    if cookie is None:
        return [Op(asm.COPY, 6, 1)]
    return [
        Op(asm.COPY, 6, 1),
        Op(asm.CALL, value=_BPF_FUNC_GET_NETNS_COOKIE),
        Op(asm.LOAD_IMMEDIATE64, 1, value=cookie),
        Op(asm.IF_NOT_EQUAL_REGISTER, 0, 1, label=label),
    ]


def mark_program(value: int, mask: int, cookie: int | None = None) -> bytes:
    """Return the code of a SOCK_CREATE program: sk->mark = sk->mark & ~mask | value.

    `cookie` limits it to one network namespace.
    """
    return assemble(
        (
            *_skip_other_namespaces(cookie, "allow"),
            Op(asm.LOAD32, 2, 6, _SOCK_MARK),
            Op(asm.AND32, 2, value=~mask),
            Op(asm.OR32, 2, value=value),
            Op(asm.STORE32, 6, 2, _SOCK_MARK),
            "allow",
            Op(asm.MOVE, 0, value=1),
            Op(asm.EXIT),
        )
    )


# Options that set a mark or an output device, and the label that checks their value.
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_MARK, "mark"),
    (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, "name"),
    (socket.SOL_SOCKET, _SO_BINDTOIFINDEX, "index"),
    (socket.IPPROTO_IP, _IP_UNICAST_IF, "index"),
    (socket.IPPROTO_IPV6, _IPV6_UNICAST_IF, "index"),
)


def confine_program(value: int, mask: int, devices: Sequence[str], cookie: int | None = None) -> bytes:
    """Return the code of a SETSOCKOPT program: EPERM for another mark, and for a device not in `devices`.

    It refuses each device index: another device may have that index tomorrow. `cookie` limits it to
    one network namespace.
    """
    parts: list[Op | str] = [
        *_skip_other_namespaces(cookie, "pass"),
        Op(asm.LOAD32, 2, 6, _SOCKOPT_LEVEL),
        Op(asm.LOAD32, 3, 6, _SOCKOPT_OPTNAME),
    ]
    for number, (level, option, check) in enumerate(_OPTIONS):
        parts += [
            Op(asm.IF_NOT_EQUAL32, 2, value=level, label=f"not {number}"),
            Op(asm.IF_EQUAL32, 3, value=option, label=check),
            f"not {number}",
        ]
    parts += [
        "pass",
        Op(asm.LOAD32, 2, 6, _SOCKOPT_OPTLEN),
        Op(asm.IF_AT_MOST32, 2, value=_PAGE, label="yes"),
        Op(asm.MOVE, 2),
        Op(asm.STORE32, 6, 2, _SOCKOPT_OPTLEN),
        "yes",
        Op(asm.MOVE, 0, value=1),
        Op(asm.EXIT),
        "mark",
        *_load_option(4),
        Op(asm.LOAD32, 1, 4),
        Op(asm.AND32, 1, value=mask),
        Op(asm.IF_EQUAL32, 1, value=value, label="yes"),
        Op(asm.GOTO, label="no"),
        "index",
        *_load_option(4),
        Op(asm.LOAD32, 1, 4),
        Op(asm.IF_EQUAL32, 1, label="yes"),
        Op(asm.GOTO, label="no"),
        "name",
        *_load_option(_IFNAMSIZ),
        Op(asm.LOAD64, 1, 4),
        Op(asm.LOAD64, 2, 4, 8),
    ]
    for number, device in enumerate(("", *devices)):
        parts += _allow_name(device, f"not name {number}")
    return assemble((*parts, "no", Op(asm.MOVE), Op(asm.EXIT)))


def _load_option(size: int) -> list[Op]:
    """Point r4 at the value of the option, of which `size` bytes can be read; else go to "no".

    optlen stays, so that the kernel takes the bytes that the program has checked, and not those
    that another thread has written since. It cannot do so for more than a page.
    """
    return [
        Op(asm.LOAD32, 2, 6, _SOCKOPT_OPTLEN),
        Op(asm.IF_GREATER32, 2, value=_LONGEST_OPTION, label="no"),
        Op(asm.LOAD64, 4, 6, _SOCKOPT_OPTVAL),
        Op(asm.LOAD64, 5, 6, _SOCKOPT_OPTVAL_END),
        Op(asm.COPY, 1, 4),
        Op(asm.ADD, 1, value=size),
        Op(asm.IF_GREATER_REGISTER, 1, 5, label="no"),
    ]


def _allow_name(device: str, otherwise: str) -> list[Op | str]:
    """Allow the option if the name in r1 and r2 is `device`, up to its NUL; else go to `otherwise`."""
    name = (os.fsencode(device) + b"\0")[:_IFNAMSIZ]
    parts: list[Op | str] = []
    for register, start in ((1, 0), (2, 8)):
        piece = name[start : start + 8]
        if piece:
            wanted = int.from_bytes(piece.ljust(8, b"\0"), sys.byteorder)
            significant = int.from_bytes((b"\xff" * len(piece)).ljust(8, b"\0"), sys.byteorder)
            parts += [
                Op(asm.COPY, 3, register),
                Op(asm.LOAD_IMMEDIATE64, 0, value=significant),
                Op(asm.AND_REGISTER, 3, 0),
                Op(asm.LOAD_IMMEDIATE64, 0, value=wanted),
                Op(asm.IF_NOT_EQUAL_REGISTER, 3, 0, label=otherwise),
            ]
    return [*parts, Op(asm.GOTO, label="yes"), otherwise]


def program_name() -> str:
    """Return the name of the programs of this network namespace, by which nftpolicy finds them again."""
    return f"nftp.{netns_cookie() & 0xFFFFFFFFFF:x}"


def service_programs(value: int, mask: int, confine: Sequence[str] | None) -> dict[AttachType, bytes]:
    """Return the programs of a service of this network namespace.

    `value` and `mask` are its mark. `confine` are the devices that it may name; None allows all
    devices.
    """
    cookie = netns_cookie()
    programs = {SOCK_CREATE: mark_program(value, mask, cookie)}
    if confine is not None:
        programs[SETSOCKOPT] = confine_program(value, mask, confine, cookie)
    return programs
