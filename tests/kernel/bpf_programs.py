"""cgroup v2 and BPF programs of a few instructions, without a compiler and without a library."""

import contextlib
import ctypes
import errno
import functools
import os
import platform
import socket
import struct
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.netns import Namespace, wait_until

SOCK_CREATE, SETSOCKOPT = (9, 2), (25, 22)  # program type and attach type of BPF_CGROUP_*
SKB_EGRESS, LSM_CGROUP = (8, 1), (29, 43)
TCX_EGRESS, XDP = (3, 47), (6, 37)

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "i686": 357, "armv7l": 386}
_LOAD, _ATTACH, _DETACH, _LINK_CREATE = 5, 8, 9, 28
_XDP_FLAGS_SKB_MODE = 2
_ALLOW_MULTI = 2
_libc = ctypes.CDLL(None, use_errno=True)

R0, R1, R2, R3, R4, R5, R6, R7, R10 = 0, 1, 2, 3, 4, 5, 6, 7, 10
_CALL, _BPF_REDIRECT, _BPF_SETSOCKOPT = 0x85, 23, 49
_LOAD_LONG, _STORE_CONSTANT, _COPY, _ADD = 0x79, 0x62, 0xBF, 0x07
# Kinds of BTF types, and the bytes behind struct btf_type: fixed, and for each of its `vlen` parts.
_STRUCT, _FUNC = 4, 12
_TYPE_SIZES = {
    1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0),
    19: (0, 12),
}  # fmt: skip
_MOVE, _EXIT, _LOAD_WORD, _STORE_WORD, _JUMP_EQUAL, _JUMP_NOT_EQUAL = 0xB7, 0x95, 0x61, 0x63, 0x15, 0x55


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, value)


def mark_program(mark: int) -> bytes:
    """Return a SOCK_CREATE program that writes the mark into struct bpf_sock and allows the socket."""
    return (
        _instruction(_MOVE, R2, value=mark)
        + _instruction(_STORE_WORD, R1, R2, offset=16)
        + _instruction(_MOVE, R0, value=1)
        + _instruction(_EXIT)
    )


def packet_mark_program(mark: int) -> bytes:
    """Return a program for packets (struct __sk_buff) that writes their mark and lets them pass."""
    return (
        _instruction(_MOVE, R2, value=mark)
        + _instruction(_STORE_WORD, R1, R2, offset=8)
        + _instruction(_MOVE, R0, value=1)
        + _instruction(_EXIT)
    )


def allow_program() -> bytes:
    """Return a program that allows everything, and writes to its stack only."""
    return (
        _instruction(_MOVE, R2, value=7)
        + _instruction(_STORE_WORD, R10, R2, offset=-4)
        + _instruction(_MOVE, R0, value=1)
        + _instruction(_EXIT)
    )


def redirect_program(index: int) -> bytes:
    """Return a program for tc or XDP that redirects every packet to the device with this index."""
    return (
        _instruction(_MOVE, R1, value=index)
        + _instruction(_MOVE, R2)
        + _instruction(_CALL, value=_BPF_REDIRECT)
        + _instruction(_EXIT)
    )


def refuse_program(options: Sequence[tuple[int, int]]) -> bytes:
    """Return a SETSOCKOPT program that refuses these pairs of level and option and allows all others."""
    refusal = 2 + 2 * len(options) + 2  # where the program says no
    code = _instruction(_LOAD_WORD, R6, R1, offset=24) + _instruction(_LOAD_WORD, R7, R1, offset=28)
    for index, (level, option) in enumerate(options):
        code += _instruction(_JUMP_NOT_EQUAL, R6, offset=1, value=level)
        code += _instruction(_JUMP_EQUAL, R7, offset=refusal - (3 + 2 * index) - 1, value=option)
    for answer in (1, 0):
        code += _instruction(_MOVE, R0, value=answer) + _instruction(_EXIT)
    return code


def _bpf(command: int, attributes: bytes) -> int:
    size = 128
    buffer = ctypes.create_string_buffer(attributes.ljust(size, b"\0"), size)
    result = int(_libc.syscall(_SYSCALL[platform.machine()], command, buffer, size))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf command {command}: {os.strerror(number)}")
    return result


def lsm_mark_program(mark: int) -> bytes:
    """Return an LSM program of socket_post_create that sets the mark of each new socket by bpf_setsockopt."""
    return (
        _instruction(_LOAD_LONG, R6, R1)  # struct socket *
        + _instruction(_LOAD_LONG, R1, R6, offset=_kernel_types().socket_sk)
        + _instruction(_JUMP_NOT_EQUAL, R1, offset=2)
        + _instruction(_MOVE, R0, value=1)
        + _instruction(_EXIT)
        + _instruction(_STORE_CONSTANT, R10, offset=-4, value=mark)
        + _instruction(_MOVE, R2, value=socket.SOL_SOCKET)
        + _instruction(_MOVE, R3, value=socket.SO_MARK)
        + _instruction(_COPY, R4, R10)
        + _instruction(_ADD, R4, value=-4)
        + _instruction(_MOVE, R5, value=4)
        + _instruction(_CALL, value=_BPF_SETSOCKOPT)
        + _instruction(_MOVE, R0, value=1)
        + _instruction(_EXIT)
    )


class _KernelTypes(NamedTuple):
    socket_post_create: int  # number of the type of bpf_lsm_socket_post_create
    socket_sk: int  # offset of `sk` in struct socket, in bytes


@functools.cache
def _kernel_types() -> _KernelTypes:
    """Return what a program of this LSM hook needs of the kernel's types (Documentation/bpf/btf.rst)."""
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("the kernel does not show its types (CONFIG_DEBUG_INFO_BTF)")
    data = path.read_bytes()
    _, _, _, header, types, length, strings, _ = struct.unpack_from("=HBBIIIII", data)
    position, end, strings = header + types, header + types + length, header + strings

    def has_name(offset: int, name: bytes) -> bool:
        return data.startswith(name + b"\0", strings + offset)

    number, function, sk = 0, 0, -1
    while position < end:
        number += 1
        name, information, _ = struct.unpack_from("=III", data, position)
        kind, count = information >> 24 & 0x1F, information & 0xFFFF
        position += 12
        if kind == _FUNC and has_name(name, b"bpf_lsm_socket_post_create"):
            function = number
        if kind == _STRUCT and has_name(name, b"socket"):
            members = struct.iter_unpack("=III", data[position : position + 12 * count])
            sk = next(place & 0xFFFFFF for member, _, place in members if has_name(member, b"sk")) // 8
        fixed, each = _TYPE_SIZES.get(kind, (0, 0))
        position += fixed + each * count
    if not function:
        pytest.skip("the kernel has no LSM programs (CONFIG_BPF_LSM)")
    return _KernelTypes(function, sk)


def _load(kind: tuple[int, int], code: bytes) -> int:
    """Return a file descriptor of the program.

    Skips the test if the kernel has no BPF. Raises OSError if the kernel refuses the program.
    """
    if platform.machine() not in _SYSCALL or sys.byteorder != "little":
        pytest.skip(f"bpf(2) is not known for {platform.machine()}")
    text, licence = (ctypes.create_string_buffer(part, len(part)) for part in (code, b"GPL\0"))
    log = ctypes.create_string_buffer(1 << 16)
    program, attach = kind
    addresses = ctypes.addressof(text), ctypes.addressof(licence)
    attributes = struct.pack("=IIQQ", program, len(code) // 8, *addresses)
    attributes += struct.pack("=IIQII", 1, len(log), ctypes.addressof(log), 0, 0)
    attributes += struct.pack("=16sII", b"fact", 0, attach)
    if kind == LSM_CGROUP:
        attributes = attributes.ljust(108, b"\0") + struct.pack("=I", _kernel_types().socket_post_create)
    try:
        return _bpf(_LOAD, attributes)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            pytest.skip(f"no BPF here: {error}")
        error.add_note(log.value.decode())
        raise


@contextlib.contextmanager
def attached(cgroup: Path, kind: tuple[int, int], code: bytes) -> Iterator[None]:
    """Have the program run for a cgroup."""
    program, directory = _load(kind, code), os.open(cgroup, os.O_RDONLY)
    try:
        _bpf(_ATTACH, struct.pack("=IIII", directory, program, kind[1], _ALLOW_MULTI))
        try:
            yield
        finally:
            _bpf(_DETACH, struct.pack("=IIII", directory, program, kind[1], 0))
    finally:
        os.close(program)
        os.close(directory)


@contextlib.contextmanager
def attached_to_device(space: Namespace, device: str, kind: tuple[int, int], code: bytes) -> Iterator[None]:
    """Have the program run for a device of a namespace (BPF_LINK_CREATE; XDP in the generic mode).

    Skips the test if the kernel has no such hook.
    """
    program = _load(kind, code)
    flags = _XDP_FLAGS_SKB_MODE if kind == XDP else 0
    try:
        with space._net():
            index = socket.if_nametoindex(device)
            link = _bpf(_LINK_CREATE, struct.pack("=IIII", program, index, kind[1], flags))
    except OSError as error:
        os.close(program)
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            pytest.skip(f"no such BPF hook here: {error}")
        raise
    try:
        yield
    finally:
        os.close(link)
        os.close(program)


def tree() -> Path:
    """Return the mount point of cgroup v2; skips the test if cgroup v2 is not mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    pytest.skip("cgroup v2 is not mounted")


@contextlib.contextmanager
def cgroup() -> Iterator[Path]:
    """Make a cgroup and remove it afterwards; its processes must have ended by then."""
    path = tree() / f"fact-{uuid.uuid4().hex[:12]}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        yield path
    finally:
        wait_until(lambda: _removed(path), 10, f"the end of {path}")  # processes leave it a moment after they end


def _removed(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()


def joined(path: Path, work: Callable[[], object]) -> object:
    """Move this process into a cgroup, then work."""
    (path / "cgroup.procs").write_text("0")  # itself, whatever its number is in this PID namespace
    return work()
