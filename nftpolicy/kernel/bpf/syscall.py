# SPDX-License-Identifier: BSD-2-Clause
"""bpf(2): load programs, attach them to cgroups, list and detach them (include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from contextlib import suppress

from attrs import frozen

from .. import libc
from ..errors import Unavailable

_SYSTEM_CALLS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "armv7l": 386, "i686": 357}
_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_PROG_DETACH = 5, 8, 9
_BPF_PROG_GET_FD_BY_ID, _BPF_OBJ_GET_INFO_BY_FD, _BPF_PROG_QUERY = 13, 15, 16
_BPF_F_ALLOW_MULTI = 2  # foreign programs on the same cgroup stay
_BPF_CGROUP_MAX_PROGS = 64  # programs of one type on a cgroup
_INSN_SIZE = 8  # bytes of struct bpf_insn
_ATTRIBUTES_SIZE = 128  # bytes; no attributes used here are longer
_INFO = struct.Struct("=II8s")  # begin of struct bpf_prog_info: type, id, tag
_INFO_NAME, _INFO_SIZE = 64, 232  # offset of the name in struct bpf_prog_info, and its size
_NAME_SIZE = 16  # BPF_OBJ_NAME_LEN
_QUERY_COUNT = 24  # offset of prog_cnt in the attributes of BPF_PROG_QUERY
# prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, name,
# ifindex, expected_attach_type
_LOAD = struct.Struct("=IIQQIIQII16sII")
_ATTACH = struct.Struct("=IIII")  # target_fd, attach_bpf_fd, attach_type, attach_flags
_QUERY = struct.Struct("=IIIIQII")  # target_fd, attach_type, two flags, prog_ids, prog_cnt, padding


@frozen
class AttachType:
    """An attach point of cgroups: its name in systemd, its program type, its attach type."""

    name: str
    program_type: int
    number: int


SOCK_CREATE, SETSOCKOPT = AttachType("sock_create", 9, 2), AttachType("setsockopt", 25, 22)
ATTACH_TYPES = (SOCK_CREATE, SETSOCKOPT)


@frozen
class LoadedProgram:
    """A program in the kernel.

    `tag` is a checksum of its code; a later program has a larger `number`.
    """

    number: int
    tag: bytes
    name: str


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Return the result of bpf(2), and the attributes as the kernel left them.

    Raises OSError, or Unavailable.
    """
    number = _SYSTEM_CALLS.get(platform.machine())
    if number is None:
        raise Unavailable(f"marking by cgroup is not supported on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), _ATTRIBUTES_SIZE))
    return libc.system_call(number, command, buffer, len(buffer)), buffer.raw


def load(attach_type: AttachType, code: bytes, name: str) -> int:
    """Load a program and return its descriptor. Raises OSError if the kernel refuses it."""
    license_text = ctypes.create_string_buffer(b"GPL")
    instructions = ctypes.create_string_buffer(code, len(code))
    attributes = _LOAD.pack(
        attach_type.program_type,
        len(code) // _INSN_SIZE,
        ctypes.addressof(instructions),
        ctypes.addressof(license_text),
        0,
        0,
        0,
        0,
        0,
        name.encode(),
        0,
        attach_type.number,
    )
    return bpf(_BPF_PROG_LOAD, attributes)[0]


def describe(descriptor: int) -> LoadedProgram:
    """Return the program behind a descriptor."""
    info = ctypes.create_string_buffer(_INFO_SIZE)
    bpf(_BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    _, number, tag = _INFO.unpack_from(info)
    name = info.raw[_INFO_NAME : _INFO_NAME + _NAME_SIZE].partition(b"\0")[0]
    return LoadedProgram(number, tag, name.decode("ascii", "replace"))


def attach(directory: int, descriptor: int, attach_type: AttachType) -> None:
    """Attach a program to the cgroup with the open directory `directory`.

    Foreign programs stay.
    """
    bpf(_BPF_PROG_ATTACH, _ATTACH.pack(directory, descriptor, attach_type.number, _BPF_F_ALLOW_MULTI))


def attached_programs(directory: int, attach_type: AttachType) -> list[LoadedProgram]:
    """Return all programs on the cgroup itself, in the order in which they run."""
    numbers = (ctypes.c_uint32 * _BPF_CGROUP_MAX_PROGS)()
    query = _QUERY.pack(directory, attach_type.number, 0, 0, ctypes.addressof(numbers), _BPF_CGROUP_MAX_PROGS, 0)
    count = struct.unpack_from("=I", bpf(_BPF_PROG_QUERY, query)[1], _QUERY_COUNT)[0]
    programs = []
    for number in numbers[:count]:
        with suppress(FileNotFoundError):  # detached meanwhile
            descriptor = _open_program(number)
            try:
                programs.append(describe(descriptor))
            finally:
                os.close(descriptor)
    return programs


def detach(directory: int, program: LoadedProgram, attach_type: AttachType) -> None:
    """Detach a program from a cgroup. Do nothing if it is not attached any more."""
    with suppress(FileNotFoundError):
        descriptor = _open_program(program.number)
        try:
            bpf(_BPF_PROG_DETACH, _ATTACH.pack(directory, descriptor, attach_type.number, 0))
        finally:
            os.close(descriptor)


def _open_program(number: int) -> int:
    return bpf(_BPF_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))[0]
