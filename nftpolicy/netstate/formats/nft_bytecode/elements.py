# SPDX-License-Identifier: BSD-2-Clause
"""Elements of sets and maps: netlink messages to keys and data.

In a large set all elements usually have one layout; they are then cut out without a look at each
attribute.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

from attrs import frozen

from ... import nft
from ...nft import Value
from .attributes import Attributes, UnsupportedBytecode, decode, split_attributes, split_list
from .datatypes import Column, column_value, element_value, split_columns
from .values import Kind, interval_value
from .verdicts import data_or_verdict

# include/uapi/linux/netfilter/nf_tables.h
_KEY, _DATA, _FLAGS, _TIMEOUT, _EXPIRATION, _USERDATA, _EXPR, _PAD, _OBJREF, _KEY_END, _EXPRESSIONS = range(1, 12)
_ELEMENT_FLAGS = {0x1: "interval end", 0x2: "catchall"}
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_DATA_VALUE, _EXPRESSION_NAME = 1, 1
_HEADER = struct.Struct("=HHHHHH")  # length and type of the element, of its key, of the key's value
_TYPE_MASK = 0x3FFF

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
    """The elements of a set: all of them in `elements`, or keys alone in `keys`."""

    keys: tuple[bytes, ...] = ()
    elements: tuple[SetElement, ...] = ()

    def statements(self) -> frozenset[str]:
        """Return the names of the statements of any element."""
        return frozenset(name for element in self.elements for name in element.statements)


def decode_elements(messages: Iterable[bytes]) -> ElementList:
    """Return the elements of a dump of one set. Raises UnsupportedBytecode."""
    lists = [raw for message in messages for raw in decode(message, _element_lists)]
    uniform = [_uniform_keys(raw) for raw in lists]
    if all(keys is not None for keys in uniform):
        return ElementList(keys=tuple(key for keys in uniform for key in keys or ()))
    return ElementList(elements=tuple(decode(raw, _element) for each in lists for raw in split_list(each)))


def repeats_element(messages: Iterable[bytes]) -> bool:
    """Return True if a dump has an element twice. Raises UnsupportedBytecode.

    Right after a set was filled the kernel may still be growing its hash table. A dump then lists some
    elements twice and misses some (measured on Linux 6.18).
    """
    elements = [raw for message in messages for entries in decode(message, _element_lists) for raw in _cut(entries)]
    return len(set(elements)) < len(elements)


def _cut(raw: bytes) -> list[bytes]:
    keys = _uniform_keys(raw)
    return split_list(raw) if keys is None else keys


def _element_lists(attributes: Attributes) -> list[bytes]:
    attributes.ignore(_LIST_TABLE, _LIST_SET)
    raw = attributes.take(_LIST_ELEMENTS)
    return [] if raw is None else [raw]


def _uniform_keys(raw: bytes) -> list[bytes] | None:
    """Return the keys of a list of elements of one size with nothing but a key; None for another list."""
    if not raw:
        return []
    if len(raw) < _HEADER.size:
        return None
    size, _, key_length, key_type, value_length, value_type = _HEADER.unpack_from(raw, 0)
    if size & 3 or not size or len(raw) % size or key_length != size - 4 or key_type & _TYPE_MASK != _KEY:
        return None
    if value_type & _TYPE_MASK != _DATA_VALUE or not key_length - 3 <= value_length + 4 <= key_length:
        return None
    headers, start, end = raw[: _HEADER.size], _HEADER.size, value_length + 8
    offsets = range(0, len(raw), size)
    if any(raw[offset : offset + start] != headers for offset in offsets):
        return None
    return [raw[offset + start : offset + end] for offset in offsets]


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
    return decode(raw, lambda attributes: attributes.require(_DATA_VALUE))


# --- keys as values --------------------------------------------------------------------


def key_values(entries: ElementList, columns: tuple[Column, ...], is_interval: bool) -> list[nft.Element]:
    """Return the keys of all elements. Raises UnsupportedBytecode."""
    if entries.keys and not is_interval:
        return _plain_keys(entries.keys, columns)
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
    return interval_value(column.kind, int.from_bytes(low, "big"), int.from_bytes(high, "big"), 8 * column.length)


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
        entries.append((_interval(key, last.to_bytes(size, "big"), column), elements[index].data))
    return entries


def _plain_keys(keys: Sequence[bytes], columns: tuple[Column, ...]) -> list[nft.Element]:
    """Return the values of keys, column by column."""
    layout = "".join(f"{column.length}s{column.padded_length - column.length}x" for column in columns)
    if len(columns) == 1:
        layout = f"{columns[0].length}s"
    cutter = struct.Struct(layout)
    if any(len(key) != cutter.size for key in keys):
        return [element_value(key, columns) for key in keys]
    raw_columns = zip(*cutter.iter_unpack(b"".join(keys)), strict=True)
    values = [list(map(_converter(column), raw)) for raw, column in zip(raw_columns, columns, strict=True)]
    return list(values[0]) if len(values) == 1 else list(zip(*values, strict=True))


def _ipv4_text(raw: bytes) -> str:
    first, second, third, fourth = raw
    return f"{first}.{second}.{third}.{fourth}"


_NUMBERS = frozenset({Kind.NUMBER, Kind.PORT, Kind.MARK, Kind.USER, Kind.GROUP, Kind.DEVICE_GROUP})


def _converter(column: Column) -> Callable[[bytes], Value]:
    """Return a function from the bytes of a column to its value; quick for the usual kinds."""
    if column.kind in _NUMBERS:
        order = column.order
        return lambda raw: int.from_bytes(raw, order)  # type: ignore[arg-type]
    if column.kind is Kind.IPV4 and column.length == 4:
        return _ipv4_text
    known: dict[bytes, Value] = {}

    def convert(raw: bytes) -> Value:
        value = known.get(raw)
        if value is None:
            value = known[raw] = column_value(raw, column)
        return value

    return convert
