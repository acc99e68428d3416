# SPDX-License-Identifier: BSD-2-Clause
"""Values as a JSON document, and back, without loss: the format of `nftpolicy snapshot`.

Each object has its class name as "class" and all its fields, so that the document of another version
is refused instead of being completed with defaults. Sets, and mappings as lists of pairs, are sorted,
so that equal values give equal documents.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from ..state import NetState
from .state_check import require_valid

Decoded = TypeVar("Decoded")

_CLASS = "class"
_PRIMITIVES = (int, str, bool, type(None))
_MOST_CHARACTERS = 60  # of a value in a message


def encode_value(value: Any) -> Any:
    """Return the document of an attrs object: only dicts, lists, strings, numbers, booleans and None."""
    return _converter().unstructure(value)


def decode_value(document: object, kind: type[Decoded]) -> Decoded:
    """Return the object of a class in a document.

    Raises:
        ValueError: the document has an unknown class or key, lacks a key, or a value has the wrong
            type or is no address or name; the message names it.
    """
    try:
        return _converter().structure(document, kind)
    except RecursionError:
        raise ValueError("the document is nested too deeply") from None


@cache
def _converter() -> Converter:
    converter = Converter(detailed_validation=False)
    converter.register_structure_hook_factory(attrs.has, lambda kind: _class_decoder(kind, converter))
    converter.register_structure_hook_func(_is_union, lambda item, kind: _decode_union(item, kind, converter))
    converter.register_structure_hook_func(_is_sequence, lambda item, kind: _decode_list(item, kind, converter))
    converter.register_structure_hook_func(_is_mapping, lambda item, kind: _decode_pairs(item, kind, converter))
    converter.register_structure_hook(NetState, _state_decoder(converter))
    for kind in _PRIMITIVES:
        converter.register_structure_hook(kind, _decode_primitive)
    converter.register_unstructure_hook_factory(attrs.has, lambda kind: _class_encoder(kind, converter))
    converter.register_unstructure_hook_func(_is_sequence, lambda value: _encode_list(value, converter))
    converter.register_unstructure_hook_func(_is_mapping, lambda value: _encode_pairs(value, converter))
    converter.register_unstructure_hook_func(_is_union, converter.unstructure)
    return converter


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _is_sequence(kind: Any) -> bool:
    return (typing.get_origin(kind) or kind) in (tuple, frozenset)


def _is_mapping(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _class_encoder(kind: Any, converter: Converter) -> Any:
    encode = make_dict_unstructure_fn(attrs.resolve_types(kind), converter)
    return lambda value: {_CLASS: kind.__name__, **encode(value)}


def _encode_list(value: tuple[Any, ...] | frozenset[Any], converter: Converter) -> list[Any]:
    items = [converter.unstructure(item) for item in value]
    return sorted(items, key=repr) if isinstance(value, frozenset) else items


def _encode_pairs(value: Mapping[Any, Any], converter: Converter) -> list[Any]:
    return sorted([converter.unstructure(key), converter.unstructure(item)] for key, item in value.items())


def _class_decoder(kind: Any, converter: Converter) -> Any:
    # cattrs 22.2 does not take this setting from the converter.
    decode = make_dict_structure_fn(attrs.resolve_types(kind), converter, _cattrs_detailed_validation=False)
    names = {field.name for field in attrs.fields(kind)}

    def structure(item: object, _: Any) -> Any:
        if not isinstance(item, dict) or item.get(_CLASS) != kind.__name__:
            raise ValueError(f"expected an object of class {kind.__name__}, got {_shorten(item)}")
        for name in sorted(names ^ (item.keys() - {_CLASS})):
            raise ValueError(f"{kind.__name__}: {name!r} is {'missing' if name in names else 'an unknown key'}")
        return decode({name: item[name] for name in names}, kind)

    return structure


def _state_decoder(converter: Converter) -> Any:
    decode = _class_decoder(NetState, converter)

    def structure(item: object, kind: Any) -> Any:
        state = decode(item, kind)
        require_valid(state)
        return state

    return structure


def _decode_union(item: object, kind: Any, converter: Converter) -> Any:
    """Decode a value of one of several types: its class, or its JSON type, says which."""

    def fits(member: Any) -> bool:
        if isinstance(item, dict):
            return attrs.has(member) and bool(member.__name__ == item.get(_CLASS))
        return _is_sequence(member) or _is_mapping(member) if isinstance(item, list) else member is type(item)

    matching = [member for member in typing.get_args(kind) if fits(member)]
    if len(matching) != 1:
        raise ValueError(f"unexpected value {_shorten(item)}")
    return converter.structure(item, matching[0])


def _decode_list(item: object, kind: Any, converter: Converter) -> Any:
    members = typing.get_args(kind)
    if not isinstance(item, list):
        raise ValueError(f"expected a list, got {_shorten(item)}")
    if typing.get_origin(kind) is frozenset:
        return frozenset(converter.structure(value, members[0]) for value in item)
    if members[-1] is Ellipsis:
        return tuple(converter.structure(value, members[0]) for value in item)
    if len(members) != len(item):
        raise ValueError(f"expected {len(members)} values, got {_shorten(item)}")
    return tuple(converter.structure(value, member) for value, member in zip(item, members, strict=True))


def _decode_pairs(item: object, kind: Any, converter: Converter) -> dict[Any, Any]:
    pairs = _decode_list(item, tuple[tuple[typing.get_args(kind)], ...], converter)  # type: ignore[misc]
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError(f"a key is there twice in {_shorten(item)}")
    return mapping


def _decode_primitive(item: object, kind: Any) -> Any:
    if type(item) is not kind:  # a bool is no number
        raise ValueError(f"expected a value of type {kind.__name__}, got {_shorten(item)}")
    return item


def _shorten(item: object) -> str:
    """Return the value for a message."""
    text = str(item) if str(item).isprintable() else repr(item)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "..."
