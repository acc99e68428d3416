# SPDX-License-Identifier: BSD-2-Clause
"""Sets and maps as the kernel holds them.

What their bytes mean is decided by the rules that look them up: by the expression in the register.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from attrs import Factory, frozen, mutable

from ... import nft
from .attributes import Attributes, UnsupportedBytecode, decode, split_list
from .datatypes import VERDICT_TYPE, Column, columns_of_type, element_value, range_of_values, type_names
from .elements import Data, ElementList, expression_name, key_values, keys_with_data
from .values import Kind, device_name

# include/uapi/linux/netfilter/nf_tables.h, enum nft_set_attributes
_TABLE, _NAME, _FLAGS_OF_SET, _KEY_TYPE, _KEY_LEN, _DATA_TYPE, _DATA_LEN = range(1, 8)
_POLICY, _DESC, _ID, _TIMEOUT, _GC_INTERVAL, _USERDATA, _PAD, _OBJ_TYPE, _HANDLE, _EXPR, _EXPRESSIONS = range(8, 19)
_BACKEND, _COUNT = 19, 20  # NFTA_SET_TYPE, NFTA_SET_COUNT
_FLAGS = {
    0x1: "anonymous", 0x2: "constant", 0x4: "interval", 0x8: "map", 0x10: "timeout", 0x20: "dynamic", 0x40: "object",
    0x80: "concatenation", 0x100: "statements",
}  # fmt: skip
_LISTED_FLAGS = frozenset({"constant", "interval", "timeout", "dynamic"})  # the others follow from the contents
_MILLISECONDS = 1000
# Statements of elements that neither end the rule nor change the packet.
_NEUTRAL = frozenset({"counter", "last"})

Entries = frozenset[tuple[nft.Element, nft.Element]]
VerdictEntries = frozenset[tuple[nft.Element, nft.Verdict]]


@frozen
class SetHeader:
    """The attributes of a set or map; lengths in bytes, `timeout` in seconds."""

    name: str
    flags: frozenset[str]
    key_type: int
    key_length: int
    data_type: int
    data_length: int
    timeout: int | None
    statements: tuple[str, ...]
    object_type: int


def set_name(raw: bytes) -> tuple[str, str]:
    """Return the names of the table and the set. Raises UnsupportedBytecode."""
    attributes = Attributes(raw)
    return attributes.text(_TABLE), attributes.text(_NAME)


def decode_set(raw: bytes) -> tuple[str, SetHeader]:
    """Return the name of the table, and the set. Raises UnsupportedBytecode."""
    return decode(raw, _header)


def _header(attributes: Attributes) -> tuple[str, SetHeader]:
    attributes.ignore(_POLICY, _DESC, _ID, _GC_INTERVAL, _USERDATA, _PAD, _HANDLE, _BACKEND, _COUNT)
    timeout = attributes.optional_number(_TIMEOUT)
    single = attributes.take(_EXPR)
    statements = [*([] if single is None else [single]), *split_list(attributes.take(_EXPRESSIONS))]
    return attributes.text(_TABLE), SetHeader(
        attributes.text(_NAME),
        attributes.flags(_FLAGS_OF_SET, _FLAGS),
        attributes.number(_KEY_TYPE, 0),
        attributes.number(_KEY_LEN),
        attributes.number(_DATA_TYPE, 0),
        attributes.number(_DATA_LEN, 0),
        None if timeout is None else timeout // _MILLISECONDS,
        tuple(map(expression_name, statements)),
        attributes.number(_OBJ_TYPE, 0),
    )


@mutable
class _SetUse:
    """A set with its elements, and the columns by which rules look it up; None: no rule does.

    `values` are the elements of a set that rules look up.
    """

    header: SetHeader
    contents: ElementList
    keys: tuple[Column, ...] | None = None
    values: frozenset[nft.Element] | None = None
    data: tuple[Column, ...] | None = None
    has_ranges: bool = False  # the data are intervals
    is_updated: bool = False

    @property
    def is_anonymous(self) -> bool:
        return "anonymous" in self.header.flags

    @property
    def is_interval(self) -> bool:
        return "interval" in self.header.flags

    def require_plain_elements(self) -> None:
        """Raise UnsupportedBytecode if a lookup does more than to find an element."""
        statements = (self.contents.statements() | set(self.header.statements)) - _NEUTRAL
        if statements:
            raise UnsupportedBytecode(
                f"set {self.header.name}, whose elements have statements: {', '.join(sorted(statements))}"
            )


@mutable
class SetTable:
    """The sets and maps of one table.

    `native`: byte order of the machine. `devices`: names of devices by index. `unreadable`: reasons by
    name of a set.
    """

    native: str
    devices: Mapping[int, str] = Factory(dict)
    _sets: dict[str, _SetUse] = Factory(dict)
    unreadable: dict[str, str] = Factory(dict)

    def add(self, header: SetHeader, contents: ElementList) -> None:
        """Add a set."""
        self._sets[header.name] = _SetUse(header, contents)

    def key_length(self, name: str) -> int:
        """Return the length of the keys of a set in bytes. Raises UnsupportedBytecode."""
        return self._find(name).header.key_length

    def data_length(self, name: str) -> int:
        """Return the length of the data of a map in bytes. Raises UnsupportedBytecode."""
        return self._find(name).header.data_length

    def data_columns(self, name: str) -> tuple[Column, ...]:
        """Return the columns of the data of a map. Raises UnsupportedBytecode."""
        use = self._find(name)
        return use.data or columns_of_type(use.header.data_type, use.header.data_length, self.native, is_interval=False)

    def has_intervals(self, name: str) -> bool:
        """Return True if the elements of a set can be intervals. Raises UnsupportedBytecode."""
        return self._find(name).is_interval

    def is_anonymous(self, name: str) -> bool:
        """Return True if a set belongs to one rule. Raises UnsupportedBytecode."""
        return self._find(name).is_anonymous

    def has_values(self, name: str, keys: tuple[Column, ...]) -> bool:
        """Return True if the keys of a set have values in these columns. Raises UnsupportedBytecode."""
        use = self._find(name)
        try:
            self._keys(use, keys)
        except UnsupportedBytecode:
            return False
        return True

    def mark_updated(self, name: str, keys: tuple[Column, ...]) -> None:
        """Record that a rule adds elements with these columns to a set, or deletes some."""
        use = self._find(name)
        use.is_updated = True
        if use.keys is None and self.has_values(name, keys):
            use.keys = keys

    def elements(self, name: str, keys: tuple[Column, ...]) -> nft.SetRef | nft.AnonymousSet:
        """Return the set that a key with these columns is looked up in. Raises UnsupportedBytecode."""
        use = self._find(name)
        use.require_plain_elements()
        if use.is_anonymous:
            return nft.AnonymousSet(self._keys(use, keys))
        self._agree(use, keys)
        return nft.SetRef(name)

    def verdicts(self, name: str, keys: tuple[Column, ...]) -> str | VerdictEntries:
        """Return the name of a verdict map, or its entries if it is anonymous. Raises UnsupportedBytecode."""
        use = self._find(name)
        use.require_plain_elements()
        if not use.is_anonymous:
            self._agree(use, keys)
            return name
        return frozenset((key, _verdict(data)) for key, data in self._pairs(use, keys))

    def entries(
        self, name: str, keys: tuple[Column, ...], data: tuple[Column, ...], is_range: bool = False
    ) -> nft.MapRef | Entries:
        """Return a map, or its entries if it is anonymous; `is_range`: of intervals. Raises UnsupportedBytecode."""
        use = self._find(name)
        use.require_plain_elements()
        if not use.is_anonymous:
            self._agree(use, keys)
            if use.data is None:
                use.data, use.has_ranges = data, is_range
            elif (use.data, use.has_ranges) != (data, is_range):
                raise UnsupportedBytecode(f"map {name}, whose data are used in different ways")
            return nft.MapRef(name)
        pairs = [(key, _value(content, data, is_range)) for key, content in self._pairs(use, keys)]
        return frozenset((key, self._with_devices(content, data)) for key, content in pairs)

    def object_type(self, name: str) -> int:
        """Return the type of the objects that a map names. Raises UnsupportedBytecode."""
        return self._find(name).header.object_type

    def object_names(self, name: str, keys: tuple[Column, ...]) -> str | frozenset[tuple[nft.Element, str]]:
        """Return the name of a map of objects, or its entries if it is anonymous. Raises UnsupportedBytecode."""
        use = self._find(name)
        use.require_plain_elements()
        if not use.is_anonymous:
            self._agree(use, keys)
            return name
        return frozenset((key, _object_name(data)) for key, data in self._pairs(use, keys))

    def _keys(self, use: _SetUse, columns: tuple[Column, ...]) -> frozenset[nft.Element]:
        """Return the keys of all elements. Raises UnsupportedBytecode."""
        keys = key_values(use.contents, columns, use.is_interval)
        return frozenset((self._with_devices(key, columns) for key in keys) if _has_device(columns) else keys)

    def _pairs(self, use: _SetUse, columns: tuple[Column, ...]) -> list[tuple[nft.Element, Data]]:
        """Return key and data of all elements. Raises UnsupportedBytecode."""
        pairs = keys_with_data(use.contents, columns, use.is_interval)
        return [(self._with_devices(key, columns), data) for key, data in pairs] if _has_device(columns) else pairs

    def _with_devices(self, element: nft.Element, columns: tuple[Column, ...]) -> nft.Element:
        """Return an element with names in place of the indexes of devices. Raises UnsupportedBytecode."""
        values = element if isinstance(element, tuple) else (element,)
        names = tuple(
            device_name(value, self.devices) if column.kind is Kind.DEVICE_INDEX else value
            for value, column in zip(values, columns, strict=False)
        )
        return names if isinstance(element, tuple) else names[0]

    def _find(self, name: str) -> _SetUse:
        if name not in self._sets:
            raise UnsupportedBytecode(f"set {name}: {self.unreadable.get(name, 'the dump does not have it')}")
        return self._sets[name]

    def _agree(self, use: _SetUse, keys: tuple[Column, ...]) -> None:
        """Record the columns of a lookup. Raises UnsupportedBytecode if another lookup has others."""
        if use.keys is None:
            values = self._keys(use, keys)
            use.keys, use.values = keys, None if "map" in use.header.flags else values
        elif use.keys != keys:
            raise UnsupportedBytecode(f"set {use.header.name}, which is looked up in different ways")

    def named(self) -> tuple[tuple[nft.Set, ...], tuple[nft.Map, ...], tuple[str, ...]]:
        """Return the named sets and maps, and a description of each one that is unsupported."""
        sets: list[nft.Set] = []
        maps: list[nft.Map] = []
        unknown = [f"set {name}: {reason}" for name, reason in self.unreadable.items()]
        for name, use in self._sets.items():
            if use.is_anonymous:
                continue
            try:
                if "object" in use.header.flags:  # does nothing but what a rule does with it
                    unknown.append(_passive("map", name=name))
                elif "map" in use.header.flags:
                    maps.append(self._map(use))
                else:
                    sets.append(self._set(use))
            except UnsupportedBytecode as reason:  # the rules that look it up are unsupported, if there are any
                unknown.append(_passive("set", name=name, reason=str(reason)))
        return tuple(sets), tuple(maps), tuple(unknown)

    def _columns(self, use: _SetUse) -> tuple[Column, ...]:
        header = use.header
        return use.keys or columns_of_type(header.key_type, header.key_length, self.native, use.is_interval)

    def _set(self, use: _SetUse) -> nft.Set:
        columns = self._columns(use)
        use.require_plain_elements()
        return nft.Set(
            use.header.name,
            type_names(use.header.key_type, columns),
            self._keys(use, columns) if use.values is None else use.values,
            _listed_flags(use),
            timeout=use.header.timeout,
        )

    def _map(self, use: _SetUse) -> nft.Map:
        columns, header = self._columns(use), use.header
        use.require_plain_elements()
        data_names: tuple[str, ...] = ("verdict",)
        contents: list[tuple[nft.Element, nft.Element | nft.Verdict]]
        if header.data_type == VERDICT_TYPE:
            contents = [(key, _verdict(data)) for key, data in self._pairs(use, columns)]
        else:
            pairs = self._pairs(use, columns)
            data_columns = self.data_columns(header.name)
            data_names = type_names(header.data_type, data_columns)
            contents = [(key, _value(data, data_columns, use.has_ranges)) for key, data in pairs]
            if use.has_ranges:
                data_names = f"interval {data_names[0]}", *data_names[1:]
        names = type_names(header.key_type, columns)
        return nft.Map(header.name, names, data_names, frozenset(contents), _listed_flags(use), header.timeout)


def _passive(kind: str, **content: str) -> str:
    """Return the text of an object that does nothing by itself, in the form of nft's JSON."""
    return json.dumps({kind: content}, separators=(",", ":"))


def _has_device(columns: tuple[Column, ...]) -> bool:
    return any(column.kind is Kind.DEVICE_INDEX for column in columns)


def _listed_flags(use: _SetUse) -> frozenset[str]:
    changing = frozenset({"dynamic"}) if use.is_updated else frozenset()
    return use.header.flags & _LISTED_FLAGS | changing


def _verdict(data: Data) -> nft.Verdict:
    if not isinstance(data, nft.Verdict):
        raise UnsupportedBytecode("an element without a verdict")
    return data


def _object_name(data: Data) -> str:
    if not isinstance(data, str):
        raise UnsupportedBytecode("an element without an object")
    return data


def _value(data: Data, columns: tuple[Column, ...], is_range: bool) -> nft.Element:
    if not isinstance(data, bytes):
        raise UnsupportedBytecode("an element without data")
    return range_of_values(data, columns) if is_range else element_value(data, columns)


__all__ = ["SetHeader", "SetTable", "decode_set"]
