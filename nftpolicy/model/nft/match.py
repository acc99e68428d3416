# SPDX-License-Identifier: BSD-2-Clause
"""Evaluate the matches and maps of rules for a packet.

Compiled once per rule, evaluated per packet.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from attrs import field, frozen, mutable

from ...netstate import nft
from ...netstate.formats import nft_text
from ..branching import Choices
from ..packet_view import PacketView
from ..trace_step import NullLog, TraceStep
from .datatypes import Interval, data_type, data_types, parse_value
from .field_value import NFT_BREAK, NOT_MODELLED, FieldValue, Sentinel
from .readers import HookPoint, known_status_bits, reader
from .set_index import SetIndex

LOOPBACK_ADDRESS = {4: 0x7F000001, 6: 1}


@mutable(eq=False)
class EvalContext:
    """The evaluation of one packet in base chains.

    With a `log`, `effects` are those of the current rule.
    """

    view: PacketView
    choices: Choices
    log: list[TraceStep] | None
    effects: list[str] = field(factory=NullLog)


Predicate = Callable[[EvalContext], bool]
KeyValues = tuple[int, ...]
KeyReader = Callable[[PacketView], KeyValues | Sentinel]

_ORDER = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


@frozen
class LazyText:
    """Description of a statement, formatted only when needed."""

    statement: nft.Statement
    table: nft.Table

    def __str__(self) -> str:
        return f"{nft_text.display_text(self.statement)} (table {self.table.family} {self.table.name})"


@frozen
class NamedSets:
    """Named sets and maps of one table, indexed at their first use."""

    table: nft.Table
    dynamic_names: frozenset[str]  # names of the sets and maps that packets or timeouts change
    growing_names: frozenset[str]  # names of the ones to which packets add elements
    conditional_names: frozenset[str]  # names of the ones with elements whose statements can end a rule
    _indices: dict[tuple[str, str], SetIndex | None] = field(factory=dict, eq=False)

    @classmethod
    def from_table(cls, table: nft.Table) -> NamedSets:
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
        conditional = frozenset(each.name for each in containers if each.conditional_elements)
        return cls(table, growing | expiring, growing, conditional)

    def lookup(self, name: str, key: nft.Expression) -> SetIndex | None:
        """Return the set or map, indexed for `key`; None if the table does not have it."""
        cache_key = (name, type(key).__name__)
        if cache_key not in self._indices:
            self._indices[cache_key] = self._index(name, key)
        return self._indices[cache_key]

    def _index(self, name: str, key: nft.Expression) -> SetIndex | None:
        for named_set in self.table.sets:
            if named_set.name == name:
                uncertain = named_set.conditional_elements
                return SetIndex(
                    data_types(key), ((element, element not in uncertain) for element in named_set.elements)
                )
        for named_map in self.table.maps:
            if named_map.name == name:
                return SetIndex(data_types(key), named_map.elements)
        return None


def keys(expression: nft.Expression, point: HookPoint) -> KeyReader:
    """Return a reader of all parts of a set key, in order."""
    if not isinstance(expression, nft.Concat):
        single = reader(expression, point)

        def read_one(view: PacketView) -> KeyValues | Sentinel:
            value = single(view)
            return value if value is NFT_BREAK or value is NOT_MODELLED else (value,)  # type: ignore[return-value]

        return read_one
    reads = [reader(part, point) for part in expression.parts]

    def read(view: PacketView) -> KeyValues | Sentinel:
        values: list[int] = []
        is_known = True
        for read_part in reads:
            value = read_part(view)
            if value is NFT_BREAK:  # the rule ends at the first part that cannot be loaded
                return NFT_BREAK
            if isinstance(value, Sentinel):
                is_known = False
            else:
                values.append(value)
        return tuple(values) if is_known else NOT_MODELLED

    return read


def known(expression: nft.Expression, point: HookPoint, view: PacketView) -> list[int | None]:
    """Return the parts of a set key for one packet, with None for a part that is not known."""
    parts = expression.parts if isinstance(expression, nft.Concat) else (expression,)
    values = [reader(part, point)(view) for part in parts]
    return [None if isinstance(value, Sentinel) else value for value in values]


def compile_match(item: nft.Match, tables: NamedSets, point: HookPoint) -> Predicate:
    """Return a predicate: True if the rule continues after the match."""
    about = LazyText(item, tables.table)
    match item.right:
        case nft.SetRef(name):
            index = tables.lookup(name, item.left)
            return _in_set(item, index, point, about, tables, name)
        case nft.AnonymousSet(elements):
            index = SetIndex(data_types(item.left), ((element, True) for element in elements))
            return _in_set(item, index, point, about, tables, None)
        case nft.UnknownExpression():
            return _undecided(reader(item.left, point), about)
    if isinstance(item.left, nft.Socket):
        return _socket(item, about)
    if isinstance(item.left, nft.Fib | nft.Option) and item.right in ("exists", "missing"):
        return _exists(item, reader(item.left, point), about)
    wanted = parse_value(data_type(item.left), item.right)
    read = reader(item.left, point)
    if wanted is None:
        return _undecided(read, about)
    if item.left == nft.Ct("status"):
        return _status(item, wanted, read, about)
    if item.op == "==":
        return _is_in_interval(read, wanted, about)
    return _compare(read, _test(item.op, wanted), about)


def _undecided(read: Callable[[PacketView], FieldValue], about: LazyText) -> Predicate:
    """Return a predicate that branches: both results are possible."""
    return lambda run: read(run.view) is not NFT_BREAK and run.choices.branch_on(str(about))


def _is_in_interval(read: Callable[[PacketView], FieldValue], wanted: Interval, about: LazyText) -> Predicate:
    """Return the usual predicate: one value, or one range."""
    low, high = wanted

    def equals(run: EvalContext) -> bool:
        value = read(run.view)
        return run.choices.branch_on(str(about)) if value is NOT_MODELLED else value == low

    def is_between(run: EvalContext) -> bool:
        value = read(run.view)
        if isinstance(value, Sentinel):
            return value is not NFT_BREAK and run.choices.branch_on(str(about))
        return low <= value <= high

    return equals if low == high else is_between


def _compare(
    read: Callable[[PacketView], FieldValue], test: Callable[[int], bool] | None, about: LazyText
) -> Predicate:
    def holds(run: EvalContext) -> bool:
        value = read(run.view)
        if isinstance(value, Sentinel) or test is None:
            return value is not NFT_BREAK and run.choices.branch_on(str(about))
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
    item: nft.Match, index: SetIndex | None, point: HookPoint, about: LazyText, tables: NamedSets, name: str | None
) -> Predicate:
    wanted = item.op != "!="
    read = keys(item.left, point)
    changing, growing = name in tables.dynamic_names, name in tables.growing_names
    if index is None or item.op not in ("==", "!=", "in"):
        return lambda run: read(run.view) is not NFT_BREAK and run.choices.branch_on(str(about))

    def holds(run: EvalContext) -> bool:
        values = read(run.view)
        if isinstance(values, Sentinel):
            if values is NFT_BREAK:
                return False
            if index.is_complete and not growing and not index.may_contain(known(item.left, point, run.view)):
                return not wanted  # whatever the unknown parts are
            return run.choices.branch_on(str(about))
        element = index.find(values)
        is_element = element is not None
        if changing if is_element else growing or not index.is_complete:
            return run.choices.branch_on(str(about))
        if element is False and wanted:  # the element has statements that may end the rule
            return run.choices.branch_on(f"statements of the element that {about} finds")
        return is_element == wanted

    return holds


def _exists(item: nft.Match, read: Callable[[PacketView], FieldValue], about: LazyText) -> Predicate:
    def holds(run: EvalContext) -> bool:
        value = read(run.view)
        if isinstance(value, Sentinel):
            return value is not NFT_BREAK and run.choices.branch_on(str(about))
        return bool(value) == (item.right == "exists")

    return holds if item.op == "==" else _undecided(read, about)


def _status(item: nft.Match, wanted: Interval, read: Callable[[PacketView], FieldValue], about: LazyText) -> Predicate:
    """Return a predicate for `ct status`, of which a trace determines only "snat", "dnat" and "confirmed"."""
    test = _test(item.op, wanted)

    def holds(run: EvalContext) -> bool:
        if read(run.view) is NFT_BREAK:
            return False
        is_known = item.op in ("in", "!", "&") and not wanted[0] & ~known_status_bits(run.view)
        if not is_known or test is None:
            return run.choices.branch_on(str(about))
        names = run.view.status | ({"confirmed"} if run.view.is_confirmed else set())
        bits = parse_value(data_type(item.left), ",".join(sorted(names)))
        return test(bits[0] if bits else 0)

    return holds


def _socket(item: nft.Match, about: LazyText) -> Predicate:
    """Return a predicate for the cgroup of the sending socket; other socket matches branch."""

    def holds(run: EvalContext) -> bool:
        group = run.view.cgroup
        wanted = item.right
        if item.left != nft.Socket("cgroupv2") or not isinstance(wanted, str) or wanted.isdigit() or group is None:
            return run.choices.branch_on(str(about))
        # nft lists as many components of the path as the level of the match.
        is_inside = f"{group.strip('/')}/".startswith(f"{wanted.strip('/')}/")
        return is_inside == (item.op == "==")

    return holds


# --- maps ------------------------------------------------------------------------------


def compile_lookup(key: nft.Expression, data: Any, tables: NamedSets, point: HookPoint) -> Callable[[PacketView], Any]:
    """Return a lookup in a map: its data, NFT_BREAK without an element, or NOT_MODELLED."""
    name: str | None = None if isinstance(data, frozenset) else data
    index = tables.lookup(name, key) if name is not None else SetIndex(data_types(key), data)
    read = keys(key, point)
    changing, growing = name in tables.dynamic_names | tables.conditional_names, name in tables.growing_names

    def find(view: PacketView) -> Any:
        values = read(view)
        if isinstance(values, Sentinel):
            return values
        if index is None:
            return NOT_MODELLED
        content = index.find(values)
        if content is None:
            return NOT_MODELLED if growing or not index.is_complete else NFT_BREAK
        return NOT_MODELLED if changing else content

    return find
