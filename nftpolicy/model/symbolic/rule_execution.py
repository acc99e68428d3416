# SPDX-License-Identifier: BSD-2-Clause
"""Execution of one statement of a rule for a set of packets.

The kernel executes a rule for one packet: nft_do_chain (net/netfilter/nf_tables_core.c) calls the `eval` function
of each expression, until one changes `regs.verdict.code`. NFT_BREAK ends the rule. Here the packets of one set
can go different ways: `execute_statement` returns those for which a verdict ends the rule, as effects, and those
that reach the next statement. All others broke off. Nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from attrs import frozen

from ...netstate import nft
from ...netstate.formats import nft_text
from .box import Box, Ranges, intersect_ranges, points, subtract_boxes
from .chain_event import FieldValues
from .rule_shape import (
    NAT_STATEMENTS,
    NEUTRAL,
    NONDETERMINISTIC,
    VerdictMapStatement,
    effect_of,
    possible_verdicts,
    restricted_family,
)
from .symbolic_ruleset import SymbolicRuleset

_MAX_PIECES = 256  # of the packets that a negation lets pass
_VERDICT_MAPS = (nft.VerdictMap, nft.VerdictMapRef)


@frozen
class Packets:
    """The packets that reach a statement: those of `region` in any of the boxes `parts`, which may overlap.

    A part has only the conditions that the rule adds to the region. All boxes are about the fields that a packet
    had when it entered the base chain. `written` has the fields that rules changed since, by name: a number, or the
    name of the field with the same value.
    """

    region: Box
    parts: Sequence[Box]
    written: FieldValues

    def narrowed(self, boxes: Sequence[Box]) -> Packets:
        """Return the packets for which one of the boxes, which are about the present fields, holds too."""
        if self.written:
            original = (substitute_written(box, self.written) for box in boxes)
            boxes = [box for box in original if box is not None]
        return Packets(self.region, narrow_parts(self.parts, self.region, boxes), self.written)

    def under(self, condition: Box) -> Packets:
        """Return the packets under a condition of a new artificial field."""
        return Packets(self.region, [{**part, **condition} for part in self.parts], self.written)

    def without_conditions(self, fields: tuple[str, ...]) -> Packets:
        """Return the packets without the conditions on fields with one of these name prefixes."""
        if not fields:
            return self
        return Packets(self.region, [without_fields(part, fields) for part in self.parts], self.written)


@frozen
class RuleEffect:
    """Effect of a rule on the part `narrow` of a region: `statement` is a verdict, or writes, or is unsupported."""

    narrow: Box
    statement: nft.Statement


# The packets that a verdict takes out of the rule, and those that reach the next statement.
Execution: TypeAlias = tuple[Sequence[RuleEffect], Packets]


def execute_statement(
    ruleset: SymbolicRuleset, table: nft.Table, statement: nft.Statement, packets: Packets
) -> Execution:
    """Execute one statement; the names of the kernel's functions are at those that do the same here.

    A statement that is not modelled is an effect of its own, and its packets may reach the next statement too.
    """
    if isinstance(statement, nft.Match):
        return (), packets.narrowed(ruleset.space.match_boxes(table, statement))
    if isinstance(statement, NEUTRAL):  # nft_counter_eval, nft_log_eval: they leave regs.verdict alone
        return (), packets
    if isinstance(statement, nft.Verdict):
        return _set_verdict(statement, packets)
    if isinstance(statement, _VERDICT_MAPS):
        return _look_up_verdict(ruleset, table, statement, packets)
    if isinstance(statement, nft.Mangle):
        return _write(ruleset, table, statement, packets)
    if isinstance(statement, nft.Unless):
        return (), packets.narrowed(_unless_boxes(ruleset, table, statement))
    if isinstance(statement, nft.Undecided):
        return _decide_somehow(ruleset, table, statement, packets)
    if isinstance(statement, NONDETERMINISTIC):  # nft_limit_eval, nft_quota_eval, nft_dynset_eval: may NFT_BREAK
        return (), packets.under({ruleset.unsupported_field(table, statement): points(1)})
    if isinstance(statement, (nft.Reject, *NAT_STATEMENTS)):
        return _reject_or_translate(ruleset, statement, packets)
    return _effects(statement, packets), packets


def _effects(statement: nft.Statement, packets: Packets) -> list[RuleEffect]:
    return [RuleEffect(part, statement) for part in packets.parts]


def _nothing_left(packets: Packets) -> Packets:
    return Packets(packets.region, (), packets.written)


def _set_verdict(verdict: nft.Verdict, packets: Packets) -> Execution:
    """Do what nft_immediate_eval does with a verdict as data: set it. NFT_CONTINUE does not end the rule."""
    if verdict.kind == "continue":
        return (), packets
    return _effects(verdict, packets), _nothing_left(packets)


def _look_up_verdict(
    ruleset: SymbolicRuleset, table: nft.Table, statement: VerdictMapStatement, packets: Packets
) -> Execution:
    """Do what nft_lookup_eval does with a map of verdicts: set that of the element, or NFT_BREAK without one."""
    effects: list[RuleEffect] = []
    continuing: list[Box] = []
    for boxes, verdict in _verdict_entries(ruleset, table, statement):
        matching = packets.narrowed(boxes)
        if effect_of(verdict) == "continue":
            continuing += matching.parts
        else:
            effects += _effects(verdict, matching)
    return effects, Packets(packets.region, continuing, packets.written)


def _verdict_entries(
    ruleset: SymbolicRuleset, table: nft.Table, statement: VerdictMapStatement
) -> Iterator[tuple[list[Box], nft.Statement]]:
    """Yield each verdict of a verdict map with the packets that find it."""
    entries = ruleset.map_entries(table, statement)
    if entries is None:
        yield [{}], nft.UnknownStatement(nft_text.display_text(statement))
        return
    conditional = ruleset.conditional_elements(table, statement)
    for element, verdict in sorted(entries, key=repr):
        if element != "*":
            boxes = ruleset.space.key_boxes(table, statement.key, element)
        else:  # the catch-all element (nft_set_catchall_lookup)
            keys = frozenset(element for element, _ in entries if element != "*")
            boxes = ruleset.space.match_boxes(table, nft.Match(statement.key, nft.AnonymousSet(keys), "!="))
        if element in conditional:
            condition = ruleset.space.element_condition(table, nft_text.display_text(statement))
            boxes = [{**box, **condition} for box in boxes]
        yield boxes, verdict


def _write(ruleset: SymbolicRuleset, table: nft.Table, statement: nft.Mangle, packets: Packets) -> Execution:
    """Do what nft_meta_set_eval, nft_ct_set_eval and nft_payload_set_eval do: write, or NFT_BREAK.

    The caller decides what becomes of the written fields.
    """
    writing = packets.narrowed(ruleset.space.writable_boxes(table, statement))
    return _effects(statement, writing), writing


def _unless_boxes(ruleset: SymbolicRuleset, table: nft.Table, statement: nft.Unless) -> list[Box]:
    """Return the boxes of packets for which not all matches hold."""
    holding: list[Box] = [{}]
    for match in statement.matches:
        holding = narrow_parts(holding, {}, ruleset.space.match_boxes(table, match))
    left = subtract_boxes({}, holding, ruleset.space.max_values, _MAX_PIECES)
    return [{ruleset.unsupported_field(table, statement): points(1)}] if left is None else left


def _decide_somehow(
    ruleset: SymbolicRuleset, table: nft.Table, statement: nft.Undecided, packets: Packets
) -> Execution:
    """Do what one of the results of a statement does (nft_synproxy_eval): which one is not modelled."""
    effects = [
        effect
        for verdict in possible_verdicts(statement)
        for effect in _effects(verdict, packets.under({ruleset.unsupported_field(table, statement): points(1)}))
    ]
    if statement.results == {"continue"}:
        return effects, packets
    if "continue" not in statement.results:
        return effects, _nothing_left(packets)
    return effects, packets.under({ruleset.unsupported_field(table, statement): points(1)})


def _reject_or_translate(ruleset: SymbolicRuleset, statement: nft.Statement, packets: Packets) -> Execution:
    """Do what nft_reject_eval (NF_DROP) or nft_nat_eval (the verdict of nf_nat_setup_info) does.

    "dnat ip to ..." in an inet table applies only to IPv4: nft adds the test, and does not list it.
    """
    if restricted_family(statement) in (None, ruleset.space.family):
        return _effects(statement, packets), _nothing_left(packets)
    return (), _nothing_left(packets)


# --- boxes -----------------------------------------------------------------------------


def narrow_parts(parts: Iterable[Box], region: Box, boxes: Sequence[Box]) -> list[Box]:
    """Return what each of `parts` together with each of `boxes` adds to the region."""
    narrowed: list[Box] = []
    for start in parts:
        for box in boxes:
            added = dict(start)
            for field, wanted in box.items():
                present = added.get(field) or region.get(field)
                if present is None:
                    added[field] = wanted
                elif present != wanted:
                    both = intersect_ranges(present, wanted)
                    if not both:
                        break
                    if both != present:
                        added[field] = both
            else:
                narrowed.append(added)
    return narrowed


def without_fields(box: Box, prefixes: tuple[str, ...]) -> Box:
    """Return the box without conditions on fields with one of the name prefixes."""
    return {name: wanted for name, wanted in box.items() if not name.startswith(prefixes)}


def substitute_written(box: Box, written: FieldValues) -> Box | None:
    """Translate a condition on the present fields into one on the original fields; None: impossible."""
    original: Box = {}
    for field, wanted in box.items():
        current = written.get(field, field)
        if isinstance(current, int):
            if not any(low <= current <= high for low, high in wanted):
                return None
            continue
        present: Ranges | None = original.get(current)
        both = wanted if present is None else intersect_ranges(present, wanted)
        if not both:
            return None
        original[current] = both
    return original
