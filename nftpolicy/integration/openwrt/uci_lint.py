# SPDX-License-Identifier: BSD-2-Clause
"""Checks of UCI sections for values that netifd and fw4 silently ignore or misread.

netifd leaves out a section with a value that it cannot parse, ignores unknown options, and parses
numbers by strtoul(3) with base 0: 010 is 8, and 0x100000000 is not a mark, so the rule matches every
packet. fw4 renders no ruleset at all if an include has an unknown type. (Observed with netifd of
2024-12 and 2026-07, and firewall4 of 2024-11.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_network

from .uci import UciSection

NETIFD_FIRST_PRIORITY = 10000  # netifd's own rules begin here: from, to and iif rules of ipNtable

OptionValue = str | tuple[str, ...]
_Test = Callable[[str], None]  # raises ValueError with the fault

_NUMBER = re.compile(r"(0x[0-9A-Fa-f]+|[0-9]+)\Z")
_TABLE_NAMES = {"main": 254, "local": 255, "default": 253}
_ACTIONS = ("prohibit", "unreachable", "blackhole", "throw")
_INCLUDE_TYPES = ("nftables", "script")
_POSITIONS = tuple(f"{where}-{side}" for where in ("ruleset", "table", "chain") for side in ("pre", "post"))


def section_faults(section: UciSection) -> Iterator[str]:
    """Yield the effects of the section that its author cannot have intended, as sentences."""
    option_tests = _OPTION_TESTS.get((section.config, section.type))
    if option_tests is None:
        return
    options = dict(section.options)
    for key, value in options.items():
        test = option_tests.get(key)
        if test is None:
            yield f"option {key} is not known and is ignored"
            continue
        try:
            test(value if isinstance(value, str) else " ".join(value))
        except ValueError as error:
            yield f"option {key} '{value}': {error}"
    yield from _SECTION_TESTS[section.type](options)


def parse_number(text: str, most: int = 2**32 - 1) -> int:
    """Return a number as strtoul(3) parses it, if a reader reads the same.

    Raises:
        ValueError: the text is not a number, is octal, or is above `most`.
    """
    if not _NUMBER.match(text):
        raise ValueError("is not a number, so the section is left out")
    if len(text) > 1 and text.startswith("0") and not text.startswith("0x"):
        octal = f"octal to netifd: {int(text, 8)}" if re.fullmatch("[0-7]+", text) else "an invalid octal number"
        raise ValueError(f"is {octal}")
    value = int(text, 0)
    if value > most:
        raise ValueError(f"is more than {most}, so netifd reads another number")
    return value


def _mark(text: str) -> None:
    value, slash, mask = text.partition("/")
    mark_value, mark_mask = parse_number(value), parse_number(mask) if slash else 2**32 - 1
    if mark_value == 0 or mark_mask == 0:
        raise ValueError("is not a mark to netifd: the rule matches every packet")
    if mark_value & ~mark_mask:
        raise ValueError("has bits outside its mask, so no packet matches")


def _priority(text: str) -> None:
    if parse_number(text) == 0:
        raise ValueError("comes before the kernel's table of local addresses")


def _table(text: str) -> None:
    if parse_number(str(_TABLE_NAMES.get(text, text))) == 0:
        raise ValueError("is not a table, so the section is left out")


def _metric(text: str) -> None:
    parse_number(text, 2**31 - 1)  # strtol(3), where long has 32 bits


def _one_of(*words: str) -> _Test:
    def test(text: str) -> None:
        if text not in words:
            raise ValueError(f"is not one of {', '.join(words)}, so the section is left out")

    return test


def _prefix(version: int) -> _Test:
    def test(text: str) -> None:
        with suppress(ValueError):
            if "/" in text and ip_network(text, strict=False).version == version:
                return
        raise ValueError(f"is not an IPv{version} ADDRESS/LENGTH, so the section is left out or matches everything")

    return test


def _number(text: str) -> None:
    parse_number(text)


def _accept_any(_: str) -> None:
    pass


def _uids(text: str) -> None:
    low, dash, high = text.partition("-")
    if (parse_number(high) if dash else parse_number(low)) < parse_number(low):
        raise ValueError("ends before it begins, so the section is left out")


def _rule_tests(version: int) -> dict[str, _Test]:
    return {
        "priority": _priority,
        "mark": _mark,
        "lookup": _table,
        "action": _one_of(*_ACTIONS),
        "goto": _number,
        "in": _accept_any,
        "out": _accept_any,
        "src": _prefix(version),
        "dest": _prefix(version),
        "tos": _number,
        "uidrange": _uids,
        "suppress_prefixlength": _number,
        "invert": _accept_any,
        "disabled": _accept_any,
    }


def _route_tests(version: int) -> dict[str, _Test]:
    return {
        "interface": _accept_any,
        "type": _one_of("unicast", "unreachable", "blackhole", "prohibit", "throw"),
        "target": _prefix(version),
        "gateway": _accept_any,
        "table": _table,
        "metric": _metric,
        "mtu": _number,
        "onlink": _accept_any,
        "source": _accept_any,
        "proto": _accept_any,
        "disabled": _accept_any,
    }


def _rule_faults(options: dict[str, OptionValue]) -> Iterator[str]:
    if "priority" not in options:
        yield "has no priority: netifd numbers such rules from 1, so a rule before it in the file changes its priority"
    if not options.keys() & {"lookup", "action", "goto"}:
        yield "has neither lookup, action nor goto: the rule has no effect"
    if {"lookup", "action"} <= options.keys():
        yield "has lookup and action: the action wins"
    with suppress(ValueError):  # a fault of the option
        if "action" not in options and parse_number(str(options.get("priority", 0))) >= NETIFD_FIRST_PRIORITY:
            yield f"comes after netifd's own rules, which begin at {NETIFD_FIRST_PRIORITY}"


def _route_faults(options: dict[str, OptionValue]) -> Iterator[str]:
    if options.get("type", "unicast") == "unicast" and "interface" not in options:
        yield "has neither an interface nor a type without one, so the section is left out"
    if options.get("type", "unicast") != "unicast" and "interface" in options:
        yield "is removed with its interface, and marked packets then continue at the next rule"


def _include_faults(options: dict[str, OptionValue]) -> Iterator[str]:
    if str(options.get("path", "")).startswith("/usr/share/nftables.d/"):
        yield "is in /usr/share/nftables.d and included already: its rules would be loaded twice"


_INCLUDE: dict[str, _Test] = {
    "type": _one_of(*_INCLUDE_TYPES),
    "path": _accept_any,
    "position": _one_of(*_POSITIONS),
    "chain": _accept_any,
    "enabled": _accept_any,
    "fw4_compatible": _accept_any,
}
_OPTION_TESTS: dict[tuple[str, str], dict[str, _Test]] = {
    ("network", "rule"): _rule_tests(4),
    ("network", "rule6"): _rule_tests(6),
    ("network", "route"): _route_tests(4),
    ("network", "route6"): _route_tests(6),
    ("firewall", "include"): _INCLUDE,
}
_SECTION_TESTS: dict[str, Callable[[dict[str, OptionValue]], Iterator[str]]] = {
    "rule": _rule_faults,
    "rule6": _rule_faults,
    "route": _route_faults,
    "route6": _route_faults,
    "include": _include_faults,
}
