# SPDX-License-Identifier: BSD-2-Clause
"""A state made ready for questions about all of its packets, family by family, and about single ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from ..model.box import Box
from ..model.chains import NAT, Ruleset
from ..model.passage import Passage, Place
from ..model.space import Space
from ..model.survey import survey, which_mark
from ..model.walk import Model
from ..netstate.nft import (
    Chain,
    Dnat,
    Mangle,
    Masquerade,
    Queue,
    Redirect,
    Snat,
    Table,
    Tproxy,
    UnknownStatement,
)
from ..netstate.state import NetState

_WAY = {"ingress": -1, "prerouting": 0, "input": 1, "forward": 1, "output": 1, "postrouting": 2, "egress": 3}
_TRACKING = -200
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_REWRITING = frozenset({Mangle, Dnat, Snat, Masquerade, Redirect, Tproxy, Queue, UnknownStatement})
_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "netdev": (4, 6, 0)}


class Ground:
    """Everything about `state` that the lemmas share. `devices` and `masks` are those of the claim."""

    def __init__(self, state: NetState, devices: Iterable[str] = (), masks: Iterable[int] = ()) -> None:
        self.state = state
        self.ruleset = Ruleset(state.tables)
        self.survey = survey(self.ruleset.tables)
        self._devices, self._masks = tuple(devices), tuple(masks)
        self._passages: dict[int, Passage] = {}
        self._rewriters: dict[int, list[Place]] = {}

    @cached_property
    def model(self) -> Model:
        """The walk of single packets."""
        return Model(self.state, self.ruleset)

    def passage(self, family: int) -> Passage:
        """All packets of a family (4, 6, or 0 for other frames)."""
        if family not in self._passages:
            space = Space(family, self.survey, self._devices, self._masks)
            self._passages[family] = Passage(space, self.ruleset.tables, self.survey)
        return self._passages[family]

    def space(self, family: int) -> Space:
        """The fields of the packets of a family."""
        return self.passage(family).space

    def at(self, family: int, hook: str, device: str | None = None) -> list[Place]:
        """The base chains that every packet passes at a hook, the likeliest to drop first: order means nothing here.

        Chains of type nat are none of them: only the first packet of a tracked flow meets those.
        """
        return sorted(filter(_surely, self.ruleset.hooked(family, hook, device)), key=_likely)

    def translating(self, family: int, hook: str) -> list[Place]:
        """The chains of type nat at a hook."""
        return [place for place in self.ruleset.hooked(family, hook) if place[1].hook and place[1].hook.type == "nat"]

    def every(self, family: int) -> list[Place]:
        """All base chains that packets of the family can meet anywhere."""
        return [
            (table, chain)
            for table in self.ruleset.tables
            if family in _FAMILIES.get(table.family, ()) and "dormant" not in table.flags
            for chain in table.chains
            if chain.hook is not None
        ]

    def hooked_devices(self) -> set[str]:
        """The devices that have a chain at netdev egress."""
        return {
            device
            for table in self.ruleset.tables
            for chain in table.chains
            if chain.hook is not None and chain.hook.hook == "egress" and "dormant" not in table.flags
            for device in (*chain.hook.devices, *((chain.hook.device,) if chain.hook.device else ()))
        }

    def rewritten_after(self, family: int, place: Place) -> bool:
        """Whether a chain behind this one may change the header of what it lets through."""
        return any(self.is_behind(other, place) and other[1] is not place[1] for other in self._rewriting(family))

    @staticmethod
    def is_behind(one: Place, other: Place) -> bool:
        """Whether a packet may meet the one chain at or behind the other."""
        return _order(other) <= _order(one)

    def _rewriting(self, family: int) -> list[Place]:
        if family not in self._rewriters:
            self._rewriters[family] = [place for place in self.every(family) if place[0].key in self._changes[0]]
        return self._rewriters[family]

    def marks_written(self, table: Table) -> Iterable[Mangle]:
        """Each different write of a mark in the rules of a table, once."""
        return self._changes[1][table.key]

    @cached_property
    def _changes(self) -> tuple[set[tuple[str, str]], dict[tuple[str, str], dict[Mangle, None]]]:
        """The tables that may rewrite headers, and what each writes into marks."""
        rewriting: set[tuple[str, str]] = set()
        marks: dict[tuple[str, str], dict[Mangle, None]] = {}
        for table in self.ruleset.tables:
            found = marks.setdefault(table.key, {})
            for chain in table.chains:
                for rule in chain.rules:
                    for one in rule.statements:
                        if type(one) is Mangle and which_mark(one.key) is not None:
                            found[one] = None
                        elif type(one) in _REWRITING:
                            rewriting.add(table.key)
        return rewriting, marks

    @cached_property
    def translates(self) -> bool:
        """Whether any chain may translate addresses, so that they differ from hook to hook."""
        return any(chain.hook is not None and chain.hook.type == "nat" for _, chain in self._base())

    def _base(self) -> Iterable[tuple[Table, Chain]]:
        return ((table, chain) for table in self.ruleset.tables for chain in table.chains)


def _surely(place: Place) -> bool:
    """Whether the chain is really there, and for these packets, as far as a listing tells."""
    table, chain = place
    hook = chain.hook
    if hook is None or hook.type == "nat" or "unnamed" in table.flags:
        return False
    return hook.hook not in ("ingress", "egress") or bool(hook.device or hook.devices)


def is_early(place: Place) -> bool:
    """Whether a chain may be asked before connections are tracked (NF_IP_PRI_CONNTRACK)."""
    hook = place[1].hook
    return hook is not None and hook.hook in ("output", "prerouting") and hook.priority <= _TRACKING


def _order(place: Place) -> tuple[int, int]:
    """Where the chain is on the way out; NAT has a place of its own."""
    hook = place[1].hook
    assert hook is not None
    return _WAY.get(hook.hook, 0), NAT.get(hook.hook, 0) if hook.type == "nat" else hook.priority


def _likely(place: Place) -> tuple[bool, int]:
    hook = place[1].hook
    assert hook is not None
    return hook.policy != "drop", -hook.priority


def understood(box: Box, space: Space) -> tuple[str, ...]:
    """What a box rests on that was not understood; nothing if it is a box of packets alone."""
    return tuple(space.doubts[name] for name in box if name in space.doubts)


def names_of(places: Sequence[Place]) -> str:
    """Base chains in words."""
    return ", ".join(f"{table.family} {table.name} {chain.name}" for table, chain in places)
