# SPDX-License-Identifier: BSD-2-Clause
"""What a rule reads, and what it compares that with. To be imported from nft."""

from __future__ import annotations

from attrs import frozen

FULL = 0xFFFFFFFF

# IP protocols by number (RFC 5237's registry). nft names them only where /etc/protocols exists.
PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 58: "ipv6-icmp", 132: "sctp"}
# An element is one value or a concatenation of values. Prefixes are "ADDRESS/LENGTH",
# intervals "LOW-HIGH", combined flags "ack,syn" (sorted), interface names may end in "*", and "*"
# alone is the element that takes what no other one takes. Whether a thing is there at all is
# "exists" or "missing".
Value = int | str
Element = Value | tuple[Value, ...]


# --- expressions: what a rule reads ----------------------------------------------------


@frozen
class Meta:
    """A property of the packet or its socket: mark, oifname, iifname, skuid, skgid, l4proto, ..."""

    key: str


@frozen
class Ct:
    """A property of the packet's connection; `direction` is "original", "reply" or None."""

    key: str
    direction: str | None = None


@frozen
class Payload:
    """A header field, by nft's names: Payload("ip", "daddr"), Payload("th", "dport")."""

    protocol: str
    name: str


@frozen
class Fib:
    """What the routing tables say: Fib("type", ("daddr", "iif")) is the type of the destination on the device."""

    result: str
    keys: tuple[str, ...]


@frozen
class RawPayload:
    """Bits of the packet by their place: `base` is "ll", "nh", "th" or "ih", the rest is in bits."""

    base: str
    offset: int
    length: int


@frozen
class Socket:
    """A property of the socket that the packet belongs to: transparent, mark, wildcard, cgroupv2."""

    key: str


@frozen
class Rt:
    """A property of the packet's route: mtu, nexthop, classid."""

    key: str
    family: str | None = None


@frozen
class Option:
    """A field of an optional header; `kind` is "tcp option", "ip option" or "exthdr". No `field`: is it there?"""

    kind: str
    name: str
    field: str | None = None


@frozen
class Bitwise:
    """(`of` & `keep`) | `put`, the bit arithmetic that nft lists in one shape. FULL keeps all bits of any width."""

    of: Expression
    keep: Value = FULL
    put: Value = 0


@frozen
class Binary:
    """What bit arithmetic there is besides: `op` is ^, << or >>, or & and | between two expressions."""

    op: str
    left: Expression
    right: Expression | Value


@frozen
class Concat:
    """Several expressions looked up together: `meta skgid . ip daddr`."""

    parts: tuple[Expression, ...]


@frozen
class Lookup:
    """What a map holds for `key`: a map of the same table by name, or entries written in the rule."""

    key: Expression
    data: MapRef | frozenset[tuple[Element, Element]]


@frozen
class MapRef:
    """The named map of the same table."""

    name: str


@frozen
class UnknownExpression:
    """An expression that this version does not model; `raw` is its canonical JSON."""

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
    | Bitwise
    | Binary
    | Concat
    | Lookup
    | UnknownExpression
)


@frozen
class SetRef:
    """The named set of the same table on the right of a match."""

    name: str


@frozen
class AnonymousSet:
    """Values written in the rule itself."""

    elements: frozenset[Element]


Right = Value | SetRef | AnonymousSet | UnknownExpression
