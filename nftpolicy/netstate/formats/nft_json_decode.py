# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of libnftables JSON, as `nft -j list ruleset` prints it: the entry point.

Unsupported JSON becomes an Unknown value with the JSON text, and is never dropped, so that a proof
can report it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import evolve

from .. import nft
from .nft_json_expressions import (
    UnsupportedJson,
    canonical_json,
    decode_element,
    decode_ether_type,
    decode_expression,
    decode_listed_element,
    name_protocols,
    protocol_columns,
)
from .nft_json_sets import decode_map_entries, decode_names, with_options
from .nft_json_statements import decode_limit, decode_quota, decode_statement
from .nft_text_values import value_types

__all__ = [
    "decode_element",
    "decode_expression",
    "decode_ruleset",
    "decode_statement",
    "decode_statements",
]

_TABLE_FLAGS = frozenset({"dormant", "owner", "persist"})


def _hook(item: dict[str, Any]) -> nft.Hook | None:
    if "hook" not in item:
        return None
    kind, name, policy = item.get("type", "filter"), item["hook"], item.get("policy", "accept")
    if not all(isinstance(text, str) for text in (kind, name, policy)):
        raise ValueError(f"type, hook or policy of chain {item.get('name')!r} is not a word")
    hook = nft.Hook(kind, name, _priority(item), policy)
    return hook.with_devices(decode_names(item.get("dev", ())))


def _priority(item: dict[str, Any]) -> int:
    priority = item.get("prio", 0)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ValueError(f"priority {priority!r} of {item.get('name')!r} is not a number")
    return priority


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


def decode_statements(items: Iterable[Any], family: str = "inet") -> tuple[nft.Statement, ...]:
    """Return the statements of a rule in a table of `family`."""
    statements: list[nft.Statement] = []
    for item in items:
        statements += decode_ether_type(item, family) or (decode_statement(item, family),)
    return tuple(statements)


def _data_types(kind: Any) -> tuple[str, ...]:
    """Return the data types of a set or map; () if they are unsupported.

    nft 1.1 writes {"typeof": EXPRESSION} for a set that was declared so.
    """
    match kind:
        case str():
            return (kind,)
        case [*names] if all(isinstance(name, str) for name in names):
            return tuple(names)
        case {"typeof": expression, **rest} if not rest:
            decoded = decode_expression(expression)
            columns = zip(value_types(decoded), protocol_columns(decoded), strict=True)
            return tuple("inet_proto" if is_protocol else name for name, is_protocol in columns)
    return ()


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
        self._named: set[tuple[str, str]] = set()

    def table(self, body: dict[str, Any]) -> None:
        """Set the flags of the table."""
        self.flags = _table_flags(body)
        if body.keys() - _KEYS["table"]:
            self.flags |= {"unnamed"}

    def add(self, kind: str, body: dict[str, Any]) -> None:
        """Add an object.

        Raises: ValueError for an object that is listed twice, and for a rule of no chain.
        """
        if kind == "rule":
            self.rule(body)
            return
        name = (kind, str(body["name"])) if kind in _KEYS else (kind, canonical_json(body))
        if name in self._named:
            raise ValueError(f"{kind} {body.get('name')} is listed twice")
        self._named.add(name)
        add = {
            "chain": self.chain,
            "set": self.set,
            "map": self.map,
            "counter": self.counter,
            "flowtable": self.flowtable,
        }.get(kind)
        if kind == "chain":
            self.chain(body)
        elif kind in _STATEFUL and not body.keys() - _KEYS[kind]:
            self.object(kind, body)
        elif add is None or body.keys() - _KEYS[kind]:
            self.unsupported(kind, body)
        else:
            add(body)

    def chain(self, body: dict[str, Any]) -> None:
        """Add a chain; with an unknown key it may do anything."""
        self.hooks[body["name"]] = _hook(body)
        self.rules[body["name"]] = rules = []
        if body.keys() - _KEYS["chain"]:
            rules.append(nft.Rule((nft.UnknownStatement(canonical_json({"chain": body})),)))

    def rule(self, body: dict[str, Any]) -> None:
        """Add a rule to its chain; with an unknown key it may do anything."""
        if body["chain"] not in self.rules:
            raise ValueError(f"a rule of chain {body['chain']!r}, which is not listed before it")
        comment = body.get("comment")
        statements = decode_statements(body.get("expr", ()), self.family)
        if body.keys() - _KEYS["rule"] or not isinstance(comment, str | None):
            statements = (nft.UnknownStatement(canonical_json({"rule": body})), *statements)
            comment = None
        self.rules[body["chain"]].append(nft.Rule(statements, comment))

    def set(self, body: dict[str, Any]) -> None:
        """Add a set."""
        types = _data_types(body["type"])
        listed = [decode_listed_element(item) for item in body.get("elem", ())]
        if not types or None in listed:
            self.unsupported("set", body)
            return
        protocols = tuple(data_type == "inet_proto" for data_type in types)
        if any(protocols):
            listed = [each and evolve(each, element=name_protocols(each.element, protocols)) for each in listed]
        elements = frozenset(each.element for each in listed if each is not None)
        container = with_options(nft.Set(body["name"], types, elements), body, listed)
        if container is None:
            self.unsupported("set", body)
        else:
            self.sets.append(container)

    def map(self, body: dict[str, Any]) -> None:
        """Add a map."""
        data = body.get("map")
        types = _data_types(body.get("type"))
        # nft 1.0.6 prints a concatenation of data types as one word.
        data_types = tuple(data.split(" . ")) if isinstance(data, str) else _data_types(data)
        entries = None
        if types and data_types and data_types[0] not in _OBJECT_MAPS:
            entries = decode_map_entries(body.get("elem", []), types, data_types == ("verdict",))
        container = None
        if entries is not None:
            contents = frozenset((key.element, value) for key, value in entries)
            container = with_options(
                nft.Map(body["name"], types, data_types, contents), body, [key for key, _ in entries]
            )
        if container is None:
            self.unsupported("map", body)
        else:
            self.maps.append(container)

    def flowtable(self, body: dict[str, Any]) -> None:
        """Add a flowtable."""
        devices = decode_names(body.get("dev", ()))
        self.flowtables.append(nft.Flowtable(body["name"], _priority(body), devices, body["hook"]))

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


_OBJECT_KEYS = frozenset({"family", "table", "name", "handle", "comment"})
_SET_KEYS = {"type", "elem", "flags", "timeout", "gc-interval", "size", "policy", "stmt", "auto-merge", "count"}
# Keys of each kind of object. Not stored: handles, positions, comments (but of rules), and the keys of a
# set that say how it is stored.
_KEYS: dict[str, frozenset[str]] = {
    "table": frozenset({"family", "name", "handle", "flags", "comment"}),
    "chain": _OBJECT_KEYS | {"type", "hook", "prio", "policy", "dev"},
    "rule": frozenset({"family", "table", "chain", "handle", "expr", "comment", "index", "position"}),
    "set": _OBJECT_KEYS | _SET_KEYS,
    "map": _OBJECT_KEYS | _SET_KEYS | {"map"},
    "counter": _OBJECT_KEYS | {"packets", "bytes"},
    "flowtable": _OBJECT_KEYS | {"hook", "prio", "dev"},
    "limit": _OBJECT_KEYS | {"rate", "per", "burst", "inv", "rate_unit", "burst_unit"},
    "quota": _OBJECT_KEYS | {"bytes", "used", "inv"},
    "ct helper": _OBJECT_KEYS | {"type", "protocol", "l3proto"},
}
_STATEFUL = frozenset({"limit", "quota", "ct helper"})
_OBJECT_MAPS = frozenset({"counter", "quota", "limit", "ct helper", "ct timeout", "synproxy", "secmark"})


def _objects(document: Any) -> list[tuple[str, dict[str, Any]]]:
    value = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(value, list):
        raise ValueError('expected the JSON of "nft -j list ruleset": an object with a list "nftables"')
    objects: list[tuple[str, dict[str, Any]]] = []
    for item in value:
        if not (isinstance(item, dict) and len(item) == 1):
            raise ValueError(f"expected an object with one key in the list: {item!r:.80}")
        ((kind, body),) = item.items()
        if not isinstance(body, dict):
            raise ValueError(f"expected an object for {kind!r}: {body!r:.80}")
        if kind != "metainfo":
            objects.append((kind, body))
    return objects


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
                builder.table(body)
            else:
                builder.add(kind, body)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"not the JSON of an nft listing: {type(error).__name__} {error}") from error
    return tuple(builder.build() for builder in builders.values())
