# SPDX-License-Identifier: BSD-2-Clause
"""Rules: the expressions of one rule, lifted to statements."""

from __future__ import annotations

from typing import Any

from attrs import Factory, frozen

from ... import nft
from .attributes import Attributes, decode, decode_text, split_list
from .expressions import decode_expression
from .loads import Operation
from .registers import Content
from .rule_state import RuleContext, RuleState

# include/uapi/linux/netfilter/nf_tables.h, enum nft_rule_attributes
_TABLE, _CHAIN, _HANDLE, _EXPRESSIONS, _COMPAT, _POSITION, _USERDATA, _PAD, _ID, _POSITION_ID, _CHAIN_ID = range(1, 12)
_COMMENT = 0  # type of the comment in the user data (libnftnl, include/libnftnl/udata.h)
_MAX_CACHED = 1 << 12
# Names of expressions whose loads do not depend on other registers, and of a comparison. The name is
# the first attribute of an expression; here with what follows it in eight bytes.
_LOADS = frozenset({b"meta\0\0\0\0", b"payload\0"})
_COMPARISON = b"cmp\0"


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


@frozen
class _Pair:
    """A load and the comparison behind it, as executed once: what they add, and what they establish."""

    register: int
    content: Content
    statements: tuple[nft.Statement, ...]
    network: str | None
    transport: int | None


@frozen
class RuleLifter:
    """Lifts the rules of one ruleset; remembers expressions, and the tests that many rules begin with."""

    _operations: dict[bytes, Operation] = Factory(dict)
    _pairs: dict[tuple[bytes, bytes, str | None, int | None], _Pair] = Factory(dict)

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
        key = (load, comparison, state.network, state.transport)
        known = self._pairs.get(key)
        if known is not None and not state.is_ended:
            state.repeat(known.register, known.content, known.statements, known.network, known.transport)
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
            _limit(self._pairs)
            added = tuple(statements[count:])
            self._pairs[key] = _Pair(register, content, added, state.network, state.transport)

    def _operation(self, raw: bytes) -> Operation:
        operation = self._operations.get(raw)
        if operation is None:
            _limit(self._operations)
            operation = self._operations[raw] = decode_expression(raw)
        return operation


def _limit(cache: dict[Any, Any]) -> None:
    """Empty a cache that is full: it may not become as large as the ruleset."""
    if len(cache) >= _MAX_CACHED:
        cache.clear()
