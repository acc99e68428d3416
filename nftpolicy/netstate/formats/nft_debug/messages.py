# SPDX-License-Identifier: BSD-2-Clause
"""Encoder of netlink attributes of nf_tables (include/uapi/linux/netfilter/nf_tables.h), in the kernel's layout."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from ..nft_bytecode.attributes import NOT_SHOWN

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}  # of nft's units of a rate
_HEADER = struct.Struct("=HH")  # struct nlattr: length, type
_MOST_BYTES = 1 << 15  # of a list in one message; the length of an attribute has 16 bits
_LIST_ELEMENT = 1
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_VERDICTS = {"drop": 0, "accept": 1, "continue": -1, "jump": -3, "goto": -4, "return": -5}


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to a multiple of four bytes."""
    return _HEADER.pack(_HEADER.size + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int, size: int = 4) -> bytes:
    """Return an attribute with an integer of `size` bytes, which may be negative."""
    return attribute(kind, (value % (1 << 8 * size)).to_bytes(size, "big"))


def text(kind: int, value: str) -> bytes:
    """Return an attribute with a string."""
    return attribute(kind, value.encode("utf-8", "surrogateescape") + b"\0")


def data(kind: int, value: bytes) -> bytes:
    """Return an attribute with a struct nft_data that is a value."""
    return attribute(kind, attribute(_DATA_VALUE, value))


def verdict(kind: int, word: str, chain: str | None) -> bytes:
    """Return an attribute with a struct nft_data that is a verdict. Raises KeyError for an unknown one."""
    body = number(_VERDICT_CODE, _VERDICTS[word])
    if chain is not None:
        body += text(_VERDICT_CHAIN, chain)
    return attribute(kind, attribute(_DATA_VERDICT, body))


def expression(name: str, *attributes: bytes) -> bytes:
    """Return the value of a NFTA_LIST_ELEM with an expression."""
    return text(1, name) + attribute(2, b"".join(attributes))


def not_shown(subject: str) -> bytes:
    """Return an attribute that makes an expression unsupported, because its text leaves `subject` out."""
    return text(NOT_SHOWN, subject)


def list_of(items: Iterable[bytes]) -> bytes:
    """Return the elements of a list."""
    return b"".join(attribute(_LIST_ELEMENT, item) for item in items)


def chunks(items: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the items in groups that each fit into one list."""
    group: list[bytes] = []
    size = 0
    for item in items:
        if group and size + len(item) > _MOST_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += len(item) + _HEADER.size
    if group:
        yield group
