# SPDX-License-Identifier: BSD-2-Clause
"""libnftables JSON, as `nft -j list ruleset` prints it, back into values.

Whatever this version does not know becomes an Unknown value that carries the JSON; it is
never left out, so that a proof over the result can say what it did not understand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from attrs import evolve

from . import nft
from .json_rules import Strange, element, entries, expression, named, raw
from .json_statements import limit, quota, statement
from .state import Counters, Counts

__all__ = ["completed", "counters", "element", "expression", "ruleset", "statement", "with_devices"]

_TABLE_FLAGS = frozenset({"dormant", "owner", "persist"})


def _hook(item: dict[str, Any]) -> nft.Hook | None:
    if "hook" not in item:
        return None
    listed = item.get("dev")
    devices = frozenset([listed] if isinstance(listed, str) else listed or ())
    made = nft.Hook(item.get("type", "filter"), item["hook"], item.get("prio", 0), item.get("policy", "accept"))
    return _on(made, devices)


def _on(hook: nft.Hook, devices: frozenset[str]) -> nft.Hook:
    return evolve(hook, device=next(iter(devices))) if len(devices) == 1 else evolve(hook, devices=devices)


def _flags(body: dict[str, Any]) -> frozenset[str]:
    listed = body.get("flags", ())
    return frozenset((listed,) if isinstance(listed, str) else listed)


def _table_flags(body: dict[str, Any]) -> frozenset[str]:
    """A dormant table hooks nowhere. What nft 1.0.6 puts in the flag's place is what lies in its memory behind the
    words that it knows: another word, or any part of what it is about to print."""
    listed = body.get("flags", ())
    words = [listed] if isinstance(listed, str) else listed
    if isinstance(words, list | tuple) and all(isinstance(one, str) and one in _TABLE_FLAGS for one in words):
        return frozenset(words)
    return frozenset({"unnamed"})


class _Builder:
    """Collects the flat list of objects that nft prints into one table."""

    def __init__(self, family: str, name: str) -> None:
        self.family, self.name = family, name
        self.hooks: dict[str, nft.Hook | None] = {}
        self.rules: dict[str, list[nft.Rule]] = {}
        self.sets: list[nft.Set] = []
        self.counters: list[nft.NamedCounter] = []
        self.maps: list[nft.Map] = []
        self.flowtables: list[nft.Flowtable] = []
        self.objects: list[nft.Named] = []
        self.flags: frozenset[str] = frozenset()
        self.unknown: list[str] = []

    def chain(self, body: dict[str, Any]) -> None:
        self.hooks[body["name"]] = _hook(body)

    def rule(self, body: dict[str, Any]) -> None:
        statements = tuple(statement(one) for one in body.get("expr", ()))
        self.rules.setdefault(body["chain"], []).append(nft.Rule(statements, body.get("comment")))

    def set(self, body: dict[str, Any]) -> None:
        kind = body["type"]
        elements = [element(one) for one in body.get("elem", ())]
        if not isinstance(kind, str | list) or None in elements:
            return self.other("set", body)
        types = (kind,) if isinstance(kind, str) else tuple(kind)
        protocols = tuple(one == "inet_proto" for one in types)
        if any(protocols):
            elements = [named(one, protocols) for one in elements if one is not None]
        content = frozenset(elements)
        self.sets.append(nft.Set(body["name"], types, content, _flags(body), timeout=body.get("timeout")))  # type: ignore[arg-type]
        return None

    def map(self, body: dict[str, Any]) -> None:
        kind, data = body.get("type"), body.get("map")
        types = (kind,) if isinstance(kind, str) else tuple(kind or ())
        # nft 1.0.6 writes a concatenation of data types as one word.
        held = tuple(data.split(" . ")) if isinstance(data, str) else tuple(data or ())
        content = entries(body.get("elem", []), held == ("verdict",)) if types and held else None
        if content is None or held[0] in _OBJECT_MAPS:
            return self.other("map", body)
        protocols = tuple(one == "inet_proto" for one in types)
        content = frozenset((named(key, protocols), to) for key, to in content)
        self.maps.append(nft.Map(body["name"], types, held, content, _flags(body), body.get("timeout")))
        return None

    def flowtable(self, body: dict[str, Any]) -> None:
        devices = body.get("dev", [])
        devices = [devices] if isinstance(devices, str) else devices
        self.flowtables.append(nft.Flowtable(body["name"], body.get("prio", 0), frozenset(devices), body["hook"]))

    def object(self, kind: str, body: dict[str, Any]) -> None:
        plain = {key: value for key, value in body.items() if key not in ("family", "table", "name", "handle")}
        try:
            if kind == "limit":
                made: Any = limit(plain)
            elif kind == "quota":
                made = quota({"val": plain["bytes"], "inv": plain.get("inv", False)})
            else:
                made = nft.CtHelper(plain["type"], plain["protocol"], plain.get("l3proto"))
        except Strange:
            return self.other(kind, body)
        self.objects.append(nft.Named(body["name"], made))
        return None

    def counter(self, body: dict[str, Any]) -> None:
        self.counters.append(nft.NamedCounter(body["name"]))

    def other(self, kind: str, body: dict[str, Any]) -> None:
        self.unknown.append(raw({kind: body}))

    def build(self) -> nft.Table:
        chains = tuple(nft.Chain(name, tuple(self.rules.get(name, ())), hook) for name, hook in self.hooks.items())
        return nft.Table(
            self.family,
            self.name,
            chains,
            tuple(self.sets),
            tuple(self.counters),
            tuple(self.unknown),
            tuple(self.maps),
            tuple(self.flowtables),
            tuple(self.objects),
            self.flags,
        )


_OBJECT_MAPS = frozenset({"counter", "quota", "limit", "ct helper", "ct timeout", "synproxy", "secmark"})


def _objects(document: Any) -> list[tuple[str, dict[str, Any]]]:
    listed = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError('expected the JSON of "nft -j list ruleset": an object with a list "nftables"')
    found = [(kind, body) for one in listed if isinstance(one, dict) for kind, body in one.items()]
    return [(kind, body) for kind, body in found if isinstance(body, dict) and kind != "metainfo"]


def ruleset(document: Any) -> tuple[nft.Table, ...]:
    """The tables of a parsed `nft -j list ruleset`.

    Raises:
        ValueError: it is not such a document.
    """
    builders: dict[tuple[str, str], _Builder] = {}
    try:
        for kind, body in _objects(document):
            owner = (body["family"], body["name"] if kind == "table" else body["table"])
            builder = builders.setdefault(owner, _Builder(*owner))
            if kind == "table":
                builder.flags = _table_flags(body)
                continue
            known = {
                "chain": builder.chain,
                "rule": builder.rule,
                "set": builder.set,
                "map": builder.map,
                "counter": builder.counter,
                "flowtable": builder.flowtable,
            }
            if kind in known:
                known[kind](body)
            elif kind in ("limit", "quota", "ct helper"):
                builder.object(kind, body)
            else:
                builder.other(kind, body)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"not the JSON of an nft listing: {type(error).__name__} {error}") from error
    return tuple(builder.build() for builder in builders.values())


_DEVICE = re.compile(r'\n\tchain (\S+) \{\n(?:\t\tcomment .*\n)?\t\ttype \S+ hook \S+ device "([^"]+)"')
_DEVICES = re.compile(r"\n\tchain (\S+) \{\n(?:\t\tcomment .*\n)?\t\ttype \S+ hook \S+ devices = \{ ([^}]+) \}")
_SET_FLAGS = re.compile(r"\n\t(?:set|map) (\S+) \{\n(?:\t\t(?!flags|elements).*\n)*\t\tflags (\S+)")


def with_devices(table: nft.Table, listing: str) -> nft.Table:
    """The table with the devices of its base chains, which nft 1.0.6 prints in text only.

    `listing` is what `nft list table FAMILY NAME` prints.
    """
    devices = {name: frozenset({device}) for name, device in _DEVICE.findall(listing)}
    for name, several in _DEVICES.findall(listing):
        devices[name] = frozenset(one.strip().strip('"') for one in several.split(","))
    chains = tuple(
        evolve(chain, hook=_on(chain.hook, devices[chain.name]))
        if chain.hook and not chain.hook.device and not chain.hook.devices and chain.name in devices
        else chain
        for chain in table.chains
    )
    return evolve(table, chains=chains)


def _with_flags(table: nft.Table, listing: str) -> nft.Table:
    """The table with its flags, and with those of its sets that nft 1.0.6 leaves out of its JSON ("dynamic")."""
    found = re.search(r"\A(?:\tcomment .*\n)?\tflags (\S+)$", listing.partition("\n")[2], re.MULTILINE)
    flags = {name: frozenset(words.split(",")) for name, words in _SET_FLAGS.findall(listing)}

    def more(one: Any) -> Any:
        return evolve(one, flags=one.flags | flags[one.name]) if one.name in flags else one

    return evolve(
        table,
        flags=frozenset(found[1].split(",")) if found else table.flags,
        sets=tuple(map(more, table.sets)),
        maps=tuple(map(more, table.maps)),
    )


def completed(tables: Iterable[nft.Table], listing: str) -> tuple[nft.Table, ...]:
    """The tables with what nft 1.0.6 prints in text only: devices of hooks, flags of tables and sets.

    `listing` is what `nft list ruleset` prints; elements may be left out.
    """
    parts: dict[tuple[str, str], str] = {}
    for text in re.split(r"^(?=table )", listing, flags=re.MULTILINE):
        words = text.split(maxsplit=3)
        if len(words) == 4:
            parts[words[1], words[2]] = text
    return tuple(
        _with_flags(with_devices(one, parts[one.key]), parts[one.key]) if one.key in parts else one for one in tables
    )


def counters(document: Any) -> Counters:
    """The named counters of a listing, with their numbers."""
    try:
        return {
            (body["family"], body["table"], body["name"]): Counts(body["packets"], body["bytes"])
            for kind, body in _objects(document)
            if kind == "counter"
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the JSON of an nft listing: {type(error).__name__} {error}") from error
