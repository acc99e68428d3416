# SPDX-License-Identifier: BSD-2-Clause
"""Expressions that compute with registers and compare them."""

from __future__ import annotations

import struct

from attrs import evolve

from ... import nft
from .attributes import TYPE_MASK, Attributes, UnsupportedBytecode
from .datatypes import Column
from .elements import data_bytes
from .loads import Operation
from .registers import VERDICT_REGISTER, Content, MapData
from .rule_state import RuleState
from .values import Kind
from .verdicts import data_or_verdict

_COMPARISONS = {0: "==", 1: "!=", 2: "<", 3: "<=", 4: ">", 5: ">="}
_NATIVE_COMPARISONS = {op.to_bytes(4, "big"): name for op, name in _COMPARISONS.items()}
_ORDERLESS = ("==", "!=")
# Length and type of: the name, the attributes, the register, the operator, the constant, its bytes.
_CMP_LAYOUT = struct.Struct("=HH4sHHHH4sHH4sHHHH")
USUAL_CMP_SIZE = _CMP_LAYOUT.size
_CMP_KINDS = (1, 2, 1, 2, 3, 1)
_HEADER_SIZE = 4
_WORD = 4  # bytes; shifts work on words


def immediate(attributes: Attributes) -> Operation:
    """Return a verdict, or the load of a constant."""
    register, data = attributes.number(1), data_or_verdict(attributes.require(2))
    if isinstance(data, nft.Verdict):
        if register != VERDICT_REGISTER:
            raise UnsupportedBytecode("a verdict in a data register")
        return lambda state: state.add(data)
    return lambda state: state.store_constant(register, data)


def cmp(attributes: Attributes) -> Operation:
    """Return a comparison with a constant."""
    register, op = attributes.number(1), attributes.choice(2, _COMPARISONS)
    return _comparison(register, op, data_bytes(attributes.require(3)))


def usual_cmp(raw: bytes) -> Operation | None:
    """Return the comparison of an expression with the usual layout, None for another: half of all expressions."""
    parts = usual_cmp_parts(raw)
    return None if parts is None else _comparison(*parts)


def usual_cmp_parts(raw: bytes) -> tuple[int, str, bytes] | None:
    """Return register, operator and constant of a comparison with the usual layout, None for another layout.

    The layout leaves no room for an attribute that is not compared here. Its first USUAL_CMP_SIZE bytes
    contain all but the constant, which follows them, and their padding.
    """
    if len(raw) < USUAL_CMP_SIZE:
        return None
    fields = _CMP_LAYOUT.unpack_from(raw)
    name, register, op, length = fields[2], fields[7], fields[10], fields[13]
    kinds = fields[1], fields[4] & TYPE_MASK, fields[6], fields[9], fields[12] & TYPE_MASK, fields[14]
    lengths = fields[0], fields[3], fields[5], fields[8], fields[11]
    end = USUAL_CMP_SIZE + length - _HEADER_SIZE
    if name != b"cmp\0" or kinds != _CMP_KINDS or lengths != (8, len(raw) - 8, 8, 8, len(raw) - 28) or end > len(raw):
        return None
    if len(raw) - end > 3 or op not in _NATIVE_COMPARISONS:
        return None
    return int.from_bytes(register, "big"), _NATIVE_COMPARISONS[op], raw[USUAL_CMP_SIZE:end]


def _comparison(register: int, op: str, raw: bytes) -> Operation:
    length = len(raw)

    def compare(state: RuleState) -> None:
        content = state.prefix(register, length)
        if op not in _ORDERLESS and content.order != "big" and length > 1:
            raise UnsupportedBytecode("an order of numbers in the byte order of the machine")
        if length < content.length and content.order != "big" and content.kind is not Kind.EXISTENCE:
            raise UnsupportedBytecode("a comparison with a part of a number")
        state.compare(content, op, int.from_bytes(raw, content.order), length)  # type: ignore[arg-type]

    return compare


def range_(attributes: Attributes) -> Operation:
    """Return a test for an interval."""
    register, op = attributes.number(1), attributes.choice(2, {0: "==", 1: "!="})
    low, high = data_bytes(attributes.require(3)), data_bytes(attributes.require(4))

    def compare(state: RuleState) -> None:
        content = state.content(register, len(low))
        if len(low) != len(high) or (content.order != "big" and len(low) > 1):
            raise UnsupportedBytecode("an interval in the byte order of the machine")
        state.match_interval(content, op, int.from_bytes(low, "big"), int.from_bytes(high, "big"))

    return compare


def bitwise(attributes: Attributes) -> Operation:
    """Return a mask, a combination with a constant, or a shift."""
    source, target, length = attributes.number(1), attributes.number(2), attributes.number(3)
    op = attributes.choice(6, {0: "mask", 1: "<<", 2: ">>", 3: "&", 4: "|", 5: "^"}, 0)
    if op == "mask":
        mask, flip = data_bytes(attributes.require(4)), data_bytes(attributes.require(5))

        def keep(state: RuleState) -> None:
            state.store(target, _masked(state.content(source, length), mask, flip, state.context.native))

        return keep
    if op in ("<<", ">>"):
        shift = data_bytes(attributes.require(7))

        def move(state: RuleState) -> None:
            bits = int.from_bytes(shift, state.context.native)  # type: ignore[arg-type]
            content = state.content(source, length).widened(length, state.context.native)
            state.store(target, _shifted(state, content, op, bits))

        return move
    other = attributes.number(8)

    def combine(state: RuleState) -> None:
        native = state.context.native
        left, right = (state.content(each, length).widened(length, native) for each in (source, other))
        if left.order != right.order:
            raise UnsupportedBytecode("numbers of different byte orders")
        expression = nft.Binary(op, state.expression(left), state.expression(right))
        is_padded = left.is_padded and right.is_padded
        state.store(target, Content(expression, left.kind, length, left.order, is_padded=is_padded))

    return combine


def _masked(content: Content, mask: bytes, flip: bytes, native: str) -> Content:
    size = content.length
    if len(flip) != len(mask) or not size <= len(mask) <= size + -size % _WORD:
        raise UnsupportedBytecode("a mask of another length")
    if content.is_padded and not any(flip[size:]):
        mask, flip = mask[:size], flip[:size]  # behind the value there are zeros, and remain
    content = content.widened(len(mask), native)
    order = content.order
    return content.masked(int.from_bytes(mask, order), int.from_bytes(flip, order))  # type: ignore[arg-type]


def _shifted(state: RuleState, content: Content, op: str, bits: int) -> Content:
    """Return the content after a shift, which the kernel does in words in the byte order of the machine."""
    native = content.order == state.context.native or (content.length == 1 and state.context.native == "little")
    if not native or content.length > _WORD:
        raise UnsupportedBytecode("a shift of a number that is not a word of the machine")
    if not content.is_padded:
        raise UnsupportedBytecode("a shift of a value with bits behind it")
    source, mask = content.source, content.mask
    if op == ">>" and isinstance(source, nft.RawPayload) and mask is not None and not content.flip:
        width = (mask >> bits).bit_length()
        if mask == (1 << width) - 1 << bits:  # all bits of a part of the header, and no others
            part = nft.RawPayload(source.base, source.offset + source.length - bits - width, width)
            return evolve(content, source=part, mask=None)
    if op == "<<" and content.length < _WORD and _highest(content) << bits >> 8 * content.length:
        raise UnsupportedBytecode("a shift of bits out of a value")  # into the rest of the word
    return evolve(content, source=nft.Binary(op, state.expression(content), bits), mask=None, flip=0)


def _highest(content: Content) -> int:
    """Return a number that no value of a content exceeds."""
    bits = content.source.length if isinstance(content.source, nft.RawPayload) else 8 * content.length
    return content.mask if content.mask is not None and not content.flip else (1 << bits) - 1


def byteorder(attributes: Attributes) -> Operation:
    """Return a conversion between the byte orders of the network and of the machine."""
    source, target = attributes.number(1), attributes.number(2)
    attributes.choice(3, {0: "ntoh", 1: "hton"})  # both swap the bytes, or neither
    length, size = attributes.number(4), attributes.number(5)

    def swap(state: RuleState) -> None:
        content = state.content(source, length)
        if length < size and source == target:
            return  # the kernel swaps no number that is shorter than `size` (nft_byteorder_eval)
        if length != size or size not in (2, 4, 8):
            raise UnsupportedBytecode("a byte order of several numbers")
        if state.context.native == "little":
            order = "little" if content.order == "big" else "big"
            content = evolve(content, order=order, is_padded=content.is_padded and source == target)
        state.store(target, content)

    return swap


def _masked_key(
    state: RuleState, contents: tuple[Content, ...], columns: tuple[Column, ...]
) -> tuple[nft.Expression, tuple[Column, ...]]:
    """Return a key, and its columns, with the fields that masks cut out of its parts."""
    fields = [state.masked_field(content) for content in contents]
    parts = tuple(
        state.expression(content) if field is None else field.field
        for content, field in zip(contents, fields, strict=True)
    )
    return (parts[0] if len(parts) == 1 else nft.Concat(parts)), tuple(
        column if field is None else evolve(column, kind=field.kind, bits=(field.shift, field.length))
        for column, field in zip(columns, fields, strict=True)
    )


def lookup(attributes: Attributes) -> Operation:
    """Return a test whether a set contains a key, or the lookup in a map."""
    name, source, target = attributes.text(1), attributes.number(2), attributes.optional_number(3)
    attributes.ignore(4)  # the number of the set in its transaction
    is_inverted = "inverted" in attributes.flags(5, {1: "inverted"})

    def find(state: RuleState) -> None:
        sets = state.context.sets
        key, contents = state.key(source, sets.key_length(name))
        if sets.has_intervals(name) and any(isinstance(content.source, nft.Fib) for content in contents):
            raise UnsupportedBytecode("an interval for the result of a FIB lookup")
        columns = state.columns(contents)
        if any(content.mask is not None for content in contents):
            fields, field_columns = _masked_key(state, contents, columns)
            if sets.has_values(name, field_columns):
                key, columns = fields, field_columns
        if target is None:
            state.match_set(key, sets.elements(name, columns), "!=" if is_inverted else "==")
        elif is_inverted:
            raise UnsupportedBytecode("an inverted lookup in a map")
        elif target == VERDICT_REGISTER:
            verdicts = sets.verdicts(name, columns)
            by_name = isinstance(verdicts, str)
            state.add(nft.VerdictMapRef(key, verdicts) if by_name else nft.VerdictMap(key, verdicts))  # type: ignore[arg-type]
        else:
            state.store(target, MapData(key, columns, name, sets.data_length(name)))

    return find
