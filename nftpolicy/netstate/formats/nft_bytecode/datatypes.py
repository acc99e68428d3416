# SPDX-License-Identifier: BSD-2-Clause
"""Columns of set keys and map data, and nft's data types for them (nftables, include/datatype.h).

The kernel stores the number of nft's type of a set and never uses it. So it gives only the name of
the type, and the columns of a set that no rule looks up.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from ... import nft
from .attributes import UnsupportedBytecode
from .values import Kind, interval_value, single_value

VERDICT_TYPE = 0xFFFFFF00  # NFT_DATA_VERDICT
_TYPE_BITS, _TYPE_MASK = 6, 0x3F  # of one part in the number of a concatenation
_WORD = 4  # bytes; each part of a concatenation begins at a multiple

# number -> name, kind, length in bytes, 0: any; True: in the byte order of the machine
_TYPES: dict[int, tuple[str, Kind, int, bool]] = {
    2: ("nf_proto", Kind.FAMILY, 1, False),
    3: ("bitmask", Kind.NUMBER, 0, True),
    4: ("integer", Kind.NUMBER, 0, False),
    7: ("ipv4_addr", Kind.IPV4, 4, False),
    8: ("ipv6_addr", Kind.IPV6, 16, False),
    9: ("ether_addr", Kind.LINK_ADDRESS, 6, False),
    10: ("ether_type", Kind.ETHERTYPE, 2, False),
    11: ("arp_op", Kind.ARP_OPERATION, 2, False),
    12: ("inet_proto", Kind.PROTOCOL, 1, False),
    13: ("inet_service", Kind.PORT, 2, False),
    14: ("icmp_type", Kind.ICMP_TYPE, 1, False),
    15: ("tcp_flag", Kind.TCP_FLAGS, 1, False),
    19: ("mark", Kind.MARK, 4, True),
    20: ("iface_index", Kind.DEVICE_INDEX, 4, True),
    21: ("iface_type", Kind.NUMBER, 2, True),
    22: ("realm", Kind.NUMBER, 4, True),
    23: ("classid", Kind.NUMBER, 4, True),
    24: ("uid", Kind.USER, 4, True),
    25: ("gid", Kind.GROUP, 4, True),
    26: ("ct_state", Kind.CT_STATE, 4, True),
    27: ("ct_dir", Kind.CT_DIRECTION, 1, False),
    28: ("ct_status", Kind.CT_STATUS, 4, True),
    29: ("icmpv6_type", Kind.ICMPV6_TYPE, 1, False),
    31: ("pkt_type", Kind.PACKET_TYPE, 1, False),
    32: ("icmp_code", Kind.NUMBER, 1, False),
    33: ("icmpv6_code", Kind.NUMBER, 1, False),
    35: ("devgroup", Kind.DEVICE_GROUP, 4, True),
    36: ("dscp", Kind.NUMBER, 1, False),
    37: ("ecn", Kind.NUMBER, 1, False),
    38: ("fib_addrtype", Kind.ADDRESS_TYPE, 4, True),
    39: ("boolean", Kind.EXISTENCE, 1, False),
    41: ("ifname", Kind.DEVICE, 16, False),
    42: ("igmp_type", Kind.IGMP_TYPE, 1, False),
    46: ("cgroupsv2", Kind.NUMBER, 8, True),
}
_KIND_NAMES = {kind: name for name, kind, _, _ in reversed(_TYPES.values())} | {Kind.NUMBER: "integer"}


@frozen
class Column:
    """Part of a key or of data: its kind, length in bytes, and byte order.

    `bits`: the number of the lowest bit and the length of the field that a mask cuts out of it; None: all of it.
    """

    kind: Kind
    length: int
    order: str
    bits: tuple[int, int] | None = None

    @property
    def padded_length(self) -> int:
        """Return the length with the padding behind it."""
        return self.length + _WORD - 1 & -_WORD


def _type_parts(number: int) -> list[tuple[str, Kind, int, bool]] | None:
    parts: list[tuple[str, Kind, int, bool]] = []
    while number:
        known = _TYPES.get(number & _TYPE_MASK)
        if known is None:
            return None
        parts.insert(0, known)
        number >>= _TYPE_BITS
    return parts


def type_number(names: Sequence[str]) -> int | None:
    """Return the number of a type, or of a concatenation of types, by nft's names; None for an unknown name."""
    numbers = {name: number for number, (name, *_) in _TYPES.items()}
    total = 0
    for name in names:
        if name not in numbers:
            return None
        total = total << _TYPE_BITS | numbers[name]
    return total


def columns_of_type(number: int, length: int, native: str, is_interval: bool) -> tuple[Column, ...]:
    """Return the columns of a set of nft's data type.

    The elements of an interval are in network byte order.

    Raises:
        UnsupportedBytecode: an unknown type, or another length.
    """
    parts = _type_parts(number)
    if not parts:
        raise UnsupportedBytecode(f"data type {number:#x}")
    columns = tuple(
        Column(kind, size or length, native if is_native and not is_interval else "big")
        for _, kind, size, is_native in parts
    )
    total = sum(column.padded_length for column in columns) if len(columns) > 1 else columns[0].length
    if total != length:
        raise UnsupportedBytecode(f"data type {number:#x} of {length} bytes")
    return columns


def type_names(number: int, columns: tuple[Column, ...]) -> tuple[str, ...]:
    """Return nft's names of the types of columns; `number` is the set's type, for types without a kind."""
    parts = _type_parts(number)
    if parts is not None and tuple(kind for _, kind, _, _ in parts) == tuple(column.kind for column in columns):
        return tuple(name for name, _, _, _ in parts)
    return tuple(_KIND_NAMES.get(column.kind, "integer") for column in columns)


def split_columns(raw: bytes, columns: tuple[Column, ...]) -> list[bytes]:
    """Return the bytes of each column. Raises UnsupportedBytecode for another length."""
    if len(columns) == 1:
        if len(raw) != columns[0].length:
            raise UnsupportedBytecode("an element of another length")
        return [raw]
    parts: list[bytes] = []
    start = 0
    for column in columns:
        parts.append(raw[start : start + column.length])
        if any(raw[start + column.length : start + column.padded_length]):
            raise UnsupportedBytecode("an element with bytes between its parts")
        start += column.padded_length
    if start != len(raw) and start - columns[-1].padded_length + columns[-1].length != len(raw):
        raise UnsupportedBytecode("an element of another length")
    return parts


def column_value(raw: bytes, column: Column) -> nft.Value:
    """Return the value of a column. Raises UnsupportedBytecode."""
    number, bits = column_number(raw, column), 8 * column.length if column.bits is None else column.bits[1]
    return single_value(column.kind, number, bits)


def column_number(raw: bytes, column: Column) -> int:
    """Return the number in a column. Raises UnsupportedBytecode for one with bits that a mask removes."""
    number = int.from_bytes(raw, column.order)  # type: ignore[arg-type]
    if column.bits is None:
        return number
    shift, length = column.bits
    if number & (1 << shift) - 1 or number >> shift + length:
        raise UnsupportedBytecode("an element with bits that the key does not have")
    return number >> shift


def range_of_values(raw: bytes, columns: tuple[Column, ...]) -> nft.Element:
    """Return data that are intervals: their lowest values and the highest ones behind. Raises UnsupportedBytecode."""
    size = sum(column.padded_length for column in columns) if len(columns) > 1 else columns[0].length
    lows, highs = split_columns(raw[:size], columns), split_columns(raw[size:], columns)
    values = [
        interval_value(column.kind, column_number(low, column), column_number(high, column), 8 * column.length)
        for low, high, column in zip(lows, highs, columns, strict=True)
    ]
    return values[0] if len(values) == 1 else tuple(values)


def element_value(raw: bytes, columns: tuple[Column, ...]) -> nft.Element:
    """Return the value of a key or of data. Raises UnsupportedBytecode."""
    values = [column_value(part, column) for part, column in zip(split_columns(raw, columns), columns, strict=True)]
    return values[0] if len(values) == 1 else tuple(values)
