# SPDX-License-Identifier: BSD-2-Clause
"""BPF programs that can mark or move packets: at devices (tcx, netkit) and at cgroups (include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ...netstate.bypass import ANY_EFFECT, CGROUP_BPF, TCX, Actor, Look, MarkWrite
from ..cgroup_tree import open_hierarchy
from ..errors import Unavailable
from .syscall import bpf

_PROG_GET_NEXT_ID, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 11, 13, 15, 16
_DEVICE_HOOKS = {
    46: "tcx ingress",
    47: "tcx egress",
    54: "netkit primary",
    55: "netkit peer",
}  # BPF_TCX_*, BPF_NETKIT_*
# Types of programs at cgroups that can write the mark of a packet or socket, with their attach types.
_CGROUP_TYPES: Mapping[int, tuple[str, tuple[int, ...]]] = {
    8: ("cgroup_skb", (0, 1)),  # writes skb->mark; its helpers do not
    9: ("cgroup_sock", (2, 12, 13, 34)),  # writes sk->mark; its helpers do not
    13: ("sock_ops", (3,)),  # bpf_setsockopt
    18: ("cgroup_sock_addr", (8, 9, 10, 11, 14, 15, 19, 20, 29, 30, 31, 32)),  # bpf_setsockopt
    25: ("cgroup_sockopt", (21, 22)),  # bpf_setsockopt
}
_MARKED_BY_STORE = (8, 9)
_OWN_PREFIX, _OWN_TYPES = "nftp.", (9, 25)  # see programs.program_name()
_INFO_SIZE, _INFO_NAME, _NAME_SIZE = 232, 64, 16
_INFO = struct.Struct("=II8sIIQQ")  # type, id, tag, jited length, xlated length, jited code, xlated code
_MAX_PROGRAMS = 64  # of one type on one cgroup: BPF_CGROUP_MAX_PROGS
_QUERY = struct.Struct("=IIIIQII")  # target, attach type, two flags, prog_ids, prog_cnt, padding
_QUERY_COUNT = 24
_INSN = struct.Struct("=BBhi")  # code, registers (destination in the lower half), offset, immediate value
_CLASS, _ST, _STX, _MODE, _MEM = 0x07, 0x02, 0x03, 0xE0, 0x60
_CALL, _PSEUDO_CALL, _STACK = 0x85, 1, 10
_TAIL_CALL = 12  # BPF_FUNC_tail_call; other helpers are listed by address


@frozen
class PacketProgram:
    """A loaded program of a type that can mark packets or sockets."""

    number: int
    type: int
    name: str
    code: bytes  # as the verifier left it; empty if the kernel does not show it


def look_at_device_programs(names: Mapping[int, str], kinds: Mapping[int, str]) -> Look:
    """Return the tcx and netkit programs of all devices. `names` and `kinds` are those of devices by index."""
    actors = []
    try:
        for index, name in names.items():
            for hook, description in _DEVICE_HOOKS.items():
                if description.startswith("netkit") and kinds.get(index) != "netkit":
                    continue
                if _attached(index, hook):
                    actors.append(Actor(f"BPF program at {description} of {name}", ANY_EFFECT))
    except (OSError, Unavailable) as error:
        return Look(TCX, tuple(actors), "", _reason(error))
    return Look(TCX, tuple(actors))


def look_at_cgroup_programs() -> Look:
    """Return the programs at cgroups with processes of this network namespace that can mark packets or sockets."""
    try:
        programs = {program.number: program for program in _loaded_programs() if not is_harmless(program)}
        if not programs:
            return Look(CGROUP_BPF)
        places = dict(_attachments(programs))
    except (OSError, Unavailable) as error:
        return Look(CGROUP_BPF, (), "", _reason(error))
    actors, narrowed = [], []
    for number, program in programs.items():
        kind = _CGROUP_TYPES[program.type][0]
        description = f"BPF program {program.name or number} ({kind})"
        used_paths = [path for path, is_used in places.get(number, ()) if is_used]
        if used_paths:
            actors.append(Actor(f"{description} at cgroup {used_paths[0]}", (MarkWrite(),)))
        elif number in places:
            path = places[number][0][0]
            narrowed.append(f"{description} at cgroup {path} has no socket of this network namespace")
        else:
            narrowed.append(f"{description} is at no cgroup that this process can see")
    return Look(CGROUP_BPF, tuple(actors), "", "", tuple(narrowed))


def is_harmless(program: PacketProgram) -> bool:
    """Return True if a program cannot write a mark.

    The programs of nftpolicy mark the sockets of services, as the policy requires. In any other one a
    write of a field or of a map's value is a store outside the stack; so is a write of a mark. A program
    of the types that may call bpf_setsockopt() must not call any helper, and none may call a kfunc or
    another program.
    """
    if program.type in _OWN_TYPES and program.name.startswith(_OWN_PREFIX):
        return True
    if not program.code:
        return False
    for code, registers, _, value in _INSN.iter_unpack(program.code):
        if code & _CLASS in (_ST, _STX) and code & _MODE == _MEM and registers & 0x0F != _STACK:
            return False
        if code != _CALL or registers >> 4 == _PSEUDO_CALL:
            continue
        is_helper = registers >> 4 == 0 and value != _TAIL_CALL
        if not is_helper or program.type not in _MARKED_BY_STORE:
            return False
    return True


def _loaded_programs() -> Iterator[PacketProgram]:
    """Yield the programs of the types of `_CGROUP_TYPES`. Raises OSError without CAP_SYS_ADMIN."""
    number = 0
    while True:
        try:
            number = struct.unpack_from("=I", bpf(_PROG_GET_NEXT_ID, struct.pack("=III", number, 0, 0))[1], 4)[0]
        except FileNotFoundError:
            return
        with suppress(FileNotFoundError):  # unloaded meanwhile
            descriptor = bpf(_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))[0]
            try:
                kind, name, length = _info(descriptor)
                if kind in _CGROUP_TYPES:
                    yield PacketProgram(number, kind, name, _code(descriptor, length))
            finally:
                os.close(descriptor)


def _info(descriptor: int) -> tuple[int, str, int]:
    """Return type, name and length of the code of a program (struct bpf_prog_info)."""
    info = ctypes.create_string_buffer(_INFO_SIZE)
    bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    kind, _, _, _, length, _, _ = _INFO.unpack_from(info)
    name = info.raw[_INFO_NAME : _INFO_NAME + _NAME_SIZE].partition(b"\0")[0]
    return kind, name.decode("ascii", "replace"), length


def _code(descriptor: int, length: int) -> bytes:
    """Return the code of a program after verification; empty if the kernel does not show it."""
    code = ctypes.create_string_buffer(length + 1)
    request = bytearray(_INFO_SIZE)
    _INFO.pack_into(request, 0, 0, 0, b"", 0, length, 0, ctypes.addressof(code))
    info = ctypes.create_string_buffer(bytes(request), _INFO_SIZE)
    bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, _INFO_SIZE, ctypes.addressof(info)))
    is_shown = _INFO.unpack_from(info)[6] != 0
    return code.raw[:length] if is_shown and length % _INSN.size == 0 else b""


def _attached(target: int, attach_type: int, count: int = 1) -> list[int]:
    """Return the numbers of the programs at a device (by index) or cgroup (by descriptor)."""
    numbers = (ctypes.c_uint32 * count)()
    query = _QUERY.pack(target, attach_type, 0, 0, ctypes.addressof(numbers), count, 0)
    try:
        answer = bpf(_PROG_QUERY, query)[1]
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return list(numbers)  # more programs than asked for
        if error.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT):
            return []  # a kernel without this hook, or the target is gone
        raise
    return list(numbers[: struct.unpack_from("=I", answer, _QUERY_COUNT)[0]])


def _attachments(programs: Mapping[int, PacketProgram]) -> Iterator[tuple[int, list[tuple[str, bool]]]]:
    """Yield each program with its cgroups, and whether a process of this network namespace is in each."""
    attach_types = {number for program in programs.values() for number in _CGROUP_TYPES[program.type][1]}
    places: dict[int, list[tuple[str, bool]]] = {}
    root = open_hierarchy()
    try:
        for path, _, _, directory in os.fwalk(".", dir_fd=root):
            attached = {number for kind in attach_types for number in _attached(directory, kind, _MAX_PROGRAMS)}
            for number in attached & programs.keys():
                name = "/" + path.removeprefix(".").strip("/")
                places.setdefault(number, []).append((name, _has_process(directory)))
    finally:
        os.close(root)
    yield from places.items()


def _has_process(directory: int) -> bool:
    """Return True if a process of this network namespace is in the cgroup or below it.

    Processes of other PID namespaces, of which the kernel lists 0 as the number, are not looked at.
    """
    own = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116  # as the others
    for _, _, files, below in os.fwalk(".", dir_fd=directory):
        if "cgroup.procs" not in files:
            continue
        with suppress(OSError):
            descriptor = os.open("cgroup.procs", os.O_RDONLY, dir_fd=below)
            with os.fdopen(descriptor) as members:
                numbers = members.read().split()
            for number in numbers:
                with suppress(OSError):
                    if Path("/proc", number, "ns/net").stat().st_ino == own:
                        return True
    return False


def _reason(error: Exception) -> str:
    """Return why a look was not possible; empty for a kernel without bpf(2), which has no programs."""
    if isinstance(error, OSError) and error.errno == errno.ENOSYS:
        return ""
    return getattr(error, "strerror", None) or str(error)
