# SPDX-License-Identifier: BSD-2-Clause
"""dhcpcd: its lease files, a DHCPv4 (RFC 2131) or DHCPv6 (RFC 8415) message of the server. Pure.

No file has the servers of router advertisements; the source "ra" receives those itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

_COOKIE_OFFSET = 236  # the magic cookie follows the fixed fields of DHCPv4, RFC 2131 3
_COOKIE = b"\x63\x82\x53\x63"
_PAD, _END, _SERVERS, _LEASE_TIME = 0, 255, 6, 51  # options of RFC 2132
_SERVERS6, _INFINITE = 23, 0xFFFFFFFF  # option of RFC 3646; lease time of RFC 2131 3.3
_REPLY6 = 7  # message type
_HEADER6_SIZE = 4  # message type and transaction ID
_OPTION6 = struct.Struct("!HH")  # code, length
_IPV4_SIZE, _IPV6_SIZE, _LEASE_TIME_SIZE = 4, 16, 4  # bytes


def parse(data: bytes, written: float, now: float) -> Iterator[str]:
    """Yield the servers of a lease file with mtime `written`, both times in seconds since 1970."""
    if data[_COOKIE_OFFSET : _COOKIE_OFFSET + len(_COOKIE)] == _COOKIE:
        yield from _servers_v4(data, now - written)
    elif data[:1] == bytes((_REPLY6,)):
        yield from _servers_v6(data)


def _servers_v4(data: bytes, age: float) -> Iterator[str]:
    options = dict(_options_v4(data))
    lease_time = options.get(_LEASE_TIME, b"")
    if len(lease_time) == _LEASE_TIME_SIZE:
        seconds = int.from_bytes(lease_time, "big")
        if seconds != _INFINITE and age > seconds:
            return
    raw = options.get(_SERVERS, b"")
    for start in range(0, len(raw) - _IPV4_SIZE + 1, _IPV4_SIZE):
        yield str(IPv4Address(raw[start : start + _IPV4_SIZE]))


def _options_v4(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield code and value of each option: one byte of code, one byte of length, value."""
    offset = _COOKIE_OFFSET + len(_COOKIE)
    while offset + 1 < len(data) and data[offset] != _END:
        if data[offset] == _PAD:
            offset += 1
            continue
        yield data[offset], data[offset + 2 : offset + 2 + data[offset + 1]]
        offset += 2 + data[offset + 1]


def _servers_v6(data: bytes) -> Iterator[str]:
    offset = _HEADER6_SIZE
    while offset + _OPTION6.size <= len(data):
        code, size = _OPTION6.unpack_from(data, offset)
        offset += _OPTION6.size
        raw = data[offset : offset + size]
        if code == _SERVERS6:
            for start in range(0, len(raw) - _IPV6_SIZE + 1, _IPV6_SIZE):
                yield str(IPv6Address(raw[start : start + _IPV6_SIZE]))
        offset += size
