# SPDX-License-Identifier: BSD-2-Clause
"""BPF programs that can mark or move packets: at devices (tcx, netkit), cgroups, and in the kernel's struct_ops.

Source of the numbers: include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ...netstate.bypass import ANY_EFFECT, CGROUP_BPF, TCX, Actor, Look, MarkWrite
from ...phrases import name_some
from ..cgroup_tree import open_hierarchy
from ..errors import Unavailable, error_reason
from . import syscall

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
    29: ("lsm_cgroup", (syscall.LSM_CGROUP,)),  # bpf_setsockopt
}
# Congestion control (tcp_congestion_ops) may call bpf_setsockopt; the type does not say what a program is for.
_STRUCT_OPS, _LSM = 27, 29
_MARKED_BY_STORE = (8, 9)
_OWN_PREFIX, _OWN_TYPES = "nftp.", (9, 25)  # see programs.program_name()
_INSN = struct.Struct("=BBhi")  # code, registers (destination in the lower half), offset, immediate value
_CLASS, _LD, _ST, _STX, _MODE, _MEM = 0x07, 0x00, 0x02, 0x03, 0xE0, 0x60
_JMP, _JMP32, _EXIT, _GOTO, _GOTO32 = 0x05, 0x06, 0x95, 0x05, 0x06
_MOVE, _ADD = 0xBF, 0x07  # of 64 bits: a register to another one, a constant to a register
_CALL, _PSEUDO_CALL, _STACK = 0x85, 1, 10
_SCRATCH = range(6)  # the registers that a call overwrites
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
                if _attached(index, hook, 1):
                    actors.append(Actor(f"BPF program at {description} of {name}", ANY_EFFECT))
    except (OSError, Unavailable) as error:
        return Look(TCX, tuple(actors), "", _reason(error))
    return Look(TCX, tuple(actors))


def look_at_cgroup_programs() -> Look:
    """Return the programs at cgroups with processes of this network namespace that can mark packets or sockets."""
    try:
        suspects = [program for program in _loaded_programs() if not is_harmless(program)]
        if any(program.type == _LSM for program in suspects):
            # Only LSM programs of cgroups may call bpf_setsockopt (bpf_lsm_func_proto); the others have tracing links.
            kernel_wide = set(syscall.linked_programs(syscall.LINK_TRACING))
            suspects = [each for each in suspects if each.type != _LSM or each.number not in kernel_wide]
        programs = {program.number: program for program in suspects if program.type != _STRUCT_OPS}
        places = dict(_attachments(programs)) if programs else {}
    except (OSError, Unavailable) as error:
        return Look(CGROUP_BPF, (), "", _reason(error))
    actors, narrowed = [], list(_struct_ops_assumptions(suspects))
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


def _struct_ops_assumptions(programs: Iterable[PacketProgram]) -> Iterator[str]:
    names = [program.name or str(program.number) for program in programs if program.type == _STRUCT_OPS]
    if names:
        yield f"BPF programs of struct_ops, such as a congestion control, mark no socket: {name_some(names)}"


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
    pointers = _stack_pointers(program.code)
    for (code, registers, _, value), on_stack in zip(_INSN.iter_unpack(program.code), pointers, strict=True):
        if code & _CLASS in (_ST, _STX) and code & _MODE == _MEM and registers & 0x0F not in on_stack:
            return False
        if code != _CALL or registers >> 4 == _PSEUDO_CALL:
            continue
        is_helper = registers >> 4 == 0 and value != _TAIL_CALL
        if not is_helper or program.type not in _MARKED_BY_STORE:
            return False
    return True


def _stack_pointers(program: bytes) -> Iterator[frozenset[int]]:
    """Yield, for each instruction, the registers that point into the stack before it, whatever led there.

    Compilers copy the stack pointer, add an offset, and store by the copy. Known are copies that are made since
    the last place that a jump leads to.
    """
    code = list(_INSN.iter_unpack(program))
    targets = {
        place + 1 + (value if operation == _GOTO32 else offset)
        for place, (operation, _, offset, value) in enumerate(code)
        if operation & _CLASS in (_JMP, _JMP32)
    }
    known = {_STACK}
    for place, (operation, registers, _, _) in enumerate(code):
        if place in targets:
            known = {_STACK}
        yield frozenset(known)
        target, source = registers & 0x0F, registers >> 4
        if operation in (_EXIT, _GOTO, _GOTO32):  # the next instruction is reached otherwise
            known = {_STACK}
        elif operation == _MOVE and source in known:
            known.add(target)
        elif operation != _ADD:
            known.difference_update(_overwritten(operation, target, source))


def _overwritten(operation: int, target: int, source: int) -> Iterable[int]:
    """Return the registers that an instruction writes, or perhaps writes."""
    kind = operation & _CLASS
    if operation == _CALL or kind == _LD:  # loads of packet data are calls
        return (*_SCRATCH, target)
    if kind == _STX and operation & _MODE != _MEM:  # an atomic operation may fetch
        return (0, source)
    return () if kind in (_ST, _STX, _JMP, _JMP32) else (target,)


def _loaded_programs() -> Iterator[PacketProgram]:
    """Yield the programs of cgroups and of struct_ops. Raises OSError without CAP_SYS_ADMIN."""
    for number in syscall.program_numbers():
        with suppress(FileNotFoundError), syscall.open_program(number) as descriptor:  # unloaded meanwhile
            program = syscall.describe(descriptor)
            if program.type in _CGROUP_TYPES or program.type == _STRUCT_OPS:
                code = syscall.verified_code(descriptor, program)
                yield PacketProgram(number, program.type, program.name, code)


def _attached(target: int, attach_type: int, limit: int = syscall.BPF_CGROUP_MAX_PROGS) -> list[int]:
    """Return the numbers of the programs at a device or cgroup; none if it has no such hook."""
    try:
        return syscall.attached_numbers(target, attach_type, limit)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT):
            return []  # a kernel without this hook, or the target is gone
        raise


def _attachments(programs: Mapping[int, PacketProgram]) -> Iterator[tuple[int, list[tuple[str, bool]]]]:
    """Yield each program with its cgroups, and whether a process of this network namespace is in each."""
    attach_types = {number for program in programs.values() for number in _CGROUP_TYPES[program.type][1]}
    places: dict[int, list[tuple[str, bool]]] = {}
    root = open_hierarchy()
    try:
        for path, _, _, directory in os.fwalk(".", dir_fd=root):
            attached = {number for kind in attach_types for number in _attached(directory, kind)}
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
    return error_reason(error)
