# SPDX-License-Identifier: BSD-2-Clause
"""Parser of nft's listing (`nft -y -a list ruleset`): all but the rules, encoded as netlink attributes.

Source: nftables 1.0.2 to 1.1.6, src/rule.c (chain_print_declaration, set_print_declaration, obj_print_data,
flowtable_print).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import Factory, mutable

from ....exceptions import NftpolicyError
from ..nft_bytecode.chains import HOOKS
from ..nft_bytecode.datatypes import type_number
from .messages import SECONDS, attribute, number, text

_HANDLE = re.compile(r" # handle (\d+)$")
_TABLE = re.compile(r"table (?P<family>ip6?|inet|arp|bridge|netdev) (?P<name>\S+) \{(?: # .*)?")
_OPENING = re.compile(r"\t(?P<kind>chain|set|map|meter|flowtable|counter|quota|limit|ct \w+|secmark|synproxy|tunnel)"
                      r" (?P<name>\S+) \{(?: # handle \d+)?")  # fmt: skip
_BASE_CHAIN = re.compile(
    r'type (?P<type>\w+) hook (?P<hook>\w+)(?: (?:device "?(?P<device>[^" ]+)"?|devices = \{ (?P<devices>[^{}]*) \}))?'
    r" priority (?P<priority>-?\d+);(?: policy (?P<policy>accept|drop);)?(?P<offload> flags offload;)?"
)
_FLOWTABLE = re.compile(r"hook ingress priority (-?\d+)")
_TABLE_FLAGS = {"dormant": 1, "owner": 2, "persist": 4}
_SET_FLAGS = {"constant": 2, "interval": 4, "timeout": 16, "dynamic": 32}
_ANONYMOUS, _CONSTANT, _INTERVAL, _MAP, _OBJECT = 1, 2, 4, 8, 64
_VERDICT_TYPE = 0xFFFFFF00
_TIME_UNITS = {"w": 604800000, "d": 86400000, "h": 3600000, "m": 60000, "s": 1000, "ms": 1}
_TIME = re.compile(r"(\d+)(ms|[wdhms])")
_STATEMENTS = {"counter": "counter", "limit": "limit", "quota": "quota", "ct": "connlimit", "last": "last"}
_ELEMENT_STATEMENTS = {
    "counter": re.compile(r"\bcounter\b"),
    "limit": re.compile(r"\blimit rate\b"),
    "quota": re.compile(r"\bquota\b"),
    "connlimit": re.compile(r"\bct count\b"),
    "last": re.compile(r"\blast used\b"),
}
_IGNORED_OF_SET = ("size ", "policy ", "gc-interval ", "auto-merge", "comment ")
_OBJECT_TYPES = {"counter": 1, "quota": 2, "limit": 4}
_OBJECT_WORDS = ("counter", "quota", "limit", "secmark", "synproxy", "tunnel")
_QUOTED = re.compile(r'"[^"]*"')
_RATE = re.compile(
    r"rate (over )?(\d+)(?: (bytes|kbytes|mbytes))?/(\w+)(?: burst (\d+) (packets|bytes|kbytes|mbytes))?"
)
_QUOTA = re.compile(r"(over )?(\d+) (bytes|kbytes|mbytes)(?: used .*)?")
_BYTES = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20}
_DEFAULT_BURST = {False: 5, True: 0}  # of packets, of bytes


class DebugOutputError(NftpolicyError):
    """An unknown line; `line` counts from 1, `expected` says what could stand there."""

    def __init__(self, line: int, expected: str) -> None:
        super().__init__(f"expected {expected}")
        self.line, self.expected = line, expected


@mutable
class ListedSet:
    """A named set or map; `data_type` None: a set. A type of None has no name in the listing (typeof)."""

    name: str
    flags: int = 0
    key_type: int | None = None
    data_type: int | None = None
    has_object: bool = False
    timeout: int | None = None
    statements: set[str] = Factory(set)


@mutable
class ListedTable:
    """The parts of a table. `rules` are the lines of rules by chain and handle; `odd_chains` have other lines too."""

    family: str
    name: str
    flags: int = 0
    chains: list[bytes] = Factory(list)
    sets: list[ListedSet] = Factory(list)
    objects: list[bytes] = Factory(list)
    flowtables: list[bytes] = Factory(list)
    rules: dict[tuple[str, int], str] = Factory(dict)
    odd_chains: set[str] = Factory(set)


def parse_listing(lines: Sequence[str], first: int) -> list[ListedTable]:
    """Return the tables of a listing; `first` is the number of its first line.

    Raises:
        DebugOutputError: an unknown line.
    """
    tables: list[ListedTable] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        match = _TABLE.fullmatch(line)
        if match is None:
            if line:
                raise DebugOutputError(first + index, "'table FAMILY NAME {' of nft's listing")
            index += 1
            continue
        table = ListedTable(match["family"], match["name"])
        tables.append(table)
        index = _parse_table(lines, index + 1, first, table)
    return tables


def _parse_table(lines: Sequence[str], index: int, first: int, table: ListedTable) -> int:
    """Parse the lines of a table; return the index behind its end."""
    while index < len(lines):
        line = lines[index]
        if line == "}":
            return index + 1
        opening = _OPENING.fullmatch(line)
        if opening is not None:
            end = _end_of_block(lines, index, first)
            body = [each.removeprefix("\t\t") for each in lines[index + 1 : end]]
            _parse_block(opening["kind"], opening["name"], body, first + index + 1, table)
            index = end + 1
            continue
        if line.startswith("\tflags "):
            for word in line.removeprefix("\tflags ").split(","):
                if word not in _TABLE_FLAGS:
                    raise DebugOutputError(first + index, "the flags dormant, owner, persist of a table")
                table.flags |= _TABLE_FLAGS[word]
        elif line and not line.startswith("\tcomment "):
            raise DebugOutputError(first + index, "a chain, set, map, flowtable or object of a table")
        index += 1
    raise DebugOutputError(first + len(lines), f"the end of table {table.name}")


def _end_of_block(lines: Sequence[str], start: int, first: int) -> int:
    for index in range(start + 1, len(lines)):
        if lines[index] == "\t}":
            return index
    raise DebugOutputError(first + len(lines), "'}' behind the block of this table")


def _parse_block(kind: str, name: str, body: list[str], first: int, table: ListedTable) -> None:
    if kind == "chain":
        _parse_chain(name, body, first, table)
    elif kind in ("set", "map", "meter"):
        table.sets.append(_parse_set(name, body, first))
    elif kind == "flowtable":
        table.flowtables.append(_encode_flowtable(table, name, body, first))
    else:
        table.objects.append(_encode_object(table, kind, name, body))


# --- chains ----------------------------------------------------------------------------------


def _parse_chain(name: str, body: list[str], first: int, table: ListedTable) -> None:
    declaration = b""
    for index, line in enumerate(body):
        handle = _HANDLE.search(line)
        if line.startswith("type ") and handle is None:
            declaration = _base_chain(line, first + index, table.family)
        elif handle is not None:
            table.rules[name, int(handle[1])] = line[: handle.start()]
        elif line and not line.startswith("comment "):
            table.odd_chains.add(name)
    table.chains.append(text(1, table.name) + text(3, name) + declaration)


def _base_chain(line: str, number_of_line: int, family: str) -> bytes:
    match = _BASE_CHAIN.fullmatch(line)
    hooks = {word: code for code, word in HOOKS[family].items()}
    if match is None or match["hook"] not in hooks:
        raise DebugOutputError(number_of_line, "'type TYPE hook HOOK [device DEVICE] priority NUMBER; policy POLICY;'")
    devices = (
        [match["device"]] if match["device"] else [word.strip(' "') for word in (match["devices"] or "").split(",")]
    )
    hook = number(1, hooks[match["hook"]]) + number(2, int(match["priority"]))
    if any(devices):
        hook += attribute(4, b"".join(_device(name) for name in devices))
    policy = number(5, 0 if match["policy"] == "drop" else 1)
    flags = number(10, 1 | (2 if match["offload"] else 0))
    return attribute(4, hook) + policy + text(7, match["type"]) + flags


def _device(name: str) -> bytes:
    return text(2, name.removesuffix("*")) if name.endswith("*") else text(1, name)


def _encode_flowtable(table: ListedTable, name: str, body: list[str], first: int) -> bytes:
    hook, flags = b"", 0
    for index, line in enumerate(body):
        match = _FLOWTABLE.fullmatch(line)
        if match is not None:
            hook += number(1, 0) + number(2, int(match[1]))
        elif line.startswith("devices = {"):
            words = line.removeprefix("devices = {").removesuffix("}").split(",")
            hook += attribute(3, b"".join(_device(word.strip(' "')) for word in words if word.strip()))
        elif line.startswith("flags "):
            flags |= 1
        elif line not in ("", "counter"):
            raise DebugOutputError(first + index, "hook, devices, flags or counter of a flowtable")
    return text(1, table.name) + text(2, name) + attribute(3, hook) + number(7, flags)


# --- sets ------------------------------------------------------------------------------------


def _parse_set(name: str, body: list[str], first: int) -> ListedSet:
    result = ListedSet(name)
    elements: list[str] = []
    in_elements = False
    for index, line in enumerate(body):
        if in_elements or line.startswith("elements = "):
            in_elements = True
            elements.append(_QUOTED.sub("", line))
        elif line.startswith(("type ", "typeof ")):
            _set_type(result, line)
        elif line.startswith("flags "):
            words = line.removeprefix("flags ").split(",")
            if not set(words) <= _SET_FLAGS.keys():
                raise DebugOutputError(first + index, f"the flags {', '.join(_SET_FLAGS)} of a set")
            result.flags |= sum(_SET_FLAGS[word] for word in words)
        elif line.startswith("timeout "):
            times = _TIME.findall(line)
            result.timeout = sum(int(count) * _TIME_UNITS[unit] for count, unit in times)
            result.flags |= _SET_FLAGS["timeout"]  # nft lists no flag that a timeout implies
        elif line and not line.startswith(_IGNORED_OF_SET):
            result.statements.add(_STATEMENTS.get(line.split()[0], line))
    contents = " ".join(elements)
    result.statements |= element_statements(contents)
    return result


def element_statements(contents: str) -> set[str]:
    """Return the kinds of statements of listed elements; `contents` has no strings."""
    return {word for word, pattern in _ELEMENT_STATEMENTS.items() if pattern.search(contents)}


def _set_type(result: ListedSet, line: str) -> None:
    word, _, remaining = line.partition(" ")
    key, colon, data = remaining.partition(" : ")
    result.key_type = type_number(key.split(" . ")) if word == "type" else None
    if not colon:
        return
    result.flags |= _MAP
    data = data.removeprefix("interval ")
    if data == "verdict":
        result.data_type = _VERDICT_TYPE
    elif data in _OBJECT_WORDS or (data.startswith("ct ") and data.split()[1] in ("helper", "timeout", "expectation")):
        result.has_object = True
        result.flags |= _OBJECT
    else:
        result.data_type = type_number(data.split(" . ")) if word == "type" else None


# --- objects ---------------------------------------------------------------------------------


def _encode_object(table: ListedTable, kind: str, name: str, body: list[str]) -> bytes:
    """Return an object; one that the listing does not show whole has a type that no decoder knows."""
    lines = [line for line in body if line and not line.startswith("comment ")]
    data = _object_data(kind, lines)
    head = text(1, table.name) + text(2, name)
    if data is None:
        return head + number(3, 0) + attribute(4, f"{kind}: {' '.join(lines)}".encode())
    return head + number(3, _OBJECT_TYPES[kind]) + attribute(4, data)


def _object_data(kind: str, lines: list[str]) -> bytes | None:
    if kind == "counter":
        return b""
    if len(lines) != 1:
        return None
    if kind == "quota":
        match = _QUOTA.fullmatch(lines[0])
        return match and number(1, int(match[2]) * _BYTES[match[3]], 8) + number(2, 1 if match[1] else 0)
    match = _RATE.fullmatch(lines[0]) if kind == "limit" else None
    if match is None or match[4] not in SECONDS:
        return None
    is_bytes = match[3] is not None
    rate = int(match[2]) * _BYTES.get(match[3] or "", 1)
    burst = int(match[5]) * _BYTES.get(match[6], 1) if match[5] else _DEFAULT_BURST[is_bytes]
    parts = number(1, rate, 8) + number(2, SECONDS[match[4]], 8) + number(3, burst)
    return parts + number(4, 1 if is_bytes else 0) + number(5, 1 if match[1] else 0)
