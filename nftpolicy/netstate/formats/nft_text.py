# SPDX-License-Identifier: BSD-2-Clause
"""Encoder of rulesets as text for `nft -f`, the only path by which text reaches libnftables.

Every name and value is validated against nft's grammar, so that no policy can inject a statement
into the ruleset.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from ...generated_text import CheckedText
from .. import nft
from ..nft import Element, Expression, Statement
from ..operations import ChainRules, NftOperation, SetElements
from .nft_text_statements import limit_text, quota_text, statement_text, verdict_text
from .nft_text_values import (
    QUOTED_TYPES,
    braced_list,
    element_text,
    expression_text,
    grammar_word,
    identifier,
    quoted_device,
    quoted_name,
    require,
    require_one_of,
    unsupported_error,
    value_text,
    value_types,
)

__all__ = [
    "display_text",
    "element_text",
    "elements_text",
    "expression_text",
    "extension_text",
    "hook_text",
    "identifier",
    "operation_text",
    "quoted_name",
    "replaceable_table_text",
    "rule_text",
    "set_body_text",
    "statement_text",
    "table_text",
    "value_text",
    "value_types",
    "verdict_text",
]

_COMMENT = re.compile(r"[A-Za-z0-9_.:/*%@ ,+()\[\]!?=<>-]{1,120}\Z")
_LETTERS = re.compile(r"[a-z]+\Z")
_VERBS = frozenset({"add", "delete", "flush"})
_REJECTS: Mapping[object, str] = {"ip": "icmp", "ip6": "icmpv6"}
_IS_ETHERNET = nft.Match(nft.Meta("iiftype"), 1)
_ELEMENTS = re.compile(r"[A-Za-z0-9_.:/*@, -]+\Z")


def rule_text(item: nft.Rule) -> CheckedText:
    """Return a rule on one line. Raises ValueError."""
    parts = _named_frame_types(item.statements)
    if item.comment:
        parts.append(f'comment "{require(_COMMENT, item.comment)}"')
    return CheckedText(" ".join(parts))


def _named_frame_types(statements: Sequence[Statement]) -> list[str]:
    """Return the texts of statements, with `ether type` for the two matches that nft makes of it."""
    parts: list[str] = []
    network = None  # established by a test of the frame's type
    for index, statement in enumerate(statements):
        if isinstance(statement, nft.Reject) and statement.type == "unreach" and network in _REJECTS:
            parts.append(f"reject with {_REJECTS[network]} type {int(statement.code or 0)}")
            continue
        text = statement_text(statement)
        is_frame_type = isinstance(statement, nft.Match) and statement.left == nft.Payload("ether", "type")
        if is_frame_type and _IS_ETHERNET in statements[:index]:
            text = text.replace("@ll,96,16", "ether type", 1)
            network = statement.right if isinstance(statement, nft.Match) and statement.op == "==" else network
            if statements[index - 1] == _IS_ETHERNET:
                parts.pop()
        parts.append(text)
    return parts


def has_writable_names(table: nft.Table) -> bool:
    """Return True if nft text can carry the name and the devices of each object of the table."""
    items: tuple[nft.Chain | nft.Set | nft.NamedCounter, ...] = (*table.chains, *table.sets, *table.counters)
    return all(can_name(item) for item in items)


def can_name(item: nft.Chain | nft.Set | nft.NamedCounter) -> bool:
    """Return True if nft text can carry the name of an object, and the devices that a chain is hooked at."""
    hook = item.hook if isinstance(item, nft.Chain) else None
    return can_write(identifier, item.name) and (hook is None or can_write(hook_text, hook))


def can_write(write: Callable[..., str], *arguments: object) -> bool:
    """Return True if a function of this module can write its arguments, False if it raises ValueError."""
    try:
        write(*arguments)
    except ValueError:
        return False
    return True


def hook_text(item: nft.Hook) -> str:
    """Return the hook clause of a base chain."""
    device = f" device {quoted_device(item.device)}" if item.device else ""
    if item.devices:
        device = f" devices = {{ {', '.join(map(quoted_name, sorted(item.devices)))} }}"
    hook_type, hook_name = require(_LETTERS, item.type), require(_LETTERS, item.hook)
    policy = require(_LETTERS, item.policy)
    return f"type {hook_type} hook {hook_name}{device} priority {int(item.priority)}; policy {policy};"


def elements_text(item: nft.Set, members: Iterable[Element]) -> str:
    """Return `members` of set `item` in braces, sorted, so that the text is stable."""
    if len(item.type) == 1 or not QUOTED_TYPES.isdisjoint(item.type):
        return "{ " + ", ".join(sorted(element_text(member, item.type) for member in members)) + " }"
    # Sets of concatenations can be large, so one check validates all elements.
    row = " . ".join(["%s"] * len(item.type))
    rows = sorted([row % member for member in members])
    joined = ", ".join(rows)
    spaces = len(rows) * (2 * len(item.type) - 1) - 1
    if rows and (not _ELEMENTS.match(joined) or joined.count(" ") != spaces or joined.count(",") >= len(rows)):
        raise ValueError(f"an element of set {item.name} cannot be written in an nft ruleset")
    return f"{{ {joined} }}"


def set_body_text(item: nft.Set) -> str:
    """Return type, flags and timeout of a set. Raises ValueError for statements of elements."""
    return f"type {' . '.join(map(identifier, item.type))};{_set_options(item)}"


def _set_options(item: nft.Set | nft.Map) -> str:
    if item.statements or item.conditional_elements:
        raise unsupported_error(f"elements of {item.name} with statements")
    flags = f" flags {', '.join(sorted(map(identifier, item.flags)))};" if item.flags else ""
    size = f" size {int(item.size)};" if isinstance(item, nft.Set) and item.size is not None else ""
    return flags + ("" if item.timeout is None else f" timeout {int(item.timeout)}s;") + size


def _map(item: nft.Map) -> list[str]:
    kinds = (
        f"type {' . '.join(map(identifier, item.type))} : {' . '.join(map(_data_type, item.data))};{_set_options(item)}"
    )
    lines = ["", f"\tmap {identifier(item.name)} {{", *(f"\t\t{part.strip()}" for part in kinds.split(";") if part)]
    if item.elements:
        pairs = (f"{element_text(key, item.type)} : {_map_data(data, item.data)}" for key, data in item.elements)
        lines.append(f"\t\telements = {braced_list(pairs)}")
    return [*lines, "\t}"]


def _data_type(name: str) -> str:
    """Return the name of a type of map data, which may be that of an interval."""
    prefix = "interval " if name.startswith("interval ") else ""
    return f"{prefix}{identifier(name.removeprefix(prefix))}"


def _map_data(data: Element | nft.Verdict, types: tuple[str, ...]) -> str:
    return verdict_text(data) if isinstance(data, nft.Verdict) else element_text(data, types)


def _named_object(item: nft.NamedObject) -> list[str]:
    match item.body:
        case nft.Limit():
            return ["", f"\tlimit {identifier(item.name)} {{", f"\t\t{limit_text(item.body)}", "\t}"]
        case nft.Quota():
            return ["", f"\tquota {identifier(item.name)} {{", f"\t\t{quota_text(item.body)}", "\t}"]
    helper = item.body
    lines = [
        "",
        f"\tct helper {identifier(item.name)} {{",
        f"\t\ttype {quoted_name(helper.type)} protocol {grammar_word(helper.protocol)}",
    ]
    if helper.family:
        lines.append(f"\t\tl3proto {grammar_word(helper.family)}")
    return [*lines, "\t}"]


def _flowtable(item: nft.Flowtable) -> list[str]:
    devices = ", ".join(map(quoted_name, sorted(item.devices)))
    lines = ["", f"\tflowtable {identifier(item.name)} {{"]
    lines.append(f"\t\thook {require(_LETTERS, item.hook)} priority {int(item.priority)}")
    if devices:
        lines.append(f"\t\tdevices = {{ {devices} }}")
    return [*lines, "\t}"]


def table_text(item: nft.Table) -> CheckedText:
    """Return a table as a file for `nft -f`, one object per paragraph.

    The flags "owner" and "persist" are left out: the kernel deletes a table with an owner when the
    process that loaded it exits.

    Raises:
        ValueError: the table has unsupported objects or flags.
    """
    lines = [f"table {identifier(item.family)} {identifier(item.name)} {{"]
    if item.unknown or "unnamed" in item.flags:
        raise unsupported_error(item.unknown or item.flags)
    if "dormant" in item.flags:
        lines.append("\tflags dormant")
    lines += [f"\tcounter {identifier(counter.name)} {{ }}" for counter in item.counters]
    for nft_set in item.sets:
        lines += ["", f"\tset {identifier(nft_set.name)} {{"]
        lines += [f"\t\t{part.strip()}" for part in set_body_text(nft_set).split(";") if part]
        if nft_set.elements:
            lines.append(f"\t\telements = {elements_text(nft_set, nft_set.elements)}")
        lines.append("\t}")
    for named in item.objects:
        lines += _named_object(named)
    for flowtable in item.flowtables:
        lines += _flowtable(flowtable)
    for nft_map in item.maps:
        lines += _map(nft_map)
    for chain in item.chains:
        lines += ["", f"\tchain {identifier(chain.name)} {{"]
        if chain.hook:
            lines.append(f"\t\t{hook_text(chain.hook)}")
        lines += [f"\t\t{rule_text(item)}" for item in chain.rules]
        lines.append("\t}")
    return CheckedText("\n".join([*lines, "}", ""]))


def replaceable_table_text(item: nft.Table) -> CheckedText:
    """Return a file for `nft -f` that replaces the table, whether or not it exists.

    The file adds the table before it deletes it, since nft refuses to delete an absent table.
    """
    commands = [operation_text(NftOperation(verb, *item.key, nft.Table(*item.key))) for verb in ("add", "delete")]
    return CheckedText("\n".join([*commands, table_text(item)]))


def extension_text(item: nft.Table) -> CheckedText:
    """Return a file for `nft -f` that adds the sets and chains of `item` to its table, or replaces them there.

    All other objects of the table stay.
    """
    sets = (nft_set for nft_set in item.sets if "dynamic" not in nft_set.flags)
    replaced: tuple[nft.Set | nft.Chain, ...] = (*sets, *item.chains)
    commands = [operation_text(NftOperation("add", *item.key, nft.Table(*item.key)))]
    commands += [operation_text(NftOperation(verb, *item.key, each)) for each in replaced for verb in ("add", "flush")]
    return CheckedText("\n".join([*commands, table_text(item)]))


def unindented_table_text(item: nft.Table) -> CheckedText:
    """Return the file of `replaceable_table_text` without indentation."""
    return CheckedText(re.sub(r"^\t+", "", replaceable_table_text(item), flags=re.MULTILINE))


def operation_text(item: NftOperation) -> str:
    """Return an operation of a transaction as a command for `nft -f`. Raises ValueError."""
    table_name = f"{identifier(item.family)} {identifier(item.table)}"
    require_one_of(_VERBS, item.verb)
    match item.object:
        case nft.Table():
            return f"{item.verb} table {table_name}"
        case nft.NamedCounter(target):
            return f"{item.verb} counter {table_name} {identifier(target)}"
        case nft.Set(target):
            body = f" {{ {set_body_text(item.object)} }}" if item.verb == "add" else ""
            return f"{item.verb} set {table_name} {identifier(target)}{body}"
        case SetElements(nft_set, members):
            text = elements_text(nft_set, members)
            return f"{item.verb} element {table_name} {identifier(nft_set.name)} {text}"
        case nft.Chain(target):
            body = f" {{ {hook_text(item.object.hook)} }}" if item.verb == "add" and item.object.hook else ""
            return f"{item.verb} chain {table_name} {identifier(target)}{body}"
        case ChainRules(chain, rules):
            prefix = f"add rule {table_name} {identifier(chain.name)}"
            return "\n".join(f"{prefix} {rule_text(item)}" for item in rules)
    raise TypeError(item.object)


def display_text(item: nft.Rule | Statement | Expression) -> str:
    """Return nft syntax for display on one line: unsupported parts in <>, without comments."""
    text = _display_text(item)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _display_text(item: nft.Rule | Statement | Expression) -> str:
    match item:
        case nft.Rule(statements):
            return " ".join(map(display_text, statements)) or "(empty rule)"
        case nft.UnmodelledMatch(name):
            return f"<{name}>"
        case nft.NeutralTarget(name):
            return f"<xt target {name}>"
        case nft.Unless(matches):
            return f"<unless {' and '.join(map(display_text, matches))}>"
        case nft.Mangle(key, nft.UnknownExpression(raw)):
            return f"{display_text(key)} set <{raw}>"
    try:
        return statement_text(item) if isinstance(item, Statement) else expression_text(item)
    except ValueError:
        return _unwritable_text(item)


def _unwritable_text(item: object) -> str:
    """Return text that resembles nft syntax for an item, or a part of one, that cannot be written for nft."""
    match item:
        case nft.Undecided(text):
            return text
        case nft.UnknownStatement(raw) | nft.UnknownExpression(raw):
            return f"<{raw}>"
        case nft.Match(left, right, op):
            return f"{_unwritable_text(left)} {op} {_unwritable_text(right)}"
        case nft.VerdictMap(key, entries) | nft.Lookup(key, frozenset() as entries):
            pairs = sorted(f"{_unwritable_text(element)} : {_unwritable_text(data)}" for element, data in entries)
            return f"{_unwritable_text(key)} map {{ {', '.join(pairs)} }}"
        case nft.Verdict(kind, target):
            return kind if target is None else f"{kind} {target}"
        case tuple():
            return " . ".join(map(_unwritable_text, item))
        case frozenset():
            return "{ " + ", ".join(sorted(map(_unwritable_text, item))) + " }"
    item_class = type(item)
    if not attrs.has(item_class):
        return str(item)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", item_class.__name__).lower()
    parts = [getattr(item, part.name) for part in attrs.fields(item_class)]
    return " ".join([name, *(_unwritable_text(part) for part in parts if part not in (None, frozenset()))])
