# SPDX-License-Identifier: BSD-2-Clause
"""Encoder of rulesets as text for `nft -f`, the only path by which text reaches libnftables.

Every name and value is validated against nft's grammar, so that no policy can inject a statement
into the ruleset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import nft
from .changes import Elements, NftOperation, Rules
from .nft import Element, Expression, Statement
from .text_statements import limit, quota, statement, verdict
from .text_values import (
    QUOTED,
    element,
    entries,
    expression,
    gate,
    name,
    one_of,
    quoted,
    types_of,
    unsupported_error,
    value,
    word,
)

__all__ = [
    "element",
    "elements",
    "expression",
    "hook",
    "name",
    "operation",
    "replacing",
    "rule",
    "set_body",
    "shown",
    "statement",
    "table",
    "types_of",
    "value",
    "verdict",
]

_COMMENT = re.compile(r"[A-Za-z0-9_.:/*%@ ,+()\[\]!?=<>-]{1,120}\Z")
_LETTERS = re.compile(r"[a-z]+\Z")
_VERBS = frozenset({"add", "delete", "flush"})
_ELEMENTS = re.compile(r"[A-Za-z0-9_.:/*%@, -]+\Z")


def rule(item: nft.Rule) -> str:
    """Return a rule on one line. Raises ValueError."""
    parts = list(map(statement, item.statements))
    if item.comment:
        parts.append(f'comment "{gate(_COMMENT, item.comment)}"')
    return " ".join(parts)


def hook(item: nft.Hook) -> str:
    """Return the hook clause of a base chain."""
    device = f" device {quoted(item.device)}" if item.device else ""
    if item.devices:
        device = f" devices = {{ {', '.join(map(quoted, sorted(item.devices)))} }}"
    hook_type, hook_name = gate(_LETTERS, item.type), gate(_LETTERS, item.hook)
    policy = gate(_LETTERS, item.policy)
    return f"type {hook_type} hook {hook_name}{device} priority {int(item.priority)}; policy {policy};"


def elements(item: nft.Set, members: Iterable[Element]) -> str:
    """Return `members` of set `item` in braces, sorted, so that the text is stable."""
    if len(item.type) == 1 or not QUOTED.isdisjoint(item.type):
        return "{ " + ", ".join(sorted(element(member, item.type) for member in members)) + " }"
    # Sets of concatenations can be large, so one check validates all elements.
    row = " . ".join(["%s"] * len(item.type))
    rows = sorted([row % member for member in members])
    joined = ", ".join(rows)
    spaces = len(rows) * (2 * len(item.type) - 1) - 1
    if rows and (not _ELEMENTS.match(joined) or joined.count(" ") != spaces):
        raise ValueError(f"an element of set {item.name} cannot be written in an nft ruleset")
    return f"{{ {joined} }}"


def set_body(item: nft.Set) -> str:
    """Return type, flags and timeout of a set."""
    return f"type {' . '.join(map(name, item.type))};{_set_options(item)}"


def _set_options(item: nft.Set | nft.Map) -> str:
    flags = f" flags {', '.join(sorted(map(name, item.flags)))};" if item.flags else ""
    return flags + ("" if item.timeout is None else f" timeout {int(item.timeout)}s;")


def _map(item: nft.Map) -> list[str]:
    kinds = f"type {' . '.join(map(name, item.type))} : {' . '.join(map(name, item.data))};{_set_options(item)}"
    lines = ["", f"\tmap {name(item.name)} {{", *(f"\t\t{part.strip()}" for part in kinds.split(";") if part)]
    if item.elements:
        pairs = (f"{element(key, item.type)} : {_map_data(data, item.data)}" for key, data in item.elements)
        lines.append(f"\t\telements = {entries(pairs)}")
    return [*lines, "\t}"]


def _map_data(data: Element | nft.Verdict, types: tuple[str, ...]) -> str:
    return verdict(data) if isinstance(data, nft.Verdict) else element(data, types)


def _named_object(item: nft.Named) -> list[str]:
    match item.body:
        case nft.Limit():
            return ["", f"\tlimit {name(item.name)} {{", f"\t\t{limit(item.body)}", "\t}"]
        case nft.Quota():
            return ["", f"\tquota {name(item.name)} {{", f"\t\t{quota(item.body)}", "\t}"]
    helper = item.body
    lines = [
        "",
        f"\tct helper {name(item.name)} {{",
        f"\t\ttype {quoted(helper.type)} protocol {word(helper.protocol)}",
    ]
    if helper.family:
        lines.append(f"\t\tl3proto {word(helper.family)}")
    return [*lines, "\t}"]


def _flowtable(item: nft.Flowtable) -> list[str]:
    devices = ", ".join(map(quoted, sorted(item.devices)))
    lines = ["", f"\tflowtable {name(item.name)} {{"]
    lines.append(f"\t\thook {gate(_LETTERS, item.hook)} priority {int(item.priority)}")
    if devices:
        lines.append(f"\t\tdevices = {{ {devices} }}")
    return [*lines, "\t}"]


def table(item: nft.Table) -> str:
    """Return a table as a file for `nft -f`, one object per paragraph.

    The flags "owner" and "persist" are left out: the kernel deletes a table with an owner when the
    process that loaded it exits.

    Raises:
        ValueError: the table has unsupported objects or flags.
    """
    lines = [f"table {name(item.family)} {name(item.name)} {{"]
    if item.unknown or "unnamed" in item.flags:
        raise unsupported_error(item.unknown or item.flags)
    if "dormant" in item.flags:
        lines.append("\tflags dormant")
    lines += [f"\tcounter {name(counter.name)} {{ }}" for counter in item.counters]
    for nft_set in item.sets:
        lines += ["", f"\tset {name(nft_set.name)} {{"]
        lines += [f"\t\t{part.strip()}" for part in set_body(nft_set).split(";") if part]
        if nft_set.elements:
            lines.append(f"\t\telements = {elements(nft_set, nft_set.elements)}")
        lines.append("\t}")
    for named in item.objects:
        lines += _named_object(named)
    for flowtable in item.flowtables:
        lines += _flowtable(flowtable)
    for nft_map in item.maps:
        lines += _map(nft_map)
    for chain in item.chains:
        lines += ["", f"\tchain {name(chain.name)} {{"]
        if chain.hook:
            lines.append(f"\t\t{hook(chain.hook)}")
        lines += [f"\t\t{rule(item)}" for item in chain.rules]
        lines.append("\t}")
    return "\n".join([*lines, "}", ""])


def replacing(item: nft.Table) -> str:
    """Return a file for `nft -f` that replaces the table, whether or not it exists.

    The file adds the table before it deletes it, since nft refuses to delete an absent table.
    """
    commands = [operation(NftOperation(verb, *item.key, nft.Table(*item.key))) for verb in ("add", "delete")]
    return "\n".join([*commands, table(item)])


def operation(item: NftOperation) -> str:
    """Return an operation of a transaction as a command for `nft -f`. Raises ValueError."""
    table_name = f"{name(item.family)} {name(item.table)}"
    one_of(_VERBS, item.verb)
    match item.object:
        case nft.Table():
            return f"{item.verb} table {table_name}"
        case nft.NamedCounter(target):
            return f"{item.verb} counter {table_name} {name(target)}"
        case nft.Set(target):
            body = f" {{ {set_body(item.object)} }}" if item.verb == "add" else ""
            return f"{item.verb} set {table_name} {name(target)}{body}"
        case Elements(nft_set, members):
            text = elements(nft_set, members)
            return f"{item.verb} element {table_name} {name(nft_set.name)} {text}"
        case nft.Chain(target):
            body = f" {{ {hook(item.object.hook)} }}" if item.verb == "add" and item.object.hook else ""
            return f"{item.verb} chain {table_name} {name(target)}{body}"
        case Rules(chain, rules):
            prefix = f"add rule {table_name} {name(chain.name)}"
            return "\n".join(f"{prefix} {rule(item)}" for item in rules)
    raise TypeError(item.object)


def shown(item: nft.Rule | Statement | Expression) -> str:
    """Return nft syntax for display: unsupported parts as JSON in <>, without comments."""
    if isinstance(item, nft.Rule):
        return " ".join(map(shown, item.statements)) or "(empty rule)"
    try:
        return statement(item) if isinstance(item, Statement) else expression(item)
    except ValueError:
        return f"<{getattr(item, 'raw', item)}>"
