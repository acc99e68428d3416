# SPDX-License-Identifier: BSD-2-Clause
"""Objects of an nft ruleset: tables, chains, rules, sets, maps, counters and flowtables."""

from __future__ import annotations

from attrs import evolve, field, frozen

from .expressions import Element
from .statements import Limit, Quota, Statement, Verdict

OriginPath = tuple[str, ...]  # path of a policy key


@frozen
class Rule:
    """Rule: statements in order. The kernel stores `comment`, but not `origin`."""

    statements: tuple[Statement, ...]
    comment: str | None = None
    origin: OriginPath = field(default=(), eq=False, repr=False)


@frozen
class Hook:
    """Hook of a base chain. `device` is for ingress and egress; `devices` if there is more than one."""

    type: str
    hook: str
    priority: int
    policy: str = "accept"
    device: str | None = None
    devices: frozenset[str] = frozenset()

    @property
    def needs_device(self) -> bool:
        """Return True for a hook at ingress or egress whose devices are not known."""
        return self.hook in ("ingress", "egress") and not (self.device or self.devices)

    def with_devices(self, devices: frozenset[str]) -> Hook:
        """Return the hook on these devices, in `device` if there is one."""
        if len(devices) == 1:
            return evolve(self, device=next(iter(devices)), devices=frozenset())
        return evolve(self, device=None, devices=devices)


@frozen
class Chain:
    """Chain; `hook` is None for a regular chain, which only jumps reach."""

    name: str
    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None
    origin: OriginPath = field(default=(), eq=False, repr=False)


@frozen
class Set:
    """Named set. `type` lists nft's data types, more than one for a concatenation.

    `timeout` (seconds) is the default timeout of its elements. `size` is the most elements that a new set
    can have; comparisons ignore it. `statements` are those that new
    elements get. `conditional_elements` have statements that can end a rule: a lookup that finds one
    evaluates them (nft_lookup_eval).
    """

    name: str
    type: tuple[str, ...]
    elements: frozenset[Element] = frozenset()
    flags: frozenset[str] = frozenset()
    origin: OriginPath = field(default=(), eq=False, repr=False)
    timeout: int | None = None
    statements: tuple[Statement, ...] = ()
    conditional_elements: frozenset[Element] = frozenset()
    size: int | None = field(default=None, eq=False)


@frozen
class Map:
    """Named map; `data` lists the data types of its values, ("verdict",) for a verdict map.

    The other fields are as of Set.
    """

    name: str
    type: tuple[str, ...]
    data: tuple[str, ...]
    elements: frozenset[tuple[Element, Element | Verdict]] = frozenset()
    flags: frozenset[str] = frozenset()
    timeout: int | None = None
    statements: tuple[Statement, ...] = ()
    conditional_elements: frozenset[Element] = frozenset()


@frozen
class Flowtable:
    """Flowtable: fast path for forwarded connections between devices."""

    name: str
    priority: int
    devices: frozenset[str]
    hook: str = "ingress"


@frozen
class NamedObject:
    """Named stateful object that rules refer to by ObjectRef: a limit, a quota or a ct helper."""

    name: str
    body: Limit | Quota | CtHelper


@frozen
class CtHelper:
    """Conntrack helper: tracks the related connections of a protocol."""

    type: str
    protocol: str
    family: str | None = None


@frozen
class NamedCounter:
    """Named counter; it keeps its values when rules change."""

    name: str
    origin: OriginPath = field(default=(), eq=False, repr=False)


@frozen
class Table:
    """Table. The order of chains, sets and counters has no meaning.

    `unknown` holds unsupported objects as JSON. `flags` are nft's; "unnamed" stands for a flag that
    the listing does not contain.
    """

    family: str
    name: str
    chains: tuple[Chain, ...] = ()
    sets: tuple[Set, ...] = ()
    counters: tuple[NamedCounter, ...] = ()
    unknown: tuple[str, ...] = ()
    maps: tuple[Map, ...] = ()
    flowtables: tuple[Flowtable, ...] = ()
    objects: tuple[NamedObject, ...] = ()
    flags: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[str, str]:
        """Return (family, name), which is unique in a ruleset."""
        return self.family, self.name

    @property
    def has_foreign_objects(self) -> bool:
        """Return True if the table has objects or flags that no compiled table has."""
        return bool(self.unknown or self.maps or self.flowtables or self.objects or self.flags)
