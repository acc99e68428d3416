# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of libnftables JSON: parts of sets and maps.

Unsupported JSON makes the whole set unsupported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from attrs import evolve

from .. import nft
from .nft_json_expressions import (
    ListedElement,
    decode_element,
    decode_listed_element,
    decode_verdict,
    name_protocols,
)
from .nft_json_statements import decode_statement


def decode_names(value: Any) -> frozenset[str]:
    """Return one name or a list of names. Raises TypeError."""
    names = [value] if isinstance(value, str) else value
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise TypeError(f"{value!r} is not a list of names")
    return frozenset(names)


def _flags(body: dict[str, Any]) -> frozenset[str]:
    return decode_names(body.get("flags", ()))


MapEntries = list[tuple[ListedElement, nft.Element | nft.Verdict]]


def decode_map_entries(items: list[Any], types: tuple[str, ...], is_verdict_map: bool) -> MapEntries | None:
    """Return keys and data of a map; None if one is unsupported."""
    protocols = tuple(data_type == "inet_proto" for data_type in types)
    entries: MapEntries = []
    for item in items:
        if not (isinstance(item, list) and len(item) == 2):
            return None
        key = decode_listed_element(item[0])
        data = decode_verdict(item[1]) if is_verdict_map else decode_element(item[1])
        if key is None or data is None:
            return None
        entries.append((evolve(key, element=name_protocols(key.element, protocols)), data))
    return entries


_Container = TypeVar("_Container", nft.Set, nft.Map)


def with_options(item: _Container, body: dict[str, Any], listed: Iterable[ListedElement | None]) -> _Container | None:
    """Return a set or map with its flags, timeout and statements; None if a part of it is unsupported."""
    statements = tuple(map(decode_statement, body.get("stmt", ())))
    timeout = body.get("timeout")
    if any(isinstance(each, nft.UnknownStatement) for each in statements):
        return None
    if not (timeout is None or (isinstance(timeout, int) and not isinstance(timeout, bool))):
        return None
    known = [each for each in listed if each is not None]
    flags = _flags(body) | ({"timeout"} if any(each.expires for each in known) else frozenset())
    conditional = frozenset(each.element for each in known if each.is_conditional)
    return evolve(item, flags=flags, timeout=timeout, statements=statements, conditional_elements=conditional)
