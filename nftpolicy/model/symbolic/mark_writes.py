# SPDX-License-Identifier: BSD-2-Clause
"""The mark of a packet or its connection after a write, by groups of bits."""

from __future__ import annotations

from ...netstate import nft
from ...netstate.formats import nft_text
from . import mark_bits
from .header_space import HeaderSpace
from .rule_shape import as_number
from .ruleset_scan import mark_kind


def marks_after(space: HeaderSpace, statement: nft.Mangle, marks: dict[str, int | str]) -> dict[str, int | str]:
    """Return the groups of the mark after a write.

    A group is a number, the name of the field with the same value, or an artificial field for a
    value that is not supported.
    """
    mark = mark_kind(statement.key)
    if mark is None:  # a header, or a property that is not a mark: any value is possible afterwards
        field = space.field_of(statement.key)
        if field is None:
            return dict(marks)
        unknown = space.unsupported_field(f"the result of {nft_text.display_text(statement)}")
        space.max_values[unknown] = space.max_values[field.name]
        return {**marks, field.name: unknown}
    value, result = as_number(statement.value), dict(marks)
    source, kept_mask, set_bits = mark_kind(value), nft.FULL_MASK, 0
    if isinstance(value, nft.Bitwise) and isinstance(value.and_mask, int) and isinstance(value.or_bits, int):
        source, kept_mask, set_bits = mark_kind(value.operand), value.and_mask, value.or_bits
    for group in space.partition:
        name = mark_bits.field_name(mark, group)
        if isinstance(value, int):
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
            unknown = space.unsupported_field(f"the value of {nft_text.display_text(statement)}")
            space.max_values[unknown] = mark_bits.max_value(group)
            result[name] = unknown
    return result
