# SPDX-License-Identifier: BSD-2-Clause
"""The elements of a set, straight from nf_tables' netlink dump.

A listing by libnftables makes JSON of every element, which for 100,000 of them takes longer than to
load them. Only sets without intervals are read here, and only of types whose form is fixed
(include/uapi/linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator

from ..netstate.nft import PROTOCOLS, Element, Value

_NETLINK_NETFILTER = 12
_GETSETELEM, _NEWSETELEM = 10 << 8 | 13, 10 << 8 | 12
_REQUEST_DUMP, _INTERRUPTED = 0x301, 0x10
_ERROR, _DONE = 2, 3
_TABLE, _SET, _ELEMENTS, _KEY = 1, 2, 3, 1  # NFTA_SET_ELEM_LIST_*, NFTA_SET_ELEM_KEY
_FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "ip6": 10}
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

# nft's data type -> (bytes, how to read them). Owners are in the machine's byte order.
_READ: dict[str, tuple[int, Callable[[bytes], Value]]] = {
    "uid": (4, lambda raw: int.from_bytes(raw, sys.byteorder)),
    "gid": (4, lambda raw: int.from_bytes(raw, sys.byteorder)),
    "ipv4_addr": (4, lambda raw: socket.inet_ntop(socket.AF_INET, raw)),
    "ipv6_addr": (16, lambda raw: socket.inet_ntop(socket.AF_INET6, raw)),
    "inet_proto": (1, lambda raw: PROTOCOLS.get(raw[0], raw[0])),
    "inet_service": (2, lambda raw: int.from_bytes(raw, "big")),
}


def readable(types: tuple[str, ...], flags: frozenset[str]) -> bool:
    """Whether the elements of such a set can be read here."""
    return not flags and all(kind in _READ for kind in types)


def read(family: str, table: str, name: str, types: tuple[str, ...]) -> frozenset[Element]:
    """All elements. Raises OSError with the kernel's errno, such as ENOENT."""
    while True:
        found = _dump(family, table, name, _reader(types))
        if found is not None:
            return found


def _reader(types: tuple[str, ...]) -> Callable[[bytes], Element]:
    """A function from a key's bytes to an element; parts of a concatenation begin at multiples of four."""
    parts, at = [], 0
    for kind in types:
        size, convert = _READ[kind]
        parts.append((slice(at, at + size), convert))
        at += -(-size // 4) * 4
    if len(parts) == 1:
        ((where, convert),) = parts
        return lambda raw: convert(raw[where])
    return lambda raw: tuple([convert(raw[where]) for where, convert in parts])


def _dump(family: str, table: str, name: str, element: Callable[[bytes], Element]) -> frozenset[Element] | None:
    """The elements, or None if the set changed meanwhile."""
    body = struct.pack("=BBH", _FAMILIES[family], 0, 0) + _text(_TABLE, table) + _text(_SET, name)
    request = _HEADER.pack(_HEADER.size + len(body), _GETSETELEM, _REQUEST_DUMP, 1, 0) + body
    found: list[Element] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as channel:
        channel.send(request)
        while True:
            answer = channel.recv(1 << 18)
            at = 0
            while at < len(answer):
                length, kind, flags, _, _ = _HEADER.unpack_from(answer, at)
                if flags & _INTERRUPTED:
                    return None
                if kind in (_ERROR, _DONE):
                    code = -struct.unpack_from("=i", answer, at + _HEADER.size)[0] if kind == _ERROR else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return frozenset(found)
                if kind == _NEWSETELEM:
                    found += map(element, _keys(answer, at + _HEADER.size + 4, at + length))
                at += length + 3 & ~3


def _text(kind: int, value: str) -> bytes:
    raw = value.encode() + b"\0"
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(raw), kind) + raw + bytes(-len(raw) % 4)


def _attributes(raw: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start, end) of each attribute between two offsets."""
    unpack = _ATTRIBUTE.unpack_from
    while at < end:
        length, kind = unpack(raw, at)
        yield kind & _TYPE_MASK, at + 4, at + length
        at += length + 3 & ~3


def _keys(raw: bytes, start: int, end: int) -> Iterator[bytes]:
    for outer, begin, stop in _attributes(raw, start, end):
        if outer != _ELEMENTS:
            continue
        for _, element, element_end in _attributes(raw, begin, stop):
            for kind, key, key_end in _attributes(raw, element, element_end):
                if kind == _KEY:
                    yield raw[key + 4 : key_end]  # behind the header of NFTA_DATA_VALUE
                    break
