# SPDX-License-Identifier: BSD-2-Clause
"""Sockets of a running process, with the properties that decide about the packets they send.

Each socket is duplicated (pidfd_getfd(2)) and queried itself. sock_diag(7) lists neither a socket
that has not sent yet, nor a raw one if the kernel lacks the module, nor the mark of an AF_PACKET
socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from attrs import evolve, frozen

from . import libc
from .errors import NoSuchProcess, Unavailable
from .netns import socket_cookie

_SO_PROTOCOL, _SO_DOMAIN = 38, 39  # asm-generic/socket.h
_TCP_LISTEN = 10  # include/net/tcp_states.h
_IPV6_V6ONLY, _IPV6_UNICAST_IF, _IP_UNICAST_IF = 26, 76, 50
_UNICAST_IF = {4: (socket.IPPROTO_IP, _IP_UNICAST_IF), 6: (socket.IPPROTO_IPV6, _IPV6_UNICAST_IF)}
# IP_PKTINFO, IPV6_RECVPKTINFO: include/uapi/linux/in.h, in6.h
_DESTINATION_OPTIONS = ((socket.IPPROTO_IP, 8), (socket.IPPROTO_IPV6, 49))
_IFNAMSIZ = 16
_CLONE_NEWNET = 0x40000000
_NS_GET_USERNS = 0xB701  # ioctl_ns(2)
_OVERFLOW_ID = 65534  # users and groups without a number in a user namespace (user_namespaces(7))
_FAMILIES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 6}
_TYPES: dict[int, str] = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "dgram", socket.SOCK_RAW: "raw"}
_MAPPED = "::ffff:"
_DUAL_STACK = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP})  # raw and ping sockets stay in their family
_UNSPECIFIED = ("0.0.0.0", "::")


@frozen
class ProcessSocket:
    """An IP or AF_PACKET socket.

    `family` is 4 or 6, and 0 for AF_PACKET (`protocol` is an ethertype then). `local` and `remote`
    are None if unset. `both`: an IPv6 socket that may send IPv4 too. `bound` is the device of
    SO_BINDTODEVICE (or of an AF_PACKET socket); `out` the one of IP_UNICAST_IF. `uid` and `gid`
    opened the socket, numbered as nft sees them in the network namespace of the process.
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
    elsewhere: bool = False  # in another network namespace than this process


@frozen
class ProcessSockets:
    """A running process: name, present cgroup, sockets."""

    pid: int
    name: str
    cgroup: str | None
    sockets: tuple[ProcessSocket, ...]


def enter_netns_of(pid: int) -> bool:
    """Move this thread to the network namespace of a process; return False if it is there already.

    Raises:
        NoSuchProcess: there is no such process.
        Unavailable: no permission.
    """
    try:
        with Path(f"/proc/{pid}/ns/net").open("rb") as wanted, Path("/proc/thread-self/ns/net").open("rb") as present:
            if os.path.sameopenfile(wanted.fileno(), present.fileno()):
                return False
            libc.call("setns", wanted.fileno(), _CLONE_NEWNET)
    except OSError as error:
        raise _process_error(pid, error, "cannot enter its network namespace") from None
    return True


def read_process_sockets(pid: int) -> ProcessSockets:
    """Return a process and its sockets that can send IP packets or frames.

    Raises as `enter_netns_of` does.
    """
    directory = Path(f"/proc/{pid}")
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise _process_error(pid, error, "cannot inspect it") from None
    try:
        owners = _IdMap(pid)
        # By number, so that two runs have the same order.
        descriptors = sorted(int(entry.name) for entry in os.scandir(directory / "fd"))
        by_inode: dict[int, ProcessSocket] = {}
        for descriptor in descriptors:
            described_socket = _read_socket(process, directory / "fd" / str(descriptor), descriptor, owners)
            if described_socket is not None:
                inode, description = described_socket
                by_inode.setdefault(inode, description)
        name = (directory / "comm").read_text(errors="replace").strip()
        return ProcessSockets(pid, name, _cgroup(directory), tuple(by_inode.values()))
    except OSError as error:
        raise _process_error(pid, error, "cannot inspect its sockets") from None
    finally:
        os.close(process)


def asks_for_destination(pid: int, inode: int) -> bool:
    """Return True if a UDP socket of a process gets the destination of each packet (IP_PKTINFO).

    Its program can then reply from the address that was asked. False if the process cannot be inspected.
    """
    directory = Path(f"/proc/{pid}/fd")
    with suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            descriptor = next(int(each.name) for each in os.scandir(directory) if _is_socket(each, inode))
            with socket.socket(fileno=libc.pidfd_getfd(process, descriptor)) as opened:
                levels = _DESTINATION_OPTIONS if opened.family == socket.AF_INET6 else _DESTINATION_OPTIONS[:1]
                return any(opened.getsockopt(*option) for option in levels)
        except StopIteration:
            return False
        finally:
            os.close(process)
    return False


def _is_socket(entry: os.DirEntry[str], inode: int) -> bool:
    with suppress(OSError):
        return str(Path(entry.path).readlink()) == f"socket:[{inode}]"
    return False


class _IdMap:
    """Users and groups as numbered in the user namespace that owns the network namespace of a process."""

    def __init__(self, pid: int) -> None:
        self._maps: dict[str, list[tuple[int, ...]]] | None = None
        with Path(f"/proc/{pid}/ns/net").open("rb") as network, Path(f"/proc/{pid}/ns/user").open("rb") as user:
            try:
                owner = fcntl.ioctl(network, _NS_GET_USERNS)
            except PermissionError:
                return  # this process is inside that namespace: the numbers are the same
            try:
                ours = Path("/proc/self/ns/user").stat()
                if os.path.samestat(os.fstat(owner), ours):
                    return
                if not os.path.sameopenfile(owner, user.fileno()):
                    raise Unavailable(
                        f"process {pid}: its network namespace belongs to another user namespace than its own, "
                        "so the users that nft sees are unknown"
                    )
            finally:
                os.close(owner)
        self._maps = {
            kind: [tuple(map(int, line.split())) for line in Path(f"/proc/{pid}/{kind}_map").read_text().splitlines()]
            for kind in ("uid", "gid")
        }

    def translate(self, kind: str, number: int) -> int:
        """Return the number there of a user ("uid") or group ("gid") of this user namespace."""
        if self._maps is None:
            return number
        for inside, outside, length in self._maps[kind]:
            if outside <= number < outside + length:
                return inside + number - outside
        return _OVERFLOW_ID


def _read_socket(process: int, link: Path, descriptor: int, owners: _IdMap) -> tuple[int, ProcessSocket] | None:
    """Return inode and description of the socket behind a descriptor; None for another file, or one that has gone."""
    try:
        if not str(link.readlink()).startswith("socket:"):
            return None
        status = link.stat()
        duplicate = libc.pidfd_getfd(process, descriptor)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EBADF):
            return None
        raise
    with socket.socket(fileno=duplicate) as opened:
        description = _describe(opened, descriptor, status, owners)
    return (status.st_ino, description) if description else None


def _describe(opened: socket.socket, descriptor: int, status: os.stat_result, owners: _IdMap) -> ProcessSocket | None:
    domain = opened.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)
    if domain not in (*_FAMILIES, socket.AF_PACKET):
        return None
    description = ProcessSocket(
        descriptor,
        _FAMILIES.get(domain, 0),
        _TYPES.get(opened.type, "other"),
        opened.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL),
        opened.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) & 0xFFFFFFFF,
        # The kernel copies both ids of the opening process (sock_alloc), to the inode and to what
        # nft reads.
        owners.translate("uid", status.st_uid),
        owners.translate("gid", status.st_gid),
        elsewhere=socket_cookie(opened) != _thread_cookie(),
    )
    return _with_frames(opened, description) if domain == socket.AF_PACKET else _with_addresses(opened, description)


def _with_frames(opened: socket.socket, description: ProcessSocket) -> ProcessSocket:
    # Python returns "eth0" or "", and the protocol as an ethertype.
    device, ethertype = opened.getsockname()[:2]
    return evolve(description, protocol=ethertype, bound=device or None)


def _with_addresses(opened: socket.socket, description: ProcessSocket) -> ProcessSocket:
    local, sport = _endpoint(opened.getsockname())
    remote: str | None = None
    dport = 0
    with suppress(OSError):  # ENOTCONN
        remote, dport = _endpoint(opened.getpeername())
    family = description.family
    is_dual = family == 6 and not opened.getsockopt(socket.IPPROTO_IPV6, _IPV6_V6ONLY)
    if any(address and address.startswith(_MAPPED) for address in (local, remote)):  # IPv6 socket that uses IPv4
        family, is_dual = 4, False
        local, remote = _without_mapped_prefix(local), _without_mapped_prefix(remote)
    is_raw = description.kind == "raw"  # the port of a raw socket is its protocol
    return evolve(
        description,
        family=family,
        both=is_dual and local is None and remote is None and description.protocol in _DUAL_STACK,
        local=local,
        sport=0 if is_raw else sport,
        remote=remote,
        dport=0 if is_raw else dport,
        bound=_bound_device(opened),
        out=_unicast_device(opened, description.family),
        listens=description.kind == "stream" and _tcp_state(opened) == _TCP_LISTEN,
    )


def _endpoint(name: tuple[str, int] | tuple[str, int, int, int]) -> tuple[str | None, int]:
    """Return address and port of a socket name, without the scope of the address; None for the unspecified one."""
    address = name[0].partition("%")[0]
    return (None if address in _UNSPECIFIED else address), name[1]


def _without_mapped_prefix(address: str | None) -> str | None:
    return address.removeprefix(_MAPPED) if address else None


def _bound_device(opened: socket.socket) -> str | None:
    device = opened.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _IFNAMSIZ)
    return device.rstrip(b"\0").decode(errors="replace") or None


def _unicast_device(opened: socket.socket, family: int) -> str | None:
    """Return the device of IP_UNICAST_IF or IPV6_UNICAST_IF, a number in network byte order."""
    index = socket.ntohl(opened.getsockopt(*_UNICAST_IF[family]) & 0xFFFFFFFF)
    with suppress(OSError):
        return socket.if_indextoname(index) if index else None
    return f"device number {index}"


def _tcp_state(opened: socket.socket) -> int:
    """Return the state of a TCP socket, 0 for another stream socket."""
    with suppress(OSError):
        return opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return 0


def _thread_cookie() -> int:
    """Return the number of the network namespace of this thread; 0 before Linux 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        return socket_cookie(opened)


def _cgroup(directory: Path) -> str | None:
    """Return the path of the cgroup (version 2) of a process, below the root; None for the root."""
    lines = (directory / "cgroup").read_text(errors="replace").splitlines()
    paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return paths[0] or None if paths else None


def _process_error(pid: int, error: OSError, problem: str) -> NoSuchProcess | Unavailable:
    """Return the exception for an OSError about a process, with `problem` in its message."""
    if error.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL):
        return NoSuchProcess(f"there is no process {pid}, or it is a thread of another one")
    return Unavailable(f"process {pid}: {problem} ({error.strerror}); this needs root (CAP_SYS_PTRACE)")
