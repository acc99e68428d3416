# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of policy files: TOML, then cattrs with custom hooks, then validation."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Any, get_args, get_origin

import attrs
from cattrs import Converter

from . import objects, scalars, validate, vocabulary
from .errors import Fault, PolicyError, PolicyText, did_you_mean, near_words
from .mark import Mark, parse_mark
from .toml_positions import find_positions
from .toml_syntax import explain_long_number, explain_syntax_error

# ("user" or "group", TOML value) -> the account; raises ValueError.
AccountLookup = Callable[[str, object], objects.Account]
_MAX_BYTES = 64 << 20
_MAX_KEY_PARTS = 64
MAX_ERRORS = 200  # of a file; each takes time
_NO_ID = 2**32 - 1  # (uid_t)-1 and (gid_t)-1 are not valid
# tomllib takes quadratic time for keys of many parts.
_KEY_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*"""
_ENDLESS_KEY = re.compile(rf"^[ \t\[]*(?:{_KEY_PART}){{{_MAX_KEY_PARTS}}}", re.MULTILINE)


def numeric_account(kind: str, item: object) -> objects.Account:
    """Return the account with a number. Names are refused: the policy may be of another machine."""
    if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _NO_ID:
        return objects.Account(str(item), item)
    raise ValueError(f"expected the number of a {kind} (0 to {_NO_ID - 1}), got {scalars.describe_value(item)}")


def load(
    data: bytes, name: str = "policy", accounts: AccountLookup = numeric_account
) -> tuple[objects.Policy, PolicyText]:
    """Return the policy in `data` (TOML, UTF-8), and its text for later messages.

    Raises:
        PolicyError: the first error of the file, with its line and key, and the others of the same step: one error
            of the syntax, else all of single values, else all of values that do not fit together.
    """
    source = PolicyText(name, _decode(data, name))
    if endless := _ENDLESS_KEY.search(source.text):
        line = source.text.count("\n", 0, endless.start()) + 1
        raise PolicyError(f"key has more than {_MAX_KEY_PARTS} parts", source=name, line=line)
    try:
        document = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        raise explain_syntax_error(error, source) from None
    except ValueError:
        raise explain_long_number(source) from None
    except RecursionError:
        raise PolicyError("nested too deeply", source=name) from None
    try:
        policy = _converter(accounts).structure(document, objects.Policy)
    except ValueError as error:
        raise _errors_of(_faults_of(error), source) from None
    faults = tuple(Fault(path, message) for path, message in islice(validate.find_faults(policy), MAX_ERRORS))
    if faults:
        raise _errors_of(faults, source)
    return policy, source


def _errors_of(faults: Iterable[Fault], source: PolicyText) -> PolicyError:
    """Return the first error of the file, with the others; one for each key."""
    positions = find_positions(source.text)
    first_of_key = {fault.path: fault for fault in reversed(tuple(faults))}
    errors = [source.error_of(fault, positions) for fault in islice(first_of_key.values(), MAX_ERRORS)]
    errors.sort(key=lambda error: (error.line or 0, error.column or 0))
    errors[0].more_errors = tuple(errors[1:])
    return errors[0]


def _decode(data: bytes, name: str) -> str:
    if len(data) > _MAX_BYTES:
        raise PolicyError(f"policy too large: {len(data)} bytes (limit {_MAX_BYTES})", source=name)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(
            f"byte {error.start} is not UTF-8; save the file as UTF-8 text",
            source=name,
            line=line,
        ) from None


# --- strict cattrs hooks ----------------------------------------------------------------


def _converter(accounts: AccountLookup) -> Converter:
    converter = Converter(detailed_validation=False)
    single: dict[Any, Callable[[object], Any]] = {
        str: scalars.parse_text,
        int: scalars.parse_integer,
        bool: scalars.parse_boolean,
        Mark: parse_mark,
        objects.Listen: scalars.parse_listen,
        objects.Port: scalars.parse_port,
        objects.Server: scalars.parse_server,
        objects.Address: scalars.parse_address,
        objects.Network: scalars.parse_network,
    }
    for kind, function in single.items():
        if isinstance(kind, type):
            converter.register_structure_hook(kind, _ignoring_type(function))
        else:
            _register_union(converter, kind, _ignoring_type(function))
    converter.register_structure_hook_func(_is_list, lambda item, kind: _decode_list(converter, item, kind))
    converter.register_structure_hook_func(_is_table, lambda item, kind: _decode_table(converter, item, kind))
    narrowed = _class_hook(converter, _NarrowedAnswer, accounts)
    converter.register_structure_hook(objects.Answer, lambda item, kind: _decode_answer(item, narrowed))
    tables = (objects.Policy, objects.Uplink, objects.Resolver, objects.Clat)
    entries = (objects.Service, objects.Forward, objects.Publish, objects.Lan)
    for kind in (*tables, *entries):
        converter.register_structure_hook(kind, _class_hook(converter, kind, accounts))
    return converter


@attrs.frozen
class _NarrowedAnswer:
    """Answer written as a table."""

    name: str
    source: tuple[objects.Network, ...] = ()
    exclusive: bool = False


def _decode_answer(item: object, narrowed: Callable[[object, Any], Any]) -> objects.Answer:
    """Return an answer: its name, or a table of name, source and exclusive."""
    if not isinstance(item, dict):
        return scalars.parse_answer(item)
    table = narrowed(item, _NarrowedAnswer)
    try:
        answer = scalars.parse_answer(table.name)
    except ValueError as error:
        raise _Faults([Fault(("name",), str(error))]) from None
    if "source" not in item and not table.exclusive:
        raise _Faults([Fault((), "'source' is missing")])
    if "source" in item and not table.source:
        message = 'names no network; write the name alone to answer all: answer = ["ssh"]'
        raise _Faults([Fault(("source",), message)])
    return attrs.evolve(answer, source=table.source, exclusive=table.exclusive)


def _register_union(converter: Converter, kind: Any, hook: Callable[[object, Any], Any]) -> None:
    converter.register_structure_hook_func(lambda other: other == kind, hook)


def _ignoring_type(function: Callable[[object], Any]) -> Callable[[object, Any], Any]:
    return lambda item, _: function(item)


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _is_table(kind: Any) -> bool:
    return get_origin(kind) is dict


def _decode_list(converter: Converter, item: object, kind: Any) -> tuple[Any, ...]:
    member = get_args(kind)[0]
    return _decode_each(item, lambda value: converter.structure(value, member))


def _decode_table(converter: Converter, item: object, kind: Any) -> dict[str, Any]:
    member = get_args(kind)[1]
    return _decode_entries(item, scalars.parse_name, lambda value: converter.structure(value, member))


def _decode_entries(
    item: object, decode_key: Callable[[object], str], decode: Callable[[object], Any]
) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"expected a table, got {scalars.describe_value(item)}")
    return dict(_decode_pairs(item.items(), lambda key, value: (_decode_key(key, decode_key), decode(value))))


def _decode_key(key: str, decode: Callable[[object], str]) -> str:
    try:
        return decode(key)
    except ValueError as error:
        raise _Faults([Fault((), str(error), of_key=True)]) from None


class _Faults(ValueError):
    """Faults below the value being decoded."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(self.faults[0].message)


def _decode_pairs(items: Iterable[tuple[Any, Any]], decode: Callable[[Any, Any], Any]) -> tuple[Any, ...]:
    decoded: list[Any] = []
    faults: list[Fault] = []
    for key, value in items:
        if len(faults) >= MAX_ERRORS:
            break
        try:
            decoded.append(decode(key, value))
        except ValueError as error:
            faults += [fault.below(key) for fault in _faults_of(error)]
    if faults:
        raise _Faults(faults)
    return tuple(decoded)


def _list_of(decode: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda item: _decode_each(item, decode)


def _keyword_of(table: dict[str, str], label: str) -> Callable[[object], str]:
    return lambda item: scalars.parse_keyword(item, table, label)


# Fields that their Python type does not describe completely.
_FIELD_DECODERS: dict[tuple[type, str], Callable[[object], Any]] = {
    (objects.Policy, "name"): scalars.parse_name,
    (objects.Policy, "inside"): _list_of(scalars.parse_device_pattern),
    (objects.Uplink, "devices"): _list_of(scalars.parse_device),
    (objects.Uplink, "exempt"): _list_of(_keyword_of(vocabulary.EXEMPTIONS, "exemption")),
    (objects.Uplink, "learn"): _list_of(_keyword_of(vocabulary.LEARN_SOURCES, "source of routes")),
    (objects.Clat, "device"): scalars.parse_device,
    (objects.Resolver, "sources"): _list_of(_keyword_of(vocabulary.DNS_SOURCES, "source of DNS servers")),
    (objects.Resolver, "domains"): lambda item: _decode_entries(
        item, scalars.parse_domain, _list_of(scalars.parse_server)
    ),
    (objects.Service, "uplink"): scalars.parse_service_uplink,
    (objects.Service, "marks"): _keyword_of(vocabulary.MARKS_VALUES, "marking method"),
    (objects.Service, "cgroup"): scalars.parse_cgroup,
    (objects.Service, "ports"): _list_of(scalars.parse_destination_port),
    (objects.Forward, "devices"): _list_of(scalars.parse_device_pattern),
    (objects.Publish, "to"): scalars.parse_device,
}


def _decode_each(item: object, decode: Callable[[object], Any]) -> tuple[Any, ...]:
    if not isinstance(item, list):
        raise ValueError(f"expected a list in [ ], got {scalars.describe_value(item)}")
    return _decode_pairs(enumerate(item), lambda _, value: decode(value))


def _meant_key(name: str, fields: Collection[str]) -> str:
    """Return the suffix that suggests a key."""
    if name in ("proto", "protocol", "protocols") and "ports" in fields:
        return ' (protocols are named in \'ports\', such as "tcp/443", "6in4")'
    return did_you_mean(name, fields)


def _class_hook(
    converter: Converter, kind: type[attrs.AttrsInstance], accounts: AccountLookup
) -> Callable[[object, Any], Any]:
    """Return the hook of an attrs class: it refuses unknown and missing keys, and decodes each field."""
    fields = {toml_key(field): field for field in attrs.fields(attrs.resolve_types(kind))}
    decoders = {name: _field_decoder(converter, kind, field, accounts) for name, field in fields.items()}
    required = [name for name, field in fields.items() if field.default is attrs.NOTHING]

    def structure(item: object, _: Any) -> Any:
        if not isinstance(item, dict):
            raise ValueError(f"expected a table, got {scalars.describe_value(item)}")
        unknown = [name for name in item if name not in fields][:MAX_ERRORS]
        known = ", ".join(fields)
        faults = [Fault((name,), f"unknown key{_meant_key(name, fields)}; known are {known}", True) for name in unknown]
        near = {word for name in unknown for word in near_words(name, fields)}
        if missing := [name for name in required if name not in item and name not in near]:
            faults.append(Fault((), _describe_missing(missing, kind)))
        try:
            values = [(name, value) for name, value in item.items() if name in fields]
            pairs = _decode_pairs(values, lambda name, value: (name, decoders[name](value)))
        except _Faults as error:
            faults += error.faults
        if faults:
            raise _Faults(faults)
        return kind(**{fields[key].name: value for key, value in pairs})

    return structure


def _describe_missing(keys: list[str], kind: type) -> str:
    """Return the message that a table of a class, or the file itself, lacks these keys."""
    verb = "is missing" if len(keys) == 1 else "are missing"
    place = "; keys of the file itself stand above its first [table]" if kind is objects.Policy else ""
    return f"{', '.join(map(repr, keys))} {verb}{place}"


def toml_key(field: Any) -> str:
    """Return the key of an attrs field in the file: its name, unless Python reserves that."""
    return str(field.metadata.get("key", field.name))


def _field_decoder(converter: Converter, kind: type, field: Any, accounts: AccountLookup) -> Callable[[object], Any]:
    decoder = _FIELD_DECODERS.get((kind, field.name))
    if decoder:
        return decoder
    member = _without_none(field.type)
    if member is objects.Account:
        return lambda item: accounts(field.name, item)
    return lambda item: converter.structure(item, member)


def _without_none(kind: Any) -> Any:
    """Return X for "X | None": TOML has no null, so an absent key is the only None."""
    members = get_args(kind)
    if type(None) not in members:
        return kind
    return next((member for member in members if member is not type(None)), kind)


def _faults_of(error: ValueError) -> tuple[Fault, ...]:
    """Return the faults of an error that cattrs or a hook raised."""
    return error.faults if isinstance(error, _Faults) else (Fault((), str(error)),)
