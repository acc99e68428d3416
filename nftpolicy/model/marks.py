# SPDX-License-Identifier: BSD-2-Clause
"""The mark of a packet or its connection after a write, by groups of bits."""

from __future__ import annotations

from ..netstate import nft, text
from . import bits
from .shapes import plain
from .space import Space
from .survey import which_mark


def new_marks(space: Space, statement: nft.Mangle, marks: dict[str, int | str]) -> dict[str, int | str]:
    """Return the groups of the mark after a write.

    A group is a number, the name of the field with the same value, or an artificial field for a
    value that is not supported.
    """
    mark = which_mark(statement.key)
    if mark is None:  # a header, or a property that is not a mark: any value is possible afterwards
        field = space.field(statement.key)
        if field is None:
            return dict(marks)
        unknown = space.doubt(f"the result of {text.shown(statement)}")
        space.tops[unknown] = space.tops[field.name]
        return {**marks, field.name: unknown}
    value, result = plain(statement.value), dict(marks)
    source, keep, put = which_mark(value), nft.FULL, 0
    if isinstance(value, nft.Bitwise) and isinstance(value.keep, int) and isinstance(value.put, int):
        source, keep, put = which_mark(value.of), value.keep, value.put
    for group in space.partition:
        name = bits.name(mark, group)
        if isinstance(value, int):
            result[name] = bits.packed(value, group)
        elif source is not None and put & group == group:
            result[name] = bits.top(group)
        elif source is not None and not keep & group and not put & group:
            result[name] = 0
        elif source is not None and keep & group == group and not put & group:
            origin = bits.name(source, group)
            result[name] = marks.get(origin, origin)
        elif source is not None and not keep & group:
            result[name] = bits.packed(put, group)
        else:
            unknown = space.doubt(f"the value of {text.shown(statement)}")
            space.tops[unknown] = bits.top(group)
            result[name] = unknown
    return result
