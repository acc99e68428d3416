# SPDX-License-Identifier: BSD-2-Clause
"""Values in registers and set elements: bytes of the kernel to the values of netstate.nft."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from ipaddress import IPv4Address, IPv6Address

from ... import nft
from ...nft import symbols
from ...nft.symbols import names_by_number
from .attributes import UnsupportedBytecode, named_bits

_IFNAMSIZ = 16


class Kind(Enum):
    """The meaning of a value, which decides how it is written."""

    __hash__ = object.__hash__  # that of Enum is slow

    NUMBER = auto()
    PROTOCOL = auto()
    FAMILY = auto()
    ETHERTYPE = auto()
    IPV4 = auto()
    IPV6 = auto()
    LINK_ADDRESS = auto()
    DEVICE = auto()  # name of a device
    DEVICE_INDEX = auto()
    DEVICE_GROUP = auto()
    USER = auto()
    GROUP = auto()
    MARK = auto()
    PORT = auto()
    PACKET_TYPE = auto()
    ADDRESS_TYPE = auto()  # of a FIB lookup
    EXISTENCE = auto()
    TCP_FLAGS = auto()
    CT_STATE = auto()
    CT_STATUS = auto()
    CT_DIRECTION = auto()
    CT_LABEL = auto()  # bits by number
    ICMP_TYPE = auto()
    ICMPV6_TYPE = auto()
    IGMP_TYPE = auto()
    ARP_OPERATION = auto()
    MILLISECONDS = auto()
    NANOSECONDS = auto()


# Names as nft 1.0.6 lists them (nftables, src/datatype.c, src/proto.c, src/ct.c, src/meta.c, src/fib.c).
_NAMES: Mapping[Kind, Mapping[int, str]] = {
    Kind.PROTOCOL: nft.PROTOCOL_NAMES,
    Kind.FAMILY: names_by_number(symbols.FAMILIES),
    Kind.ETHERTYPE: nft.ETHERTYPE_NAMES,
    Kind.PACKET_TYPE: names_by_number(symbols.PKTTYPES),
    Kind.ADDRESS_TYPE: {
        0: "unspec", 1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole",
        7: "unreachable", 8: "prohibit",
    },
    Kind.CT_DIRECTION: names_by_number(symbols.CT_DIRECTIONS),
    Kind.ICMP_TYPE: names_by_number(symbols.ICMP_TYPES),
    Kind.ICMPV6_TYPE: names_by_number(symbols.ICMPV6_TYPES),
    Kind.IGMP_TYPE: names_by_number(symbols.IGMP_TYPES),
    Kind.ARP_OPERATION: names_by_number(symbols.ARP_OPERATIONS),
}  # fmt: skip
FLAG_NAMES: Mapping[Kind, Mapping[int, str]] = {
    Kind.TCP_FLAGS: names_by_number(symbols.TCP_FLAG_BITS),
    Kind.CT_STATE: names_by_number(symbols.CT_STATE_BITS),
    Kind.CT_STATUS: names_by_number(symbols.CT_STATUS_BITS),
    Kind.CT_LABEL: {1 << bit: str(bit) for bit in range(128)},
}
# Units of time: how many a second has, and their name. nft reads a number without a unit as seconds.
_TIME_UNITS = {Kind.MILLISECONDS: (1_000, "ms"), Kind.NANOSECONDS: (1_000_000_000, "ns")}
_ADDRESS_BITS = {Kind.IPV4: 32, Kind.IPV6: 128}
_ADDRESSES = {Kind.IPV4: IPv4Address, Kind.IPV6: IPv6Address}
# Kinds of names or bits: an order or an interval of them has no meaning.
WITHOUT_ORDER = frozenset(
    {Kind.FAMILY, Kind.EXISTENCE, Kind.LINK_ADDRESS, Kind.DEVICE, Kind.DEVICE_INDEX, Kind.ADDRESS_TYPE, *FLAG_NAMES}
)


def single_value(kind: Kind, number: int, bits: int) -> nft.Value:
    """Return the value of a number of `bits` bits. Raises UnsupportedBytecode."""
    names = _NAMES.get(kind)
    if names is not None:
        if kind is Kind.FAMILY and number not in names:
            raise UnsupportedBytecode(f"family {number}")
        return names.get(number, number)
    if kind is Kind.IPV4 and bits == 32:
        return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    if kind in _ADDRESS_BITS:
        return prefix_value(kind, number, bits, bits)
    if kind in FLAG_NAMES:
        return flags_value(kind, number)
    if kind is Kind.DEVICE:
        return _device_name(number.to_bytes(bits // 8, "big"))
    if kind is Kind.EXISTENCE and number < 2:
        return "exists" if number else "missing"
    if kind is Kind.LINK_ADDRESS:
        return number.to_bytes(bits // 8, "big").hex(":")
    if kind in _TIME_UNITS:
        factor, unit = _TIME_UNITS[kind]
        return f"{number}{unit}" if number % factor else number // factor
    return number


def ordered_value(kind: Kind, number: int, bits: int) -> nft.Value:
    """Return the value of a number that a rule compares by order: not a symbol. Raises UnsupportedBytecode."""
    return number if kind in _NAMES else single_value(kind, number, bits)


def flags_value(kind: Kind, number: int) -> nft.Value:
    """Return the names of flags, sorted, or 0; of a single label its number.

    Raises UnsupportedBytecode for a flag without a name, and for no label.
    """
    if kind is Kind.CT_LABEL and not number & number - 1:
        if not number:
            raise UnsupportedBytecode("no connection label")
        return number.bit_length() - 1
    return ",".join(sorted(named_bits(number, FLAG_NAMES[kind]))) or 0


def prefix_value(kind: Kind, number: int, bits: int, length: int) -> str:
    """Return an address, or a prefix of `length` bits of it; `number` has `bits` bits. Raises UnsupportedBytecode."""
    width = _ADDRESS_BITS[kind]
    if bits > width:
        raise UnsupportedBytecode("more bits than an address has")
    text = str(_ADDRESSES[kind](number << width - bits))
    return text if length == width else f"{text}/{length}"


def interval_value(kind: Kind, low: int, high: int, bits: int) -> nft.Value:
    """Return an interval of numbers, both ends included. Raises UnsupportedBytecode."""
    if low == high:
        return single_value(kind, low, bits)
    if kind in _ADDRESS_BITS and bits == _ADDRESS_BITS[kind]:
        size = high - low + 1
        if size & size - 1 == 0 and low % size == 0:
            return prefix_value(kind, low, bits, bits - size.bit_length() + 1)
        return range_value(kind, low, high, bits)
    return range_value(kind, low, high, bits)


def range_value(kind: Kind, low: int, high: int, bits: int) -> str:
    """Return LOW-HIGH, also where nft lists a prefix in a set. Raises UnsupportedBytecode."""
    if kind is Kind.DEVICE:
        return _device_pattern(low.to_bytes(bits // 8, "big"), high.to_bytes(bits // 8, "big"))
    if kind in WITHOUT_ORDER:
        raise UnsupportedBytecode("an interval of values that have no order")
    return f"{ordered_value(kind, low, bits)}-{ordered_value(kind, high, bits)}"


def device_name(index: nft.Value, devices: Mapping[int, str]) -> nft.Value:
    """Return the name of the device with an index, 0 for that of no device. Raises UnsupportedBytecode for others."""
    if index == 0:
        return 0
    if not isinstance(index, int) or index not in devices:
        raise UnsupportedBytecode(f"device {index}, which is not there")
    return devices[index]


def _device_name(raw: bytes) -> str:
    """Return a device name; fewer than sixteen bytes without NUL are the beginning of the names of a wildcard."""
    name, end, padding = raw.partition(b"\0")
    if any(padding):
        raise UnsupportedBytecode("a device name with bytes behind its end")
    text = name.decode("utf-8", "surrogateescape")
    if not end and len(raw) < _IFNAMSIZ:
        return f"{text}*"
    return f"{text[:-1]}\\*" if text.endswith("*") else text


def device_patterns(low: bytes, high: bytes) -> list[str]:
    """Return the names and wildcards of an interval: nft 1.1 merges adjacent ones. Raises UnsupportedBytecode."""
    patterns: list[str] = []
    start, end = low, high
    while start <= end:
        prefix = start.rstrip(b"\0")
        last = prefix.ljust(len(start), b"\xff") if prefix else start
        is_wildcard = len(prefix) < len(start) and start < last <= end
        patterns.append(_device_pattern(start, last) if is_wildcard else _device_name(start))
        following = int.from_bytes(last if is_wildcard else start, "big") + 1
        if following >> 8 * len(start):
            break
        start = following.to_bytes(len(start), "big")
    return patterns


def _device_pattern(low: bytes, high: bytes) -> str:
    prefix = low.rstrip(b"\0")
    if not prefix or high != prefix.ljust(len(high), b"\xff"):
        raise UnsupportedBytecode("an interval of device names that is not a wildcard")
    return f"{prefix.decode('utf-8', 'surrogateescape')}*"
