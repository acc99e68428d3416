# SPDX-License-Identifier: BSD-2-Clause
"""dhcpcd: its lease files, which are the message of the server, DHCPv4 (RFC 2131) or DHCPv6 (RFC 8415). Pure.

The servers that router advertisements brought are in no file; the source "ra" hears them itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

_OPTIONS_AT = 236  # behind the fixed fields of DHCPv4 stands the magic cookie, RFC 2131 3
_COOKIE = b"\x63\x82\x53\x63"
_PAD, _END, _SERVERS, _TIME = 0, 255, 6, 51  # RFC 2132
_SERVERS6, _FOREVER = 23, 0xFFFFFFFF  # RFC 3646
_REPLY6 = 7


def parse(data: bytes, written: float, now: float) -> Iterator[str]:
    """The servers of a lease; `written` is when the file was, and `now`, both in seconds since 1970."""
    if data[_OPTIONS_AT : _OPTIONS_AT + 4] == _COOKIE:
        yield from _four(data, now - written)
    elif data[:1] == bytes((_REPLY6,)):
        yield from _six(data)


def _four(data: bytes, age: float) -> Iterator[str]:
    options = dict(_options(data))
    time = options.get(_TIME, b"")
    if len(time) == 4 and (life := int.from_bytes(time, "big")) != _FOREVER and age > life:
        return
    raw = options.get(_SERVERS, b"")
    for at in range(0, len(raw) - 3, 4):
        yield str(IPv4Address(raw[at : at + 4]))


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = _OPTIONS_AT + 4
    while at + 1 < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        yield data[at], data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]


def _six(data: bytes) -> Iterator[str]:
    at = 4  # behind the type and the transaction
    while at + 4 <= len(data):
        kind, size = struct.unpack_from("!HH", data, at)
        raw = data[at + 4 : at + 4 + size]
        if kind == _SERVERS6:
            for each in range(0, len(raw) - 15, 16):
                yield str(IPv6Address(raw[each : each + 16]))
        at += 4 + size
