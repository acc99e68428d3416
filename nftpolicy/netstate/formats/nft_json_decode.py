# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of libnftables JSON, as `nft -j list ruleset` prints it: the entry point.

Unsupported JSON becomes an Unknown value with the JSON text, and is never dropped, so that a proof
can report it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from attrs import evolve

from .. import nft
from ..state import CounterValue, CounterValues
from .nft_json_expressions import (
    UnsupportedJson,
    canonical_json,
    decode_element,
    decode_entries,
    decode_expression,
    decode_verdict,
    name_protocols,
)
from .nft_json_statements import decode_limit, decode_quota, decode_statement

__all__ = [
    "add_hook_devices",
    "add_text_only_details",
    "decode_counters",
    "decode_element",
    "decode_expression",
    "decode_ruleset",
    "decode_statement",
]

_TABLE_FLAGS = frozenset({"dormant", "owner", "persist"})


def _hook(item: dict[str, Any]) -> nft.Hook | None:
    if "hook" not in item:
        return None
    value = item.get("dev")
    devices = frozenset([value] if isinstance(value, str) else value or ())
    hook = nft.Hook(item.get("type", "filter"), item["hook"], item.get("prio", 0), item.get("policy", "accept"))
    return _with_devices(hook, devices)


def _with_devices(hook: nft.Hook, devices: frozenset[str]) -> nft.Hook:
    if len(devices) == 1:
        return evolve(hook, device=next(iter(devices)))
    return evolve(hook, devices=devices)


def _flags(body: dict[str, Any]) -> frozenset[str]:
    value = body.get("flags", ())
    return frozenset((value,) if isinstance(value, str) else value)


def _table_flags(body: dict[str, Any]) -> frozenset[str]:
    """Return the flags of a table, {"unnamed"} for invalid ones.

    nft 1.0.6 has no name for the flag "owner": it prints the memory after its table of names, which
    is another word or a part of its own output.
    """
    value = body.get("flags", ())
    flags = [value] if isinstance(value, str) else value
    if isinstance(flags, list | tuple) and all(isinstance(flag, str) and flag in _TABLE_FLAGS for flag in flags):
        return frozenset(flags)
    return frozenset({"unnamed"})


_MapEntries = frozenset[tuple[nft.Element, nft.Element | nft.Verdict]]


def _map_entries(items: list[Any], is_verdict_map: bool) -> _MapEntries | None:
    if is_verdict_map:
        return decode_entries(items, decode_verdict)
    return decode_entries(items, decode_element)


class _TableBuilder:
    """Builder of one table from the flat list of objects that nft prints."""

    def __init__(self, family: str, name: str) -> None:
        self.family, self.name = family, name
        self.hooks: dict[str, nft.Hook | None] = {}
        self.rules: dict[str, list[nft.Rule]] = {}
        self.sets: list[nft.Set] = []
        self.counters: list[nft.NamedCounter] = []
        self.maps: list[nft.Map] = []
        self.flowtables: list[nft.Flowtable] = []
        self.objects: list[nft.NamedObject] = []
        self.flags: frozenset[str] = frozenset()
        self.unknown: list[str] = []

    def chain(self, body: dict[str, Any]) -> None:
        """Add a chain."""
        self.hooks[body["name"]] = _hook(body)

    def rule(self, body: dict[str, Any]) -> None:
        """Add a rule to its chain."""
        statements = tuple(map(decode_statement, body.get("expr", ())))
        self.rules.setdefault(body["chain"], []).append(nft.Rule(statements, body.get("comment")))

    def set(self, body: dict[str, Any]) -> None:
        """Add a set."""
        kind = body["type"]
        elements = [decode_element(item) for item in body.get("elem", ())]
        supported = [item for item in elements if item is not None]
        if not isinstance(kind, str | list) or len(supported) < len(elements):
            self.unsupported("set", body)
            return
        types = (kind,) if isinstance(kind, str) else tuple(kind)
        protocols = tuple(data_type == "inet_proto" for data_type in types)
        if any(protocols):
            supported = [name_protocols(item, protocols) for item in supported]
        contents, timeout = frozenset(supported), body.get("timeout")
        self.sets.append(nft.Set(body["name"], types, contents, _flags(body), timeout=timeout))

    def map(self, body: dict[str, Any]) -> None:
        """Add a map."""
        kind, data = body.get("type"), body.get("map")
        types = (kind,) if isinstance(kind, str) else tuple(kind or ())
        # nft 1.0.6 prints a concatenation of data types as one word.
        data_types = tuple(data.split(" . ")) if isinstance(data, str) else tuple(data or ())
        if not types or not data_types or data_types[0] in _OBJECT_MAPS:
            self.unsupported("map", body)
            return
        contents = _map_entries(body.get("elem", []), data_types == ("verdict",))
        if contents is None:
            self.unsupported("map", body)
            return
        protocols = tuple(data_type == "inet_proto" for data_type in types)
        contents = frozenset((name_protocols(key, protocols), value) for key, value in contents)
        self.maps.append(nft.Map(body["name"], types, data_types, contents, _flags(body), body.get("timeout")))

    def flowtable(self, body: dict[str, Any]) -> None:
        """Add a flowtable."""
        devices = body.get("dev", [])
        devices = [devices] if isinstance(devices, str) else devices
        self.flowtables.append(nft.Flowtable(body["name"], body.get("prio", 0), frozenset(devices), body["hook"]))

    def object(self, kind: str, body: dict[str, Any]) -> None:
        """Add a named limit, quota or ct helper."""
        content = {key: value for key, value in body.items() if key not in _OBJECT_KEYS}
        stateful: nft.Limit | nft.Quota | nft.CtHelper
        try:
            if kind == "limit":
                stateful = decode_limit(content)
            elif kind == "quota":
                stateful = decode_quota({"val": content["bytes"], "inv": content.get("inv", False)})
            else:
                stateful = nft.CtHelper(content["type"], content["protocol"], content.get("l3proto"))
        except UnsupportedJson:
            self.unsupported(kind, body)
            return
        self.objects.append(nft.NamedObject(body["name"], stateful))

    def counter(self, body: dict[str, Any]) -> None:
        """Add a named counter."""
        self.counters.append(nft.NamedCounter(body["name"]))

    def unsupported(self, kind: str, body: dict[str, Any]) -> None:
        """Add an object as JSON text."""
        self.unknown.append(canonical_json({kind: body}))

    def build(self) -> nft.Table:
        """Return the table."""
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


_OBJECT_KEYS = frozenset({"family", "table", "name", "handle"})
_OBJECT_MAPS = frozenset({"counter", "quota", "limit", "ct helper", "ct timeout", "synproxy", "secmark"})


def _objects(document: Any) -> list[tuple[str, dict[str, Any]]]:
    value = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(value, list):
        raise ValueError('expected the JSON of "nft -j list ruleset": an object with a list "nftables"')
    return [
        (kind, body)
        for item in value
        if isinstance(item, dict)
        for kind, body in item.items()
        if isinstance(body, dict) and kind != "metainfo"
    ]


def decode_ruleset(document: Any) -> tuple[nft.Table, ...]:
    """Return the tables of a parsed `nft -j list ruleset`.

    Raises:
        ValueError: not such a document.
    """
    builders: dict[tuple[str, str], _TableBuilder] = {}
    try:
        for kind, body in _objects(document):
            owner = (body["family"], body["name"] if kind == "table" else body["table"])
            builder = builders.setdefault(owner, _TableBuilder(*owner))
            if kind == "table":
                builder.flags = _table_flags(body)
                continue
            methods = {
                "chain": builder.chain,
                "rule": builder.rule,
                "set": builder.set,
                "map": builder.map,
                "counter": builder.counter,
                "flowtable": builder.flowtable,
            }
            if kind in methods:
                methods[kind](body)
            elif kind in ("limit", "quota", "ct helper"):
                builder.object(kind, body)
            else:
                builder.unsupported(kind, body)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"not the JSON of an nft listing: {type(error).__name__} {error}") from error
    return tuple(builder.build() for builder in builders.values())


_DEVICE = re.compile(r'\n\tchain (\S+) \{\n(?:\t\tcomment .*\n)?\t\ttype \S+ hook \S+ device "([^"]+)"')
_DEVICES = re.compile(r"\n\tchain (\S+) \{\n(?:\t\tcomment .*\n)?\t\ttype \S+ hook \S+ devices = \{ ([^}]+) \}")
_TABLE_FLAGS_LINE = re.compile(r"\A(?:\tcomment .*\n)?\tflags (\S+)$", re.MULTILINE)
_SET_FLAGS = re.compile(r"\n\t(?:set|map) (\S+) \{\n(?:\t\t(?!flags|elements).*\n)*\t\tflags (\S+)")


def add_hook_devices(table: nft.Table, listing: str) -> nft.Table:
    """Return the table with the devices of its base chains, which nft 1.0.6 prints in text only.

    `listing` is what `nft list table FAMILY NAME` prints.
    """
    devices = {name: frozenset({device}) for name, device in _DEVICE.findall(listing)}
    for name, names in _DEVICES.findall(listing):
        devices[name] = frozenset(device.strip().strip('"') for device in names.split(","))

    def complete(chain: nft.Chain) -> nft.Chain:
        hook = chain.hook
        if hook is None or hook.device or hook.devices or chain.name not in devices:
            return chain
        return evolve(chain, hook=_with_devices(hook, devices[chain.name]))

    return evolve(table, chains=tuple(map(complete, table.chains)))


_SetOrMap = TypeVar("_SetOrMap", nft.Set, nft.Map)


def _with_flags(table: nft.Table, listing: str) -> nft.Table:
    """Return the table with the flags of it and of its sets that nft 1.0.6 omits from its JSON ("dynamic")."""
    table_flags = _TABLE_FLAGS_LINE.search(listing.partition("\n")[2])
    set_flags = {name: frozenset(flags.split(",")) for name, flags in _SET_FLAGS.findall(listing)}

    def complete(item: _SetOrMap) -> _SetOrMap:
        return evolve(item, flags=item.flags | set_flags.get(item.name, frozenset()))

    return evolve(
        table,
        flags=frozenset(table_flags[1].split(",")) if table_flags else table.flags,
        sets=tuple(map(complete, table.sets)),
        maps=tuple(map(complete, table.maps)),
    )


def add_text_only_details(tables: Iterable[nft.Table], listing: str) -> tuple[nft.Table, ...]:
    """Return the tables with details that nft 1.0.6 prints in text only.

    They are: devices of hooks, flags of tables and of sets. `listing` is what `nft list ruleset`
    prints, with or without elements.
    """
    listings: dict[tuple[str, str], str] = {}
    for text in re.split(r"^(?=table )", listing, flags=re.MULTILINE):
        words = text.split(maxsplit=3)
        if len(words) == 4:
            listings[words[1], words[2]] = text

    def complete(table: nft.Table) -> nft.Table:
        text = listings.get(table.key)
        return table if text is None else _with_flags(add_hook_devices(table, text), text)

    return tuple(map(complete, tables))


def decode_counters(document: Any) -> CounterValues:
    """Return the values of the named counters of a listing. Raises ValueError."""
    try:
        return {
            (body["family"], body["table"], body["name"]): CounterValue(body["packets"], body["bytes"])
            for kind, body in _objects(document)
            if kind == "counter"
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the JSON of an nft listing: {type(error).__name__} {error}") from error
