# SPDX-License-Identifier: BSD-2-Clause
"""bpf(2): load programs, run them, attach them to cgroups, list and detach them (include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from attrs import frozen

from .. import libc
from ..errors import Unavailable

_SYSTEM_CALLS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "armv7l": 386, "i686": 357}
_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_PROG_DETACH = 5, 8, 9
_BPF_PROG_TEST_RUN, _BPF_F_TEST_XDP_LIVE_FRAMES = 10, 2
_BPF_PROG_GET_NEXT_ID, _BPF_PROG_GET_FD_BY_ID = 11, 13
_BPF_OBJ_GET_INFO_BY_FD, _BPF_PROG_QUERY = 15, 16
_BPF_LINK_GET_FD_BY_ID, _BPF_LINK_GET_NEXT_ID = 30, 31
LSM_CGROUP = 43  # BPF_LSM_CGROUP, an attach type
LINK_TRACING = 2  # BPF_LINK_TYPE_TRACING
_BPF_F_ALLOW_MULTI = 2  # foreign programs on the same cgroup stay
BPF_CGROUP_MAX_PROGS = 64  # programs of one type on a cgroup
_INSN_SIZE = 8  # bytes of struct bpf_insn
_ATTRIBUTES_SIZE = 128  # bytes; no attributes used here are longer
# Begin of struct bpf_prog_info: type, id, tag, jited length, xlated length, jited code, xlated code.
_INFO = struct.Struct("=II8sIIQQ")
_INFO_NAME, _INFO_SIZE = 64, 232  # offset of the name in struct bpf_prog_info, and its size
_NAME_SIZE = 16  # BPF_OBJ_NAME_LEN
_QUERY_COUNT = 24  # offset of prog_cnt in the attributes of BPF_PROG_QUERY
# prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, name,
# ifindex, expected_attach_type
_LOAD = struct.Struct("=IIQQIIQII16sII")
_ATTACH = struct.Struct("=IIII")  # target_fd, attach_bpf_fd, attach_type, attach_flags
# target_fd, attach_type, two flags, prog_ids, prog_cnt, padding, prog_attach_flags
_QUERY = struct.Struct("=IIIIQIIQ")
_LINK_INFO, _LINK_INFO_SIZE = struct.Struct("=III"), 64  # begin of struct bpf_link_info: type, id, prog_id
# prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration, ctx_size_in, ctx_size_out, ctx_in,
# ctx_out, flags, cpu, batch_size
_TEST_RUN = struct.Struct("=IIIIQQIIIIQQIII")
_XDP_MD = struct.Struct("=IIIIII")  # data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex


@frozen
class AttachType:
    """An attach point of cgroups, or XDP: its name in systemd, its program type, its attach type."""

    name: str
    program_type: int
    number: int


SOCK_CREATE, SETSOCKOPT = AttachType("sock_create", 9, 2), AttachType("setsockopt", 25, 22)
XDP = AttachType("xdp", 6, 37)
ATTACH_TYPES = (SOCK_CREATE, SETSOCKOPT)


@frozen
class LoadedProgram:
    """A program in the kernel.

    `tag` is a checksum of its code, `length` is the code's size in bytes after verification; a later
    program has a larger `number`.
    """

    number: int
    type: int
    tag: bytes
    name: str
    length: int


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


def run_on_frame(descriptor: int, frame: bytes, device: int) -> None:
    """Run an XDP program on a frame that arrives by the device of that index, and let the kernel act on its result.

    Raises OSError, EINVAL before Linux 5.18.
    """
    data = ctypes.create_string_buffer(frame, len(frame))
    context = ctypes.create_string_buffer(_XDP_MD.pack(0, len(frame), 0, device, 0, 0), _XDP_MD.size)
    places = ctypes.addressof(data), ctypes.addressof(context)
    request = (descriptor, 0, len(frame), 0, places[0], 0, 1, 0, _XDP_MD.size, 0, places[1], 0)
    bpf(_BPF_PROG_TEST_RUN, _TEST_RUN.pack(*request, _BPF_F_TEST_XDP_LIVE_FRAMES, 0, 1))


def describe(descriptor: int) -> LoadedProgram:
    """Return the program behind a descriptor."""
    info = _object_info(descriptor, b"", _INFO_SIZE)
    kind, number, tag, _, length, _, _ = _INFO.unpack_from(info)
    name = info[_INFO_NAME : _INFO_NAME + _NAME_SIZE].partition(b"\0")[0]
    return LoadedProgram(number, kind, tag, name.decode("ascii", "replace"), length)


def verified_code(descriptor: int, program: LoadedProgram) -> bytes:
    """Return the code of a program after verification; empty if the kernel does not show it."""
    code = ctypes.create_string_buffer(program.length + 1)
    request = _INFO.pack(0, 0, b"", 0, program.length, 0, ctypes.addressof(code))
    is_shown = _INFO.unpack_from(_object_info(descriptor, request, _INFO_SIZE))[6] != 0
    return code.raw[: program.length] if is_shown and program.length % _INSN_SIZE == 0 else b""


def _object_info(descriptor: int, request: bytes, size: int) -> bytes:
    """Return struct bpf_prog_info or bpf_link_info; `request` is its content before: where to put the code."""
    info = ctypes.create_string_buffer(request, size)
    bpf(_BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    return info.raw


def program_numbers() -> Iterator[int]:
    """Yield the numbers of all programs in the kernel. Raises OSError without CAP_SYS_ADMIN."""
    return _numbers(_BPF_PROG_GET_NEXT_ID)


def _numbers(command: int) -> Iterator[int]:
    number = 0
    while True:
        try:
            answer = bpf(command, struct.pack("=III", number, 0, 0))[1]
        except FileNotFoundError:
            return
        number = struct.unpack_from("=I", answer, 4)[0]
        yield number


def linked_programs(link_type: int) -> Iterator[int]:
    """Yield the numbers of the programs that links of a type attach. Raises OSError without CAP_SYS_ADMIN."""
    for number in _numbers(_BPF_LINK_GET_NEXT_ID):
        with suppress(FileNotFoundError), _opened(_BPF_LINK_GET_FD_BY_ID, number) as descriptor:  # removed meanwhile
            kind, _, program = _LINK_INFO.unpack_from(_object_info(descriptor, b"", _LINK_INFO_SIZE))
            if kind == link_type:
                yield program


def attach(directory: int, descriptor: int, attach_type: AttachType) -> None:
    """Attach a program to the cgroup with the open directory `directory`.

    Foreign programs stay.
    """
    bpf(_BPF_PROG_ATTACH, _ATTACH.pack(directory, descriptor, attach_type.number, _BPF_F_ALLOW_MULTI))


def attached_numbers(target: int, attach_type: int, limit: int = BPF_CGROUP_MAX_PROGS) -> list[int]:
    """Return the numbers of the programs on a cgroup (by descriptor) or a device (by index), at most `limit`.

    They are in the order in which they run.
    """
    numbers = (ctypes.c_uint32 * limit)()
    # Without a place for the flags, the kernel does not list LSM programs (__cgroup_bpf_query).
    flags = (ctypes.c_uint32 * limit)()
    flags_address = ctypes.addressof(flags) if attach_type == LSM_CGROUP else 0
    query = _QUERY.pack(target, attach_type, 0, 0, ctypes.addressof(numbers), limit, 0, flags_address)
    try:
        answer = bpf(_BPF_PROG_QUERY, query)[1]
    except OSError as error:
        if error.errno == errno.ENOSPC:  # there are more
            return list(numbers)
        raise
    return list(numbers[: struct.unpack_from("=I", answer, _QUERY_COUNT)[0]])


def attached_programs(directory: int, attach_type: AttachType) -> list[LoadedProgram]:
    """Return all programs on the cgroup itself, in the order in which they run."""
    programs = []
    for number in attached_numbers(directory, attach_type.number):
        with suppress(FileNotFoundError), open_program(number) as descriptor:  # detached meanwhile
            programs.append(describe(descriptor))
    return programs


def detach(directory: int, program: LoadedProgram, attach_type: AttachType) -> None:
    """Detach a program from a cgroup. Do nothing if it is not attached any more."""
    with suppress(FileNotFoundError), open_program(program.number) as descriptor:
        bpf(_BPF_PROG_DETACH, _ATTACH.pack(directory, descriptor, attach_type.number, 0))


def open_program(number: int) -> AbstractContextManager[int]:
    """Open a program and yield its descriptor. Raises FileNotFoundError if there is none of that number."""
    return _opened(_BPF_PROG_GET_FD_BY_ID, number)


@contextmanager
def _opened(command: int, number: int) -> Iterator[int]:
    descriptor = bpf(command, struct.pack("=III", number, 0, 0))[0]
    try:
        yield descriptor
    finally:
        os.close(descriptor)
