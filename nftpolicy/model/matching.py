# SPDX-License-Identifier: BSD-2-Clause
"""Evaluate the matches and maps of rules for a packet.

Compiled once per rule, evaluated per packet.
"""

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
    """The evaluation of one packet in base chains.

    With a `log`, `effects` are those of the current rule.
    """

    view: View
    doubts: Doubts
    log: list[Decision] | None
    effects: list[str] = field(factory=Untold)


Predicate = Callable[[Run], bool]
KeyValues = tuple[int, ...]
KeyReader = Callable[[View], KeyValues | Nothing]

_ORDER = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


@frozen
class About:
    """Description of a statement, formatted only when needed."""

    statement: nft.Statement
    table: nft.Table

    def __str__(self) -> str:
        return f"{text.shown(self.statement)} (table {self.table.family} {self.table.name})"


@frozen
class Tables:
    """Named sets and maps of one table, indexed at their first use."""

    table: nft.Table
    changing: frozenset[str]  # names of the sets and maps that packets or timeouts change
    growing: frozenset[str]  # names of the ones to which packets add elements
    _indices: dict[tuple[str, str], Index | None] = field(factory=dict, eq=False)

    @classmethod
    def of(cls, table: nft.Table) -> Tables:
        """Return the sets and maps of a table."""
        updated = frozenset(
            statement.name
            for chain in table.chains
            for rule in chain.rules
            for statement in rule.statements
            if isinstance(statement, nft.SetUpdate)
        )
        containers: tuple[nft.Set | nft.Map, ...] = (*table.sets, *table.maps)
        growing = updated | {each.name for each in containers if "dynamic" in each.flags}
        expiring = {each.name for each in containers if "timeout" in each.flags or each.timeout}
        return cls(table, growing | expiring, growing)

    def named(self, name: str, key: nft.Expression) -> Index | None:
        """Return the set or map, indexed for `key`; None if the table does not have it."""
        cache_key = (name, type(key).__name__)
        if cache_key not in self._indices:
            self._indices[cache_key] = self._index(name, key)
        return self._indices[cache_key]

    def _index(self, name: str, key: nft.Expression) -> Index | None:
        for named_set in self.table.sets:
            if named_set.name == name:
                return Index(kinds(key), ((element, True) for element in named_set.elements))
        for named_map in self.table.maps:
            if named_map.name == name:
                return Index(kinds(key), named_map.elements)
        return None


def keys(expression: nft.Expression, point: Place) -> KeyReader:
    """Return a reader of all parts of a set key, in order."""
    if not isinstance(expression, nft.Concat):
        single = reader(expression, point)

        def read_one(view: View) -> KeyValues | Nothing:
            value = single(view)
            return value if isinstance(value, Nothing) else (value,)

        return read_one
    reads = [reader(part, point) for part in expression.parts]

    def read(view: View) -> KeyValues | Nothing:
        values: list[int] = []
        is_known = True
        for read_part in reads:
            value = read_part(view)
            if value is BREAKS:  # the rule ends at the first part that cannot be loaded
                return BREAKS
            if isinstance(value, Nothing):
                is_known = False
            else:
                values.append(value)
        return tuple(values) if is_known else UNKNOWN

    return read


def known(expression: nft.Expression, point: Place, view: View) -> list[int | None]:
    """Return the parts of a set key for one packet, with None for a part that is not known."""
    parts = expression.parts if isinstance(expression, nft.Concat) else (expression,)
    values = [reader(part, point)(view) for part in parts]
    return [None if isinstance(value, Nothing) else value for value in values]


def match(item: nft.Match, tables: Tables, point: Place) -> Predicate:
    """Return a predicate: True if the rule continues after the match."""
    about = About(item, tables.table)
    match item.right:
        case nft.SetRef(name):
            index = tables.named(name, item.left)
            return _in_set(item, index, point, about, tables, name)
        case nft.AnonymousSet(elements):
            index = Index(kinds(item.left), ((element, True) for element in elements))
            return _in_set(item, index, point, about, tables, None)
        case nft.UnknownExpression():
            return _undecided(reader(item.left, point), about)
    if isinstance(item.left, nft.Socket):
        return _socket(item, about)
    if isinstance(item.left, nft.Fib | nft.Option) and item.right in ("exists", "missing"):
        return _exists(item, reader(item.left, point), about)
    wanted = parse(kind(item.left), item.right)
    read = reader(item.left, point)
    if wanted is None:
        return _undecided(read, about)
    if item.left == nft.Ct("status"):
        return _status(item, wanted, read, about)
    if item.op == "==":
        return _is_in_interval(read, wanted, about)
    return _compare(read, _test(item.op, wanted), about)


def _undecided(read: Callable[[View], Found], about: About) -> Predicate:
    """Return a predicate that branches: both results are possible."""
    return lambda run: read(run.view) is not BREAKS and run.doubts.ask(str(about))


def _is_in_interval(read: Callable[[View], Found], wanted: Interval, about: About) -> Predicate:
    """Return the usual predicate: one value, or one range."""
    low, high = wanted

    def holds(run: Run) -> bool:
        value = read(run.view)
        if isinstance(value, Nothing):
            return value is not BREAKS and run.doubts.ask(str(about))
        return low <= value <= high

    return holds


def _compare(read: Callable[[View], Found], test: Callable[[int], bool] | None, about: About) -> Predicate:
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
    item: nft.Match, index: Index | None, point: Place, about: About, tables: Tables, name: str | None
) -> Predicate:
    wanted = item.op != "!="
    read = keys(item.left, point)
    changing, growing = name in tables.changing, name in tables.growing
    if index is None or item.op not in ("==", "!=", "in"):
        return lambda run: read(run.view) is not BREAKS and run.doubts.ask(str(about))

    def holds(run: Run) -> bool:
        values = read(run.view)
        if isinstance(values, Nothing):
            if values is BREAKS:
                return False
            if index.whole and not growing and not index.may_find(known(item.left, point, run.view)):
                return not wanted  # whatever the unknown parts are
            return run.doubts.ask(str(about))
        is_element = index.find(values) is not None
        if changing if is_element else growing or not index.whole:
            return run.doubts.ask(str(about))
        return is_element == wanted

    return holds


def _exists(item: nft.Match, read: Callable[[View], Found], about: About) -> Predicate:
    def holds(run: Run) -> bool:
        value = read(run.view)
        if isinstance(value, Nothing):
            return value is not BREAKS and run.doubts.ask(str(about))
        return bool(value) == (item.right == "exists")

    return holds if item.op == "==" else _undecided(read, about)


def _status(item: nft.Match, wanted: Interval, read: Callable[[View], Found], about: About) -> Predicate:
    """Return a predicate for `ct status`, of which a trace determines only "snat" and "dnat"."""
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


def _socket(item: nft.Match, about: About) -> Predicate:
    """Return a predicate for the cgroup of the sending socket; other socket matches branch."""

    def holds(run: Run) -> bool:
        group = run.view.cgroup
        wanted = item.right
        if item.left != nft.Socket("cgroupv2") or not isinstance(wanted, str) or wanted.isdigit() or group is None:
            return run.doubts.ask(str(about))
        # nft lists as many components of the path as the level of the match.
        is_inside = f"{group.strip('/')}/".startswith(f"{wanted.strip('/')}/")
        return is_inside == (item.op == "==")

    return holds


# --- maps ------------------------------------------------------------------------------


def lookup(key: nft.Expression, data: Any, tables: Tables, point: Place) -> Callable[[View], Any]:
    """Return a lookup in a map: its data, NFT_BREAK without an element, or NOT_MODELLED."""
    name: str | None = None if isinstance(data, frozenset) else data
    index = tables.named(name, key) if name is not None else Index(kinds(key), data)
    read = keys(key, point)
    changing, growing = name in tables.changing, name in tables.growing

    def find(view: View) -> Any:
        values = read(view)
        if isinstance(values, Nothing):
            return values
        if index is None:
            return UNKNOWN
        content = index.find(values)
        if content is None:
            return UNKNOWN if growing or not index.whole else BREAKS
        return UNKNOWN if changing else content

    return find
