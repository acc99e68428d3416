# SPDX-License-Identifier: BSD-2-Clause
"""Elements of sets and maps: netlink messages to keys and data.

In a large set all elements usually have one layout; they are then cut out without a look at each
attribute.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain

from attrs import frozen

from ... import nft
from ...nft import Value
from .attributes import LIST_ELEMENT, TYPE_MASK, Attributes, UnsupportedBytecode, decode, split_attributes, split_list
from .datatypes import Column, column_value, element_value, split_columns
from .values import Kind, device_patterns, interval_value
from .verdicts import DATA_VALUE, data_or_verdict

# include/uapi/linux/netfilter/nf_tables.h
_KEY, _DATA, _FLAGS, _TIMEOUT, _EXPIRATION, _USERDATA, _EXPR, _PAD, _OBJREF, _KEY_END, _EXPRESSIONS = range(1, 12)
_ELEMENT_FLAGS = {0x1: "interval end", 0x2: "catchall"}
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_EXPRESSION_NAME = 1
_HEADER = struct.Struct("=HHHHHH")  # length and type of the element, of its key, of the key's value
_ATTRIBUTE_SIZE = 4  # bytes of the header of an attribute

Data = bytes | nft.Verdict | str | None  # a value, a verdict, the name of an object; None: a set


@frozen
class SetElement:
    """An element. `key` None is the catchall element; `statements` are the names of its expressions."""

    key: bytes | None
    key_end: bytes | None = None
    is_end: bool = False
    data: Data = None
    statements: tuple[str, ...] = ()


@frozen
class ElementList:
    """The elements of a set: all of them in `elements`, or only keys, of one length, in `packed`."""

    packed: bytes = b""
    key_length: int = 0
    elements: tuple[SetElement, ...] = ()

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Return the keys in `packed`."""
        size = self.key_length
        if not size:
            return ()
        return tuple(self.packed[start : start + size] for start in range(0, len(self.packed), size))

    def statements(self) -> frozenset[str]:
        """Return the names of the statements of any element."""
        return frozenset(name for element in self.elements for name in element.statements)


def decode_elements(messages: Iterable[bytes]) -> ElementList:
    """Return the elements of a dump of one set. Raises UnsupportedBytecode."""
    lists = _lists(messages)
    packed = _packed_keys(lists)
    if packed is not None:
        return packed
    return ElementList(elements=tuple(decode(raw, _element) for each in lists for raw in split_list(each)))


def repeats_element(messages: Iterable[bytes]) -> bool:
    """Return True if a dump has an element twice. Raises UnsupportedBytecode.

    Right after a set was filled the kernel may still be growing its hash table. A dump then lists some
    elements twice and misses some (measured on Linux 6.18).
    """
    lists = _lists(messages)
    packed = _packed_keys(lists)
    elements = packed.keys if packed is not None else [raw for each in lists for raw in split_list(each)]
    return len(set(elements)) < len(elements)


def _lists(messages: Iterable[bytes]) -> list[bytes]:
    return [raw for message in messages for raw in decode(message, _element_lists)]


def _element_lists(attributes: Attributes) -> list[bytes]:
    attributes.ignore(_LIST_TABLE, _LIST_SET)
    raw = attributes.take(_LIST_ELEMENTS)
    return [] if raw is None else [raw]


def _packed_keys(lists: Sequence[bytes]) -> ElementList | None:
    """Return the elements if they have one layout and nothing but a key, else None."""
    layout = next((raw[: _HEADER.size] for raw in lists if raw), None)
    if layout is None:
        return ElementList()
    if len(layout) < _HEADER.size:
        return None
    size, kind, key_length, key_kind, value_length, value_kind = _HEADER.unpack(layout)
    length = value_length - _ATTRIBUTE_SIZE
    kinds = kind & TYPE_MASK, key_kind & TYPE_MASK, value_kind & TYPE_MASK
    if kinds != (LIST_ELEMENT, _KEY, DATA_VALUE) or length < 1:
        return None
    if size & 3 or key_length != size - 4 or not key_length - 3 <= value_length + 4 <= key_length:
        return None
    blocks = [_cut_keys(raw, layout, size, length) for raw in lists]
    return None if None in blocks else ElementList(b"".join(blocks), length)  # type: ignore[arg-type]


def _cut_keys(raw: bytes, layout: bytes, size: int, length: int) -> bytes | None:
    """Return the keys of elements of `size` bytes, None if one has other headers. Byte by byte of all elements."""
    count, remainder = divmod(len(raw), size)
    if remainder or any(raw[offset::size] != layout[offset : offset + 1] * count for offset in range(len(layout))):
        return None
    keys = bytearray(count * length)
    for offset in range(length):
        keys[offset::length] = raw[len(layout) + offset :: size]
    return bytes(keys)


def _element(attributes: Attributes) -> SetElement:
    flags = attributes.flags(_FLAGS, _ELEMENT_FLAGS)
    attributes.ignore(_TIMEOUT, _EXPIRATION, _USERDATA, _PAD)  # the flags of the set say that elements expire
    key = attributes.take(_KEY)
    key_end = attributes.take(_KEY_END)
    data, name = attributes.take(_DATA), attributes.take(_OBJREF)
    single = attributes.take(_EXPR)
    statements = [*([] if single is None else [single]), *split_list(attributes.take(_EXPRESSIONS))]
    if (key is None) != ("catchall" in flags):
        raise UnsupportedBytecode("an element without a key")
    return SetElement(
        None if key is None else data_bytes(key),
        None if key_end is None else data_bytes(key_end),
        "interval end" in flags,
        data_or_verdict(data) if data is not None else None if name is None else name.rstrip(b"\0").decode(),
        tuple(map(expression_name, statements)),
    )


def expression_name(raw: bytes) -> str:
    """Return the name of an expression. Raises UnsupportedBytecode."""
    for kind, value in split_attributes(raw):
        if kind == _EXPRESSION_NAME:
            return value.rstrip(b"\0").decode()
    raise UnsupportedBytecode("an expression without a name")


def data_bytes(raw: bytes) -> bytes:
    """Return the bytes of a struct nft_data that is a value. Raises UnsupportedBytecode."""
    return decode(raw, lambda attributes: attributes.require(DATA_VALUE))


# --- keys as values --------------------------------------------------------------------


def key_values(entries: ElementList, columns: tuple[Column, ...], is_interval: bool) -> Iterable[nft.Element]:
    """Return the keys of all elements, as they are decoded. Raises UnsupportedBytecode, also later."""
    if entries.packed and not is_interval:
        return _plain_keys(entries, columns)
    return [key for key, _ in keys_with_data(entries, columns, is_interval)]


def keys_with_data(
    entries: ElementList, columns: tuple[Column, ...], is_interval: bool
) -> list[tuple[nft.Element, Data]]:
    """Return key and data of all elements. Raises UnsupportedBytecode."""
    elements = entries.elements or tuple(map(SetElement, entries.keys))
    if is_interval and len(columns) == 1 and not any(element.key_end for element in elements):
        return _intervals(elements, columns[0])
    if any(element.is_end for element in elements):
        raise UnsupportedBytecode("the end of an interval in a set without intervals")
    return [(_concatenation(element, columns), element.data) for element in elements]


def _concatenation(element: SetElement, columns: tuple[Column, ...]) -> nft.Element:
    if element.key is None:
        return "*"
    if element.key_end is None or element.key_end == element.key:
        return element_value(element.key, columns)
    lows, highs = split_columns(element.key, columns), split_columns(element.key_end, columns)
    values = [_interval(low, high, column) for low, high, column in zip(lows, highs, columns, strict=True)]
    return values[0] if len(values) == 1 else tuple(values)


def _interval(low: bytes, high: bytes, column: Column) -> Value:
    """Return an interval; the kernel compares bytes from the first one on."""
    if low == high:
        return column_value(low, column)
    if column.order != "big" and column.length > 1:
        raise UnsupportedBytecode("an interval in the byte order of the machine")
    lowest, highest, bits = int.from_bytes(low, "big"), int.from_bytes(high, "big"), 8 * column.length
    if column.bits is not None:  # the values between are those of which the mask removes nothing
        shift, bits = column.bits
        lowest, highest = -(-lowest >> shift), highest >> shift
        if lowest > highest or highest >> bits:
            raise UnsupportedBytecode("an interval of values that the key does not have")
    return interval_value(column.kind, lowest, highest, bits)


def _interval_values(low: bytes, high: bytes, column: Column) -> list[Value]:
    """Return an interval, or the names in it. Raises UnsupportedBytecode."""
    return [*device_patterns(low, high)] if column.kind is Kind.DEVICE else [_interval(low, high, column)]


def _intervals(elements: Sequence[SetElement], column: Column) -> list[tuple[nft.Element, Data]]:
    """Return the intervals of a set whose elements are their beginnings and ends (nft_set_rbtree.c).

    A value belongs to the last element that is not behind it, unless that is an end.
    """
    entries: list[tuple[nft.Element, Data]] = [("*", element.data) for element in elements if element.key is None]
    # With equal keys the beginning decides, so it comes last.
    ordered = sorted(
        (element.key, not element.is_end, index) for index, element in enumerate(elements) if element.key is not None
    )
    size = column.length
    for position, (key, is_start, index) in enumerate(ordered):
        if len(key) != size:
            raise UnsupportedBytecode("an element of another length")
        following = ordered[position + 1][0] if position + 1 < len(ordered) else None
        if not is_start or following == key:
            continue
        last = (1 << 8 * size) - 1 if following is None else int.from_bytes(following, "big") - 1
        for value in _interval_values(key, last.to_bytes(size, "big"), column):
            entries.append((value, elements[index].data))
    return entries


def _plain_keys(entries: ElementList, columns: tuple[Column, ...]) -> Iterable[nft.Element]:
    """Return the values of keys, column by column. Raises UnsupportedBytecode, also later."""
    packed, size = entries.packed, entries.key_length
    if size != (columns[0].length if len(columns) == 1 else sum(column.padded_length for column in columns)):
        return (element_value(key, columns) for key in entries.keys)
    values: list[Iterable[Value]] = []
    start = 0
    for column in columns:
        values.append(_column_values(packed, size, start, column))
        end, start = start + column.length, start + column.padded_length
        if any(any(packed[offset::size]) for offset in range(end, min(start, size))):
            raise UnsupportedBytecode("an element with bytes between its parts")
    return values[0] if len(values) == 1 else zip(*values, strict=True)


_OCTETS = tuple(map(str, range(256)))
_NUMBERS = frozenset({Kind.NUMBER, Kind.PORT, Kind.MARK, Kind.USER, Kind.GROUP, Kind.DEVICE_GROUP})
_NUMBER_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_BYTE_ORDERS = {"big": ">", "little": "<"}


def _column_values(packed: bytes, size: int, start: int, column: Column) -> Iterable[Value]:
    """Return the values of a column of keys of `size` bytes; quick for the usual kinds. Raises UnsupportedBytecode."""
    length = column.length
    if column.kind is Kind.IPV4 and length == 4:
        octets = (map(_OCTETS.__getitem__, packed[start + offset :: size]) for offset in range(length))
        return map(".".join, zip(*octets, strict=True))
    rest_length = size - start - length
    if column.kind in _NUMBERS and length in _NUMBER_FORMATS and column.bits is None:
        layout = f"{_BYTE_ORDERS[column.order]}{start}x{_NUMBER_FORMATS[length]}{rest_length}x"
        return chain.from_iterable(struct.iter_unpack(layout, packed))
    known: dict[bytes, Value] = {}

    def convert(raw: bytes) -> Value:
        value = known.get(raw)
        if value is None:
            value = known[raw] = column_value(raw, column)
        return value

    return map(convert, chain.from_iterable(struct.iter_unpack(f"{start}x{length}s{rest_length}x", packed)))
