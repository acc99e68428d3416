# SPDX-License-Identifier: BSD-2-Clause
"""What a write leaves in the mark of a packet or of its flow, group of bits by group of bits."""

from __future__ import annotations

from ..netstate import nft, text
from . import bits
from .shapes import plain
from .space import Space
from .survey import which_mark


def new_marks(space: Space, statement: nft.Mangle, marks: dict[str, int | str]) -> dict[str, int | str]:
    """What the groups of the mark that `statement` writes are afterwards: a number, the field whose value
    they have, or a made-up field, because the value is not understood."""
    of = which_mark(statement.key)
    if of is None:  # a header, or a property that is no mark: from here on it may be anything
        field = space.field(statement.key)
        if field is None:
            return dict(marks)
        doubt = space.doubt(f"what {text.shown(statement)} leaves")
        space.tops[doubt] = space.tops[field.name]
        return {**marks, field.name: doubt}
    value, result = plain(statement.value), dict(marks)
    source, keep, put = which_mark(value), nft.FULL, 0
    if isinstance(value, nft.Bitwise) and isinstance(value.keep, int) and isinstance(value.put, int):
        source, keep, put = which_mark(value.of), value.keep, value.put
    for group in space.partition:
        name = bits.name(of, group)
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
            doubt = space.doubt(f"the value of {text.shown(statement)}")
            space.tops[doubt] = bits.top(group)
            result[name] = doubt
    return result
