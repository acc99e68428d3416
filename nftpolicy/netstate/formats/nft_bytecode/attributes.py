# SPDX-License-Identifier: BSD-2-Clause
"""Netlink attributes, read so that no attribute and no flag is lost.

An attribute that is taken is removed. `decode` refuses what is left: so a decoder that forgets an
attribute, or does not know a flag, does not ignore it but reports the whole as unsupported.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import TypeVar

from ....exceptions import NftpolicyError

_HEADER = struct.Struct("=HH")  # struct nlattr: length, type
_unpack_header = _HEADER.unpack_from
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_LIST_ELEMENT = 1  # NFTA_LIST_ELEM
NOT_SHOWN = 0x3000  # no attribute of nf_tables: names what a text of the kernel's program leaves out

Result = TypeVar("Result")
Name = TypeVar("Name")


class UnsupportedBytecode(NftpolicyError):
    """Bytes of the kernel that the decoder does not know; the text names them."""


def split_attributes(raw: bytes) -> list[tuple[int, bytes]]:
    """Return (type, value) of each attribute. Raises UnsupportedBytecode for a malformed one."""
    entries: list[tuple[int, bytes]] = []
    start, end = 0, len(raw)
    while start < end:
        if end - start < _HEADER.size:
            raise UnsupportedBytecode("a truncated attribute")
        length, kind = _HEADER.unpack_from(raw, start)
        if length < _HEADER.size or start + length > end:
            raise UnsupportedBytecode("a malformed attribute")
        entries.append((kind & _TYPE_MASK, raw[start + _HEADER.size : start + length]))
        start += length + 3 & ~3
    return entries


def split_list(raw: bytes | None) -> list[bytes]:
    """Return the values of a list, whose attributes all have the type of list elements. Raises UnsupportedBytecode."""
    entries: list[bytes] = []
    start, end = 0, len(raw or b"")
    while start < end:  # as split_attributes, for speed
        if end - start < 4:
            raise UnsupportedBytecode("a truncated attribute")
        length, kind = _unpack_header(raw, start)  # type: ignore[arg-type]
        stop = start + length
        if length < 4 or stop > end:
            raise UnsupportedBytecode("a malformed attribute")
        if kind & _TYPE_MASK != _LIST_ELEMENT:
            raise UnsupportedBytecode("a list with an unknown attribute")
        entries.append(raw[start + 4 : stop])  # type: ignore[index]
        start = stop + 3 & ~3
    return entries


class Attributes:
    """The attributes that are not taken yet.

    Raises:
        UnsupportedBytecode: a malformed attribute, or two of one type.
    """

    __slots__ = ("_remaining",)

    def __init__(self, raw: bytes) -> None:
        self._remaining = remaining = {}  # type: dict[int, bytes]
        start, end = 0, len(raw)
        while start < end:  # as split_attributes, for speed
            if end - start < 4:
                raise UnsupportedBytecode("a truncated attribute")
            length, kind = _unpack_header(raw, start)
            stop = start + length
            if length < 4 or stop > end:
                raise UnsupportedBytecode("a malformed attribute")
            kind &= _TYPE_MASK
            if kind in remaining:
                raise UnsupportedBytecode("a repeated attribute")
            remaining[kind] = raw[start + 4 : stop]
            start = stop + 3 & ~3

    def take(self, kind: int) -> bytes | None:
        """Return and remove the value of an attribute; None if it is absent. All other methods call this."""
        return self._remaining.pop(kind, None)

    def require(self, kind: int) -> bytes:
        """Return and remove the value of an attribute. Raises UnsupportedBytecode if it is absent."""
        value = self.take(kind)
        if value is None:
            raise UnsupportedBytecode(f"no attribute {kind}")
        return value

    def number(self, kind: int, default: int | None = None) -> int:
        """Return a number in network byte order; `default` if it is absent. Raises UnsupportedBytecode."""
        value = self.take(kind)
        if value is not None:
            return int.from_bytes(value, "big")
        if default is None:
            raise UnsupportedBytecode(f"no attribute {kind}")
        return default

    def optional_number(self, kind: int) -> int | None:
        """Return a number in network byte order, or None if it is absent."""
        value = self.take(kind)
        return None if value is None else int.from_bytes(value, "big")

    def text(self, kind: int) -> str:
        """Return a string that ends in NUL. Raises UnsupportedBytecode if it is absent."""
        return decode_text(self.require(kind))

    def choice(self, kind: int, names: Mapping[int, Name], default: int | None = None) -> Name:
        """Return the name of a number. Raises UnsupportedBytecode for an unknown number."""
        number = self.number(kind, default)
        if number not in names:
            raise UnsupportedBytecode(f"value {number} of attribute {kind}")
        return names[number]

    def flags(self, kind: int, names: Mapping[int, str]) -> frozenset[str]:
        """Return the names of the bits of a number, 0 if it is absent. Raises UnsupportedBytecode for other bits."""
        return named_bits(self.number(kind, 0), names)

    def has(self, kind: int) -> bool:
        """Return True if an attribute is present and not taken."""
        return kind in self._remaining

    def ignore(self, *kinds: int) -> None:
        """Remove attributes without a meaning for packets, such as handles and padding."""
        for kind in kinds:
            self.take(kind)

    def finish(self) -> None:
        """Raise UnsupportedBytecode if an attribute is left."""
        if NOT_SHOWN in self._remaining:
            raise UnsupportedBytecode(f"nft's debug output does not show {self.text(NOT_SHOWN)}")
        if self._remaining:
            kinds = " ".join(f"{kind}={value.hex()}" for kind, value in sorted(self._remaining.items()))
            raise UnsupportedBytecode(f"unknown attributes {kinds}")


def decode(raw: bytes | None, decoder: Callable[[Attributes], Result]) -> Result:
    """Return what `decoder` makes of attributes, all of which it has to take.

    Raises:
        UnsupportedBytecode: an attribute is left, or the decoder refuses.
    """
    attributes = Attributes(raw or b"")
    result = decoder(attributes)
    attributes.finish()
    return result


def decode_text(raw: bytes) -> str:
    """Return a string that ends in NUL, in the way Python decodes names of files."""
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def named_bits(number: int, names: Mapping[int, str]) -> frozenset[str]:
    """Return the names of the bits of a number. Raises UnsupportedBytecode for a bit without a name."""
    known = 0
    entries: set[str] = set()
    for bit, name in names.items():
        known |= bit
        if number & bit:
            entries.add(name)
    if number & ~known:
        raise UnsupportedBytecode(f"flags {number & ~known:#x}")
    return frozenset(entries)
