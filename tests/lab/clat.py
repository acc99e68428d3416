"""Stateless translator of 464XLAT (RFC 6877, RFC 7915) at a tun device, for UDP."""

import fcntl
import os
import socket
import struct

from .frames import UDP, checksum

DEVICE, OWN4, OWN6 = "clat", "192.0.0.1", "2001:db8:1::464"  # RFC 7335; an address in the home's network
PREFIX = socket.inet_pton(socket.AF_INET6, "64:ff9b::")[:12]
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000


def mapped(address: str) -> str:
    """Return the IPv6 address of an IPv4 host behind the well-known prefix."""
    return socket.inet_ntop(socket.AF_INET6, PREFIX + socket.inet_aton(address))


def serve() -> None:
    """Make the device and translate until the process ends."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    own4, own6 = socket.inet_aton(OWN4), socket.inet_pton(socket.AF_INET6, OWN6)
    while True:
        packet = os.read(tun, 65536)
        if packet[0] >> 4 == 4 and packet[9] == UDP:
            os.write(tun, _ipv6(own6, PREFIX + packet[16:20], packet[20:]))
        elif packet[0] >> 4 == 6 and packet[6] == UDP and packet[24:40] == own6:
            os.write(tun, _ipv4(packet[20:24], own4, packet[40:]))


def _ipv6(source: bytes, destination: bytes, datagram: bytes) -> bytes:
    ends = source + destination
    return struct.pack("!IHBB", 6 << 28, len(datagram), UDP, 63) + ends + _with_checksum(ends, datagram)


def _ipv4(source: bytes, destination: bytes, datagram: bytes) -> bytes:
    ends = source + destination
    fields = (0x45, 0, 20 + len(datagram), 0, 0, 63, UDP)
    header = struct.pack("!BBHHHBBH", *fields, 0) + ends
    header = struct.pack("!BBHHHBBH", *fields, checksum(header)) + ends
    return header + _with_checksum(ends, datagram)


def _with_checksum(ends: bytes, datagram: bytes) -> bytes:
    empty = datagram[:6] + b"\0\0" + datagram[8:]
    value = checksum(ends + struct.pack("!II", len(empty), UDP) + empty)
    return empty[:6] + struct.pack("!H", value or 0xFFFF) + empty[8:]
