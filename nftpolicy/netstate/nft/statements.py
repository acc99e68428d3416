# SPDX-License-Identifier: BSD-2-Clause
"""Statements of rules. Import them from netstate.nft."""

from __future__ import annotations

from attrs import frozen

from .expressions import Element, Expression, MatchRight, Value


@frozen
class Match:
    """Match: the rule continues only if `left` `op` `right` is true.

    `op` is ==, !=, <, >, <=, >=, or a test of flags: "in": at least one of the flags on the right is
    set, "!": none is set, "&": all are set.
    """

    left: Expression
    right: MatchRight
    op: str = "=="


@frozen
class Unless:
    """Negation: the rule continues unless all of `matches` hold.

    So it continues too where a left side cannot be read, as an inverted xt owner does.
    """

    matches: tuple[Match, ...]


@frozen
class UnmodelledMatch:
    """Match with an unknown result, which changes nothing that a rule reads; `name` is for display.

    `needs_conntrack`: the kernel tracks connections because of it.
    """

    name: str
    needs_conntrack: bool = False


@frozen
class Verdict:
    """Verdict: accept, drop, return, continue, or jump/goto with the name of a chain as `target`."""

    kind: str
    target: str | None = None


@frozen
class VerdictMap:
    """Verdict of the entry of `key`; without an entry the next statement follows."""

    key: Expression
    entries: frozenset[tuple[Element, Verdict]]


@frozen
class VerdictMapRef:
    """Verdict of the entry of `key` in a named verdict map of the same table."""

    key: Expression
    name: str


@frozen
class Counter:
    """Anonymous counter; its values are not part of the state."""


@frozen
class Last:
    """Record of the time of the last packet; its value is not part of the state."""


@frozen
class CounterRef:
    """Named counter of the same table."""

    name: str


@frozen
class ObjectRef:
    """Named object of the same table; `kind` is "limit", "quota", "ct helper" and the like."""

    kind: str
    name: str


@frozen
class Mangle:
    """Assignment of `value` to `key` (meta mark, ct mark, a header field, ...)."""

    key: Expression
    value: Expression | Value


@frozen
class Dnat:
    """Destination NAT; ranges are "LOW-HIGH".

    `family` is "ip" or "ip6", or None where the table implies it.
    """

    family: str | None
    address: Value | Expression | None
    port: Value | Expression | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Snat:
    """Source NAT; fields as of Dnat."""

    family: str | None
    address: Value | Expression | None
    port: Value | Expression | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Masquerade:
    """Source NAT to an address of the output device."""

    port: Value | Expression | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Redirect:
    """Destination NAT to this machine."""

    port: Value | Expression | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Reject:
    """Drop with an error packet; `type` is "icmp", "icmpv6", "icmpx" or "tcp reset", `code` its name.

    With `type` "unreach" the packet gets an ICMP or ICMPv6 error, by its own family, with the number `code`.
    """

    type: str = "icmpx"
    code: Value | None = "port-unreachable"


@frozen
class Log:
    """Log statement; `options` are nft's, such as ("prefix", "dropped: ")."""

    options: tuple[tuple[str, Value], ...] = ()


@frozen
class Notrack:
    """Exemption of the packet from connection tracking."""


@frozen
class Queue:
    """Queue to a userspace program; `number` is a queue number, "LOW-HIGH" or an expression."""

    number: Value | Expression | None = None
    flags: frozenset[str] = frozenset()


@frozen
class Limit:
    """Match up to a rate, or (`over`) above it. Units are "packets" or units of bytes."""

    rate: int
    per: str
    burst: int = 5
    over: bool = False
    unit: str = "packets"
    burst_unit: str = "bytes"


@frozen
class Quota:
    """Match until `amount` is used up, or (`over`) after that."""

    amount: int
    unit: str = "bytes"
    over: bool = False


@frozen
class CtCount:
    """`ct count`: match up to `count` connections, or (`over`) above it."""

    count: int
    over: bool = False


@frozen
class SetUpdate:
    """Addition, update or deletion (`op`) of a set element with the value of `key` and `statements`.

    `timeout` is in seconds, or "NUMBERms". `is_meter`: the rule has made the set, which no other rule can name.
    `data` is what an element of a map gets.
    """

    op: str
    name: str
    key: Expression
    timeout: Value | None = None
    statements: tuple[Statement, ...] = ()
    is_meter: bool = False
    data: Expression | Element | None = None


@frozen
class FlowOffload:
    """`flow add`: offload of the connection to a flowtable."""

    flowtable: str


@frozen
class Dup:
    """Copy of the packet to an address, or (netdev) to a device."""

    address: Value | Expression | None
    device: Value | Expression | None = None


@frozen
class Fwd:
    """Forwarding of the packet to another device (netdev)."""

    device: Value | Expression
    family: str | None = None
    address: Value | Expression | None = None


@frozen
class Tproxy:
    """Redirection to a local socket (transparent proxy)."""

    family: str | None = None
    address: Value | Expression | None = None
    port: Value | Expression | None = None


@frozen
class NeutralTarget:
    """Target of iptables that neither decides about a packet nor writes what a rule or a lookup reads.

    `needs_conntrack` as of UnmodelledMatch.
    """

    name: str
    needs_conntrack: bool = False


@frozen
class Undecided:
    """Statement with an unknown result that writes no mark, no connection, and no header but TCP options.

    `results` are the possible ones: "continue", "break" (the rule does not match), "accept", "drop",
    "return". `needs_conntrack` None: not known. `text` describes the statement; with `is_syntax` it is
    nft's syntax. `key` is the expression that it looks up.
    """

    text: str
    results: frozenset[str] = frozenset({"continue", "break"})
    needs_conntrack: bool | None = False
    is_syntax: bool = False
    key: Expression | None = None


@frozen
class UnknownStatement:
    """Unsupported statement; `raw` is its canonical JSON."""

    raw: str


Statement = (
    Match
    | Unless
    | UnmodelledMatch
    | Verdict
    | VerdictMap
    | VerdictMapRef
    | Counter
    | CounterRef
    | Last
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
    | CtCount
    | SetUpdate
    | FlowOffload
    | Dup
    | Fwd
    | Tproxy
    | NeutralTarget
    | Undecided
    | UnknownStatement
)

ACCEPT, DROP = Verdict("accept"), Verdict("drop")
