# SPDX-License-Identifier: BSD-2-Clause
"""BPF programs for cgroups, assembled here without a compiler: one marks sockets when they are made, one
keeps a service from naming another mark or device.

A program of sock_create runs in socket(2) of whatever process of the cgroup, before any route or source
address is chosen, and needs nothing of the process: neither a library nor a capability. One of setsockopt
runs for sockets that were made in the cgroup. Numbers and layouts are those of include/uapi/linux/bpf.h;
what optlen means to the kernel is in kernel/bpf/cgroup.c, __cgroup_bpf_run_filter_setsockopt().
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress

from attrs import frozen

from .interface import Unavailable
from .namespace import namespace_cookie

_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "armv7l": 386, "i686": 357}
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH = 5, 8, 9
_GET_FD_BY_ID, _GET_INFO, _PROG_QUERY = 13, 15, 16
_ALLOW_MULTI = 2  # programs of others on the same cgroup stay
_MOST = 64  # programs of one type on a cgroup, BPF_CGROUP_MAX_PROGS
_NAME_AT, _INFO_SIZE = 64, 232  # in struct bpf_prog_info

# struct bpf_sock: bound_dev_if, family, type, protocol, mark. struct bpf_sockopt: sk, optval, optval_end, ...
_MARK_AT = 16
_OPTVAL_AT, _OPTVAL_END_AT, _LEVEL_AT, _OPTNAME_AT, _OPTLEN_AT = 8, 16, 24, 28, 32
_GET_NETNS_COOKIE = 122  # of both kinds of program, Linux 5.7
_SO_BINDTOIFINDEX, _IP_UNICAST_IF, _IPV6_UNICAST_IF = 62, 50, 76
# The kernel shows a program no more than a page of an option. Of a longer one it takes what the program leaves
# only if optlen is 0: "as it was" (before Linux 6.4 it refused the call).
_PAGE = 4096
_LONG = 64  # bytes; a mark or the name of a device is shorter
_IFNAMSIZ = 16

_libc = ctypes.CDLL(None, use_errno=True)


@frozen
class Kind:
    """Where a program is attached: the numbers of its type and of the hook, and systemd's word for the hook."""

    word: str
    program: int
    hook: int


SOCK_CREATE, SETSOCKOPT = Kind("sock_create", 9, 2), Kind("setsockopt", 25, 22)
KINDS = (SOCK_CREATE, SETSOCKOPT)


# --- assembling ---------------------------------------------------------------------------


@frozen
class _Op:
    """One instruction; a jump goes to the label `to`. `wide`: a 64 bit `value`, which takes two slots."""

    code: int
    target: int = 0
    source: int = 0
    offset: int = 0
    value: int = 0
    to: str | None = None
    wide: bool = False


_MOVE, _EXIT, _CALL, _GOTO = 0xB7, 0x95, 0x85, 0x05
_COPY, _ADD, _AND_REG, _AND32, _OR32 = 0xBF, 0x07, 0x5F, 0x54, 0x44
_READ32, _READ64, _WRITE32, _WIDE = 0x61, 0x79, 0x63, 0x18
_NOT_EQUAL32, _EQUAL32, _MORE32, _AT_MOST32 = 0x56, 0x16, 0x26, 0xB6
_NOT_EQUAL_REG, _MORE_REG = 0x5D, 0x2D


def _assemble(parts: Iterable[_Op | str]) -> bytes:
    """Instructions, and labels (strings) before the instruction that they name."""
    slots: list[_Op] = []
    places: dict[str, int] = {}
    at = 0
    for part in parts:
        if isinstance(part, str):
            places[part] = at
        else:
            slots.append(part)
            at += 1 + part.wide
    code, at = b"", 0
    for one in slots:
        at += 1 + one.wide
        offset = one.offset if one.to is None else places[one.to] - at
        code += struct.pack("=BBhI", one.code, one.source << 4 | one.target, offset, one.value & 0xFFFFFFFF)
        if one.wide:
            code += struct.pack("=BBhI", 0, 0, 0, one.value >> 32)
    return code


def _elsewhere(cookie: int | None, label: str) -> list[_Op]:
    """Keep the context in r6, and go to `label` for a socket of another network namespace than this one."""
    if cookie is None:
        return [_Op(_COPY, 6, 1)]
    return [
        _Op(_COPY, 6, 1),
        _Op(_CALL, value=_GET_NETNS_COOKIE),
        _Op(_WIDE, 1, value=cookie, wide=True),
        _Op(_NOT_EQUAL_REG, 0, 1, to=label),
    ]


def marks(value: int, mask: int, cookie: int | None = None) -> bytes:
    """For SOCK_CREATE: sk->mark = sk->mark & ~mask | value. In the network namespace of that cookie, or in all."""
    return _assemble(
        (
            *_elsewhere(cookie, "allow"),
            _Op(_READ32, 2, 6, _MARK_AT),
            _Op(_AND32, 2, value=~mask),
            _Op(_OR32, 2, value=value),
            _Op(_WRITE32, 6, 2, _MARK_AT),
            "allow",
            _Op(_MOVE, 0, value=1),
            _Op(_EXIT),
        )
    )


# Options that choose a mark or a way out, and what is asked of their value.
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_MARK, "mark"),
    (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, "name"),
    (socket.SOL_SOCKET, _SO_BINDTOIFINDEX, "index"),
    (socket.IPPROTO_IP, _IP_UNICAST_IF, "index"),
    (socket.IPPROTO_IPV6, _IPV6_UNICAST_IF, "index"),
)


def confines(value: int, mask: int, devices: Sequence[str], cookie: int | None = None) -> bytes:
    """For SETSOCKOPT: EPERM for another mark than this one, and for another device than these or none.

    A device by its number is refused, whichever it is: the number may be another device's tomorrow.
    """
    parts: list[_Op | str] = [
        *_elsewhere(cookie, "pass"),
        _Op(_READ32, 2, 6, _LEVEL_AT),
        _Op(_READ32, 3, 6, _OPTNAME_AT),
    ]
    for number, (level, option, question) in enumerate(_OPTIONS):
        parts += [
            _Op(_NOT_EQUAL32, 2, value=level, to=f"not {number}"),
            _Op(_EQUAL32, 3, value=option, to=question),
            f"not {number}",
        ]
    parts += [
        "pass",
        _Op(_READ32, 2, 6, _OPTLEN_AT),
        _Op(_AT_MOST32, 2, value=_PAGE, to="yes"),
        _Op(_MOVE, 2),
        _Op(_WRITE32, 6, 2, _OPTLEN_AT),
        "yes",
        _Op(_MOVE, 0, value=1),
        _Op(_EXIT),
        "mark",
        *_option(4),
        _Op(_READ32, 1, 4),
        _Op(_AND32, 1, value=mask),
        _Op(_EQUAL32, 1, value=value, to="yes"),
        _Op(_GOTO, to="no"),
        "index",
        *_option(4),
        _Op(_READ32, 1, 4),
        _Op(_EQUAL32, 1, to="yes"),
        _Op(_GOTO, to="no"),
        "name",
        *_option(_IFNAMSIZ),
        _Op(_READ64, 1, 4),
        _Op(_READ64, 2, 4, 8),
    ]
    for number, device in enumerate(("", *devices)):
        parts += _named(device, f"not name {number}")
    return _assemble((*parts, "no", _Op(_MOVE), _Op(_EXIT)))


def _option(size: int) -> list[_Op]:
    """r4: the option's value, of which `size` bytes can be read.

    optlen stays as it is, so that the kernel takes the bytes that were looked at, and not those that another
    thread has put there since. It can't do that with more than a page.
    """
    return [
        _Op(_READ32, 2, 6, _OPTLEN_AT),
        _Op(_MORE32, 2, value=_LONG, to="no"),
        _Op(_READ64, 4, 6, _OPTVAL_AT),
        _Op(_READ64, 5, 6, _OPTVAL_END_AT),
        _Op(_COPY, 1, 4),
        _Op(_ADD, 1, value=size),
        _Op(_MORE_REG, 1, 5, to="no"),
    ]


def _named(device: str, otherwise: str) -> list[_Op | str]:
    """Allow if the name in r1 and r2 is `device`, up to the NUL behind it."""
    text = (device.encode() + b"\0")[:_IFNAMSIZ]
    parts: list[_Op | str] = []
    for register, start in ((1, 0), (2, 8)):
        piece = text[start : start + 8]
        if piece:
            wanted, counts = (int.from_bytes(one.ljust(8, b"\0"), _ORDER) for one in (piece, b"\xff" * len(piece)))
            parts += [
                _Op(_COPY, 3, register),
                _Op(_WIDE, 0, value=counts, wide=True),
                _Op(_AND_REG, 3, 0),
                _Op(_WIDE, 0, value=wanted, wide=True),
                _Op(_NOT_EQUAL_REG, 3, 0, to=otherwise),
            ]
    return [*parts, _Op(_GOTO, to="yes"), otherwise]


_ORDER = "little" if struct.pack("=H", 1)[0] else "big"


# --- bpf(2) -------------------------------------------------------------------------------


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """What bpf(2) returns, and the attributes as the kernel left them. Raises OSError, or Unavailable."""
    number = _BPF.get(platform.machine())
    if number is None:
        raise Unavailable(f"marking by cgroup is not known on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = _libc.syscall(number, command, buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result), buffer.raw


def load(kind: Kind, code: bytes, name: str) -> int:
    """A descriptor of the program in the kernel. OSError if the kernel does not take it."""
    licence, instructions = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(code, len(code))
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        kind.program,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
        name.encode(),
        0,
        kind.hook,
    )
    return _bpf(_PROG_LOAD, attributes)[0]


@frozen
class Program:
    """What the kernel says of a program: `tag` is a checksum of its instructions; a later one has a larger `number`."""

    number: int
    tag: bytes
    name: str


def describe(descriptor: int) -> Program:
    """The program behind a descriptor."""
    info = ctypes.create_string_buffer(_INFO_SIZE)
    _bpf(_GET_INFO, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    _, number, tag = struct.unpack_from("=II8s", info)
    return Program(number, tag, info.raw[_NAME_AT : _NAME_AT + 16].partition(b"\0")[0].decode("ascii", "replace"))


def attach(folder: int, descriptor: int, kind: Kind) -> None:
    """Attach to the cgroup whose directory is open as `folder`, beside what others attached."""
    _bpf(_PROG_ATTACH, struct.pack("=IIII", folder, descriptor, kind.hook, _ALLOW_MULTI))


def attached(folder: int, kind: Kind) -> list[Program]:
    """The programs on a cgroup itself, whosever they are, in the order in which they run."""
    numbers = (ctypes.c_uint32 * _MOST)()
    asked = struct.pack("=IIIIQII", folder, kind.hook, 0, 0, ctypes.addressof(numbers), _MOST, 0)
    count = struct.unpack_from("=I", _bpf(_PROG_QUERY, asked)[1], 24)[0]
    found = []
    for number in numbers[:count]:
        with suppress(FileNotFoundError):  # it has gone meanwhile
            descriptor = _bpf(_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))[0]
            try:
                found.append(describe(descriptor))
            finally:
                os.close(descriptor)
    return found


def detach(folder: int, program: Program, kind: Kind) -> None:
    """Take a program off a cgroup; nothing if it has gone meanwhile."""
    with suppress(FileNotFoundError):
        descriptor = _bpf(_GET_FD_BY_ID, struct.pack("=III", program.number, 0, 0))[0]
        try:
            _bpf(_PROG_DETACH, struct.pack("=IIII", folder, descriptor, kind.hook, 0))
        finally:
            os.close(descriptor)


# --- programs of a policy -----------------------------------------------------------------


def own_name() -> str:
    """What the programs of this network namespace are called, by which they are known again."""
    return f"nftp.{namespace_cookie() & 0xFFFFFFFFFF:x}"


def wanted(value: int, mask: int, confine: Sequence[str] | None) -> dict[Kind, bytes]:
    """The programs of a service of this network namespace: its mark, and the devices that it may name (None: all)."""
    cookie = namespace_cookie()
    found = {SOCK_CREATE: marks(value, mask, cookie)}
    return found if confine is None else {**found, SETSOCKOPT: confines(value, mask, confine, cookie)}
