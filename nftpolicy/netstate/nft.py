# SPDX-License-Identifier: BSD-2-Clause
"""Values for an nft ruleset: tables, chains, sets, counters, rules and what rules are made of.

The classes are in the form in which the kernel lists them back (nft 1.0.6), so that a
desired table equals the table that is read from the kernel after it was loaded.
`origin` is the path of the policy key that an object comes from; it never takes part in
a comparison.
"""

from __future__ import annotations

from attrs import field, frozen

FULL = 0xFFFFFFFF

Origin = tuple[str, ...]
# IP protocols by number (RFC 5237's registry). nft names them only where /etc/protocols exists.
PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 58: "ipv6-icmp", 132: "sctp"}
# An element is one value or a concatenation of values. Prefixes are "ADDRESS/LENGTH",
# intervals of numbers "LOW-HIGH", interface names may end in "*".
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
class Bitwise:
    """(`of` & `keep`) | `put` on 32 bits, the only bit arithmetic that nft lists in one shape."""

    of: Expression
    keep: int = FULL
    put: int = 0


@frozen
class Concat:
    """Several expressions looked up together: `meta skgid . ip daddr`."""

    parts: tuple[Expression, ...]


@frozen
class UnknownExpression:
    """An expression that this version does not model; `raw` is its canonical JSON."""

    raw: str


Expression = Meta | Ct | Payload | Fib | Bitwise | Concat | UnknownExpression


@frozen
class SetRef:
    """The named set of the same table on the right of a match."""

    name: str


@frozen
class AnonymousSet:
    """Values written in the rule itself."""

    elements: frozenset[Element]


Right = Value | SetRef | AnonymousSet | UnknownExpression


# --- statements: what a rule does ------------------------------------------------------


@frozen
class Match:
    """Go on with the rule only if `left` `op` `right`.

    `op` is ==, !=, <, >, <=, >=, in, or "&": all the flags named on the right are set.
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
class Counter:
    """A counter of the rule's own; its numbers are not part of the state."""


@frozen
class CounterRef:
    """The named counter of the same table."""

    name: str


@frozen
class Mangle:
    """Set `key` (meta mark, ct mark) to `value`."""

    key: Expression
    value: Expression | int


@frozen
class Dnat:
    """Change the destination; `family` is "ip" or "ip6"."""

    family: str
    address: str
    port: int


@frozen
class UnknownStatement:
    """A statement that this version does not model; `raw` is its canonical JSON."""

    raw: str


Statement = Match | Verdict | VerdictMap | Counter | CounterRef | Mangle | Dnat | UnknownStatement

ACCEPT, DROP = Verdict("accept"), Verdict("drop")


# --- objects of a table ----------------------------------------------------------------


@frozen
class Rule:
    """Statements in order. `comment` is kept by the kernel, `origin` is not."""

    statements: tuple[Statement, ...]
    comment: str | None = None
    origin: Origin = field(default=(), eq=False, repr=False)


@frozen
class Hook:
    """Where a base chain sits. `device` is for the netdev family."""

    type: str
    hook: str
    priority: int
    policy: str = "accept"
    device: str | None = None


@frozen
class Chain:
    """A chain; `hook` is None for one that is only jumped to."""

    name: str
    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None
    origin: Origin = field(default=(), eq=False, repr=False)


@frozen
class Set:
    """A named set. `type` lists nft's data types, more than one for a concatenation."""

    name: str
    type: tuple[str, ...]
    elements: frozenset[Element] = frozenset()
    flags: frozenset[str] = frozenset()
    origin: Origin = field(default=(), eq=False, repr=False)


@frozen
class NamedCounter:
    """A counter object; it keeps its numbers while rules around it change."""

    name: str
    origin: Origin = field(default=(), eq=False, repr=False)


@frozen
class Table:
    """A table. The order of chains, sets and counters has no meaning."""

    family: str
    name: str
    chains: tuple[Chain, ...] = ()
    sets: tuple[Set, ...] = ()
    counters: tuple[NamedCounter, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Family and name, which together are unique in a ruleset."""
        return self.family, self.name
