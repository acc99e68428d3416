# SPDX-License-Identifier: BSD-2-Clause
"""The fields of the header space: their nft expressions, value syntax and highest values.

The numbers of states are an enumeration of our own, all others are those of the kernel's headers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache

from ...netstate.nft import FULL_MASK, Element, Expression, Meta, Payload, RawPayload, Value
from ...netstate.nft.symbols import (
    CT_DIRECTIONS,
    DEVICE_TYPES,
    ETHERTYPE_NUMBERS,
    ICMP_TYPES,
    ICMPV6_CODES,
    ICMPV6_TYPES,
    IGMP_TYPES,
    PKTTYPES,
    PROTOCOL_NUMBERS,
    TCP_FLAGS,
)
from ..packet import address_range
from .box import Box, Ranges, complement, intersect_ranges, merge_ranges, points

CT_STATES = {"new": 0, "established": 1, "related": 2, "invalid": 3, "untracked": 4}
_NFPROTOS = {"ipv4": 4, "ipv6": 6}

MAX_VALUES = {
    "socket": 1, "uid": FULL_MASK - 1, "gid": FULL_MASK - 1, "protocol": 255, "sport": 0xFFFF,
    "dport": 0xFFFF, "fragment": 1,
    "ethertype": 0xFFFF, "nfproto": 15, "pkttype": 7, "ttl": 255, "icmp.type": 255, "icmp.code": 255,
    "icmpv6.type": 255, "icmpv6.code": 255, "length": 0xFFFF, "igmp.type": 255,
    "readable": 3, "link.readable": 3,
    "ether.type": 0xFFFF, "ether.readable": 1, "llc": 0xFFFFFF, "oiftype": 0xFFFF,
    "ct.state": len(CT_STATES) - 1, "ct.direction": 1, "ct.confirmed": 1, **{f"tcp.{flag}": 1 for flag in TCP_FLAGS},
}  # fmt: skip

EQUAL = ("==", "in")  # operators

Parse = Callable[[Value], Ranges | None]  # None: unsupported syntax


def parse_number(value: Value) -> Ranges | None:
    """Parse a number or "LOW-HIGH"; None: anything else."""
    if isinstance(value, int):
        return points(value)
    low, dash, high = value.partition("-")
    try:
        return merge_ranges([(int(low, 0), int(high, 0) if dash else int(low, 0))])
    except ValueError:
        return None


def matching_values(parse: Parse, elements: Iterable[Element], op: str, top: int) -> Ranges | None:
    """Return the values of a field, at most `top`, that a comparison with elements matches; None: unsupported."""
    pairs: list[tuple[int, int]] = []
    for element in elements:
        parsed = None if isinstance(element, tuple) else parse(element)
        if parsed is None:
            return None
        pairs += parsed
    wanted = merge_ranges(pairs)
    if op in EQUAL:
        return intersect_ranges(wanted, ((0, top),))
    if op in ("!=", "!"):
        return complement(wanted, top)
    if len(wanted) != 1:
        return None
    low, high = wanted[0]
    spans = {"<": (0, low - 1), "<=": (0, high), ">": (high + 1, top), ">=": (low, top)}
    if op not in spans:
        return None
    first, last = spans[op]
    return ((first, last),) if first <= last else ()


def _named(names: Mapping[str, int]) -> Parse:
    def parse(value: Value) -> Ranges | None:
        if isinstance(value, str) and value in names:
            return points(names[value])
        return parse_number(value)

    return parse


def _listed(names: Mapping[str, int]) -> Parse:
    """Return a parser of names that nft lists with commas."""

    def parse(value: Value) -> Ranges | None:
        words = value.split(",") if isinstance(value, str) else [value]
        numbers = [names.get(word) if isinstance(word, str) else None for word in words]
        if None in numbers:
            return None
        return points(*(each for each in numbers if each is not None))

    return parse


parse_directions = _named(CT_DIRECTIONS)
# A packet has one state. These operators test for any of several; others compare with all of them at once.
ANY_STATE = frozenset({("ct.state", "in"), ("ct.state", "!")})
parse_any_state = _listed(CT_STATES)


def parse_state(value: Value) -> Ranges | None:
    """Parse one state; None for several at once, which nothing has."""
    return None if isinstance(value, str) and "," in value else parse_any_state(value)


@cache
def address_parser(family: int) -> Parse:
    """Return a parser of addresses, prefixes and address ranges of a family."""

    def parse(value: Value) -> Ranges | None:
        if not isinstance(value, str):
            return None
        try:
            return (address_range(value, family),)
        except ValueError:
            return None

    return parse


# How far the headers of a packet are readable: the network header, the protocol behind it, and the
# transport header (nft_set_pktinfo_ipv6, nft_set_pktinfo_ipv4_validate, nft_payload_eval). A packet can
# end too early, and a raw socket can write any header. The hooks of a device test more than others.
READABLE, LINK_READABLE = "readable", "link.readable"
_NETWORK, _PROTOCOL, WHOLE = ((1, 3),), ((2, 3),), points(3)
TRANSPORT_FIELDS = frozenset({"fragment", "sport", "dport"})
_TRANSPORT_PREFIXES = ("icmp.", "icmpv6.", "igmp.", "tcp.")


def is_transport_field(name: str) -> bool:
    """Return True if a field is in the transport header."""
    return name in TRANSPORT_FIELDS or name.startswith(_TRANSPORT_PREFIXES)


def readability(name: str, needs: Box, family: int, is_link: bool) -> Box:
    """Return the packets in which a field is readable, other than those with the right protocols."""
    readable = LINK_READABLE if is_link else READABLE
    if is_transport_field(name) or "fragment" in needs:
        return {readable: WHOLE}
    if name == "protocol" and "nfproto" in needs and needs["nfproto"] == _IP["nfproto"]:
        return {readable: _PROTOCOL} if is_link or family == 6 else {}
    if is_link and name.startswith("fib "):  # nft_fib_netdev_eval: skb->protocol is what an AF_PACKET socket says
        return {readable: _NETWORK, "ethertype": points(ETHERTYPE_NUMBERS["ip"], ETHERTYPE_NUMBERS["ip6"])}
    if is_link and name in ("saddr", "daddr", "ttl", "protocol"):
        return {readable: _NETWORK}
    return {}


_SOCKET: Box = {"socket": points(1)}
_IP: Box = {"nfproto": points(4, 6)}

# By meta key or header field: field name, value parser, packets in which it is readable.
META_FIELDS: dict[str, tuple[str, Parse, Box]] = {
    "skuid": ("uid", parse_number, _SOCKET),
    "skgid": ("gid", parse_number, _SOCKET),
    "l4proto": ("protocol", _named(PROTOCOL_NUMBERS), _IP),
    "nfproto": ("nfproto", _named(_NFPROTOS), {}),
    "protocol": ("ethertype", _named(ETHERTYPE_NUMBERS), {}),
    "pkttype": ("pkttype", _named(PKTTYPES), {}),
}
# The same for the egress hook of a device: the frame's own ethertype, and the type of the device.
EGRESS_FIELDS: dict[Expression, tuple[str, Parse, Box]] = {
    Payload("ether", "type"): ("ether.type", _named(ETHERTYPE_NUMBERS), {"ether.readable": points(1)}),
    # The first bytes behind the link header: of an IEEE 802.2 frame, its LLC header.
    RawPayload("nh", 0, 24): ("llc", parse_number, {LINK_READABLE: WHOLE}),
    Meta("oiftype"): ("oiftype", _named(DEVICE_TYPES), {}),
}


def _transport(*protocols: str) -> Box:
    first: Box = {"fragment": points(0), **_IP}
    return {**first, "protocol": points(*(PROTOCOL_NUMBERS[name] for name in protocols))} if protocols else first


_V4, _V6 = {"nfproto": points(4)}, {"nfproto": points(6)}
PAYLOAD_FIELDS: dict[tuple[str, str], tuple[str, Parse, Box]] = {
    ("ip", "protocol"): ("protocol", _named(PROTOCOL_NUMBERS), _V4),
    ("ip", "ttl"): ("ttl", parse_number, _V4),
    ("ip6", "hoplimit"): ("ttl", parse_number, _V6),
    ("icmp", "type"): ("icmp.type", _named(ICMP_TYPES), {**_transport("icmp"), **_V4}),
    ("icmp", "code"): ("icmp.code", parse_number, {**_transport("icmp"), **_V4}),
    ("icmpv6", "type"): ("icmpv6.type", _named(ICMPV6_TYPES), {**_transport("icmpv6"), **_V6}),
    ("icmpv6", "code"): ("icmpv6.code", _named(ICMPV6_CODES), {**_transport("icmpv6"), **_V6}),
    ("igmp", "type"): ("igmp.type", _named(IGMP_TYPES), {**_transport("igmp"), **_V4}),
    ("th", "sport"): ("sport", parse_number, _transport()),
    ("th", "dport"): ("dport", parse_number, _transport()),
    **{
        (protocol, port): (port, parse_number, _transport(protocol))
        for protocol in ("tcp", "udp", "udplite", "sctp", "dccp")
        for port in ("sport", "dport")
    },
}


# --- devices ---------------------------------------------------------------------------


def device_classes(names: Iterable[str]) -> list[str]:
    """Return one name for each class of devices that no name or pattern distinguishes.

    Index 0 is "no device". A name that ends in "~" is a device that only a pattern matches; "~"
    alone is every other device.
    """
    classes = {f"{name[:-1]}~" if name.endswith("*") else name for name in names if name}
    return ["", *sorted(classes - {"~"}), "~"]


def device_ranges(classes: list[str], name: str) -> Ranges:
    """Return the classes of a name or a pattern.

    A name without its own class is in the longest pattern's.
    """
    if name.endswith("*"):
        matching = (index for index, device_class in enumerate(classes) if index and device_class.startswith(name[:-1]))
        return merge_ranges((index, index) for index in matching)
    if name in classes:
        return points(classes.index(name))
    patterns = (
        device_class
        for device_class in classes[1:]
        if device_class.endswith("~") and name.startswith(device_class[:-1])
    )
    return points(classes.index(max(patterns, key=len)))


def representative_name(device_class: str) -> str:
    """Return a name that a device of the class may have."""
    if not device_class.endswith("~"):
        return device_class
    return device_class.replace("~", "9" if len(device_class) > 1 else "other0")
