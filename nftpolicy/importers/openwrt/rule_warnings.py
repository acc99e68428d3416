# SPDX-License-Identifier: BSD-2-Clause
"""Warnings about ip rules of UCI that netifd applies, but perhaps not as intended."""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import evolve, frozen

from ...netstate.routing import IpRule
from .uci_parser import ParsedSection

_MARK_BITS = 32
_MAIN_PRIORITY = 32766  # of the kernel's rule for table main


@frozen
class UciWarning:
    """Part of the configuration that does not have its apparent effect.

    `severe`: it matches all packets.
    """

    location: str
    text: str
    severe: bool = False


def rule_warnings(section: ParsedSection, rule: IpRule) -> Iterator[UciWarning]:
    """Yield the effects of a rule that its author may not have intended."""
    text = section.get("mark")
    value_text = text.partition("/")[0].strip()
    mark_place = section.location("mark")
    truncation = ", since netifd keeps only 32 bits of the value" if _bit_length(value_text) > _MARK_BITS else ""
    if text and rule.invert and _selects_by_mark_only(rule):
        effect = f"all packets but those with {rule.mark:#x} in the bits {rule.mask:#x} of their mark"
        if not rule.mask:
            effect = "NO packet"
        elif not rule.mark:
            effect = f"all packets WITH a mark in the bits {rule.mask:#x}"
        yield UciWarning(mark_place, f"{section.title}: mark {text} with option invert matches {effect}{truncation}")
    elif text and rule.invert:
        yield UciWarning(
            mark_place, f"{section.title}: option invert inverts all its conditions together, not the mark"
        )
    elif text and not rule.mask:
        yield UciWarning(
            mark_place,
            f"{section.title}: mark {text} is not a condition: the rule matches ALL packets{truncation}",
            True,
        )
    elif text and not rule.mark:
        yield UciWarning(
            mark_place, f"{section.title}: mark {text} matches packets WITHOUT a mark: all unmarked packets", True
        )
    elif _bit_length(value_text) > _MARK_BITS:
        yield UciWarning(
            mark_place, f"{section.title}: netifd keeps only the lower 32 bits of mark {text}: {rule.mark:#x}"
        )
    elif re.match(r"0[0-7]+\Z", value_text):
        yield UciWarning(mark_place, f"{section.title}: mark {value_text} is octal and equals {rule.mark:#x}")
    elif value_text.startswith("-"):
        yield UciWarning(mark_place, f"{section.title}: mark {value_text} wraps to {rule.mark:#x}")
    if rule.mask and rule.mark & ~rule.mask:
        yield UciWarning(mark_place, f"{section.title}: mark {text} has bits outside its mask, so no packet matches it")
    if rule.action == "nop":
        yield UciWarning(
            section.location(), f"{section.title}: neither lookup, action nor goto: the rule has no effect"
        )
    if section.get("action") and section.get("lookup"):
        yield UciWarning(
            section.location("action"),
            f"{section.title}: action {section.get('action')} has priority over lookup, which netifd ignores",
        )
    if not section.get("priority"):
        fact = f"it is {rule.priority} only while no other {section.type} precedes it in the file"
        yield UciWarning(section.location(), f"{section.title}: no priority: {fact}")
    elif rule.priority > _MAIN_PRIORITY and rule.action == "lookup":
        fact = "is after table main (32766); a default route there matches first"
        yield UciWarning(section.location("priority"), f"{section.title}: priority {rule.priority} {fact}")


def _selects_by_mark_only(rule: IpRule) -> bool:
    """Return True for a rule without another selector. The kernel inverts all of them together (fib_rule_match)."""
    bare = IpRule(rule.family, rule.priority, rule.action, rule.table, rule.mark, rule.mask, protocol=rule.protocol)
    return evolve(bare, invert=True, suppress_prefix=rule.suppress_prefix) == rule


def _bit_length(text: str) -> int:
    try:
        return int(text, 0).bit_length() if len(text) < 40 and not text.startswith("-") else 0
    except ValueError:
        return 0
