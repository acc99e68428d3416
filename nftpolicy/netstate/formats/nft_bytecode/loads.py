# SPDX-License-Identifier: BSD-2-Clause
"""Expressions that load a value into a register."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import evolve

from ... import nft
from ...nft.symbols import CT_DIRECTIONS, names_by_number
from .. import nft_opaque
from ..nft_text import display_text
from .attributes import Attributes, UnsupportedBytecode, decode
from .options import option_kind, option_of
from .registers import Content
from .rule_state import RuleState
from .values import Kind

Operation = Callable[[RuleState], None]

NATIVE, BIG = "native", "big"
KeyLayout = tuple[str, Kind, int, str]  # name, kind, length in bytes, byte order

# include/uapi/linux/netfilter/nf_tables.h, enum nft_meta_keys; lengths: net/netfilter/nft_meta.c
META_KEYS: Mapping[int, KeyLayout] = {
    0: ("length", Kind.NUMBER, 4, NATIVE), 1: ("protocol", Kind.ETHERTYPE, 2, BIG),
    2: ("priority", Kind.NUMBER, 4, NATIVE), 3: ("mark", Kind.MARK, 4, NATIVE),
    4: ("iif", Kind.DEVICE_INDEX, 4, NATIVE), 5: ("oif", Kind.DEVICE_INDEX, 4, NATIVE),
    6: ("iifname", Kind.DEVICE, 16, BIG), 7: ("oifname", Kind.DEVICE, 16, BIG),
    8: ("iiftype", Kind.NUMBER, 2, NATIVE), 9: ("oiftype", Kind.NUMBER, 2, NATIVE),
    10: ("skuid", Kind.USER, 4, NATIVE), 11: ("skgid", Kind.GROUP, 4, NATIVE), 12: ("nftrace", Kind.NUMBER, 1, BIG),
    13: ("rtclassid", Kind.NUMBER, 4, NATIVE), 14: ("secmark", Kind.NUMBER, 4, NATIVE),
    15: ("nfproto", Kind.FAMILY, 1, BIG), 16: ("l4proto", Kind.PROTOCOL, 1, BIG),
    17: ("ibrname", Kind.DEVICE, 16, BIG), 18: ("obrname", Kind.DEVICE, 16, BIG),
    19: ("pkttype", Kind.PACKET_TYPE, 1, BIG), 20: ("cpu", Kind.NUMBER, 4, NATIVE),
    21: ("iifgroup", Kind.DEVICE_GROUP, 4, NATIVE), 22: ("oifgroup", Kind.DEVICE_GROUP, 4, NATIVE),
    23: ("cgroup", Kind.NUMBER, 4, NATIVE), 24: ("random", Kind.NUMBER, 4, BIG),
    25: ("ipsec", Kind.EXISTENCE, 1, BIG), 26: ("iifkind", Kind.DEVICE, 16, BIG),
    27: ("oifkind", Kind.DEVICE, 16, BIG), 28: ("ibrpvid", Kind.NUMBER, 2, NATIVE),
    29: ("ibrvproto", Kind.ETHERTYPE, 2, BIG), 30: ("time", Kind.NANOSECONDS, 8, NATIVE),
    31: ("day", Kind.NUMBER, 1, BIG), 32: ("hour", Kind.NUMBER, 4, NATIVE), 33: ("sdif", Kind.DEVICE_INDEX, 4, NATIVE),
    34: ("sdifname", Kind.DEVICE, 16, BIG), 35: ("broute", Kind.NUMBER, 1, BIG),
}  # fmt: skip
# Every packet has these.
_ALWAYS_READABLE = frozenset({"length", "protocol", "priority", "mark", "nfproto", "cpu", "random"})
# enum nft_ct_keys; lengths: net/netfilter/nft_ct.c
CT_KEYS: Mapping[int, KeyLayout] = {
    0: ("state", Kind.CT_STATE, 4, NATIVE), 1: ("direction", Kind.CT_DIRECTION, 1, BIG),
    2: ("status", Kind.CT_STATUS, 4, NATIVE), 3: ("mark", Kind.MARK, 4, NATIVE), 4: ("secmark", Kind.NUMBER, 4, NATIVE),
    5: ("expiration", Kind.MILLISECONDS, 4, NATIVE), 6: ("helper", Kind.DEVICE, 16, BIG),
    7: ("l3proto", Kind.FAMILY, 1, BIG),
    10: ("protocol", Kind.PROTOCOL, 1, BIG), 11: ("proto-src", Kind.PORT, 2, BIG), 12: ("proto-dst", Kind.PORT, 2, BIG),
    13: ("label", Kind.CT_LABEL, 16, NATIVE), 14: ("packets", Kind.NUMBER, 8, NATIVE),
    15: ("bytes", Kind.NUMBER, 8, NATIVE), 16: ("avgpkt", Kind.NUMBER, 8, NATIVE), 17: ("zone", Kind.NUMBER, 2, NATIVE),
    18: ("event", Kind.NUMBER, 4, NATIVE), 19: ("ip saddr", Kind.IPV4, 4, BIG), 20: ("ip daddr", Kind.IPV4, 4, BIG),
    21: ("ip6 saddr", Kind.IPV6, 16, BIG), 22: ("ip6 daddr", Kind.IPV6, 16, BIG), 23: ("id", Kind.NUMBER, 4, BIG),
}  # fmt: skip
# Keys of addresses without a family: that of the table.
_CT_ADDRESSES = {8: "saddr", 9: "daddr"}
_CT_DIRECTIONS = names_by_number(CT_DIRECTIONS)
PAYLOAD_BASES = {0: "ll", 1: "nh", 2: "th", 3: "ih"}
_RT_KEYS: Mapping[int, tuple[nft.Rt, Kind, int, str]] = {
    0: (nft.Rt("classid"), Kind.NUMBER, 4, NATIVE),
    1: (nft.Rt("nexthop", "ip"), Kind.IPV4, 4, BIG),
    2: (nft.Rt("nexthop", "ip6"), Kind.IPV6, 16, BIG),
    3: (nft.Rt("mtu"), Kind.NUMBER, 2, NATIVE),
    4: (nft.Rt("ipsec"), Kind.EXISTENCE, 1, BIG),
}
_SOCKET_KEYS: Mapping[int, KeyLayout] = {
    0: ("transparent", Kind.NUMBER, 1, BIG),
    1: ("mark", Kind.MARK, 4, NATIVE),
    2: ("wildcard", Kind.NUMBER, 1, BIG),
    3: ("cgroupv2", Kind.NUMBER, 8, NATIVE),
}
_FIB_RESULTS: Mapping[int, KeyLayout] = {
    1: ("oif", Kind.DEVICE_INDEX, 4, NATIVE),
    2: ("oifname", Kind.DEVICE, 16, BIG),
    3: ("type", Kind.ADDRESS_TYPE, 4, NATIVE),
}
_FIB_FLAGS = {1: "saddr", 2: "daddr", 4: "mark", 8: "iif", 16: "oif", 32: "present"}
_EXISTENCE: tuple[Kind, int, str] = (Kind.EXISTENCE, 1, BIG)


def _load(
    register: int, source: nft.Expression, kind: Kind, length: int, order: str, may_break: bool = True
) -> Operation:
    def store(state: RuleState) -> None:
        byte_order = state.context.native if order == NATIVE else BIG
        state.store(register, Content(source, kind, length, byte_order, may_break=may_break))

    return store


def meta(attributes: Attributes) -> Operation:
    """Return a load of a property of the packet."""
    name, kind, length, order = attributes.choice(2, META_KEYS)
    return _load(attributes.number(1), nft.Meta(name), kind, length, order, name not in _ALWAYS_READABLE)


def ct(attributes: Attributes) -> Operation:
    """Return a load of a property of the connection."""
    keys: dict[int, KeyLayout | str] = {**CT_KEYS, **_CT_ADDRESSES}
    layout = attributes.choice(2, keys)
    register, direction = attributes.number(1), attributes.choice(3, _CT_DIRECTIONS) if attributes.has(3) else None
    if not isinstance(layout, str):
        name, kind, length, order = layout
        return _load(register, nft.Ct(name, direction), kind, length, order)
    address = layout

    def store(state: RuleState) -> None:
        family = state.network
        if family not in ("ip", "ip6"):
            raise UnsupportedBytecode("an address without a family")
        kind, length = (Kind.IPV4, 4) if family == "ip" else (Kind.IPV6, 16)
        # Where a test of the rule establishes the family, nft's name of the address is one without it.
        name = f"{family} {address}" if state.context.family == family else address
        state.store(register, Content(nft.Ct(name, direction), kind, length, BIG))

    return store


def payload(attributes: Attributes) -> Operation:
    """Return a load of bytes of a header."""
    return _payload(attributes, PAYLOAD_BASES)


def _payload(attributes: Attributes, bases: Mapping[int, str]) -> Operation:
    attributes.ignore(6, 7, 8)  # about the checksum: of a write only
    base, offset, length = attributes.choice(2, bases), attributes.number(3), attributes.number(4)
    source = nft.RawPayload(base, 8 * offset, 8 * length)
    return _load(attributes.number(1), source, Kind.NUMBER, length, BIG)


def rt(attributes: Attributes) -> Operation:
    """Return a load of a property of the packet's route."""
    source, kind, length, order = attributes.choice(2, _RT_KEYS)
    return _load(attributes.number(1), source, kind, length, order)


def socket(attributes: Attributes) -> Operation:
    """Return a load of a property of the packet's socket."""
    name, kind, length, order = attributes.choice(1, _SOCKET_KEYS)
    register, level = attributes.number(2), attributes.number(3, 0)
    source: nft.Expression = nft.Socket(name)
    if name == "cgroupv2":
        source = nft.UnknownExpression(f"socket cgroupv2 level {level}")
    return _load(register, source, kind, length, order)


def fib(attributes: Attributes) -> Operation:
    """Return a FIB lookup."""
    name, kind, length, order = attributes.choice(2, _FIB_RESULTS)
    flags = attributes.flags(3, _FIB_FLAGS)
    keys = tuple(key for key in _FIB_FLAGS.values() if key in flags and key != "present")
    if "present" in flags:
        if name == "type":
            raise UnsupportedBytecode("the existence of an address type")
        kind, length, order = Kind.EXISTENCE, 4, NATIVE  # one byte, and zeros behind it
    return _load(attributes.number(1), nft.Fib(name, keys), kind, length, order)


def exthdr(attributes: Attributes) -> Operation:
    """Return a load of a field of an option or extension header, or a test whether it exists."""
    source, length = option_of(attributes)
    if source.field is None:
        return _load(attributes.number(1), source, *_EXISTENCE)
    return _load(attributes.number(1), source, option_kind(source), length, BIG)


def numgen(attributes: Attributes) -> Operation:
    """Return a load of a generated number."""
    mode = attributes.choice(3, {0: "inc", 1: "random"})
    modulus, offset = attributes.number(2), attributes.number(4, 0)
    source = nft_opaque.numgen(mode, modulus, offset)
    return _load(attributes.number(1), source, Kind.NUMBER, 4, NATIVE, may_break=False)


def hash_(attributes: Attributes) -> Operation:
    """Return a load of a hash of other values, or of the packet."""
    kind = attributes.choice(7, {0: "jhash", 1: "symhash"}, 0)
    modulus, seed, offset = attributes.number(4), attributes.optional_number(5), attributes.number(6, 0)
    length, source_register, register = attributes.number(3, 0), attributes.optional_number(1), attributes.number(2)
    if kind == "symhash":
        if source_register is not None or seed is not None or length:
            raise UnsupportedBytecode("a hash of the packet with a key")
        return _load(register, nft_opaque.symhash(modulus, offset), Kind.NUMBER, 4, NATIVE, may_break=False)
    if source_register is None:
        raise UnsupportedBytecode("a hash of nothing")
    source = source_register

    def store(state: RuleState) -> None:
        expression = _writable(lambda: nft_opaque.jhash(state.key(source, length)[0], modulus, seed, offset))
        state.store(register, Content(expression, Kind.NUMBER, 4, state.context.native))

    return store


def _writable(build: Callable[[], nft.OpaqueExpression]) -> nft.OpaqueExpression:
    """Return an expression that has nft syntax. Raises UnsupportedBytecode."""
    try:
        return build()
    except ValueError as error:
        raise UnsupportedBytecode(str(error)) from error


def osf(attributes: Attributes) -> Operation:
    """Return a load of the name of the sender's operating system."""
    ttl, flags = attributes.number(2, 0), attributes.flags(3, {1: "version"})
    source = _writable(lambda: nft_opaque.osf("version" if flags else "name", ttl))
    return _load(attributes.number(1), source, Kind.DEVICE, 16, BIG)


# include/uapi/linux/netfilter/nf_tables.h, enum nft_xfrm_keys; lengths: net/netfilter/nft_xfrm.c
_XFRM_KEYS: Mapping[int, KeyLayout] = {
    1: ("ip daddr", Kind.IPV4, 4, BIG), 2: ("ip6 daddr", Kind.IPV6, 16, BIG),
    3: ("ip saddr", Kind.IPV4, 4, BIG), 4: ("ip6 saddr", Kind.IPV6, 16, BIG),
    5: ("reqid", Kind.NUMBER, 4, NATIVE), 6: ("spi", Kind.NUMBER, 4, BIG),
}  # fmt: skip


def xfrm(attributes: Attributes) -> Operation:
    """Return a load of a property of the packet's IPsec state."""
    name, kind, length, order = attributes.choice(2, _XFRM_KEYS)
    direction, number = attributes.choice(3, {0: "in", 1: "out"}), attributes.number(4, 0)
    return _load(attributes.number(1), nft_opaque.ipsec(direction, number, name), kind, length, order)


def tunnel(attributes: Attributes) -> Operation:
    """Return a load of a property of the packet's tunnel."""
    name, length = attributes.choice(1, {0: ("path", 1), 1: ("id", 4)})
    mode = attributes.choice(3, {0: "any", 1: "rx", 2: "tx"}, 0)
    source = nft.UnknownExpression(f"tunnel {name} {mode}")
    return _load(attributes.number(2), source, Kind.NUMBER, length, NATIVE)


# include/uapi/linux/netfilter/nf_tables.h, enum nft_inner_type; 3 is any other tunnel.
_TUNNELS = {1: "vxlan", 2: "geneve", 3: "tunnel"}


def inner(attributes: Attributes) -> Operation:
    """Return a load from the packet inside of a tunnel (nft_inner_eval): it can only end the rule."""
    tunnel = attributes.choice(2, _TUNNELS)
    attributes.ignore(1, 3, 4)  # number of the expression, flags and length of the tunnel's header
    name, data = decode(attributes.require(5), lambda inside: (inside.text(1), inside.take(2)))
    if name not in _INNER_LOADS:
        raise UnsupportedBytecode(f"{name} of the packet inside of a tunnel")
    load = decode(data, _INNER_LOADS[name])

    def store(state: RuleState) -> None:
        inside = RuleState(state.context)
        load(inside)
        register, content = inside.last_store or (0, None)
        if not isinstance(content, Content):
            raise UnsupportedBytecode("nothing of the packet inside of a tunnel")
        source = nft.UnknownExpression(f"{display_text(content.source)} inside of {tunnel}")
        state.store(register, evolve(content, source=source, kind=Kind.NUMBER, may_break=True))

    return store


_INNER_LOADS: Mapping[str, Callable[[Attributes], Operation]] = {
    "meta": meta,
    "payload": lambda attributes: _payload(attributes, {**PAYLOAD_BASES, 4: "tun"}),
}
