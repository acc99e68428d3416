# SPDX-License-Identifier: BSD-2-Clause
"""What a rule does. To be imported from nft."""

from __future__ import annotations

from attrs import frozen

from .expressions import Element, Expression, Right, Value


@frozen
class Match:
    """Go on with the rule only if `left` `op` `right`.

    `op` is ==, !=, <, >, <=, >=, or one of flags: "in": one of those on the right is set, "!": none
    is, "&": all are.
    """

    left: Expression
    right: Right
    op: str = "=="


@frozen
class Verdict:
    """accept, drop, return, continue, or jump/goto with the name of a chain as `target`."""

    kind: str
    target: str | None = None


@frozen
class VerdictMap:
    """Look `key` up among `entries` and follow the verdict found; no entry: next statement."""

    key: Expression
    entries: frozenset[tuple[Element, Verdict]]


@frozen
class VerdictMapRef:
    """Look `key` up in the named verdict map of the same table."""

    key: Expression
    name: str


@frozen
class Counter:
    """A counter of the rule's own; its numbers are not part of the state."""


@frozen
class CounterRef:
    """The named counter of the same table."""

    name: str


@frozen
class ObjectRef:
    """Apply the named object of the same table; `kind` is "limit", "quota", "ct helper" and the like."""

    kind: str
    name: str


@frozen
class Mangle:
    """Set `key` (meta mark, ct mark, a header field, ...) to `value`."""

    key: Expression
    value: Expression | Value


@frozen
class Dnat:
    """Change the destination; `family` is "ip", "ip6" or, where the table says it, None. Ranges are "LOW-HIGH"."""

    family: str | None
    address: Value | Expression | None
    port: Value | Expression | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Snat:
    """Change the source, as Dnat does the destination."""

    family: str | None
    address: Value | Expression | None
    port: Value | Expression | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Masquerade:
    """Change the source to an address of the device."""

    port: Value | Expression | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Redirect:
    """Change the destination to this machine."""

    port: Value | Expression | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Reject:
    """Drop and say so; `type` is "icmp", "icmpv6", "icmpx" or "tcp reset", `code` a code's name."""

    type: str = "icmpx"
    code: Value | None = "port-unreachable"


@frozen
class Log:
    """Log the packet; `options` are those of nft, such as ("prefix", "dropped: ")."""

    options: tuple[tuple[str, Value], ...] = ()


@frozen
class Notrack:
    """No connection tracking for this packet."""


@frozen
class Queue:
    """Let a program decide; `number` is one or "LOW-HIGH"."""

    number: Value | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Limit:
    """Hold up to a rate, or (`over`) above it. Units are "packets" or of bytes."""

    rate: int
    per: str
    burst: int = 5
    over: bool = False
    unit: str = "packets"
    burst_unit: str = "bytes"


@frozen
class Quota:
    """Hold until so much has passed, or (`over`) after that."""

    amount: int
    unit: str = "bytes"
    over: bool = False


@frozen
class Connections:
    """`ct count`: hold while there are that few connections, or (`over`) more."""

    count: int
    over: bool = False


@frozen
class SetUpdate:
    """Add, update or delete an element of a set, made of what `key` reads. `statements` go with the element."""

    op: str
    name: str
    key: Expression
    timeout: int | None = None
    statements: tuple[Statement, ...] = ()


@frozen
class FlowAdd:
    """Let a flowtable take over the connection."""

    flowtable: str


@frozen
class Dup:
    """Send a copy to an address, or (netdev) by a device."""

    address: Value | None
    device: str | None = None


@frozen
class Fwd:
    """Send by another device instead."""

    device: str
    family: str | None = None
    address: Value | None = None


@frozen
class Tproxy:
    """Hand over to a local socket."""

    family: str | None = None
    address: str | None = None
    port: Value | None = None


@frozen
class UnknownStatement:
    """A statement that this version does not model; `raw` is its canonical JSON."""

    raw: str


Statement = (
    Match
    | Verdict
    | VerdictMap
    | VerdictMapRef
    | Counter
    | CounterRef
    | ObjectRef
    | Mangle
    | Dnat
    | Snat
    | Masquerade
    | Redirect
    | Reject
    | Log
    | Notrack
    | Queue
    | Limit
    | Quota
    | Connections
    | SetUpdate
    | FlowAdd
    | Dup
    | Fwd
    | Tproxy
    | UnknownStatement
)

ACCEPT, DROP = Verdict("accept"), Verdict("drop")
