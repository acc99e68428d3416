# SPDX-License-Identifier: BSD-2-Clause
"""Tables from the messages of all dumps of nf_tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from sys import byteorder

from attrs import Factory, evolve, frozen, mutable

from ....exceptions import NftpolicyError
from ... import nft
from ..xt_decode import decode_xt
from .attributes import UnsupportedBytecode
from .chains import FAMILIES, RawChain, decode_chain, decode_flowtable, decode_object, decode_table
from .elements import decode_elements
from .rule_state import DecodeXt, RuleContext
from .rules import RuleLifter, decode_rule, rule_place
from .sets import SetTable, decode_set, set_name

NftMessage = tuple[int, bytes]  # family (NFPROTO_*), attributes: the body of a message behind struct nfgenmsg
SetKey = tuple[int, str, str]  # family, table, set


@frozen
class RulesetMessages:
    """The messages of the dumps of one generation of the ruleset, in the order of the kernel.

    `rules` may be an iterator, which `decode_ruleset` exhausts. `elements` has the dumps of each set, `unreadable` the
    reasons why a set cannot be read. `devices`: names of devices by index. `byte_order` is that of the machine.
    """

    tables: tuple[NftMessage, ...] = ()
    chains: tuple[NftMessage, ...] = ()
    rules: Iterable[NftMessage] = ()
    sets: tuple[NftMessage, ...] = ()
    elements: Mapping[SetKey, tuple[bytes, ...]] = Factory(dict)
    objects: tuple[NftMessage, ...] = ()
    flowtables: tuple[NftMessage, ...] = ()
    devices: Mapping[int, str] = Factory(dict)
    byte_order: str = byteorder
    unreadable: Mapping[SetKey, str] = Factory(dict)


@mutable
class _Parts:
    """The parts of one table."""

    flags: frozenset[str]
    sets: SetTable
    chains: list[RawChain] = Factory(list)
    rules: dict[str, list[nft.Rule]] = Factory(dict)
    counters: list[nft.NamedCounter] = Factory(list)
    objects: list[nft.NamedObject] = Factory(list)
    flowtables: list[nft.Flowtable] = Factory(list)
    unknown: list[str] = Factory(list)


class UnreadableRuleset(NftpolicyError):
    """A part of the ruleset that belongs to no table, or whose table or name cannot be decoded."""


def set_key(message: NftMessage) -> SetKey:
    """Return the key of a set for the dump of its elements. Raises UnsupportedBytecode."""
    family, raw = message
    return family, *set_name(raw)


def decode_ruleset(messages: RulesetMessages, decode_xt: DecodeXt = decode_xt) -> tuple[nft.Table, ...]:
    """Return the tables that the kernel executes.

    Raises:
        UnreadableRuleset: a part without a table. All else that is unsupported is in the tables as such.
    """
    parts: dict[tuple[str, str], _Parts] = {}
    try:
        for family, raw in messages.tables:
            name, flags = decode_table(raw)
            parts[FAMILIES[family], name] = _Parts(flags, SetTable(messages.byte_order, messages.devices))
        _add_sets(messages, parts)
        for family, raw in messages.chains:
            chain = decode_chain(raw, FAMILIES[family])
            parts[FAMILIES[family], chain.table].chains.append(chain)
        _add_rules(messages, parts, decode_xt)
        _add_objects(messages, parts)
    except (UnsupportedBytecode, KeyError) as error:
        raise UnreadableRuleset(str(error)) from error
    return tuple(_build(family, name, each) for (family, name), each in parts.items())


def _add_rules(messages: RulesetMessages, parts: Mapping[tuple[str, str], _Parts], decode_xt: DecodeXt) -> None:
    lifter = RuleLifter()
    contexts = {
        key: RuleContext(key[0], each.sets, messages.devices, messages.byte_order, decode_xt)
        for key, each in parts.items()
    }
    for family, raw in messages.rules:
        name = FAMILIES[family]
        try:
            rule = decode_rule(raw)
        except UnsupportedBytecode as reason:
            table, chain = rule_place(raw)
            lifted = nft.Rule((nft.UnknownStatement(f"a rule with {reason}"),))
        else:
            table, chain = rule.table, rule.chain
            lifted = lifter.lift(rule, contexts[name, table])
        parts[name, table].rules.setdefault(chain, []).append(lifted)


def _add_sets(messages: RulesetMessages, parts: Mapping[tuple[str, str], _Parts]) -> None:
    for family, raw in messages.sets:
        table, name = set_name(raw)
        sets = parts[FAMILIES[family], table].sets
        reason_of_dump = messages.unreadable.get((family, table, name))
        if reason_of_dump is not None:
            sets.unreadable[name] = reason_of_dump
            continue
        try:
            sets.add(decode_set(raw)[1], decode_elements(messages.elements.get((family, table, name), ())))
        except UnsupportedBytecode as reason:
            sets.unreadable[name] = str(reason)


def _add_objects(messages: RulesetMessages, parts: Mapping[tuple[str, str], _Parts]) -> None:
    for family, raw in messages.objects:
        table, item = decode_object(raw)
        parts_of_table = parts[FAMILIES[family], table]
        if isinstance(item, nft.NamedCounter):
            parts_of_table.counters.append(item)
        elif isinstance(item, nft.NamedObject):
            parts_of_table.objects.append(item)
        else:
            parts_of_table.unknown.append(item)
    for family, raw in messages.flowtables:
        table, flowtable = decode_flowtable(raw)
        parts[FAMILIES[family], table].flowtables.append(flowtable)


def _build(family: str, name: str, parts: _Parts) -> nft.Table:
    chains = tuple(_with_rules(raw, parts.rules.get(raw.chain.name, ())) for raw in parts.chains)
    names = {chain.name for chain in chains}
    strays = [f"rules of chain {chain}, which the dump does not have" for chain in parts.rules if chain not in names]
    sets, maps, unknown_sets = parts.sets.named()
    return nft.Table(
        family,
        name,
        chains,
        sets,
        tuple(parts.counters),
        (*parts.unknown, *strays, *unknown_sets),
        maps,
        tuple(parts.flowtables),
        tuple(parts.objects),
        parts.flags,
    )


def _with_rules(raw: RawChain, rules: Sequence[nft.Rule]) -> nft.Chain:
    if raw.is_offloaded:
        return evolve(raw.chain, rules=(nft.Rule((nft.UnknownStatement("a chain that hardware executes"),)), *rules))
    return evolve(raw.chain, rules=tuple(rules))
