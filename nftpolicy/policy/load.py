# SPDX-License-Identifier: BSD-2-Clause
"""A policy file to a Policy: TOML, then cattrs with our own words, then the checks of the whole."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from typing import Any, get_args, get_origin

import attrs
from cattrs import Converter

from . import checks, objects, values, words
from .errors import Path, PolicyError, Source, nearest
from .mark import Mark, parse

# (kind "user" or "group", what the file says) -> the account; raises ValueError.
Accounts = Callable[[str, object], objects.Account]
_LARGEST = 64 << 20
# tomllib takes quadratic time for keys of many parts.
_ENDLESS_KEY = re.compile(r"""^[ \t\[]*(?:(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){64}""", re.MULTILINE)


def numbers_only(kind: str, item: object) -> objects.Account:
    """Accounts by number, for a policy of another machine."""
    if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**32 - 1:
        return objects.Account(str(item), item)
    raise ValueError(f"expected the number of a {kind}, got {values.describe(item)}")


def load(data: bytes, name: str = "policy", accounts: Accounts = numbers_only) -> tuple[objects.Policy, Source]:
    """The policy in `data` (TOML, UTF-8), and its source for later messages.

    Raises:
        PolicyError: the first fault found, with its line and key.
    """
    source = Source(name, _decode(data, name))
    if endless := _ENDLESS_KEY.search(source.text):
        line = source.text.count("\n", 0, endless.start()) + 1
        raise PolicyError("a key of more than 64 parts is none of a policy's", source=name, line=line)
    try:
        document = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax(error, source) from None
    except ValueError:
        # tomllib passes on what int() says of thousands of digits, which has no line.
        raise PolicyError("not TOML: a number has too many digits", source=name) from None
    except RecursionError:
        raise PolicyError("nested too deeply for a policy", source=name) from None
    try:
        policy = _converter(accounts).structure(document, objects.Policy)
    except ValueError as error:
        path, message = _first(error)
        raise PolicyError(message, path, name, source.line(path)) from None
    fault = next(checks.faults(policy), None)
    if fault:
        raise PolicyError(fault[1], fault[0], name, source.line(fault[0]))
    return policy, source


def _decode(data: bytes, name: str) -> str:
    if len(data) > _LARGEST:
        raise PolicyError(f"{len(data)} bytes is no policy (at most {_LARGEST})", source=name)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(
            f"byte {error.start} is not UTF-8; save the file as UTF-8 text", source=name, line=line
        ) from None


def _syntax(error: tomllib.TOMLDecodeError, source: Source) -> PolicyError:
    message, _, place = str(error).rpartition(" (at ")
    words_of_place = place.rstrip(")").split()
    if words_of_place[:1] == ["line"]:
        line = int(words_of_place[1].rstrip(","))
    else:
        line = source.text.rstrip("\n").count("\n") + 1  # "end of document"
    return PolicyError(f"not TOML: {message[:200]}", source=source.name, line=line)


# --- cattrs, strict -----------------------------------------------------------------------


def _converter(accounts: Accounts) -> Converter:
    converter = Converter(detailed_validation=False)
    single: dict[Any, Callable[[object], Any]] = {
        str: values.text,
        int: values.integer,
        bool: values.boolean,
        Mark: parse,
        objects.Listen: values.listen,
        objects.Port: values.port,
        objects.Answer: values.answer,
        objects.Server: values.server,
        objects.Address: values.address,
        objects.Network: values.network,
    }
    for kind, function in single.items():
        register = converter.register_structure_hook if isinstance(kind, type) else _register_union(converter)
        register(kind, _ignoring_type(function))
    converter.register_structure_hook_func(_is_list, lambda item, kind: _list(converter, item, kind))
    converter.register_structure_hook_func(_is_table, lambda item, kind: _table(converter, item, kind))
    for kind in (objects.Policy, objects.Uplink, objects.Resolver, objects.Service):
        converter.register_structure_hook(kind, _record(converter, kind, accounts))
    return converter


def _register_union(converter: Converter) -> Callable[[Any, Any], None]:
    return lambda kind, hook: converter.register_structure_hook_func(lambda other: other == kind, hook)


def _ignoring_type(function: Callable[[object], Any]) -> Callable[[object, Any], Any]:
    return lambda item, _: function(item)


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _is_table(kind: Any) -> bool:
    return get_origin(kind) is dict


def _list(converter: Converter, item: object, kind: Any) -> tuple[Any, ...]:
    member = get_args(kind)[0]
    return _each(item, lambda value: converter.structure(value, member))


def _table(converter: Converter, item: object, kind: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"expected a table, got {values.describe(item)}")
    member = get_args(kind)[1]
    built = _all(item.items(), lambda key, value: (values.name(key), converter.structure(value, member)))
    return dict(built)


class _At(ValueError):
    """A fault below `path` of the value being structured."""

    def __init__(self, path: Path, message: str) -> None:
        self.path = path
        super().__init__(message)


def _all(items: Any, build: Callable[[Any, Any], Any]) -> tuple[Any, ...]:
    built = []
    for key, value in items:
        try:
            built.append(build(key, value))
        except ValueError as error:
            path, message = _first(error)
            raise _At((key, *path), message) from None
    return tuple(built)


# Fields whose values are more than their Python type says.
_SPECIAL: dict[tuple[type, str], Callable[[object], Any]] = {
    (objects.Policy, "name"): values.name,
    (objects.Policy, "inside"): lambda item: _each(item, values.pattern),
    (objects.Uplink, "devices"): lambda item: _each(item, values.device),
    (objects.Uplink, "exempt"): lambda item: _each(item, lambda one: values.one_of(one, words.EXEMPTIONS, "exemption")),
    (objects.Resolver, "sources"): lambda item: _each(
        item, lambda one: values.one_of(one, words.SOURCES, "source of DNS servers")
    ),
    (objects.Uplink, "learn"): lambda item: _each(
        item, lambda one: values.one_of(one, words.LEARNED, "source of routes")
    ),
    (objects.Service, "marks"): lambda item: values.one_of(
        item, words.MARKS, "way to mark sockets that this version knows"
    ),
    (objects.Service, "cgroup"): values.cgroup,
}


def _each(item: object, function: Callable[[object], Any]) -> tuple[Any, ...]:
    if not isinstance(item, list):
        raise ValueError(f"expected a list in [ ], got {values.describe(item)}")
    return _all(enumerate(item), lambda _, value: function(value))


def _record(converter: Converter, kind: type, accounts: Accounts) -> Callable[[object, Any], Any]:
    """A structure hook for one attrs class: required and unknown keys, then each field."""
    fields = {field.name: field for field in attrs.fields(attrs.resolve_types(kind))}
    build = {name: _builder(converter, kind, field, accounts) for name, field in fields.items()}
    required = [name for name, field in fields.items() if field.default is attrs.NOTHING]

    def structure(item: object, _: Any) -> Any:
        if not isinstance(item, dict):
            raise ValueError(f"expected a table, got {values.describe(item)}")
        for name in item:
            if name not in fields:
                raise _At((name,), f"unknown key{nearest(name, fields)}; known are {', '.join(fields)}")
        for name in required:
            if name not in item:
                raise _At((), f"{name!r} is missing")
        pairs = _all(item.items(), lambda name, value: (name, build[name](value)))
        return kind(**dict(pairs))

    return structure


def _builder(converter: Converter, kind: type, field: Any, accounts: Accounts) -> Callable[[object], Any]:
    special = _SPECIAL.get((kind, field.name))
    if special:
        return special
    # "X | None": an absent key is the only way to say None.
    wanted = (
        next((one for one in get_args(field.type) if one is not type(None)), field.type)
        if _optional(field.type)
        else field.type
    )
    if wanted is objects.Account:
        return lambda item: accounts(field.name, item)
    return lambda item: converter.structure(item, wanted)


def _optional(kind: Any) -> bool:
    return type(None) in get_args(kind)


def _first(error: Exception) -> tuple[Path, str]:
    """Path and words of the first fault inside whatever cattrs or our hooks raised."""
    if isinstance(error, _At):
        return error.path, str(error)
    return (), str(error)
