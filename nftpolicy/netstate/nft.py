# SPDX-License-Identifier: BSD-2-Clause
"""Values for an nft ruleset: tables, chains, sets, counters, rules and what rules are made of.

The classes are in the form in which the kernel lists them back (nft 1.0.6), so that a
desired table equals the table that is read from the kernel after it was loaded.
`origin` is the path of the policy key that an object comes from; it never takes part in
a comparison.
"""

from __future__ import annotations

from attrs import field, frozen

from .expressions import (
    FULL,
    PROTOCOLS,
    AnonymousSet,
    Binary,
    Bitwise,
    Concat,
    Ct,
    Element,
    Expression,
    Fib,
    Lookup,
    MapRef,
    Meta,
    Option,
    Payload,
    RawPayload,
    Right,
    Rt,
    SetRef,
    Socket,
    UnknownExpression,
    Value,
)
from .statements import (
    ACCEPT,
    DROP,
    Connections,
    Counter,
    CounterRef,
    Dnat,
    Dup,
    FlowAdd,
    Fwd,
    Limit,
    Log,
    Mangle,
    Masquerade,
    Match,
    Notrack,
    ObjectRef,
    Queue,
    Quota,
    Redirect,
    Reject,
    SetUpdate,
    Snat,
    Statement,
    Tproxy,
    UnknownStatement,
    Verdict,
    VerdictMap,
    VerdictMapRef,
)

__all__ = [
    "ACCEPT",
    "DROP",
    "FULL",
    "PROTOCOLS",
    "AnonymousSet",
    "Binary",
    "Bitwise",
    "Chain",
    "Concat",
    "Connections",
    "Counter",
    "CounterRef",
    "Ct",
    "CtHelper",
    "Dnat",
    "Dup",
    "Element",
    "Expression",
    "Fib",
    "FlowAdd",
    "Flowtable",
    "Fwd",
    "Hook",
    "Limit",
    "Log",
    "Lookup",
    "Mangle",
    "Map",
    "MapRef",
    "Masquerade",
    "Match",
    "Meta",
    "Named",
    "NamedCounter",
    "Notrack",
    "ObjectRef",
    "Option",
    "Origin",
    "Payload",
    "Queue",
    "Quota",
    "RawPayload",
    "Redirect",
    "Reject",
    "Right",
    "Rt",
    "Rule",
    "Set",
    "SetRef",
    "SetUpdate",
    "Snat",
    "Socket",
    "Statement",
    "Table",
    "Tproxy",
    "UnknownExpression",
    "UnknownStatement",
    "Value",
    "Verdict",
    "VerdictMap",
    "VerdictMapRef",
]

Origin = tuple[str, ...]


@frozen
class Rule:
    """Statements in order. `comment` is kept by the kernel, `origin` is not."""

    statements: tuple[Statement, ...]
    comment: str | None = None
    origin: Origin = field(default=(), eq=False, repr=False)


@frozen
class Hook:
    """Where a base chain sits. `device` is for ingress and egress, `devices` for a chain with more than one."""

    type: str
    hook: str
    priority: int
    policy: str = "accept"
    device: str | None = None
    devices: frozenset[str] = frozenset()


@frozen
class Chain:
    """A chain; `hook` is None for one that is only jumped to."""

    name: str
    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None
    origin: Origin = field(default=(), eq=False, repr=False)


@frozen
class Set:
    """A named set. `type` lists nft's data types, more than one for a concatenation.

    `timeout` (seconds) is what elements get that come without one.
    """

    name: str
    type: tuple[str, ...]
    elements: frozenset[Element] = frozenset()
    flags: frozenset[str] = frozenset()
    origin: Origin = field(default=(), eq=False, repr=False)
    timeout: int | None = None


@frozen
class Map:
    """A named map; `data` is the type of what it holds, ("verdict",) for a verdict map."""

    name: str
    type: tuple[str, ...]
    data: tuple[str, ...]
    elements: frozenset[tuple[Element, Element | Verdict]] = frozenset()
    flags: frozenset[str] = frozenset()
    timeout: int | None = None


@frozen
class Flowtable:
    """A fast path for forwarded connections between devices."""

    name: str
    priority: int
    devices: frozenset[str]
    hook: str = "ingress"


@frozen
class Named:
    """An object that rules refer to by ObjectRef: a Limit, a Quota, or a CtHelper."""

    name: str
    body: Limit | Quota | CtHelper


@frozen
class CtHelper:
    """What follows a protocol's extra connections."""

    type: str
    protocol: str
    family: str | None = None


@frozen
class NamedCounter:
    """A counter object; it keeps its numbers while rules around it change."""

    name: str
    origin: Origin = field(default=(), eq=False, repr=False)


@frozen
class Table:
    """A table. The order of chains, sets and counters has no meaning.

    `flags` are those of nft; "unnamed" is one that the listing could not tell (see json_in.completed).
    """

    family: str
    name: str
    chains: tuple[Chain, ...] = ()
    sets: tuple[Set, ...] = ()
    counters: tuple[NamedCounter, ...] = ()
    unknown: tuple[str, ...] = ()
    maps: tuple[Map, ...] = ()
    flowtables: tuple[Flowtable, ...] = ()
    objects: tuple[Named, ...] = ()
    flags: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[str, str]:
        """Family and name, which together are unique in a ruleset."""
        return self.family, self.name

    @property
    def is_foreign(self) -> bool:
        """Whether there is something in it that no compiled table has."""
        return bool(self.unknown or self.maps or self.flowtables or self.objects or self.flags)
