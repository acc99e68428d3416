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
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..netstate.nft import PROTOCOLS, Element, Value

_NETLINK_NETFILTER = 12
_GETSETELEM, _NEWSETELEM = 10 << 8 | 13, 10 << 8 | 12
_REQUEST_DUMP, _INTERRUPTED = 0x301, 0x10
_ERROR, _DONE = 2, 3
_TABLE, _SET, _ELEMENTS, _KEY = 1, 2, 3, 1  # NFTA_SET_ELEM_LIST_*, NFTA_SET_ELEM_KEY
FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "ip6": 10}
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_HEADS = 12  # the headers of an element, its key, and the key's value
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

# nft's data type -> (struct's code for it, what fills it up to a multiple of four, what makes a value
# of it). Owners are in the machine's byte order.
_READ: dict[str, tuple[str, str, Callable[[Any], Value] | None]] = {
    "uid": ("I", "", None),
    "gid": ("I", "", None),
    "ipv4_addr": ("4s", "", lambda raw: socket.inet_ntop(socket.AF_INET, raw)),
    "ipv6_addr": ("16s", "", lambda raw: socket.inet_ntop(socket.AF_INET6, raw)),
    "inet_proto": ("B", "3x", lambda number: PROTOCOLS.get(number, number)),
    "inet_service": ("2s", "2x", lambda raw: int.from_bytes(raw, "big")),
}


def readable(types: tuple[str, ...], flags: frozenset[str]) -> bool:
    """Whether the elements of such a set can be read here."""
    return not flags and all(kind in _READ for kind in types)


def read(family: str, table: str, name: str, types: tuple[str, ...]) -> frozenset[Element]:
    """All elements. Raises OSError with the kernel's errno, such as ENOENT."""
    while True:
        keys = _dump(family, table, name)
        # Right after a set was filled the kernel may still be growing its hash table; a dump then has some
        # elements twice and others not at all (seen on Linux 6.18).
        if keys is not None and len(set(keys)) == len(keys):
            return _elements(keys, types)
        time.sleep(0.001)


def _elements(keys: list[bytes], types: tuple[str, ...]) -> frozenset[Element]:
    """The elements that keys stand for. Parts of a concatenation begin at multiples of four."""
    codes = [code + fill for code, fill, _ in map(_READ.__getitem__, types)]
    whole = struct.Struct("=" + "".join(codes))
    columns = list(zip(*whole.iter_unpack(b"".join(keys)), strict=True))
    converters = [_READ[kind][2] for kind in types]
    values = [map(convert, column) if convert else column for convert, column in zip(converters, columns, strict=False)]
    return frozenset(zip(*values, strict=True) if len(types) > 1 else values[0] if values else ())


def _dump(family: str, table: str, name: str) -> list[bytes] | None:
    """The keys of all elements, or None if the set changed meanwhile."""
    body = struct.pack("=BBH", FAMILIES[family], 0, 0) + _text(_TABLE, table) + _text(_SET, name)
    request = _HEADER.pack(_HEADER.size + len(body), _GETSETELEM, _REQUEST_DUMP, 1, 0) + body
    found: list[bytes] = []
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
                    return found
                if kind == _NEWSETELEM:
                    found += _keys(answer, at + _HEADER.size + 4, at + length)
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
        if outer == _ELEMENTS:
            yield from _alike(raw, begin, stop) or _one_by_one(raw, begin, stop)


def _alike(raw: bytes, begin: int, stop: int) -> list[bytes] | None:
    """The keys of a list whose elements have one size and nothing but a key, which is the usual case; else None."""
    size = struct.unpack_from("=H", raw, begin)[0]
    head = raw[begin : begin + _HEADS]
    if (stop - begin) % size or struct.unpack_from("=HHHHHH", head)[3] & _TYPE_MASK != _KEY:
        return None
    if struct.unpack_from("=HHH", head)[2] != size - _ATTRIBUTE.size:
        return None
    places = range(begin, stop, size)
    if any(raw[at : at + _HEADS] != head for at in places):
        return None
    return [raw[at + _HEADS : at + size] for at in places]


def _one_by_one(raw: bytes, begin: int, stop: int) -> Iterator[bytes]:
    for _, element, element_end in _attributes(raw, begin, stop):
        for kind, key, key_end in _attributes(raw, element, element_end):
            if kind == _KEY:
                yield raw[key + _ATTRIBUTE.size : key_end]  # behind the header of NFTA_DATA_VALUE
                break
