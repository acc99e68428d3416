# SPDX-License-Identifier: BSD-2-Clause
"""Expressions of rules, and the right-hand sides of matches. Import them from netstate.nft."""

from __future__ import annotations

from attrs import frozen

FULL_MASK = 0xFFFFFFFF

# IP protocols by number (registry of RFC 5237). nft needs /etc/protocols to print their names.
PROTOCOL_NAMES = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 58: "ipv6-icmp", 132: "sctp"}
# Ethertypes by number, as nft names them (src/datatype.c, ethertype_tbl).
ETHERTYPE_NAMES = {0x0800: "ip", 0x0806: "arp", 0x86DD: "ip6", 0x8100: "8021q", 0x88A8: "8021ad"}
# An element is one value or a concatenation of values. Prefixes are "ADDRESS/LENGTH", intervals
# "LOW-HIGH", combined flags "ack,syn" (sorted), and device names may end in "*". "*" alone is the
# catchall element. Tests for existence compare with "exists" or "missing".
Value = int | str
Element = Value | tuple[Value, ...]


@frozen
class Meta:
    """Property of the packet or its socket: mark, oifname, iifname, skuid, skgid, l4proto, ..."""

    key: str


@frozen
class Ct:
    """Property of the packet's conntrack entry; `direction` is "original", "reply" or None."""

    key: str
    direction: str | None = None


@frozen
class Payload:
    """Header field by nft's names: Payload("ip", "daddr"), Payload("th", "dport").

    Payload("ether", "type") is bytes 12 and 13 of the frame itself (`@ll,96,16`), without the test of
    the input device's type that nft puts before `ether type` outside of the bridge family.
    """

    protocol: str
    name: str


@frozen
class Fib:
    """FIB lookup: Fib("type", ("daddr", "iif")) is the address type of the destination on the device."""

    result: str
    keys: tuple[str, ...]


@frozen
class RawPayload:
    """Bits of the packet: `base` is "ll", "nh", "th" or "ih"; `offset` and `length` are in bits."""

    base: str
    offset: int
    length: int


@frozen
class Socket:
    """Property of the socket that the packet belongs to: transparent, mark, wildcard, cgroupv2."""

    key: str


@frozen
class Rt:
    """Property of the packet's route: mtu, nexthop, classid."""

    key: str
    family: str | None = None


@frozen
class Option:
    """Field of an option, an extension header or an SCTP chunk; `field` None tests for existence.

    `kind` is "tcp option", "ip option", "dccp option", "sctp chunk" or "exthdr" (of IPv6). A field that nft does
    not name is "@OFFSET,LENGTH", in bits.
    """

    kind: str
    name: str
    field: str | None = None


@frozen
class OpaqueExpression:
    """Expression whose value the model does not evaluate: numgen, jhash, symhash, osf or ipsec.

    `text` is its nft syntax, `key` the expression that jhash reads. Its value changes nothing else.
    """

    text: str
    key: Expression | None = None


@frozen
class Bitwise:
    """Bit operation (`operand` & `and_mask`) | `or_bits`, the form in which nft lists it.

    FULL_MASK keeps all bits of any width.
    """

    operand: Expression
    and_mask: Value = FULL_MASK
    or_bits: Value = 0


@frozen
class Binary:
    """Further bit operations: `op` is ^, << or >>, or & and | of two expressions."""

    op: str
    left: Expression
    right: Expression | Value


@frozen
class Concat:
    """Concatenation of expressions: `meta skgid . ip daddr`."""

    parts: tuple[Expression, ...]


@frozen
class Lookup:
    """Map lookup of `key` in a map of the same table, or in the entries of an anonymous map."""

    key: Expression
    data: MapRef | frozenset[tuple[Element, Element]]


@frozen
class MapRef:
    """Named map of the same table."""

    name: str


@frozen
class UnknownExpression:
    """Unsupported expression; `raw` is its canonical JSON."""

    raw: str


Expression = (
    Meta
    | Ct
    | Payload
    | RawPayload
    | Fib
    | Socket
    | Rt
    | Option
    | OpaqueExpression
    | Bitwise
    | Binary
    | Concat
    | Lookup
    | UnknownExpression
)


@frozen
class SetRef:
    """Named set of the same table, on the right of a match."""

    name: str


@frozen
class AnonymousSet:
    """Anonymous set: values in the rule itself."""

    elements: frozenset[Element]


MatchRight = Value | SetRef | AnonymousSet | UnknownExpression
