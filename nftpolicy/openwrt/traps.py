# SPDX-License-Identifier: BSD-2-Clause
"""What netifd and fw4 do with a UCI section that is not quite right: mostly nothing, and without a word.

netifd leaves out a section with a value that it can't read, ignores options that it does not know, and reads
numbers by strtoul(3) with base 0: 010 is 8, and 0x100000000 is no mark, which matches every packet. fw4
renders nothing at all if an include has a type that it does not know. (As observed with netifd of 2024-12 and
2026-07, and firewall4 of 2024-11.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_network

from .uci import Section

NETIFD_FIRST = 10000  # what netifd makes by itself begins here: from, to and iif rules of ipNtable

Value = str | tuple[str, ...]

_NUMBER = re.compile(r"(0x[0-9A-Fa-f]+|[0-9]+)\Z")
_TABLE_NAMES = {"main": 254, "local": 255, "default": 253}
_ACTIONS = ("prohibit", "unreachable", "blackhole", "throw")
_INCLUDE_TYPES = ("nftables", "script")
_POSITIONS = tuple(f"{where}-{side}" for where in ("ruleset", "table", "chain") for side in ("pre", "post"))


def faults(section: Section) -> Iterator[str]:
    """What would come of this section that its writer can't have meant, a sentence each."""
    kind = _KINDS.get((section.config, section.type))
    if kind is None:
        return
    options = dict(section.options)
    for key, held in options.items():
        test = kind.get(key)
        if test is None:
            yield f"option {key} is not known and is ignored"
            continue
        try:
            test(held if isinstance(held, str) else " ".join(held))
        except ValueError as error:
            yield f"option {key} '{held}': {error}"
    yield from _WHOLE[section.type](options)


def number(item: str, most: int = 2**32 - 1) -> int:
    """A number as strtoul(3) reads it, where a person reads the same. Raises ValueError."""
    if not _NUMBER.match(item):
        raise ValueError("is no number, so the section is left out")
    if len(item) > 1 and item.startswith("0") and not item.startswith("0x"):
        raise ValueError(f"is octal to netifd: {int(item, 8) if re.fullmatch('[0-7]+', item) else 'not even that'}")
    found = int(item, 0)
    if found > most:
        raise ValueError(f"is more than {most}, and reads as another number")
    return found


def _mark(item: str) -> None:
    value, slash, mask = item.partition("/")
    worn, worn_of = number(value), number(mask) if slash else 2**32 - 1
    if worn == 0 or worn_of == 0:
        raise ValueError("is no mark to netifd: the rule matches every packet")
    if worn & ~worn_of:
        raise ValueError("has bits that its mask has not, so no packet matches")


def _priority(item: str) -> None:
    if number(item) >= NETIFD_FIRST:
        raise ValueError(f"comes after netifd's own rules, which begin at {NETIFD_FIRST}")
    if number(item) == 0:
        raise ValueError("comes before the kernel's table of local addresses")


def _table(item: str) -> None:
    if number(str(_TABLE_NAMES.get(item, item))) == 0:
        raise ValueError("is no table, so the section is left out")


def _metric(item: str) -> None:
    number(item, 2**31 - 1)  # strtol(3), where long has 32 bits


def _one_of(*words: str) -> Callable[[str], None]:
    def test(item: str) -> None:
        if item not in words:
            raise ValueError(f"is not one of {', '.join(words)}, so the section is left out")

    return test


def _prefix(version: int) -> Callable[[str], None]:
    def test(item: str) -> None:
        with suppress(ValueError):
            if "/" in item and ip_network(item, strict=False).version == version:
                return
        raise ValueError(f"is no IPv{version} ADDRESS/LENGTH, so the section is left out or matches everything")

    return test


def _any(_: str) -> None:
    pass


def _uids(item: str) -> None:
    low, dash, high = item.partition("-")
    if (number(high) if dash else number(low)) < number(low):
        raise ValueError("ends before it begins, so the section is left out")


def _of_rule(version: int) -> dict[str, Callable[[str], None]]:
    return {"priority": _priority, "mark": _mark, "lookup": _table, "action": _one_of(*_ACTIONS), "invert": _any,
            "in": _any, "out": _any, "src": _prefix(version), "dest": _prefix(version), "tos": number,
            "goto": number, "uidrange": _uids, "suppress_prefixlength": number, "disabled": _any}  # type: ignore[dict-item]  # fmt: skip


def _of_route(version: int) -> dict[str, Callable[[str], None]]:
    types = _one_of("unicast", "unreachable", "blackhole", "prohibit", "throw")
    return {"interface": _any, "type": types, "target": _prefix(version), "gateway": _any, "table": _table,
            "metric": _metric, "mtu": number, "onlink": _any, "source": _any, "proto": _any, "disabled": _any}  # type: ignore[dict-item]  # fmt: skip


def _whole_rule(options: dict[str, Value]) -> Iterator[str]:
    if "priority" not in options:
        yield "has no priority: netifd counts such rules from 1, and a rule put before it makes another one of it"
    if not options.keys() & {"lookup", "action", "goto"}:
        yield "has neither lookup, action nor goto: netifd makes a rule that does nothing"
    if {"lookup", "action"} <= options.keys():
        yield "has lookup and action: the action wins"


def _whole_route(options: dict[str, Value]) -> Iterator[str]:
    if options.get("type", "unicast") == "unicast" and "interface" not in options:
        yield "has neither an interface nor a type that needs none, so the section is left out"
    if options.get("type", "unicast") != "unicast" and "interface" in options:
        yield "goes away with its interface, and marked packets go on to the next rule then"


def _whole_include(options: dict[str, Value]) -> Iterator[str]:
    if str(options.get("path", "")).startswith("/usr/share/nftables.d/"):
        yield "is included already, since it is in /usr/share/nftables.d: its rules would be there twice"


_INCLUDE: dict[str, Callable[[str], None]] = {
    "type": _one_of(*_INCLUDE_TYPES), "path": _any, "position": _one_of(*_POSITIONS), "chain": _any,
    "enabled": _any, "fw4_compatible": _any,
}  # fmt: skip
_KINDS: dict[tuple[str, str], dict[str, Callable[[str], None]]] = {
    ("network", "rule"): _of_rule(4),
    ("network", "rule6"): _of_rule(6),
    ("network", "route"): _of_route(4),
    ("network", "route6"): _of_route(6),
    ("firewall", "include"): _INCLUDE,
}
_WHOLE: dict[str, Callable[[dict[str, Value]], Iterator[str]]] = {
    "rule": _whole_rule,
    "rule6": _whole_rule,
    "route": _whole_route,
    "route6": _whole_route,
    "include": _whole_include,
}
