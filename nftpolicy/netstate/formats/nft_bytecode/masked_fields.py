# SPDX-License-Identifier: BSD-2-Clause
"""Fields that a mask cuts out of a value: what nft names as a field, the kernel loads with the bits around it."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from ... import nft
from .headers import payload_kind
from .options import option_kind, option_part
from .registers import Content
from .values import Kind


@frozen
class MaskedField:
    """A field that is the masked part of a value: the number of its lowest bit, and its length in bits."""

    field: nft.Expression
    kind: Kind
    shift: int
    length: int


def masked_field(
    content: Content, named: Callable[[nft.RawPayload], nft.Payload | nft.RawPayload]
) -> MaskedField | None:
    """Return the field that a mask cuts out of a value, None if nft names no such field.

    `named` returns nft's name of some bits of a header, if it has one.
    """
    bits = _contiguous(content.mask or 0)
    if bits is None or content.flip:
        return None
    match content.source:
        case nft.RawPayload(base, offset, size) if bits[1] < size >= sum(bits):
            field = named(nft.RawPayload(base, offset + size - sum(bits), bits[1]))
            return MaskedField(field, payload_kind(field), *bits) if isinstance(field, nft.Payload) else None
        case nft.Option() as option:
            part = option_part(option, *bits)
            return MaskedField(part, option_kind(part), *bits) if part is not None else None
    return None


def _contiguous(mask: int) -> tuple[int, int] | None:
    """Return the number of the lowest bit of a mask, and how many bits it has; None if there are gaps, or no bit."""
    shift = (mask & -mask).bit_length() - 1
    length = (mask >> shift).bit_length() if mask else 0
    return (shift, length) if mask and mask == (1 << length) - 1 << shift else None
