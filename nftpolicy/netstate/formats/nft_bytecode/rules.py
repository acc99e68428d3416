# SPDX-License-Identifier: BSD-2-Clause
"""Rules: the expressions of one rule, lifted to statements."""

from __future__ import annotations

from typing import Any

from attrs import Factory, frozen

from ... import nft
from .attributes import Attributes, UnsupportedBytecode, decode, decode_text, split_list
from .datatypes import Column, column_value
from .expressions import decode_expression
from .loads import Operation
from .registers import Content
from .rule_state import RuleContext, RuleState
from .tests import USUAL_CMP_SIZE, usual_cmp_parts

# include/uapi/linux/netfilter/nf_tables.h, enum nft_rule_attributes
_TABLE, _CHAIN, _HANDLE, _EXPRESSIONS, _COMPAT, _POSITION, _USERDATA, _PAD, _ID, _POSITION_ID, _CHAIN_ID = range(1, 12)
_COMMENT = 0  # type of the comment in the user data (libnftnl, include/libnftnl/udata.h)
_MAX_OPERATIONS, _MAX_SHAPES, _MAX_RESULTS = 1 << 12, 1 << 8, 1 << 10  # that are remembered
# Names of expressions whose loads do not depend on other registers, and of a comparison. The name is
# the first attribute of an expression; here with what follows it in eight bytes.
_LOADS = frozenset({b"meta\0\0\0\0", b"payload\0"})
_COMPARISON = b"cmp\0"
# A counter, whose two values no decoder reads: with zeros in their place all counters are one expression.
_COUNTER, _COUNTER_SIZE, _NO_COUNT = b"counter\0", 40, bytes(8)


@frozen
class RawRule:
    """A rule before it is lifted."""

    table: str
    chain: str
    expressions: tuple[bytes, ...]
    comment: str | None


def decode_rule(raw: bytes) -> RawRule:
    """Return a rule. Raises UnsupportedBytecode."""
    return decode(raw, _rule)


def rule_place(raw: bytes) -> tuple[str, str]:
    """Return the names of the table and the chain of a rule. Raises UnsupportedBytecode."""
    attributes = Attributes(raw)
    return attributes.text(_TABLE), attributes.text(_CHAIN)


def _rule(attributes: Attributes) -> RawRule:
    # The protocol of _COMPAT only limits which xtables extensions the kernel takes.
    attributes.ignore(_HANDLE, _COMPAT, _POSITION, _PAD, _ID, _POSITION_ID, _CHAIN_ID)
    return RawRule(
        attributes.text(_TABLE),
        attributes.text(_CHAIN),
        tuple(split_list(attributes.take(_EXPRESSIONS))),
        comment_of(attributes.take(_USERDATA)),
    )


def comment_of(raw: bytes | None) -> str | None:
    """Return the comment in user data: entries of a type, a length and a value."""
    start = 0
    while raw is not None and start + 2 <= len(raw):
        kind, length = raw[start], raw[start + 1]
        if kind == _COMMENT:
            return decode_text(raw[start + 2 : start + 2 + length])
        start += 2 + length
    return None


# What a test adds to a rule, and the network and transport protocol that are established behind it.
_Result = tuple[tuple[nft.Statement, ...], str | None, int | None]


@frozen
class _Form:
    """A test whose left side does not depend on the constant: `column` says how that is written."""

    left: nft.Expression
    op: str
    column: Column
    network: str | None
    transport: int | None

    def result(self, constant: bytes) -> _Result:
        """Return the result for a constant. Raises UnsupportedBytecode."""
        match = nft.Match(self.left, column_value(constant, self.column), self.op)
        return (match,), self.network, self.transport


@frozen
class _Shape:
    """A load and the comparison behind it, without its constant, as executed once.

    `register` holds `content` then. `results` are those of some constants with their padding. `form`, if
    not None, gives those of all constants of its length; `size` is that of one with its padding.
    """

    register: int
    content: Content
    size: int
    form: _Form | None
    results: dict[bytes, _Result] = Factory(dict)

    def result(self, constant: bytes) -> _Result | None:
        """Return the result for a constant with its padding. None: the expressions have to be executed."""
        known = self.results.get(constant)
        if known is not None or self.form is None or len(constant) != self.size:
            return known
        try:
            result = self.form.result(constant[: self.form.column.length])
        except UnsupportedBytecode:
            return None
        self.remember(constant, result)
        return result

    def remember(self, constant: bytes, result: _Result) -> None:
        """Store a result."""
        _limit(self.results, _MAX_RESULTS)
        self.results[constant] = result


@frozen
class RuleLifter:
    """Lifts the rules of one ruleset; remembers expressions, and tests that differ only in a constant."""

    _operations: dict[bytes, Operation] = Factory(dict)
    _shapes: dict[tuple[bytes, bytes, str | None, int | None], _Shape] = Factory(dict)

    def lift(self, rule: RawRule, context: RuleContext) -> nft.Rule:
        """Return the rule in the vocabulary of nft."""
        state = RuleState(context)
        expressions = rule.expressions
        index, end = 0, len(expressions)
        while index < end:
            raw = expressions[index]
            index += 1
            if index < end and raw[4:12] in _LOADS and expressions[index][4:8] == _COMPARISON:
                self._execute_pair(state, raw, expressions[index])
                index += 1
            else:
                self._operation(raw)(state)
        state.finish()
        return nft.Rule(tuple(state.statements), rule.comment)

    def _execute_pair(self, state: RuleState, load: bytes, comparison: bytes) -> None:
        """Execute two expressions, or repeat what they did before."""
        head, constant = comparison[:USUAL_CMP_SIZE], comparison[USUAL_CMP_SIZE:]
        key = load, head, state.network, state.transport
        shape = self._shapes.get(key)
        if shape is not None and not state.is_ended:
            result = shape.result(constant)
            if result is not None:
                state.repeat(shape.register, shape.content, *result)
                return
        statements, was_ended = state.statements, state.is_ended
        count, previous = len(statements), statements[-1] if statements else None
        state.last_store = None
        self._operation(load)(state)
        stored = state.last_store
        self._operation(comparison)(state)
        if stored is None or was_ended or state.last_store is not stored:
            return
        register, content = stored
        # Only if the comparison used this load, and left the statements before it as they were.
        is_own = isinstance(content, Content) and len(content.uses) == 1 and len(statements) > count
        if is_own and (not count or statements[count - 1] is previous):
            if shape is None:
                _limit(self._shapes, _MAX_SHAPES)
                shape = _Shape(register, content, len(constant), _form(state, content, comparison))
                self._shapes[key] = shape
            shape.remember(constant, (tuple(statements[count:]), state.network, state.transport))

    def _operation(self, raw: bytes) -> Operation:
        if raw[4:12] == _COUNTER and len(raw) == _COUNTER_SIZE:
            raw = raw[:20] + _NO_COUNT + raw[28:32] + _NO_COUNT
        operation = self._operations.get(raw)
        if operation is None:
            _limit(self._operations, _MAX_OPERATIONS)
            operation = self._operations[raw] = decode_expression(raw)
        return operation


def _form(state: RuleState, content: Content, comparison: bytes) -> _Form | None:
    """Return the form of a comparison that was executed, None if it depends on the constant."""
    parts = usual_cmp_parts(comparison)
    if parts is None:
        return None
    _, op, raw = parts
    plain = state.plain_form(content, op, len(raw))
    if plain is None:
        return None
    left, kind = plain
    return _Form(left, op, Column(kind, len(raw), content.order), state.network, state.transport)


def _limit(cache: dict[Any, Any], size: int) -> None:
    """Empty a cache that is full: it may not become as large as the ruleset."""
    if len(cache) >= size:
        cache.clear()
