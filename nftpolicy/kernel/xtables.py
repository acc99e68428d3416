# SPDX-License-Identifier: BSD-2-Clause
"""Rules of legacy iptables, ip6tables, arptables and ebtables, by getsockopt(2).

A table of iptables, ip6tables or arptables that this network namespace does not have is not read: the
kernel would make it. ebtables has no list of tables, so that the kernel may make an empty one.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..netstate.bypass import EBTABLES, XTABLES, Actor, Look
from ..netstate.formats import xtables_decode
from ..netstate.formats.xtables_decode import ARP, IPV4, IPV6, Layout, LegacyTable
from . import libc
from .errors import error_reason

_PROC_NET = Path("/proc/thread-self/net")
_PROC_MODULES = Path("/proc/modules")
_NAME_SIZE = 32  # XT_TABLE_MAXNAMELEN, EBT_TABLE_MAXNAMELEN
_ENTRIES_HEADER = struct.calcsize("@32sI0Q")  # struct ipt_get_entries: name, size, entries
# File of the names of tables; address family of the socket; level and first option (IPT_SO_GET_INFO, ...)
_PROGRAMS = (
    (IPV4, "ip_tables_names", socket.AF_INET, socket.IPPROTO_IP, 64),
    (IPV6, "ip6_tables_names", socket.AF_INET6, socket.IPPROTO_IPV6, 64),
    (ARP, "arp_tables_names", socket.AF_INET, socket.IPPROTO_IP, 96),
)
_ARP_HOOKS = ("input", "output", "forward")  # by NF_ARP_* number
_EBT_GET_INFO, _EBT_GET_ENTRIES = 128, 129  # EBT_SO_GET_INFO, EBT_SO_GET_ENTRIES
_EBT_TABLES = ("broute", "filter", "nat")
Result = TypeVar("Result")
_TRIES = 5  # a table that changes between its size and its rules is read again


def look_at_xtables() -> Look:
    """Return the rules of legacy iptables, ip6tables and arptables that have an effect on packets."""
    actors: list[Actor] = []
    missing, tables, rules = [], 0, 0
    for layout, file, family, level, option in _PROGRAMS:
        try:
            names = (_PROC_NET / file).read_text().split()
        except FileNotFoundError:
            if not _PROC_NET.exists():
                missing.append(f"{layout.program}: {_PROC_NET} does not exist")
            continue  # this kernel has no legacy tables, or their module is not loaded
        except OSError as error:
            missing.append(f"{layout.program}: {error.strerror}")
            continue
        for name in names:
            try:
                table = _retry(lambda: _read_table(layout, name, family, level, option))  # noqa: B023  # called here
                table_actors, count = xtables_decode.table_actors(layout, table)
            except (OSError, ValueError) as error:
                missing.append(f"table {name} of {layout.program}: {error_reason(error)}")
                continue
            actors += table_actors
            tables, rules = tables + 1, rules + count
    return Look(XTABLES, tuple(actors), f"{tables} tables with {rules} rules" if tables else "", "; ".join(missing))


def look_at_ebtables() -> Look:
    """Return the rules of legacy ebtables that have an effect on packets.

    The kernel has no list of the tables of a namespace. A table whose module is not loaded does not exist.
    """
    actors: list[Actor] = []
    missing, rules = [], 0
    for name in _possible_bridge_tables():
        try:
            raw = _retry(lambda: _read_bridge_table(name))  # noqa: B023  # called here
            table_actors, count = xtables_decode.bridge_table_actors(name, raw)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOPROTOOPT, errno.ENOENT):
                continue  # no ebtables in this kernel, or no such table
            missing.append(f"table {name}: {error_reason(error)}")
            continue
        actors += table_actors
        rules += count
    return Look(EBTABLES, tuple(actors), f"{rules} rules" if rules else "", "; ".join(missing))


def _possible_bridge_tables() -> tuple[str, ...]:
    """Return the tables of ebtables whose module is loaded; all if it may be part of the kernel."""
    try:
        modules = {line.split(" ", 1)[0] for line in _PROC_MODULES.read_text().splitlines()}
    except OSError:
        return _EBT_TABLES
    if "ebtables" not in modules:
        return _EBT_TABLES  # asking does not load it: the answer is ENOPROTOOPT
    return tuple(name for name in _EBT_TABLES if f"ebtable_{name}" in modules)


def _retry(read: Callable[[], Result]) -> Result:
    """Return the result of `read`; call it again if the table changed meanwhile (EAGAIN, EINVAL)."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINVAL):
                raise
    return read()


def _read_table(layout: Layout, name: str, family: int, level: int, option: int) -> LegacyTable:
    padded = name.encode().ljust(_NAME_SIZE, b"\0")
    names = xtables_decode.HOOKS if layout.family else _ARP_HOOKS
    # struct ipt_getinfo: name, valid_hooks, hook_entry and underflow for each hook, num_entries, size
    info = struct.Struct(f"=32sI{2 * len(names)}III")
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as inet_socket:
        answer = _getsockopt(inet_socket, level, option, padded.ljust(info.size, b"\0"))
        _, valid_hooks, *offsets, _, size = info.unpack(answer)
        request = (padded + struct.pack("=I", size)).ljust(_ENTRIES_HEADER + size, b"\0")
        entries = _getsockopt(inet_socket, level, option + 1, request)[_ENTRIES_HEADER:]
    hooks = {hook: offsets[number] for number, hook in enumerate(names) if valid_hooks & 1 << number}
    return LegacyTable(name, entries, hooks)


def _read_bridge_table(name: str) -> bytes:
    """Return the entries of a table of ebtables (struct ebt_replace, do_ebt_get_ctl in the kernel)."""
    # name, valid_hooks, nentries, entries_size, hook_entry, num_counters, counters, entries
    replace = struct.Struct("@32sIII6PIPP")
    padded = name.encode().ljust(_NAME_SIZE, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as inet_socket:
        answer = _getsockopt(inet_socket, socket.IPPROTO_IP, _EBT_GET_INFO, padded.ljust(replace.size, b"\0"))
        _, hooks, count, size, *_ = replace.unpack(answer)
        entries = ctypes.create_string_buffer(size)
        request = replace.pack(padded, hooks, count, size, *(0,) * 6, 0, 0, ctypes.addressof(entries))
        _getsockopt(inet_socket, socket.IPPROTO_IP, _EBT_GET_ENTRIES, request + bytes(size), len(request) + size)
        return entries.raw


def _getsockopt(target: socket.socket, level: int, option: int, request: bytes, length: int | None = None) -> bytes:
    """Return the answer of an option that reads its request from the buffer. Raises OSError."""
    buffer = ctypes.create_string_buffer(request, len(request))
    size = ctypes.c_uint32(len(request) if length is None else length)
    libc.call("getsockopt", target.fileno(), level, option, buffer, ctypes.byref(size))
    return buffer.raw


__all__ = ["look_at_ebtables", "look_at_xtables"]
