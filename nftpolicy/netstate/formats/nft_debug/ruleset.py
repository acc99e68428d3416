# SPDX-License-Identifier: BSD-2-Clause
"""Tables from the output of `nft --debug=netlink -y -a list ruleset`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from attrs import Factory, evolve, frozen, mutable

from ... import nft
from ..nft_bytecode.attributes import UnsupportedBytecode
from ..nft_bytecode.chains import FAMILIES
from ..nft_bytecode.datatypes import VERDICT_TYPE, columns_of_type
from ..nft_bytecode.ruleset import RulesetMessages, UnreadableRuleset, decode_ruleset
from ..xt_decode import decode_named_xt
from .listing import DebugOutputError, ListedSet, ListedTable, parse_listing
from .messages import attribute, chunks, data, list_of, number, text, verdict
from .rule_program import Listing, RuleEncoder, SetUses, read_listing, rounded, unsupported, words

_FAMILY = r"(?P<family>ip6?|inet|arp|bridge|netdev)"
_SET_HEAD = re.compile(rf"{_FAMILY} (?P<table>\S+) @(?P<set>\S+)")
_RULE_HEAD = re.compile(rf"{_FAMILY} (?P<table>\S+) (?P<chain>\S+) (?P<handle>\d+)(?: (?P<previous>\d+))?")
_EXPRESSION = re.compile(r"  \[ (?P<name>\w+) (?P<arguments>.*)\]")
_USER_DATA = re.compile(r"  userdata = \{ (?P<bytes>.*) \}")
_VALUE = r"(?:[0-9a-f]{8} )*"
_ELEMENT = re.compile(
    rf"\telement (?P<key>{_VALUE})(?: - (?P<end>(?:[0-9a-f]{{8}} )+))? : "
    r"(?:(?P<data>(?:[0-9a-f]{8} )+)|(?P<verdict>[a-z]+) (?:-> (?P<chain>\S+) )?)?"
    r"(?P<flags>\d+) \[end\](?:  userdata = \{ .* \})?"
)
_COMMENT = re.compile(r"(?:\\x00|\\0)(?:\\x[0-9a-f]{1,2}|.)(?P<text>.*?)\\x0{1,2}")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_ANONYMOUS = re.compile(r"__(?:set|map)\d+")
_ANONYMOUS_CONSTANT, _INTERVAL, _MAP = 1 | 2, 4, 8
_INTERVAL_END, _CATCHALL = 1, 2
_FAMILY_NUMBERS = {name: code for code, name in FAMILIES.items()}

ASSUMPTIONS = (
    "nft's debug output, which has no lengths, shows all rules; a test compares a whole value unless nft lists a "
    "prefix or an asterisk",
    "no set is updated by an inverted expression, which nft's debug output does not show",
)


@frozen
class _Element:
    """An element of the text: words of its key, of its data or verdict, and flags."""

    key: bytes
    end: bytes
    data: bytes
    verdict: str | None
    chain: str | None
    flags: int


@mutable
class _Program:
    """Program of one table, as the debug output has it."""

    uses: SetUses = Factory(SetUses)
    elements: dict[str, list[_Element]] = Factory(dict)
    rules: list[bytes] = Factory(list)
    previous: dict[str, int] = Factory(dict)  # the handle of the last rule of each chain
    broken: set[str] = Factory(set)  # chains with a gap in the handles


def decode_debug_output(
    lines: Sequence[str], devices: Mapping[int, str], byte_order: str, first: int = 1
) -> tuple[nft.Table, ...]:
    """Return the tables that the kernel executes, as far as the output shows them.

    `devices`: names of devices by index. `byte_order`: "little" or "big", that of the machine. `first`: the number of
    the first line.

    Raises:
        DebugOutputError: an unknown line.
    """
    start = next((index for index, line in enumerate(lines) if line.startswith("table ")), len(lines))
    listed = parse_listing(lines[start:], first + start)
    tables = {(table.family, table.name): table for table in listed}
    if len(tables) < len(listed):
        raise DebugOutputError(first + start, "each table once")
    programs = {key: _Program() for key in tables}
    _read_program(lines[:start], first, tables, programs, devices, byte_order)
    messages = RulesetMessages(devices=devices, byte_order=byte_order)
    for key, table in tables.items():
        messages = _with_table(messages, table, programs[key])
    try:
        return decode_ruleset(messages, decode_named_xt)
    except UnreadableRuleset as error:
        raise DebugOutputError(first, f"a listing that fits its program: {error}") from None


# --- the program -----------------------------------------------------------------------------


def _read_program(
    lines: Sequence[str],
    first: int,
    tables: Mapping[tuple[str, str], ListedTable],
    programs: Mapping[tuple[str, str], _Program],
    devices: Mapping[int, str],
    byte_order: str,
) -> None:
    index = 0
    while index < len(lines):
        head = _SET_HEAD.fullmatch(lines[index]) or _RULE_HEAD.fullmatch(lines[index])
        if head is None:
            if lines[index]:
                raise DebugOutputError(first + index, "a rule or a set of nft --debug=netlink, or nft's listing")
            index += 1
            continue
        key = (head["family"], head["table"])
        if key not in tables:
            raise DebugOutputError(first + index, "a table of the listing")
        end = index + 1
        while end < len(lines) and lines[end].startswith((" ", "\t")):
            end += 1
        block = lines[index + 1 : end]
        if "set" in head.groupdict():
            if head["set"] in programs[key].elements:
                raise DebugOutputError(first + index, "each set once")
            programs[key].elements[head["set"]] = _read_elements(block, first + index + 1, byte_order)
        else:
            _read_rule(head, block, first + index + 1, tables[key], programs[key], devices, byte_order)
        index = end


def _read_elements(block: Sequence[str], first: int, byte_order: str) -> list[_Element]:
    elements: list[_Element] = []
    for offset, line in enumerate(block):
        match = _ELEMENT.fullmatch(line)
        if match is None:
            raise DebugOutputError(first + offset, "'element KEY : DATA FLAGS [end]'")
        key, end, value = (_bytes(match[name], byte_order) for name in ("key", "end", "data"))
        elements.append(_Element(key, end, value, match["verdict"], match["chain"], int(match["flags"])))
    return elements


def _bytes(value: str | None, byte_order: str) -> bytes:
    return words(value or "", byte_order)


def _read_rule(
    head: re.Match[str],
    block: Sequence[str],
    first: int,
    table: ListedTable,
    program: _Program,
    devices: Mapping[int, str],
    byte_order: str,
) -> None:
    chain, handle = head["chain"], int(head["handle"])
    if program.previous.get(chain) != (int(head["previous"]) if head["previous"] else None):
        program.broken.add(chain)
    program.previous[chain] = handle
    line = table.rules.get((chain, handle))
    listing: Listing | None = None if line is None or chain in table.odd_chains else read_listing(line)
    rule = RuleEncoder(head["family"], byte_order, devices, program.uses, listing)
    comment: bytes = b""
    for offset, text_line in enumerate(block):
        match = _EXPRESSION.fullmatch(text_line)
        user_data = _USER_DATA.fullmatch(text_line) if match is None else None
        if match is not None:
            rule.add(match["name"], match["arguments"])
        elif user_data is not None:
            comment = _comment(user_data["bytes"])
        elif text_line.strip():
            raise DebugOutputError(first + offset, "'[ EXPRESSION ]' or userdata of a rule")
    if line is None:
        rule.encoded.insert(0, unsupported("a rule that nft does not list", ""))
    program.rules.append(text(1, head["table"]) + text(2, chain) + attribute(4, list_of(rule.encoded)) + comment)


def _comment(value: str) -> bytes:
    """Return the user data of a rule if they are a comment."""
    match = _COMMENT.fullmatch(value)
    if match is None:
        return b""
    raw = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), match["text"]).encode("latin-1", "replace") + b"\0"
    return attribute(7, bytes((0, len(raw) % 256)) + raw)


# --- messages --------------------------------------------------------------------------------


def _with_table(messages: RulesetMessages, table: ListedTable, program: _Program) -> RulesetMessages:
    family = _FAMILY_NUMBERS[table.family]
    sets, elements, unreadable = _sets(table, program, messages)

    def tagged(raws: Sequence[bytes]) -> tuple[tuple[int, bytes], ...]:
        return tuple((family, raw) for raw in raws)

    return evolve(
        messages,
        tables=(*messages.tables, (family, text(1, table.name) + number(2, table.flags))),
        chains=(*messages.chains, *tagged(table.chains)),
        rules=(*messages.rules, *tagged(list(_gaps(table, program))), *tagged(program.rules)),
        sets=(*messages.sets, *tagged(sets)),
        elements={**messages.elements, **{(family, table.name, name): raws for name, raws in elements.items()}},
        objects=(*messages.objects, *tagged(table.objects)),
        flowtables=(*messages.flowtables, *tagged(table.flowtables)),
        unreadable={**messages.unreadable, **{(family, table.name, name): why for name, why in unreadable.items()}},
    )


def _gaps(table: ListedTable, program: _Program) -> Iterator[bytes]:
    """Yield a rule that may do anything for each chain of which not all rules are shown."""
    chains = set(program.previous)
    missing = {chain for (chain, handle) in table.rules if chain not in chains}
    for chain in sorted(program.broken | table.odd_chains | missing):
        name = unsupported("rules of this chain that nft's debug output does not show", "")
        yield text(1, table.name) + text(2, chain) + attribute(4, list_of([name]))


def _sets(
    table: ListedTable, program: _Program, messages: RulesetMessages
) -> tuple[list[bytes], dict[str, tuple[bytes, ...]], dict[str, str]]:
    """Return the sets, the messages of their elements, and why sets cannot be read."""
    listed = {each.name: each for each in table.sets}
    names = [*listed, *(name for name in program.elements if name not in listed)]
    sets: list[bytes] = []
    elements: dict[str, tuple[bytes, ...]] = {}
    unreadable: dict[str, str] = {}
    for name in names:
        contents = program.elements.get(name, [])
        try:
            header = listed.get(name) or _anonymous(name, contents, program.uses)
            key_length = _key_length(header, contents, program.uses, messages.byte_order)
            data_length = _data_length(header, contents, program.uses, messages.byte_order)
            encoded = [_element(each, key_length, data_length) for each in contents]
        except UnsupportedBytecode as reason:
            unreadable[name] = str(reason)
            key_length, data_length, encoded, header = 1, 0, [], ListedSet(name)
        sets.append(_set(table.name, header, name not in listed, key_length, data_length))
        elements[name] = tuple(attribute(3, list_of(group)) for group in chunks(encoded))
    return sets, elements, unreadable


def _anonymous(name: str, contents: Sequence[_Element], uses: SetUses) -> ListedSet:
    """Return the header of a set that is not listed. Raises UnsupportedBytecode for a named one."""
    if _ANONYMOUS.fullmatch(name) is None:
        raise UnsupportedBytecode("nft does not list it")
    flags = _ANONYMOUS_CONSTANT
    if any(each.flags & _INTERVAL_END or each.end for each in contents):
        flags |= _INTERVAL
    has_verdict, has_data = any(each.verdict for each in contents), any(each.data for each in contents)
    if has_verdict or has_data:
        flags |= _MAP
    data_type = VERDICT_TYPE if has_verdict else None
    return ListedSet(name, flags, data_type=data_type, statements=set(uses.statements.get(name, ())))


def _key_length(header: ListedSet, contents: Sequence[_Element], uses: SetUses, byte_order: str) -> int:
    """Return the length of the keys of a set in bytes. Raises UnsupportedBytecode if it is not certain."""
    sizes = {len(raw) for each in contents for raw in (each.key, each.end) if raw}
    listed = _length_of_type(header.key_type, byte_order)
    if listed is not None:
        sizes.add(rounded(listed))
    if len(sizes) > 1:
        raise UnsupportedBytecode("elements of different lengths")
    lengths = {_used_length(use, size) for size in sizes for use in uses.keys.get(header.name, ())}
    lengths |= {listed} if listed is not None else set()
    if len(lengths) != 1 or None in lengths:
        raise UnsupportedBytecode("nft's debug output does not show the length of its keys")
    return next(length for length in lengths if length is not None)


def _used_length(use: tuple[int, ...], size: int) -> int | None:
    """Return the length of the key in a lookup, whose elements have `size` bytes in whole words."""
    if use and rounded(use[0]) == size:
        return use[0]
    total = 0
    for length in use:
        total += rounded(length)
        if total == size:
            return size
    return None


def _data_length(header: ListedSet, contents: Sequence[_Element], uses: SetUses, byte_order: str) -> int:
    """Return the length of the data of a map in bytes, 0 for none. Raises UnsupportedBytecode if it is not certain."""
    if header.data_type == VERDICT_TYPE:
        return 16  # sizeof(struct nft_verdict)
    if not header.flags & _MAP or header.has_object:
        return 0
    sizes = {len(each.data) for each in contents if each.data}  # the end of an interval has none
    lengths = set(uses.data.get(header.name, ()))
    listed = _length_of_type(header.data_type, byte_order)
    if listed is not None:
        lengths.add(listed)
    if not lengths:
        lengths = set(sizes)
    if len(lengths) != 1 or not all(size == rounded(next(iter(lengths))) for size in sizes):
        raise UnsupportedBytecode("nft's debug output does not show the length of its data")
    return next(iter(lengths))


def _length_of_type(kind: int | None, byte_order: str) -> int | None:
    """Return the length of a data type of nft in bytes, None if it has none of its own."""
    if not kind:
        return None
    columns = None
    for length in (1, 2, 4, 6, 8, 16, *range(8, 68, 4)):
        try:
            columns = columns_of_type(kind, length, byte_order, is_interval=False)
        except UnsupportedBytecode:
            continue
        return length if all(column.length for column in columns) and not _is_variable(kind) else None
    return None


def _is_variable(kind: int) -> bool:
    """Return True if a type has the length of the expression that it is used with."""
    while kind:
        if kind & 0x3F in (3, 4):  # bitmask, integer
            return True
        kind >>= 6
    return False


def _set(table: str, header: ListedSet, is_anonymous: bool, key_length: int, data_length: int) -> bytes:
    parts = text(1, table) + text(2, header.name) + number(3, header.flags) + number(5, key_length)
    if header.key_type:
        parts += number(4, header.key_type)
    if header.flags & _MAP and not header.has_object:
        parts += number(6, header.data_type or 0) + number(7, data_length)
    if header.timeout is not None:
        parts += number(11, header.timeout, 8)
    if header.statements:
        parts += attribute(18, list_of(text(1, each) for each in sorted(header.statements)))
    return parts


def _element(element: _Element, key_length: int, data_length: int) -> bytes:
    """Return an element. Raises UnsupportedBytecode for bytes behind its key or data."""
    parts = number(3, element.flags) if element.flags else b""
    for kind, raw in ((1, element.key), (10, element.end)):
        if raw:
            parts += data(kind, _cut(raw, key_length))
    if not element.key and not element.flags & _CATCHALL:
        raise UnsupportedBytecode("an element without a key")
    if element.verdict is not None:
        try:
            parts += verdict(2, element.verdict, element.chain)
        except KeyError:
            raise UnsupportedBytecode(f"verdict {element.verdict}") from None
    elif element.data:
        parts += data(2, _cut(element.data, data_length))
    return parts


def _cut(raw: bytes, length: int) -> bytes:
    if rounded(length) != len(raw) or any(raw[length:]):
        raise UnsupportedBytecode("an element of another length")
    return raw[:length]
