# SPDX-License-Identifier: BSD-2-Clause
"""Whether the matches of rules hold for a packet, and what its maps say. Made once per rule, asked per packet."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from attrs import field, frozen, mutable

from ..netstate import nft, text
from .decision import Decision, Untold
from .index import Index
from .reading import BREAKS, UNKNOWN, Found, Nothing, Place, reader, status_known
from .unknown import Doubts
from .view import View
from .words import Interval, kind, kinds, parse

LOOPBACK = {4: 0x7F000001, 6: 1}


@mutable(eq=False)
class Run:
    """One packet in base chains: what is asked, and, for a `log`, what the rule at hand has done."""

    view: View
    doubts: Doubts
    log: list[Decision] | None
    effects: list[str] = field(factory=Untold)


Holds = Callable[[Run], bool]
Values = tuple[int, ...]
Keys = Callable[[View], Values | Nothing]

_FALSE: Holds = lambda run: False  # noqa: E731
_ORDER = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


@frozen
class About:
    """What a doubt is about, put into words only if there is one."""

    statement: nft.Statement
    table: nft.Table

    def __str__(self) -> str:
        return f"{text.shown(self.statement)} (table {self.table.family} {self.table.name})"


@frozen
class Tables:
    """Where named sets and maps of one table are found, indexed when first asked for."""

    table: nft.Table
    changing: frozenset[str]  # names of the sets and maps that packets or time change
    growing: frozenset[str]  # those that packets add to
    _made: dict[tuple[str, str], Index | None] = field(factory=dict, eq=False)

    @classmethod
    def of(cls, table: nft.Table) -> Tables:
        growing = frozenset(
            one.name
            for chain in table.chains
            for rule in chain.rules
            for one in rule.statements
            if isinstance(one, nft.SetUpdate)
        ) | {one.name for one in (*table.sets, *table.maps) if "dynamic" in one.flags}
        passing = {one.name for one in (*table.sets, *table.maps) if "timeout" in one.flags or one.timeout}
        return cls(table, growing | passing, growing)

    def named(self, name: str, key: nft.Expression) -> Index | None:
        """The set or map; None if the table has none that is understood."""
        place = (name, type(key).__name__)
        if place not in self._made:
            self._made[place] = self._make(name, key)
        return self._made[place]

    def _make(self, name: str, key: nft.Expression) -> Index | None:
        for one in self.table.sets:
            if one.name == name:
                return Index(kinds(key), ((element, True) for element in one.elements))
        for one in self.table.maps:
            if one.name == name:
                return Index(kinds(key), one.elements)
        return None


def keys(expression: nft.Expression, place: Place) -> Keys:
    """All that a set is asked for, in order."""
    if not isinstance(expression, nft.Concat):
        single = reader(expression, place)

        def read_one(view: View) -> Values | Nothing:
            value = single(view)
            return value if isinstance(value, Nothing) else (value,)

        return read_one
    reads = [reader(part, place) for part in expression.parts]

    def read(view: View) -> Values | Nothing:
        found, is_known = [], True
        for one in reads:
            value = one(view)
            if value is BREAKS:  # where one load fails the rule ends, whatever the others would have found
                return BREAKS
            is_known = is_known and value is not UNKNOWN
            found.append(value)
        return tuple(found) if is_known else UNKNOWN  # type: ignore[arg-type]

    return read


def known(expression: nft.Expression, place: Place, view: View) -> list[int | None]:
    """What a set is asked for by one packet, with None for what is not known."""
    parts = expression.parts if isinstance(expression, nft.Concat) else (expression,)
    found = [reader(part, place)(view) for part in parts]
    return [None if isinstance(one, Nothing) else one for one in found]


def match(item: nft.Match, tables: Tables, place: Place) -> Holds:
    """Whether the rule goes on."""
    about = About(item, tables.table)
    match item.right:
        case nft.SetRef(name):
            index = tables.named(name, item.left)
            return _in_set(item, index, place, about, tables, name)
        case nft.AnonymousSet(elements):
            index = Index(kinds(item.left), ((one, True) for one in elements))
            return _in_set(item, index, place, about, tables, None)
        case nft.UnknownExpression():
            return _asked(reader(item.left, place), about)
    if isinstance(item.left, nft.Socket):
        return _socket(item, about)
    if isinstance(item.left, nft.Fib | nft.Option) and item.right in ("exists", "missing"):
        return _is_there(item, reader(item.left, place), about)
    wanted = parse(kind(item.left), item.right)
    read = reader(item.left, place)
    if wanted is None:
        return _asked(read, about)
    if item.left == nft.Ct("status"):
        return _status(item, wanted, read, about)
    return _is(read, wanted, about) if item.op == "==" else _compared(read, _test(item.op, wanted), about)


def _asked(read: Callable[[View], Found], about: About) -> Holds:
    return lambda run: read(run.view) is not BREAKS and run.doubts.ask(str(about))


def _is(read: Callable[[View], Found], wanted: Interval, about: About) -> Holds:
    """What most matches are: one value, or one range."""
    low, high = wanted

    def holds(run: Run) -> bool:
        value = read(run.view)
        if isinstance(value, Nothing):
            return value is not BREAKS and run.doubts.ask(str(about))
        return low <= value <= high

    return holds


def _compared(read: Callable[[View], Found], test: Callable[[int], bool] | None, about: About) -> Holds:
    def holds(run: Run) -> bool:
        value = read(run.view)
        if isinstance(value, Nothing) or test is None:
            return value is not BREAKS and run.doubts.ask(str(about))
        return test(value)

    return holds


def _test(op: str, wanted: Interval) -> Callable[[int], bool] | None:
    low, high = wanted
    match op:
        case "!=":
            return lambda value: not low <= value <= high
        case "in":
            return lambda value: bool(value & low)
        case "!":
            return lambda value: not value & low
        case "&":
            return lambda value: value & low == low
    if op in _ORDER and low == high:
        compare = _ORDER[op]
        return lambda value: compare(value, low)
    return None


def _in_set(
    item: nft.Match, index: Index | None, place: Place, about: About, tables: Tables, name: str | None
) -> Holds:
    wanted = item.op != "!="
    read = keys(item.left, place)
    changing, growing = name in tables.changing, name in tables.growing
    if index is None or item.op not in ("==", "!=", "in"):
        return lambda run: read(run.view) is not BREAKS and run.doubts.ask(str(about))

    def holds(run: Run) -> bool:
        values = read(run.view)
        if isinstance(values, Nothing):
            if values is BREAKS:
                return False
            if index.whole and not growing and not index.may_find(known(item.left, place, run.view)):
                return not wanted  # whatever the rest is
            return run.doubts.ask(str(about))
        found = index.find(values) is not None
        if changing if found else growing or not index.whole:
            return run.doubts.ask(str(about))
        return found == wanted

    return holds


def _is_there(item: nft.Match, read: Callable[[View], Found], about: About) -> Holds:
    def holds(run: Run) -> bool:
        value = read(run.view)
        if isinstance(value, Nothing):
            return value is not BREAKS and run.doubts.ask(str(about))
        return bool(value) == (item.right == "exists")

    return holds if item.op == "==" else _asked(read, about)


def _status(item: nft.Match, wanted: Interval, read: Callable[[View], Found], about: About) -> Holds:
    """`ct status`, of which a walk knows whether addresses are translated, and no more."""
    test = _test(item.op, wanted)

    def holds(run: Run) -> bool:
        if read(run.view) is BREAKS:
            return False
        is_known = item.op in ("in", "!", "&") and not wanted[0] & ~status_known()
        if not is_known or test is None:
            return run.doubts.ask(str(about))
        bits = parse(kind(item.left), ",".join(sorted(run.view.status)))
        return test(bits[0] if bits else 0)

    return holds


def _socket(item: nft.Match, about: About) -> Holds:
    """The cgroup of the socket that sends; all else about sockets is a question."""

    def holds(run: Run) -> bool:
        group = run.view.cgroup
        wanted = item.right
        if item.left != nft.Socket("cgroupv2") or not isinstance(wanted, str) or wanted.isdigit() or group is None:
            return run.doubts.ask(str(about))
        # nft lists as many components of the path as the level that the rule asks for.
        inside = f"{group.strip('/')}/".startswith(f"{wanted.strip('/')}/")
        return inside == (item.op == "==")

    return holds


# --- maps ------------------------------------------------------------------------------


def lookup(key: nft.Expression, data: Any, tables: Tables, place: Place) -> Callable[[View], Any]:
    """What a map holds for a packet: the data, BREAKS if there is none, UNKNOWN if that can't be told."""
    if isinstance(data, frozenset):
        index, name = Index(kinds(key), data), None
    else:
        name = data
        index = tables.named(data, key)
    read = keys(key, place)
    changing, growing = name in tables.changing, name in tables.growing

    def find(view: View) -> Any:
        values = read(view)
        if isinstance(values, Nothing):
            return values
        if index is None:
            return UNKNOWN
        found = index.find(values)
        if found is None:
            return UNKNOWN if growing or not index.whole else BREAKS
        return UNKNOWN if changing else found

    return find
