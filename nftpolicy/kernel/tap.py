# SPDX-License-Identifier: BSD-2-Clause
"""What this machine sends by a device, as an AF_PACKET socket sees it (packet(7)).

Such a socket gets its copy where the driver is about to be called (dev_hard_start_xmit, net/core/dev.c): behind
the netdev egress hook, traffic control and the queue. What is seen here was stopped by none of them. Not seen is
what goes round that place: AF_PACKET sockets with PACKET_QDISC_BYPASS, and AF_XDP.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator

from attrs import frozen

from .rtmessages import AF, attributes
from .rtnetlink import GETNEIGH, Questions

_SOL_PACKET, _PACKET_STATISTICS, _PACKET_OUTGOING, _ETH_P_ALL = 263, 6, 4, 3
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_PACKET_TYPE = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE, include/uapi/linux/filter.h
_KEPT = 256  # bytes of a packet that are kept, from its network header on
_BUFFER = 64 << 20  # bytes that the kernel may keep until they are asked for
_MOST = 20000  # packets that are read at once
_GONE = frozenset({errno.ENETDOWN, errno.ENODEV, errno.ENXIO})
_DEVICE = 0xFFFFF000 + 8  # SKF_AD_OFF + SKF_AD_IFINDEX
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCGIFHWADDR, _SIOCGIFINDEX = 0x8913, 0x8921, 0x8927, 0x8933
_NDMSG, _NDA_DST = struct.Struct("=BxxxiHBB"), 1
_UNRESOLVED = 0x01 | 0x20  # NUD_INCOMPLETE, NUD_FAILED


def _keep(one: socket.socket, field: int, value: int, size: int) -> None:
    """Let a socket receive packets of which `field` is `value`, cut to `size` bytes, and no others (socket(7))."""
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    code = ((load, 0, 0, field), (equal, 0, 1, value), (answer, 0, 0, size), (answer, 0, 0, 0))
    text = b"".join(struct.pack("=HBBI", *each) for each in code)
    buffer = ctypes.create_string_buffer(text, len(text))
    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(buffer)))


def only_from(one: socket.socket, device: str) -> None:
    """Let a socket receive what comes in by `device` and nothing else; the routes of what it sends stay.

    For "lo" that is what this machine itself sends. The address of the device, which IP_PKTINFO gives, says less:
    it is that of the interface that holds the destination address.
    """
    _keep(one, _DEVICE, socket.if_nametoindex(device), 0xFFFF)


@frozen
class Passed:
    """A packet that left: by which device, its ethertype, and its first bytes behind the link header."""

    device: str
    ethertype: int
    data: bytes


class Tap:
    """Watches what leaves by `device`, or by all devices if it is None, from the moment it is made. A context manager.

    Raises PermissionError without CAP_NET_RAW, OSError (ENODEV) if there is no such device.
    """

    def __init__(self, device: str | None = None) -> None:
        self._lost, self.gone = 0, False
        # With a protocol it hears all devices at once, before it has its filter; without one none until it is bound.
        protocol = 0 if device else socket.htons(_ETH_P_ALL)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, protocol)
        try:
            self._socket.setblocking(False)
            _keep(self._socket, _PACKET_TYPE, _PACKET_OUTGOING, _KEPT)  # what goes out
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            except PermissionError:  # in a user namespace; `lost` tells if what is allowed was enough
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            if device:
                self._socket.bind((device, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For select(2)."""
        return self._socket.fileno()

    def passed(self) -> Iterator[Passed]:
        """What has left since this was asked last; does not wait for more."""
        for _ in range(_MOST):
            try:
                data, address = self._socket.recvfrom(_KEPT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                self.gone = True  # told once; the device may come back
                continue
            if address[2] == _PACKET_OUTGOING:
                yield Passed(address[0], address[1], data)

    @property
    def lost(self) -> int:
        """Packets that the kernel could not keep: who has lost any has not seen everything."""
        counts = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)  # struct tpacket_stats; reading resets it
        self._lost += struct.unpack("=II", counts)[1]
        return self._lost


@frozen
class Card:
    """A device: its number, whether it is up and has a carrier, its MTU in bytes, its type (ARPHRD_*) and address."""

    index: int
    up: bool
    running: bool
    mtu: int
    kind: int
    mac: bytes


def card(device: str) -> Card | None:
    """The device of that name in this network namespace (netdevice(7)), or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:

        def ask(request: int) -> bytes:
            return fcntl.ioctl(one, request, struct.pack("16s24x", device.encode()))[16:]

        try:
            flags = struct.unpack_from("=H", ask(_SIOCGIFFLAGS))[0]
            index, mtu = (struct.unpack_from("=i", ask(request))[0] for request in (_SIOCGIFINDEX, _SIOCGIFMTU))
            address = ask(_SIOCGIFHWADDR)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
    kind = struct.unpack_from("=H", address)[0]
    return Card(index, bool(flags & _IFF_UP), bool(flags & _IFF_RUNNING), mtu, kind, address[2:8])


def unresolved(family: int) -> frozenset[tuple[str, str]]:
    """Devices and addresses of neighbours that are asked for in vain; what is for them waits."""
    found = set()
    with Questions() as questions:
        for raw, start, end in questions.dump(GETNEIGH, AF[family]):
            of, index, state, _, _ = _NDMSG.unpack_from(raw, start)
            address = dict(attributes(raw, start + _NDMSG.size, end)).get(_NDA_DST)
            if of == AF[family] and address and state & _UNRESOLVED:
                with contextlib.suppress(OSError):  # the device is gone
                    found.add((socket.if_indextoname(index), socket.inet_ntop(of, address)))
    return frozenset(found)
