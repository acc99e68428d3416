"""Small stand-in of odhcp6c: one router solicitation, one advertisement, and the commands for it.

`advertise` acts as a router with arbitrary content.
"""

import ipaddress
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .limits import limit

_SOLICITATION, _ADVERTISEMENT = 133, 134
_ALL_ROUTERS = "ff02::2"
_ICMP6_FILTER = 1
_IPV6_RECVHOPLIMIT, _IPV6_HOPLIMIT = 51, 52
_PREFIX, _ROUTE, _RDNSS = 3, 24, 25


@dataclass(frozen=True)
class Advertisement:
    """Content of a router advertisement; prefixes are those for SLAAC, as text such as "2001:db8:1::/64"."""

    router: str
    lifetime: int  # seconds; 0: not a default router
    prefixes: tuple[str, ...]
    servers: tuple[str, ...]  # of DNS


def parse(message: bytes, router: str) -> Advertisement:
    """Read the ICMPv6 message of a router advertisement; ValueError if it is another or malformed."""
    if len(message) < 16 or message[0] != _ADVERTISEMENT:
        raise ValueError("not a router advertisement")
    lifetime = struct.unpack("!H", message[6:8])[0]
    prefixes, servers, at = [], [], 16
    while at < len(message):
        kind, size = message[at], message[at + 1] * 8 if at + 1 < len(message) else 0
        option = message[at : at + size]
        if size == 0 or len(option) < size:
            raise ValueError("an option is cut short")
        if kind == _PREFIX and size == 32 and option[3] & 0x40:  # the A flag
            prefixes.append(f"{ipaddress.IPv6Address(option[16:32])}/{option[2]}")
        if kind == _RDNSS:
            servers += [str(ipaddress.IPv6Address(option[i : i + 16])) for i in range(8, size - 15, 16)]
        at += size
    return Advertisement(router, lifetime, tuple(prefixes), tuple(servers))


def slaac(prefix: str, mac: str) -> str:
    """Return the address with the modified EUI-64 interface identifier of a MAC address (RFC 4291)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    network = ipaddress.IPv6Network(prefix)
    return str(network[int.from_bytes(identifier, "big")])


def solicit(device: str, seconds: float = 5.0) -> Advertisement:
    """Solicit by a device, again each half second, and return the first advertisement; TimeoutError without one.

    Runs in the calling process's namespace and needs CAP_NET_RAW. Only advertisements with hop limit 255 count.
    """
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        channel.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)
        channel.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _only(_ADVERTISEMENT))
        target = (_ALL_ROUTERS, 0, 0, socket.if_nametoindex(device))
        end = time.monotonic() + limit(seconds)
        while time.monotonic() < end:
            _try_send(channel, bytes([_SOLICITATION]) + bytes(7), target)
            channel.settimeout(0.5)
            try:
                message, ancillary, _, source = channel.recvmsg(1500, 64)
            except TimeoutError:
                continue
            if any((a, b, c[0]) == (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT, 255) for a, b, c in ancillary):
                return parse(message, source[0].partition("%")[0])
    raise TimeoutError(f"no router advertisement on {device} within {seconds} s")


def commands(device: str, mac: str, seen: Advertisement, table: str, metric: int, rules: bool) -> list[str]:
    """Return `ip` commands that put an advertisement into a table, and with `rules` those of OpenWrt's netifd."""
    made = []
    for prefix in seen.prefixes:
        address = slaac(prefix, mac)
        made += [
            f"-6 addr replace {address}/64 dev {device} nodad noprefixroute",
            f"-6 route replace {prefix} dev {device} table {table} metric {metric}",
        ]
        if rules:
            made += [
                f"-6 rule add from {address} lookup {table} priority 10000",
                f"-6 rule add to {prefix} lookup {table} priority 20000",
            ]
    if seen.lifetime:
        made.append(f"-6 route replace default via {seen.router} dev {device} table {table} metric {metric}")
    return made + ([f"-6 rule add iif lo lookup {table} priority 90001"] if rules else [])


def advertise(
    device: str,
    prefixes: Sequence[str] = (),
    routes: Sequence[str] = (),
    lifetime: int = 1800,
    servers: Sequence[str] = (),
    servers_for: int = 600,
    hops: int = 255,
) -> None:
    """Send one advertisement to all nodes, as any neighbour can: prefixes that are on-link, routes (RFC 4191), and
    DNS servers with their lifetime in seconds (RFC 8106). Other `hops` than 255 make it one from afar.

    Runs in the calling process's namespace and needs CAP_NET_RAW. Sent from the device's first link-local address.
    """
    message = struct.pack("!BBHBBHII", _ADVERTISEMENT, 0, 0, 64, 0, lifetime, 0, 0)
    for prefix in map(ipaddress.IPv6Network, prefixes):
        flags = 0xC0  # on-link, autonomous
        message += struct.pack("!BBBBIII", _PREFIX, 4, prefix.prefixlen, flags, 3600, 3600, 0)
        message += prefix.network_address.packed
    for route in map(ipaddress.IPv6Network, routes):
        message += struct.pack("!BBBBI", _ROUTE, 3, route.prefixlen, 0x08, 3600)  # preference high
        message += route.network_address.packed
    if servers:
        message += struct.pack("!BBHI", _RDNSS, 1 + 2 * len(servers), 0, servers_for)
        message += b"".join(ipaddress.IPv6Address(one).packed for one in servers)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as channel:
        channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
        channel.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex(device)))


def _only(kind: int) -> bytes:
    blocked = [0xFFFFFFFF] * 8
    blocked[kind >> 5] &= ~(1 << (kind & 31)) & 0xFFFFFFFF
    return struct.pack("=8I", *blocked)


def _try_send(channel: socket.socket, message: bytes, target: tuple[str, int, int, int]) -> None:
    try:
        channel.sendto(message, target)
    except OSError:  # no link-local address yet, or a guard that does not know us
        time.sleep(0.05)
