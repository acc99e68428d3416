# SPDX-License-Identifier: BSD-2-Clause
"""Expressions that write to the packet, its connection or its headers, and address translation."""

from __future__ import annotations

from collections.abc import Mapping

from ... import nft
from ...nft.symbols import CT_DIRECTIONS, names_by_number
from .attributes import Attributes, UnsupportedBytecode
from .datatypes import Column
from .headers import header_parts
from .loads import CT_KEYS, META_KEYS, NATIVE, PAYLOAD_BASES, KeyLayout, Operation
from .match_forms import bitwise
from .options import option_kind, option_name, option_of
from .registers import Content, MapData
from .rule_state import RuleState
from .values import Kind, interval_value

_CT_DIRECTIONS = names_by_number(CT_DIRECTIONS)
_NAT_FAMILIES = {1: None, 2: "ip", 10: "ip6"}
_NAT_TYPES: Mapping[int, type[nft.Snat | nft.Dnat]] = {0: nft.Snat, 1: nft.Dnat}
_ADDRESS = {"ip": (Kind.IPV4, 4), "ip6": (Kind.IPV6, 16)}
_PORT_LENGTH = 2
# include/uapi/linux/netfilter/nf_nat.h; the first two repeat which registers are given.
_NAT_FLAGS = {
    1: "addresses", 2: "ports", 4: "random", 8: "persistent", 16: "fully-random", 32: "offset", 64: "netmap",
}  # fmt: skip
_DERIVED_FLAGS = frozenset({"addresses", "ports"})
# Offset in bytes of the checksum that the kernel corrects after a write, by protocol.
_CHECKSUMS = {6: 16, 17: 6, 136: 6, 33: 6, 1: 2, 58: 2}
_IP_CHECKSUM = 10
# Fields that decide which headers a packet has, and where.
_STRUCTURE = frozenset(
    {"type", "ptype", "version", "hdrlength", "length", "frag-off", "protocol", "nexthdr", "hlen", "plen", "doff"}
)


def _written(state: RuleState, register: int, layout: KeyLayout) -> nft.Expression | nft.Value:
    """Return the value that a register gives to a property. Raises UnsupportedBytecode."""
    _, kind, length, order = layout
    byte_order = state.context.native if order == NATIVE else order
    return state.value(register, Column(kind, length, byte_order))


def meta(attributes: Attributes) -> Operation:
    """Return a write of a property of the packet."""
    layout, register = attributes.choice(2, META_KEYS), attributes.number(3)

    def write(state: RuleState) -> None:
        value = _written(state, register, layout)
        state.add(nft.Mangle(nft.Meta(layout[0]), value))
        state.forget_values()

    return write


def ct(attributes: Attributes) -> Operation:
    """Return a write of a property of the connection."""
    layout, register = attributes.choice(2, CT_KEYS), attributes.number(4)
    direction = attributes.choice(3, _CT_DIRECTIONS) if attributes.has(3) else None

    def write(state: RuleState) -> None:
        value = _written(state, register, layout)
        state.add(nft.Mangle(nft.Ct(layout[0], direction), value))
        state.forget_values()

    return write


def payload(attributes: Attributes) -> Operation:
    """Return a write of bytes of a header."""
    base, offset, length = attributes.choice(2, PAYLOAD_BASES), attributes.number(3), attributes.number(4)
    register = attributes.number(5)
    has_checksum = attributes.choice(6, {0: False, 1: True, 2: True}, 0)
    checksum = attributes.number(7, 0)
    attributes.flags(8, {1: "pseudo-header"})
    target = nft.RawPayload(base, 8 * offset, 8 * length)

    def write(state: RuleState) -> None:
        if has_checksum and not _is_checksum(state, base, checksum):
            raise UnsupportedBytecode(f"a checksum at byte {checksum} of header {base}")
        key, value = _header_write(state, target, register)
        state.add(nft.Mangle(key, value))
        if isinstance(key, nft.Payload) and key.name not in _STRUCTURE:
            state.forget_values()
        else:
            state.forget_packet()

    return write


def _is_checksum(state: RuleState, base: str, offset: int) -> bool:
    """Return True if the kernel corrects the checksum of the header, and no other bytes."""
    if base == "nh":
        return offset == _IP_CHECKSUM
    if base != "th":
        return False
    if state.transport is None:
        return offset in _CHECKSUMS.values()
    return _CHECKSUMS.get(state.transport) == offset


def _header_write(
    state: RuleState, target: nft.RawPayload, register: int
) -> tuple[nft.Expression, nft.Expression | nft.Value]:
    """Return the field and its new value. Raises UnsupportedBytecode."""
    length = target.length // 8
    content = state.single(register, length)
    protocol = state.protocol_of(target)
    if isinstance(content, Content) and content.source == target and content.mask is not None:
        # Bytes that are read, changed in one field and written back.
        changed = (1 << target.length) - 1 & ~content.mask | content.flip
        for part in header_parts(protocol, target.offset, target.length) or ():
            shift = target.length - part.offset - part.length
            bits = (1 << part.length) - 1
            if part.is_whole and changed and not changed & ~(bits << shift):
                content.uses.append(None)
                return part.field, _changed(part.field, content.mask >> shift & bits, content.flip >> shift, bits)
    kind = state.kind_of_payload(target)
    return state.named(target), state.value(register, Column(kind, length, "big"))


def reset_option(attributes: Attributes) -> Operation:
    """Return the removal of a TCP option: the rule ends for another protocol (nft_exthdr_tcp_strip_eval)."""
    option, number = attributes.choice(6, {1: "tcp option"}), attributes.number(2)
    attributes.flags(5, {})
    if attributes.number(3, 0) or attributes.number(4, 0):
        raise UnsupportedBytecode("the removal of a part of an option")
    text = f"reset {option} {option_name(option, number)}"
    statement = nft.Undecided(text, frozenset({"continue", "break", "drop"}), is_syntax=True)

    def remove(state: RuleState) -> None:
        state.add(statement)
        state.forget_packet()

    return remove


def _changed(field: nft.Payload, mask: int, flip: int, full: int) -> nft.Expression | nft.Value:
    """Return (field & mask) ^ flip in the form in which nft lists it."""
    if not mask:
        return flip
    if not flip & mask:
        return bitwise(field, Kind.NUMBER, mask, flip, full)
    return nft.Binary("^", field if mask == full else nft.Bitwise(field, mask), flip)


def exthdr(attributes: Attributes) -> Operation:
    """Return a write of a field of an option."""
    register = attributes.number(7)
    option, length = option_of(attributes)

    def write(state: RuleState) -> None:
        state.add(nft.Mangle(option, state.value(register, Column(option_kind(option), length, "big"))))
        state.forget_values()

    return write


# --- address translation ---------------------------------------------------------------


def _flags(attributes: Attributes, kind: int) -> frozenset[str]:
    return attributes.flags(kind, _NAT_FLAGS) - _DERIVED_FLAGS


Target = nft.Expression | nft.Value | None


def _range(state: RuleState, low: int | None, high: int | None, column: Column) -> Target:
    """Return an address or port, or the interval between two registers. Raises UnsupportedBytecode."""
    if low is None:
        if high is not None:
            raise UnsupportedBytecode("the end of an interval without its beginning")
        return None
    if high is None or high == low:
        return state.value(low, column)
    first, last = state.constant(low, column.length), state.constant(high, column.length)
    if first is None or last is None:
        raise UnsupportedBytecode("an interval that is computed")
    return interval_value(column.kind, int.from_bytes(first, "big"), int.from_bytes(last, "big"), 8 * column.length)


def _from_map(state: RuleState, operands: list[tuple[Column, int | None, int | None]]) -> nft.Lookup | None:
    """Return the lookup of several operands, or of intervals, None if they come from elsewhere.

    Each operand has the registers of its lowest and its highest value. A map has the lowest values
    of all operands, then the highest ones (nftables, src/netlink_linearize.c: netlink_gen_nat_stmt).
    """
    present = [(column, low, high) for column, low, high in operands if low is not None]
    stored = state.registers.first(present[0][1] or 0) if present else None
    if not isinstance(stored, MapData):
        return None
    is_range = any(high not in (None, low) for _, low, high in present)
    columns = tuple(column for column, _, _ in present)
    if len(columns) == 1 and not is_range:
        return None
    registers = [low for _, low, _ in present] + ([high for _, _, high in present] if is_range else [])
    offset, length = 0, 0
    for register, column in zip(registers, columns * 2, strict=False):
        if register is None or state.registers.offset(register) != (stored, offset):
            return None
        offset, length = offset + column.padded_length, offset + column.length
    if stored.length not in (length, offset):
        return None
    stored.uses.append(None)
    entries = state.context.sets.entries(stored.map_name, stored.columns, columns, is_range)
    return nft.Lookup(stored.key, entries)


_PORT = Column(Kind.PORT, _PORT_LENGTH, "big")


def nat(attributes: Attributes) -> Operation:
    """Return a translation of addresses."""
    kind: type[nft.Snat | nft.Dnat] = attributes.choice(1, _NAT_TYPES)
    family = attributes.choice(2, _NAT_FAMILIES)
    addresses = attributes.optional_number(3), attributes.optional_number(4)
    ports = attributes.optional_number(5), attributes.optional_number(6)
    flags = _flags(attributes, 7)
    if family is None and addresses != (None, None):
        raise UnsupportedBytecode("an address without a family")
    column = Column(*_ADDRESS[family or "ip"], "big")

    def translate(state: RuleState) -> None:
        table = state.context.family
        address: Target = _from_map(state, [(column, *addresses), (_PORT, *ports)])
        port: Target = None
        if address is None:
            address, port = _range(state, *addresses, column), _range(state, *ports, _PORT)
        is_known = family is None or state.network == family
        is_network = "netmap" in flags and isinstance(address, nft.Lookup)  # its text names the family
        state.add(kind(None if table in ("ip", "ip6") and not is_network else family, address, port, flags))
        if not is_known:
            state.end_rule()

    return translate


def masquerade(attributes: Attributes) -> Operation:
    """Return a translation to an address of the output device."""
    flags, low, high = _flags(attributes, 1), attributes.optional_number(2), attributes.optional_number(3)
    return lambda state: state.add(nft.Masquerade(_range(state, low, high, _PORT), flags))


def redirect(attributes: Attributes) -> Operation:
    """Return a translation to this machine."""
    low, high, flags = attributes.optional_number(1), attributes.optional_number(2), _flags(attributes, 3)
    return lambda state: state.add(nft.Redirect(_range(state, low, high, _PORT), flags))
