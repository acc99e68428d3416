# SPDX-License-Identifier: BSD-2-Clause
"""nft values as text for `nft -f`: the one gate through which words reach libnftables.

Every name and value is checked against what nft's grammar can carry, so that no policy
can smuggle a statement of its own into the ruleset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import nft
from .changes import Elements, NftOperation, Rules
from .nft import Element, Expression, Statement
from .text_statements import limit, quota, statement, verdict
from .text_values import QUOTED, element, entries, expression, gate, name, one_of, quoted, types_of, value, word

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
    """A rule on one line."""
    parts = [statement(one) for one in item.statements]
    if item.comment:
        parts.append(f'comment "{gate(_COMMENT, item.comment)}"')
    return " ".join(parts)


def hook(item: nft.Hook) -> str:
    """The hook clause of a base chain."""
    device = f" device {quoted(item.device)}" if item.device else ""
    if item.devices:
        device = f" devices = {{ {', '.join(map(quoted, sorted(item.devices)))} }}"
    words = gate(_LETTERS, item.type), gate(_LETTERS, item.hook), gate(_LETTERS, item.policy)
    return f"type {words[0]} hook {words[1]}{device} priority {int(item.priority)}; policy {words[2]};"


def elements(item: nft.Set, which: Iterable[Element]) -> str:
    """The braces with the elements `which` of set `item`, sorted, so that the text is stable."""
    if len(item.type) == 1 or not QUOTED.isdisjoint(item.type):
        return "{ " + ", ".join(sorted(element(one, item.type) for one in which)) + " }"
    # Sets of concatenations can be large, so the gate is asked once for all of them.
    row = " . ".join(["%s"] * len(item.type))
    rows = sorted([row % one for one in which])
    joined = ", ".join(rows)
    blanks = len(rows) * (2 * len(item.type) - 1) - 1
    if rows and (not _ELEMENTS.match(joined) or joined.count(" ") != blanks):
        raise ValueError(f"an element of set {item.name} can not be written in an nft ruleset")
    return f"{{ {joined} }}"


def set_body(item: nft.Set) -> str:
    """Type and flags of a set."""
    return f"type {' . '.join(map(name, item.type))};{_set_more(item)}"


def _set_more(item: nft.Set | nft.Map) -> str:
    flags = f" flags {', '.join(sorted(map(name, item.flags)))};" if item.flags else ""
    return flags + ("" if item.timeout is None else f" timeout {int(item.timeout)}s;")


def _map(item: nft.Map) -> list[str]:
    kinds = f"type {' . '.join(map(name, item.type))} : {' . '.join(map(name, item.data))};{_set_more(item)}"
    lines = ["", f"\tmap {name(item.name)} {{", *(f"\t\t{part.strip()}" for part in kinds.split(";") if part)]
    if item.elements:
        listed = (
            f"{element(key, item.type)} : {verdict(to) if isinstance(to, nft.Verdict) else element(to, item.data)}"
            for key, to in item.elements
        )
        lines.append(f"\t\telements = {entries(listed)}")
    return [*lines, "\t}"]


def _named(item: nft.Named) -> list[str]:
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
    return [*lines, *([f"\t\tl3proto {word(helper.family)}"] if helper.family else []), "\t}"]


def _flowtable(item: nft.Flowtable) -> list[str]:
    devices = ", ".join(map(quoted, sorted(item.devices)))
    lines = ["", f"\tflowtable {name(item.name)} {{"]
    lines.append(f"\t\thook {gate(_LETTERS, item.hook)} priority {int(item.priority)}")
    return [*lines, *([f"\t\tdevices = {{ {devices} }}"] if devices else []), "\t}"]


def table(item: nft.Table) -> str:
    """A whole table as a file for `nft -f`, one object a paragraph.

    Without the flags "owner" and "persist": such a table is gone when the program that loads it ends.
    """
    lines = [f"table {name(item.family)} {name(item.name)} {{"]
    if item.unknown or "unnamed" in item.flags:
        raise ValueError(f"not modelled, so it can not be written: {item.unknown or item.flags}")
    if "dormant" in item.flags:
        lines.append("\tflags dormant")
    lines += [f"\tcounter {name(counter.name)} {{ }}" for counter in item.counters]
    for one in item.sets:
        lines += [
            "",
            f"\tset {name(one.name)} {{",
            *(f"\t\t{part.strip()}" for part in set_body(one).split(";") if part),
        ]
        if one.elements:
            lines.append(f"\t\telements = {elements(one, one.elements)}")
        lines.append("\t}")
    for named in item.objects:
        lines += _named(named)
    for flowtable in item.flowtables:
        lines += _flowtable(flowtable)
    for one_map in item.maps:
        lines += _map(one_map)
    for chain in item.chains:
        lines += ["", f"\tchain {name(chain.name)} {{"]
        if chain.hook:
            lines.append(f"\t\t{hook(chain.hook)}")
        lines += [f"\t\t{rule(one)}" for one in chain.rules]
        lines.append("\t}")
    return "\n".join([*lines, "}", ""])


def replacing(item: nft.Table) -> str:
    """The table as a file that can be loaded over any other state of it: to delete a table it must be there."""
    commands = [operation(NftOperation(verb, *item.key, nft.Table(*item.key))) for verb in ("add", "delete")]
    return "\n".join([*commands, table(item)])


def operation(item: NftOperation) -> str:
    """One operation of a transaction as one command for `nft -f`."""
    where = f"{name(item.family)} {name(item.table)}"
    one_of(_VERBS, item.verb)
    match item.object:
        case nft.Table():
            return f"{item.verb} table {where}"
        case nft.NamedCounter(target):
            return f"{item.verb} counter {where} {name(target)}"
        case nft.Set(target):
            body = f" {{ {set_body(item.object)} }}" if item.verb == "add" else ""
            return f"{item.verb} set {where} {name(target)}{body}"
        case Elements(of, which):
            return f"{item.verb} element {where} {name(of.name)} {elements(of, which)}"
        case nft.Chain(target):
            body = f" {{ {hook(item.object.hook)} }}" if item.verb == "add" and item.object.hook else ""
            return f"{item.verb} chain {where} {name(target)}{body}"
        case Rules(chain, rules):
            return "\n".join(f"add rule {where} {name(chain.name)} {rule(one)}" for one in rules)
    raise TypeError(item.object)


def shown(item: nft.Rule | Statement | Expression) -> str:
    """The same for a person: what can't be written stands as JSON between <>, a comment is left out."""
    if isinstance(item, nft.Rule):
        return " ".join(map(shown, item.statements)) or "(an empty rule)"
    for write in (statement, expression):
        try:
            return write(item)  # type: ignore[operator, arg-type]
        except ValueError:
            continue
    return f"<{getattr(item, 'raw', item)}>"
