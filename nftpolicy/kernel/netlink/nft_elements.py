# SPDX-License-Identifier: BSD-2-Clause
"""Elements of an nft set, read from nf_tables by a netlink dump.

libnftables writes JSON of every element, which for 100,000 of them takes longer than to load them.
Only sets without intervals are read here, and only of data types with a fixed layout
(include/uapi/linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from ...netstate.nft import PROTOCOL_NAMES, Element, Value
from . import constants as nl
from .attributes import attribute, attribute_spans, encode_text, netfilter_header
from .socket import NetlinkSocket, repeat_until_consistent

FAMILIES = frozenset(("inet", "ip", "netdev", "ip6"))
_ELEMENT_HEADERS = struct.Struct("=HHHHHH")  # length and type of the element, of its key, of the key's value

# nft data type -> (struct code, padding to a multiple of four bytes, conversion to a value).
# Users and groups are in the byte order of this machine.
_DATA_TYPES: dict[str, tuple[str, str, Callable[[Any], Value] | None]] = {
    "uid": ("I", "", None),
    "gid": ("I", "", None),
    "ipv4_addr": ("4s", "", lambda raw: socket.inet_ntop(socket.AF_INET, raw)),
    "ipv6_addr": ("16s", "", lambda raw: socket.inet_ntop(socket.AF_INET6, raw)),
    "inet_proto": ("B", "3x", lambda number: PROTOCOL_NAMES.get(number, number)),
    "inet_service": ("2s", "2x", lambda raw: int.from_bytes(raw, "big")),
}


def is_readable(types: tuple[str, ...], flags: frozenset[str]) -> bool:
    """Return True if `read_elements` supports a set of these data types and flags."""
    return not flags and all(kind in _DATA_TYPES for kind in types)


def read_elements(family: str, table: str, name: str, types: tuple[str, ...]) -> frozenset[Element]:
    """Return all elements of a set.

    Raises:
        DumpInterrupted: the set changed during each of several dumps.
        OSError: the kernel refused, for instance ENOENT; with its errno.
    """
    with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        keys = repeat_until_consistent(
            lambda: _dump_keys(netlink, family, table, name), f"elements of set {family} {table} {name}"
        )
    return _decode_keys(keys, types)


def _dump_keys(netlink: NetlinkSocket, family: str, table: str, name: str) -> list[bytes] | None:
    """Return the keys of all elements, or None if the dump is inconsistent."""
    body = netfilter_header(nl.NFPROTO[family])
    body += attribute(nl.NFTA_SET_ELEM_LIST_TABLE, encode_text(table))
    body += attribute(nl.NFTA_SET_ELEM_LIST_SET, encode_text(name))
    messages = netlink.dump_once(nl.NFT_MSG_GETSETELEM, body)
    if messages is None:
        return None
    keys: list[bytes] = []
    for raw, start, end in messages:
        keys += _message_keys(raw, start + nl.NFGENMSG.size, end)
    # Right after a set was filled the kernel may still be growing its hash table. A dump then lists
    # some elements twice and misses some (measured on Linux 6.18).
    return keys if len(set(keys)) == len(keys) else None


def _decode_keys(keys: list[bytes], types: tuple[str, ...]) -> frozenset[Element]:
    """Return the elements of these keys.

    Parts of a concatenation begin at multiples of four bytes.
    """
    codes = [code + padding for code, padding, _ in map(_DATA_TYPES.__getitem__, types)]
    layout = struct.Struct("=" + "".join(codes))
    columns = list(zip(*layout.iter_unpack(b"".join(keys)), strict=True))
    converters = [_DATA_TYPES[kind][2] for kind in types]
    values = [map(convert, column) if convert else column for convert, column in zip(converters, columns, strict=False)]
    if len(types) > 1:
        return frozenset(zip(*values, strict=True))
    return frozenset(values[0] if values else ())


def _message_keys(raw: bytes, start: int, end: int) -> Iterator[bytes]:
    for kind, begin, stop in attribute_spans(raw, start, end):
        if kind == nl.NFTA_SET_ELEM_LIST_ELEMENTS:
            yield from _uniform_keys(raw, begin, stop) or _single_keys(raw, begin, stop)


def _uniform_keys(raw: bytes, begin: int, stop: int) -> list[bytes] | None:
    """Return the keys of a list of elements of one size with only a key; None for another list.

    This is the usual case, and faster than to decode each element.
    """
    if stop - begin < _ELEMENT_HEADERS.size:
        return None
    size, _, key_length, key_type, _, _ = _ELEMENT_HEADERS.unpack_from(raw, begin)
    headers = raw[begin : begin + _ELEMENT_HEADERS.size]
    if (stop - begin) % size or key_type & nl.NLA_TYPE_MASK != nl.NFTA_SET_ELEM_KEY:
        return None
    if key_length != size - nl.NLATTR.size:
        return None
    offsets = range(begin, stop, size)
    if any(raw[offset : offset + _ELEMENT_HEADERS.size] != headers for offset in offsets):
        return None
    return [raw[offset + _ELEMENT_HEADERS.size : offset + size] for offset in offsets]


def _single_keys(raw: bytes, begin: int, stop: int) -> Iterator[bytes]:
    for _, element, element_end in attribute_spans(raw, begin, stop):
        for kind, key, key_end in attribute_spans(raw, element, element_end):
            if kind == nl.NFTA_SET_ELEM_KEY:
                yield raw[key + nl.NLATTR.size : key_end]  # behind the header of NFTA_DATA_VALUE
                break
