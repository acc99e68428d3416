# SPDX-License-Identifier: BSD-2-Clause
"""The sockets of a running process, with all that Linux decides on when they send.

Each socket is borrowed (pidfd_getfd(2)) and asked itself. sock_diag(7) lists neither a socket that has
not sent yet, nor a raw one where the kernel lacks the module, nor the mark of an AF_PACKET one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from attrs import evolve, frozen

from .interface import Unavailable

_PIDFD_GETFD = 438  # the same number everywhere
_SO_PROTOCOL, _SO_DOMAIN, _SO_NETNS_COOKIE = 38, 39, 71  # asm-generic/socket.h
_TCP_LISTEN = 10  # include/net/tcp_states.h
_IPV6_V6ONLY, _IPV6_UNICAST_IF, _IP_UNICAST_IF = 26, 76, 50
_CLONE_NEWNET = 0x40000000
_NS_GET_USERNS = 0xB701  # ioctl_ns(2)
_OVERFLOW = 65534  # what the kernel calls users that a namespace has no number for
_IP = {socket.AF_INET: 4, socket.AF_INET6: 6}
_MAPPED = "::ffff:"
_DUAL = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP})  # raw and ping sockets stay in their family

_libc = ctypes.CDLL(None, use_errno=True)


@frozen
class Socket:
    """One IP or AF_PACKET socket.

    `family` is 4 or 6, and 0 for AF_PACKET, whose `protocol` is an ethertype. `local` and `remote` are
    None where the socket has none. `both`: an IPv6 socket that may send IPv4 too. `bound` is the device
    of SO_BINDTODEVICE (or of an AF_PACKET socket); `out` the one of IP_UNICAST_IF.
    `uid` and `gid` are those of the one who opened the socket, as nft counts them in the process's network
    namespace.
    """

    fd: int
    family: int
    kind: str
    protocol: int
    mark: int
    uid: int
    gid: int
    local: str | None = None
    sport: int = 0
    remote: str | None = None
    dport: int = 0
    bound: str | None = None
    out: str | None = None
    both: bool = False
    listens: bool = False
    elsewhere: bool = False  # of another network namespace than this process


@frozen
class Process:
    """A running program: its name, its cgroup at present, and its sockets."""

    pid: int
    name: str
    cgroup: str | None
    sockets: tuple[Socket, ...]


class Gone(Exception):
    """There is no such process."""


def enter_network_of(pid: int) -> bool:
    """Move this thread to the network namespace of a process; False if it is there already.

    Raises:
        Gone: there is no such process.
        Unavailable: it may not be done.
    """
    try:
        with Path(f"/proc/{pid}/ns/net").open("rb") as there, Path("/proc/thread-self/ns/net").open("rb") as here:
            if os.path.sameopenfile(there.fileno(), here.fileno()):
                return False
            if _libc.setns(there.fileno(), _CLONE_NEWNET):
                raise _error()
    except OSError as error:
        raise _gone(pid, error, "its network namespace can't be entered") from None
    return True


def sockets_of(pid: int) -> Process:
    """A process and its sockets that can send IP or frames. Raises as `enter_network_of` does."""
    home = Path(f"/proc/{pid}")
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise _gone(pid, error, "it can't be looked at") from None
    try:
        owners = _Owners(pid)
        # By number, so that two runs show the same order.
        numbers = sorted(int(entry.name) for entry in os.scandir(home / "fd"))
        found = {}
        for number in numbers:
            if one := _of(process, home / "fd" / str(number), number, owners):
                found.setdefault(*one)
        name = (home / "comm").read_text(errors="replace").strip()
        return Process(pid, name, _cgroup(home), tuple(found.values()))
    except OSError as error:
        raise _gone(pid, error, "its sockets can't be looked at") from None
    finally:
        os.close(process)


class _Owners:
    """Users and groups as the network namespace of a process counts them: by the user namespace that owns it."""

    def __init__(self, pid: int) -> None:
        self._maps: dict[str, list[tuple[int, ...]]] | None = None
        with Path(f"/proc/{pid}/ns/net").open("rb") as network, Path(f"/proc/{pid}/ns/user").open("rb") as user:
            try:
                owner = fcntl.ioctl(network, _NS_GET_USERNS)
            except PermissionError:
                return  # one that this process is inside of: it has no other numbers here
            try:
                ours = Path("/proc/self/ns/user").stat()
                if os.path.samestat(os.fstat(owner), ours):
                    return
                if not os.path.sameopenfile(owner, user.fileno()):
                    raise Unavailable(
                        f"process {pid}: its network namespace belongs to a user namespace that it is not in itself, "
                        "so who its users are for nft is not known"
                    )
            finally:
                os.close(owner)
        self._maps = {
            kind: [tuple(map(int, line.split())) for line in Path(f"/proc/{pid}/{kind}_map").read_text().splitlines()]
            for kind in ("uid", "gid")
        }

    def of(self, kind: str, number: int) -> int:
        """The number there of a user ("uid") or group ("gid") of ours."""
        if self._maps is None:
            return number
        for inside, outside, length in self._maps[kind]:
            if outside <= number < outside + length:
                return inside + number - outside
        return _OVERFLOW


def _of(process: int, link: Path, number: int, owners: _Owners) -> tuple[int, Socket] | None:
    """The inode and the socket behind a descriptor; None if it is another thing, or gone by now."""
    try:
        if not str(link.readlink()).startswith("socket:"):
            return None
        known = link.stat()
        borrowed = _libc.syscall(_PIDFD_GETFD, process, number, 0)
        if borrowed < 0:
            raise _error()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EBADF):
            return None
        raise
    with socket.socket(fileno=borrowed) as one:
        described = _described(one, number, known, owners)
    return (known.st_ino, described) if described else None


def _described(one: socket.socket, number: int, known: os.stat_result, owners: _Owners) -> Socket | None:
    domain = one.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)
    if domain not in (*_IP, socket.AF_PACKET):
        return None
    kind = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "dgram", socket.SOCK_RAW: "raw"}.get(one.type, "other")
    found = Socket(
        number,
        _IP.get(domain, 0),
        kind,
        one.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL),
        one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) & 0xFFFFFFFF,
        # The kernel copies both from who opens a socket (sock_alloc), to its inode and to what nft reads.
        owners.of("uid", known.st_uid),
        owners.of("gid", known.st_gid),
        elsewhere=_cookie(one) != _cookie(None),
    )
    return _frames(one, found) if domain == socket.AF_PACKET else _addresses(one, found)


def _frames(one: socket.socket, found: Socket) -> Socket:
    # The library says "eth0" or "", the protocol as an ethertype.
    device, ethertype = one.getsockname()[:2]
    return evolve(found, protocol=ethertype, bound=device or None)


def _addresses(one: socket.socket, found: Socket) -> Socket:
    local, sport = _end(one.getsockname())
    remote: str | None = None
    dport = 0
    with suppress(OSError):  # ENOTCONN
        remote, dport = _end(one.getpeername())
    family = found.family
    both = family == 6 and not one.getsockopt(socket.IPPROTO_IPV6, _IPV6_V6ONLY)
    mapped = [end for end in (local, remote) if end and end.startswith(_MAPPED)]
    if mapped:  # an IPv6 socket that speaks IPv4
        family, both = 4, False
        local, remote = _without_map(local), _without_map(remote)
    raw = found.kind == "raw"  # whose port is its protocol
    return evolve(
        found,
        family=family,
        both=both and local is None and remote is None and found.protocol in _DUAL,
        local=local,
        sport=0 if raw else sport,
        remote=remote,
        dport=0 if raw else dport,
        bound=_bound(one),
        out=_out(one, found.family),
        listens=found.kind == "stream" and _state(one) == _TCP_LISTEN,
    )


def _end(name: tuple[str, int] | tuple[str, int, int, int]) -> tuple[str | None, int]:
    address = name[0].partition("%")[0]
    return (None if address in ("0.0.0.0", "::") else address), name[1]


def _without_map(address: str | None) -> str | None:
    return address.removeprefix(_MAPPED) if address else None


def _bound(one: socket.socket) -> str | None:
    device = one.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
    return device.rstrip(b"\0").decode(errors="replace") or None


def _out(one: socket.socket, family: int) -> str | None:
    level, option = (socket.IPPROTO_IP, _IP_UNICAST_IF) if family == 4 else (socket.IPPROTO_IPV6, _IPV6_UNICAST_IF)
    index = socket.ntohl(one.getsockopt(level, option) & 0xFFFFFFFF)
    with suppress(OSError):
        return socket.if_indextoname(index) if index else None
    return f"device number {index}"


def _state(one: socket.socket) -> int:
    with suppress(OSError):
        return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return 0


def _cookie(one: socket.socket | None) -> int:
    """The network namespace of a socket, or of this thread; 0 before Linux 5.14, which does not tell."""
    if one is None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
            return _cookie(made)
    with suppress(OSError):
        return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    return 0


def _cgroup(home: Path) -> str | None:
    lines = [line for line in (home / "cgroup").read_text(errors="replace").splitlines() if line.startswith("0::/")]
    return lines[0].removeprefix("0::/") or None if lines else None


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def _gone(pid: int, error: OSError, what: str) -> Gone | Unavailable:
    if error.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL):
        return Gone(f"there is no process {pid}, or it is a thread of another one")
    return Unavailable(f"process {pid}: {what} ({error.strerror}); this needs root (CAP_SYS_PTRACE)")
