# SPDX-License-Identifier: BSD-2-Clause
"""The fields of a packet after a write: marks by groups of bits, and headers."""

from __future__ import annotations

from collections.abc import Mapping

from ...netstate import nft
from ...netstate.formats import nft_text
from . import mark_bits
from .header_space import HeaderSpace
from .header_writes import written_fields
from .rule_shape import as_number
from .ruleset_scan import mark_kind


def marks_after(space: HeaderSpace, statement: nft.Mangle, marks: Mapping[str, int | str]) -> dict[str, int | str]:
    """Return the groups of the mark, and the header fields, after a write.

    Each is a number, the name of the field with the same value, or an artificial field for a value
    that is not supported.
    """
    if mark_kind(statement.key) is None:
        return {**marks, **_headers_after(space, statement)}
    lookups = _unknown_fields(space, ("fib ",), statement)  # a lookup may use the mark
    return {**marks, **written_groups(space, statement, marks), **lookups}


def written_groups(space: HeaderSpace, statement: nft.Mangle, marks: Mapping[str, int | str]) -> dict[str, int | str]:
    """Return the groups of the mark that a statement writes, with their values; empty if it writes no mark."""
    mark, result = mark_kind(statement.key), dict[str, int | str]()
    if mark is None:
        return result
    value, inverted = as_number(statement.value), 0
    if isinstance(value, nft.Binary) and value.op == "^" and isinstance(value.right, int):
        inverted = value.right
        value = value.left
    source, kept_mask, set_bits = mark_kind(value), nft.FULL_MASK, 0
    if isinstance(value, nft.Bitwise) and isinstance(value.and_mask, int) and isinstance(value.or_bits, int):
        source, kept_mask, set_bits = mark_kind(value.operand), value.and_mask, value.or_bits
    for group in space.partition:
        name = mark_bits.field_name(mark, group)
        origin = None if inverted & group else _moved_group(value, group)
        if inverted & group:
            result[name] = _unknown_value(space, group, statement)
        elif origin is not None:
            result[name] = 0 if not origin else marks.get(origin, origin)
        elif isinstance(value, int):
            result[name] = mark_bits.pack_bits(value, group)
        elif source is not None and set_bits & group == group:
            result[name] = mark_bits.max_value(group)
        elif source is not None and not kept_mask & group and not set_bits & group:
            result[name] = 0
        elif source is not None and kept_mask & group == group and not set_bits & group:
            origin = mark_bits.field_name(source, group)
            result[name] = marks.get(origin, origin)
        elif source is not None and not kept_mask & group:
            result[name] = mark_bits.pack_bits(set_bits, group)
        else:
            result[name] = _unknown_value(space, group, statement)
    return result


def _unknown_value(space: HeaderSpace, group: int, statement: nft.Mangle) -> str:
    """Return an artificial field for a group of a mark that may have any value."""
    unknown = space.unsupported_field(f"the value of {nft_text.display_text(statement)}")
    space.max_values[unknown] = mark_bits.max_value(group)
    return unknown


def _moved_group(value: nft.Expression | nft.Value, group: int) -> str | None:
    """Return the field with the bits of a group in (mark & mask) | (mark & mask), as iptables restores marks.

    "" if both masks remove the group; None if the value has another form, or both keep bits of the group.
    """
    if not isinstance(value, nft.Binary) or value.op not in ("|", "^") or isinstance(value.right, int | str):
        return None
    origins: list[str] = []
    for side in (value.left, value.right):
        bits = side.and_mask if isinstance(side, nft.Bitwise) and not side.or_bits else nft.FULL_MASK
        source = mark_kind(side.operand if isinstance(side, nft.Bitwise) and not side.or_bits else side)
        if source is None or not isinstance(bits, int) or bits & group not in (0, group):
            return None
        if bits & group:
            origins.append(mark_bits.field_name(source, group))
    return None if len(origins) == 2 else "".join(origins)


def _headers_after(space: HeaderSpace, statement: nft.Mangle) -> dict[str, int | str]:
    """Return the fields that share bits with the written ones: a number, or any value."""
    changed = _unknown_fields(space, written_fields(statement.key, space.family), statement)
    field = space.field_of(statement.key)
    if field is not None and field.name in changed and isinstance(statement.value, int | str):
        written = field.parse(statement.value)
        if written is not None and len(written) == 1 and written[0][0] == written[0][1]:
            changed[field.name] = written[0][0]
    return changed


def _unknown_fields(space: HeaderSpace, prefixes: tuple[str, ...], statement: nft.Mangle) -> dict[str, int | str]:
    """Return an artificial field for each field whose name begins with one of the prefixes."""
    changed: dict[str, int | str] = {}
    for name in [name for name in space.max_values if name.startswith(prefixes)] if prefixes else ():
        unknown = space.unsupported_field(f"the result of {nft_text.display_text(statement)}")
        space.max_values[unknown] = space.max_values[name]
        changed[name] = unknown
    return changed
