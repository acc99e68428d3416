# SPDX-License-Identifier: BSD-2-Clause
"""nft data types: the symbols of an expression's values, as the numbers that the kernel compares.

Device names are numbers too, as in the kernel: sixteen bytes, and a wildcard is a range of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from attrs import frozen

from ...netstate import nft
from ...netstate.nft.symbols import (
    ARP_OPERATIONS,
    CT_DIRECTIONS,
    CT_STATE_BITS,
    CT_STATUS_BITS,
    DEVICE_TYPES,
    ETHERTYPE_NUMBERS,
    FAMILIES,
    ICMP_TYPES,
    ICMPV6_CODES,
    ICMPV6_TYPES,
    IGMP_TYPES,
    PKTTYPES,
    PROTOCOL_NUMBERS,
    TCP_FLAG_BITS,
)
from ..packet import TRANSFORMED, address_range

Interval = tuple[int, int]

NFPROTO_NETDEV = 5
_IFNAMSIZ = 16

_ICMP_CODES = {
    "net-unreachable": 0, "host-unreachable": 1, "prot-unreachable": 2, "port-unreachable": 3, "frag-needed": 4,
    "net-prohibited": 9, "host-prohibited": 10, "admin-prohibited": 13,
}  # fmt: skip
_DSCP = {
    **{f"cs{number}": number * 8 for number in range(8)}, "df": 0, "be": 0, "ef": 46, "lephb": 1, "va": 44,
    **{f"af{high}{low}": high * 8 + low * 2 for high in range(1, 5) for low in range(1, 4)},
}  # fmt: skip
_ECN = {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}


@frozen(eq=False)
class DataType:
    """The data type of an expression's values.

    `is_bitmask`: its symbols are bits that can be combined.
    """

    name: str
    bits: int = 32
    symbols: Mapping[str, int] = {}
    is_bitmask: bool = False


_NUMBER, _PORT = DataType("number"), DataType("port", 16)
DEVICE_NAME, ADDRESS_TYPES = (
    DataType("device", 8 * _IFNAMSIZ),
    {4: DataType("address4", 32), 6: DataType("address6", 128)},
)
_META = {
    "l4proto": DataType("protocol", 8, PROTOCOL_NUMBERS),
    "nfproto": DataType("family", 8, FAMILIES),
    "protocol": DataType("ethertype", 16, ETHERTYPE_NUMBERS),
    "pkttype": DataType("pkttype", 8, PKTTYPES),
    "oiftype": DataType("device type", 16, DEVICE_TYPES),
    **dict.fromkeys(("iif", "oif", "iifname", "oifname", "ibrname", "obrname", "iifkind", "oifkind"), DEVICE_NAME),
}
_CT = {
    "state": DataType("state", 32, CT_STATE_BITS, is_bitmask=True),
    "status": DataType("status", 32, CT_STATUS_BITS, is_bitmask=True),
    "direction": DataType("direction", 8, CT_DIRECTIONS),
    "l3proto": DataType("family", 8, FAMILIES),
    "protocol": _META["l4proto"],
    "proto-src": _PORT,
    "proto-dst": _PORT,
    **{f"ip {name}": ADDRESS_TYPES[4] for name in ("saddr", "daddr")},
    **{f"ip6 {name}": ADDRESS_TYPES[6] for name in ("saddr", "daddr")},
}
_PAYLOAD = {
    ("tcp", "flags"): DataType("flags", 8, TCP_FLAG_BITS, is_bitmask=True),
    ("icmp", "type"): DataType("type", 8, ICMP_TYPES),
    ("icmp", "code"): DataType("code", 8, _ICMP_CODES),
    ("icmpv6", "type"): DataType("type", 8, ICMPV6_TYPES),
    ("icmpv6", "code"): DataType("code", 8, ICMPV6_CODES),
    ("igmp", "type"): DataType("type", 8, IGMP_TYPES),
    ("ether", "type"): _META["protocol"],
    ("vlan", "type"): _META["protocol"],
    ("ip", "protocol"): _META["l4proto"],
    ("ip6", "nexthdr"): _META["l4proto"],
    ("arp", "operation"): DataType("operation", 16, ARP_OPERATIONS),
    **{
        (TRANSFORMED, f"{ip} {name}"): ADDRESS_TYPES[family]
        for ip, family in (("ip", 4), ("ip6", 6))
        for name in ("saddr", "daddr")
    },
    **{("ip", name): ADDRESS_TYPES[4] for name in ("saddr", "daddr")},
    **{("ip6", name): ADDRESS_TYPES[6] for name in ("saddr", "daddr")},
    **{(ip, "dscp"): DataType("dscp", 6, _DSCP) for ip in ("ip", "ip6")},
    **{(ip, "ecn"): DataType("ecn", 2, _ECN) for ip in ("ip", "ip6")},
}


def data_type(expression: nft.Expression) -> DataType:
    """Return the data type of one expression (not a concatenation)."""
    match expression:
        case nft.Meta(key):
            return _META.get(key, _NUMBER)
        case nft.Ct(key):
            return _CT.get(key, _NUMBER)
        case nft.Payload(protocol, name):
            default = _PORT if name in ("sport", "dport") else _NUMBER
            return _PAYLOAD.get((protocol, name), default)
        case nft.Fib():
            return DEVICE_NAME  # type names are compared like device names
        case nft.RawPayload(_, _, length):
            return DataType("raw", length)
        case nft.Bitwise(operand) | nft.Binary(_, operand):
            return data_type(operand)
    return _NUMBER


def data_types(expression: nft.Expression) -> tuple[DataType, ...]:
    """Return the data type of each part of a concatenation."""
    if isinstance(expression, nft.Concat):
        return tuple(each for part in expression.parts for each in data_types(part))
    return (data_type(expression),)


@lru_cache(maxsize=1 << 12)
def device_number(name: str) -> int:
    """Return the number of a device name."""
    encoded = name.encode(errors="replace")[:_IFNAMSIZ]
    return int.from_bytes(encoded.ljust(_IFNAMSIZ, b"\0"), "big")


def _name_interval(pattern: str) -> Interval:
    if pattern.endswith("\\*"):
        pattern = pattern[:-2] + "*"
    elif pattern.endswith("*"):
        prefix = pattern[:-1].encode(errors="replace")[:_IFNAMSIZ]
        low = int.from_bytes(prefix.ljust(_IFNAMSIZ, b"\0"), "big")
        high = int.from_bytes(prefix.ljust(_IFNAMSIZ, b"\xff"), "big")
        return low, high
    return device_number(pattern), device_number(pattern)


def parse_value(datatype: DataType, value: nft.Value) -> Interval | None:
    """Return the numbers of a value of a data type, or None if its syntax is unsupported."""
    if datatype is DEVICE_NAME:
        # An index is listed as a number if no device has it; 0 is "no device".
        return _name_interval(value) if isinstance(value, str) else None if value else (0, 0)
    if isinstance(value, int):
        return value, value
    if datatype is ADDRESS_TYPES[4] or datatype is ADDRESS_TYPES[6]:
        try:
            return address_range(value, 4 if datatype is ADDRESS_TYPES[4] else 6)
        except ValueError:
            return None
    number = _number(datatype, value)
    if number is not None:
        return number, number
    # Symbols contain dashes too, so each dash may be the one of a range.
    for dash in (index for index, sign in enumerate(value) if sign == "-"):
        low, high = _number(datatype, value[:dash]), _number(datatype, value[dash + 1 :])
        if low is not None and high is not None:
            return low, high
    return None


def _number(datatype: DataType, symbol: str) -> int | None:
    if symbol in datatype.symbols:
        return datatype.symbols[symbol]
    if datatype.is_bitmask and "," in symbol:
        bits = [datatype.symbols.get(flag) for flag in symbol.split(",")]
        return None if None in bits else sum({bit for bit in bits if bit is not None})
    try:
        return int(symbol, 0)
    except ValueError:
        return None
