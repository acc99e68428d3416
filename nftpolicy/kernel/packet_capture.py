# SPDX-License-Identifier: BSD-2-Clause
"""Capture of the packets that this machine sends by a device, by an AF_PACKET socket (packet(7)).

Such a socket gets its copy just before the driver (dev_hard_start_xmit, net/core/dev.c): behind the
netdev egress hook, traffic control and the queue. So none of them has dropped a captured packet.
Packets that bypass that place are not captured: AF_PACKET sockets with PACKET_QDISC_BYPASS, and
AF_XDP.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from attrs import frozen

from . import libc
from .bpf.classic import JUMP_IF_EQUAL, LOAD_WORD, RETURN, ClassicFilter
from .netlink import constants as nl
from .netlink.attributes import attributes, ip_text
from .netlink.rtnetlink import dump_objects, open_rtnetlink

_SOL_PACKET, _PACKET_STATISTICS, _ETH_P_ALL = 263, 6, 3
_PACKET_HOST, _PACKET_OUTGOING = 0, 4
# include/uapi/linux/filter.h: SKF_AD_OFF + SKF_AD_PKTTYPE, SKF_AD_OFF + SKF_AD_IFINDEX
_PACKET_TYPE, _INPUT_DEVICE = 0xFFFFF000 + 4, 0xFFFFF000 + 8
_SOURCE_MAC = 0xFFE00000 + 6  # SKF_LL_OFF, and the offset in an Ethernet header
_WHOLE_PACKET = 0xFFFF  # bytes
_CAPTURED = 256  # bytes of a packet that are captured, from its network header on
_RECEIVE_BUFFER = 64 << 20  # bytes that the kernel may keep until they are read
_MAX_PACKETS = 20000  # that are read at once
_NO_DEVICE = frozenset({errno.ENETDOWN, errno.ENODEV, errno.ENXIO})
_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCGIFHWADDR, _SIOCGIFINDEX = 0x8913, 0x8921, 0x8927, 0x8933
_IFREQ = struct.Struct("16s24x")  # struct ifreq: the name, and a union
_IFREQ_UNION = 16  # offset
_MAC_SIZE = 6
_SOCKADDR_LL = struct.Struct("=2x2si2xB")  # sll_protocol, sll_ifindex, sll_pkttype; packet(7)
_SOCKADDR_LL_SIZE = 20
_UNRESOLVED = nl.NUD_INCOMPLETE | nl.NUD_FAILED


def _attach_filter(receiver: socket.socket, field: int, value: int, size: int) -> None:
    """Let a socket receive only packets with `value` in `field`, cut to `size` bytes (socket(7))."""
    code = ClassicFilter(
        ((LOAD_WORD, 0, 0, field), (JUMP_IF_EQUAL, 0, 1, value), (RETURN, 0, 0, size), (RETURN, 0, 0, 0))
    )
    receiver.setsockopt(socket.SOL_SOCKET, nl.SO_ATTACH_FILTER, code.program)


def receive_only_from(receiver: socket.socket, device: str) -> None:
    """Let a socket receive only packets that arrive by `device`. The routes of what it sends stay.

    For "lo" these are the packets of this machine itself. IP_PKTINFO would not do: it gives the
    device that holds the destination address.
    """
    _attach_filter(receiver, _INPUT_DEVICE, socket.if_nametoindex(device), _WHOLE_PACKET)


@frozen
class CapturedPacket:
    """A captured packet: output device, ethertype, and its first bytes from the network header on."""

    device: str
    ethertype: int
    data: bytes


class PacketCapture:
    """Capture of the packets that leave by `device`, or by all devices if it is None.

    `arriving_from`: capture, in place of them, the packets that arrive for this machine from this MAC address.
    A context manager. It begins at once. `device_gone` is True if the device has gone since. Raises
    PermissionError without CAP_NET_RAW, OSError (ENODEV) if there is no such device.
    """

    def __init__(self, device: str | None = None, arriving_from: bytes | None = None) -> None:
        self._lost, self.device_gone = 0, False
        # recvfrom(2) itself: that of Python refuses a device name that is not UTF-8.
        self._buffer = ctypes.create_string_buffer(_CAPTURED)
        self._address = ctypes.create_string_buffer(_SOCKADDR_LL_SIZE)
        self._address_size = ctypes.byref(ctypes.c_uint32(_SOCKADDR_LL_SIZE))
        self._packet_type = _PACKET_HOST if arriving_from else _PACKET_OUTGOING
        # With a protocol the socket receives from all devices at once, before it has its filter;
        # without one, only after it is bound.
        protocol = 0 if device else socket.htons(_ETH_P_ALL)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, protocol)
        try:
            self._socket.setblocking(False)
            if arriving_from:
                _attach_filter(self._socket, _SOURCE_MAC, int.from_bytes(arriving_from[:4], "big"), _CAPTURED)
            else:
                _attach_filter(self._socket, _PACKET_TYPE, _PACKET_OUTGOING, _CAPTURED)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, nl.SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            except PermissionError:  # in a user namespace; `lost_packets` shows if the permitted size was too small
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            if device:
                self._socket.bind((device, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> PacketCapture:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor for select(2)."""
        return self._socket.fileno()

    def read_packets(self) -> Iterator[CapturedPacket]:
        """Yield the packets captured since the last call. Never blocks. Raises OSError."""
        names: dict[int, str] = {}
        for _ in range(_MAX_PACKETS):
            try:
                size = libc.call(
                    "recvfrom", self.fileno(), self._buffer, _CAPTURED, 0, self._address, self._address_size
                )
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _NO_DEVICE:
                    raise
                self.device_gone = True  # the kernel reports it once; the device may come back
                continue
            ethertype, index, packet_type = _SOCKADDR_LL.unpack_from(self._address)
            if packet_type == self._packet_type:
                if index not in names:
                    names[index] = _device_name(index)
                yield CapturedPacket(names[index], int.from_bytes(ethertype, "big"), self._buffer.raw[:size])

    @property
    def lost_packets(self) -> int:
        """Return the number of packets that did not fit into the receive buffer and are missing."""
        # struct tpacket_stats: packets, drops; reading resets it
        counts = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._lost += struct.unpack("=II", counts)[1]
        return self._lost


def _device_name(index: int) -> str:
    """Return the name of a device; "" if it has gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


@frozen
class LinkInfo:
    """A device: index, up or not, carrier or not, MTU in bytes, type (ARPHRD_*), hardware address."""

    index: int
    is_up: bool
    has_carrier: bool
    mtu: int
    hardware_type: int
    mac: bytes


def link_info(device: str) -> LinkInfo | None:
    """Return the device of that name in this network namespace (netdevice(7)), or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:

        def request(number: int) -> bytes:
            return fcntl.ioctl(datagrams, number, _IFREQ.pack(os.fsencode(device)))[_IFREQ_UNION:]

        try:
            flags = struct.unpack_from("=H", request(_SIOCGIFFLAGS))[0]
            index = struct.unpack_from("=i", request(_SIOCGIFINDEX))[0]
            mtu = struct.unpack_from("=i", request(_SIOCGIFMTU))[0]
            address = request(_SIOCGIFHWADDR)
        except OSError as error:
            if error.errno in _NO_DEVICE:
                return None
            raise
    kind = struct.unpack_from("=H", address)[0]
    return LinkInfo(index, bool(flags & nl.IFF_UP), bool(flags & nl.IFF_RUNNING), mtu, kind, address[2 : 2 + _MAC_SIZE])


def failed_neighbours(family: int) -> frozenset[tuple[str, str]]:
    """Return (device, address) of the neighbours that do not answer; packets for them wait.

    Raises OSError.
    """
    neighbours = set()
    with open_rtnetlink() as netlink:
        for raw, start, end in dump_objects(netlink, nl.RTM_GETNEIGH, nl.ADDRESS_FAMILY[family]):
            address_family, index, state, _, _ = nl.NDMSG.unpack_from(raw, start)
            address = dict(attributes(raw, start + nl.NDMSG.size, end)).get(nl.NDA_DST)
            if address_family == nl.ADDRESS_FAMILY[family] and address and state & _UNRESOLVED:
                with contextlib.suppress(OSError):  # the device has gone
                    neighbours.add((socket.if_indextoname(index), ip_text(address)))
    return frozenset(neighbours)
