# SPDX-License-Identifier: BSD-2-Clause
"""Encode and decode netlink attributes (struct nlattr) and the values in them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

from .constants import NFGENMSG, NLA_TYPE_MASK, NLATTR

_HEADER_SIZE = NLATTR.size


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute of type `kind`, padded to a multiple of four bytes."""
    return NLATTR.pack(_HEADER_SIZE + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(raw: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (type, value) of each attribute between two offsets. Stop at a malformed header."""
    while start + _HEADER_SIZE <= end:
        length, kind = NLATTR.unpack_from(raw, start)
        if length < _HEADER_SIZE:
            return
        yield kind & NLA_TYPE_MASK, raw[start + _HEADER_SIZE : start + length]
        start += length + 3 & ~3


def nested_attributes(raw: bytes | None) -> dict[int, bytes]:
    """Return the attributes inside an attribute, by type. Empty for None."""
    return dict(attributes(raw, 0, len(raw))) if raw else {}


def native_integer(raw: bytes | None) -> int:
    """Return an unsigned integer in the byte order of this machine. 0 for None."""
    return int.from_bytes(raw or b"", sys.byteorder)


def network_integer(raw: bytes | None) -> int:
    """Return an unsigned integer in network byte order. 0 for None."""
    return int.from_bytes(raw or b"", "big")


def decode_text(raw: bytes | None, errors: str = "surrogateescape") -> str:
    """Return a NUL-terminated string. Empty for None. `errors` as for bytes.decode."""
    return raw.rstrip(b"\0").decode("utf-8", errors) if raw else ""


def encode_text(value: str) -> bytes:
    """Return the bytes of a string, as of `decode_text`, with the NUL that the kernel expects behind it."""
    return value.encode("utf-8", "surrogateescape") + b"\0"


def ip_text(raw: bytes) -> str:
    """Return an address of 4 or 16 bytes as text."""
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def netfilter_header(family: int = 0) -> bytes:
    """Return the struct nfgenmsg that begins each request to a netfilter subsystem."""
    return NFGENMSG.pack(family, 0, 0)
