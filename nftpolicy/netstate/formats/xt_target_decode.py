# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of iptables targets, as nft_compat holds them (net/netfilter/xt_*.c, net/ipv4/netfilter/ipt_*.c)."""

from __future__ import annotations

from functools import partial

from .. import nft
from ..nft import FULL_MASK
from .xt_struct import (
    Fields,
    Statements,
    XtStruct,
    address,
    address_range,
    masked,
    number_range,
    replace_bits,
    require,
    require_bits,
    text,
)

__all__ = ["BRIDGE_NEUTRAL_TARGETS", "NEUTRAL_TARGETS", "TARGETS", "TARGETS_OF_IP6", "TRACKING_TARGETS"]

_MARK, _CT_MARK = nft.Meta("mark"), nft.Ct("mark")
_SET, _SAVE, _RESTORE = 0, 1, 2  # modes of xt_connmark.h
_RIGHT = 1  # D_SHIFT_RIGHT

# Targets that write nothing that a rule or a route lookup reads and leave the packet where it is, with their
# revisions: they return XT_CONTINUE (or drop a malformed packet). SET keeps a state of its own; its revision 3
# can write marks.
NEUTRAL_TARGETS: dict[str, tuple[int, ...]] = {
    "AUDIT": (0,), "CHECKSUM": (0,), "CLASSIFY": (0,), "CONNSECMARK": (0,), "IDLETIMER": (0, 1), "LED": (0,),
    "RATEEST": (0,), "SECMARK": (0, 1), "SET": (0, 1, 2), "TCPMSS": (0,), "TCPOPTSTRIP": (0,), "TRACE": (0,),
}  # fmt: skip

TRACKING_TARGETS = frozenset({"CONNSECMARK", "CT"})  # they load conntrack, see TRACKING_TESTS
# Of ebtables. A target of iptables does something else there: XT_CONTINUE is the number of EBT_ACCEPT.
BRIDGE_NEUTRAL_TARGETS = frozenset({"log", "nflog"})


def _set_mark(fields: Fields, family: str) -> Statements:
    mark, mask = fields
    return (nft.Mangle(_MARK, replace_bits(_MARK, mask, mark)),)


def _connmark(fields: Fields, family: str) -> Statements:
    """Return the write of connmark_tg_shift().

    It reads the connection's mark where the rule ends with it: after the target, xt goes on without a connection.
    """
    ct_mark, ct_mask, packet_mask, direction, bits, mode = map(int, fields)
    require(direction in (0, _RIGHT) and bits < 32 and mode in (_SET, _SAVE, _RESTORE))
    operator = ">>" if direction == _RIGHT else "<<"

    def shift_number(value: int) -> int:
        return value >> bits if direction == _RIGHT else value << bits & FULL_MASK

    def shift(value: nft.Expression | nft.Value) -> nft.Expression | nft.Value:
        if isinstance(value, int):
            return shift_number(value)
        assert not isinstance(value, str)
        return nft.Binary(operator, value, bits) if bits else value

    if mode == _SET:
        return (nft.Mangle(_CT_MARK, shift(replace_bits(_CT_MARK, ct_mask, ct_mark))),)
    key, mask = (_CT_MARK, ct_mask) if mode == _SAVE else (_MARK, packet_mask)
    source, source_mask = (_MARK, packet_mask) if mode == _SAVE else (_CT_MARK, ct_mask)
    moved = shift(masked(source, source_mask))
    if mask == FULL_MASK:
        return (nft.Mangle(key, moved),)
    remainder = nft.Bitwise(key, FULL_MASK & ~mask) if mask else key
    assert not isinstance(moved, int | str)
    operator = "^" if shift_number(source_mask) & ~mask else "|"
    return (nft.Mangle(key, nft.Binary(operator, remainder, moved)),)


def _connmark_v1(fields: Fields, family: str) -> Statements:
    ct_mark, ct_mask, packet_mask, mode = fields
    return _connmark((ct_mark, ct_mask, packet_mask, 0, 0, mode), family)


def _tproxy(fields: Fields, family: str) -> Statements:
    """Return the effects of tproxy_tg4(): it marks and accepts the packet, or drops it without a socket."""
    mask, mark, proxy, port = fields
    to_address = address(proxy, family) if any(proxy) else None
    to_port = int.from_bytes(port, "big") or None
    return (
        nft.Mangle(_MARK, replace_bits(_MARK, mask, mark)),
        nft.Tproxy(family, to_address, to_port),
        nft.ACCEPT,
    )


# --- address translation --------------------------------------------------------------

_MAP_ADDRESSES, _MAP_PORTS = 1, 2  # NF_NAT_RANGE_* of nf_nat.h
_NAT_FLAGS = {4: "random", 8: "persistent", 16: "fully-random"}


def _nat(kind: str, fields: Fields, family: str) -> Statements:
    """Return the translation of a struct nf_nat_range."""
    flags, low, high, first_port, last_port = fields
    require_bits(flags, _MAP_ADDRESSES | _MAP_PORTS | sum(_NAT_FLAGS))
    names = frozenset(name for bit, name in _NAT_FLAGS.items() if flags & bit)
    to_address = address_range(low, high, family) if flags & _MAP_ADDRESSES else None
    ports = (int.from_bytes(each, "big") for each in (first_port, last_port))
    to_port = number_range(*ports) if flags & _MAP_PORTS else None
    match kind:
        case "DNAT":
            return (nft.Dnat(family, to_address, to_port, names),)
        case "SNAT":
            return (nft.Snat(family, to_address, to_port, names),)
        case "MASQUERADE":
            return (nft.Masquerade(to_port, names),)
    return (nft.Redirect(to_port, names),)


def _nat_v4(kind: str, fields: Fields, family: str) -> Statements:
    """Return the translation of a struct nf_nat_ipv4_multi_range_compat."""
    ranges, *body = fields
    require(ranges == 1 and family == "ip")
    return _nat(kind, tuple(body), family)


def _nat_v6(kind: str, fields: Fields, family: str) -> Statements:
    require(family == "ip6")
    return _nat(kind, fields, family)


def _nat_range2(fields: Fields, family: str) -> Statements:
    *body, _ = fields  # the base of an offset, which no known flag asks for
    return _nat("DNAT", tuple(body), family)


# --- verdicts and effects -------------------------------------------------------------

_TCP_RESET = ("tcp reset", None)
_REJECTS = {
    0: ("icmp", "net-unreachable"), 1: ("icmp", "host-unreachable"), 2: ("icmp", "prot-unreachable"),
    3: ("icmp", "port-unreachable"), 5: ("icmp", "net-prohibited"), 6: ("icmp", "host-prohibited"), 7: _TCP_RESET,
    8: ("icmp", "admin-prohibited"),
}  # fmt: skip
_REJECTS6 = {
    0: ("icmpv6", "no-route"), 1: ("icmpv6", "admin-prohibited"), 3: ("icmpv6", "addr-unreachable"),
    4: ("icmpv6", "port-unreachable"), 6: _TCP_RESET, 7: ("icmpv6", "policy-fail"), 8: ("icmpv6", "reject-route"),
}  # fmt: skip


def _reject(fields: Fields, family: str) -> Statements:
    answer = {"ip": _REJECTS, "ip6": _REJECTS6}[family].get(fields[0])
    require(answer is not None)
    assert answer is not None
    return (nft.Reject(*answer),)


def _log(fields: Fields, family: str) -> Statements:
    level, flags, words = fields
    require(level < 8)
    require_bits(flags, 0x2F)  # XT_LOG_MASK, and the link header
    return (nft.Log((("prefix", text(words)),)),)


def _nflog(fields: Fields, family: str) -> Statements:
    _, group, _, flags, words = fields
    require_bits(flags, 1)
    return (nft.Log((("group", group), ("prefix", text(words)))),)


def _queue(known: int, fields: Fields, family: str) -> Statements:
    number, total, flags = fields
    require(total > 0)
    require_bits(flags, known)
    names = frozenset(name for bit, name in ((1, "bypass"), (2, "fanout")) if flags & bit)
    return (nft.Queue(number_range(number, number + total - 1), names),)


def _tee(fields: Fields, family: str) -> Statements:
    gateway, device = fields
    return (nft.Dup(address(gateway, family), text(device) or None),)


def _dscp(fields: Fields, family: str) -> Statements:
    require(fields[0] < 64)
    return (nft.Mangle(nft.Payload(family, "dscp"), fields[0]),)


def _tos(fields: Fields, family: str) -> Statements:
    """Return the write of tos_tg(): (field & ~mask) ^ value, of DSCP and ECN together."""
    value, mask = fields
    parts = (("dscp", 2, 0x3F), ("ecn", 0, 3))
    return tuple(
        nft.Mangle(key, replace_bits(key, mask >> shift & full, value >> shift & full, full))
        for name, shift, full in parts
        if (mask | value) >> shift & full
        for key in (nft.Payload(family, name),)
    )


def _hop_limit(protocol: str, name: str, fields: Fields, family: str) -> Statements:
    mode, value = fields
    require(mode in (0, 1, 2) and family == protocol)
    steps = nft.UnknownExpression(f"xt target: {name} changed by {value}")
    return (nft.Mangle(nft.Payload(protocol, name), steps if mode else value),)


_CT_NOTRACK, _CT_KNOWN, _CT_ZONE = 1, 0x1F, 0x1C


def _ct(fields: Fields, family: str) -> Statements:
    """Return the effects of xt_CT: no tracking, or a template with a zone, a helper, a timeout or events."""
    flags, zone, _, _, helper, *_ = fields
    require_bits(flags, _CT_KNOWN)
    if flags & _CT_NOTRACK:
        return (nft.Notrack(),)
    require(not zone and not flags & _CT_ZONE)
    name = text(helper)
    return (nft.ObjectRef("ct helper", name) if name else nft.NeutralTarget("CT", needs_conntrack=True),)


def _notrack(fields: Fields, family: str) -> Statements:
    return (nft.Notrack(),)


_RANGE_V4, _RANGE = "II4s4s2s2s", "I16s16s2s2s"

TARGETS: dict[tuple[str, int], XtStruct] = {
    ("CONNMARK", 1): XtStruct("IIIB3x", _connmark_v1),
    ("CONNMARK", 2): XtStruct("IIIBBBx", _connmark),
    ("CT", 0): XtStruct("HHII16s8x", _ct),
    ("CT", 1): XtStruct("HHII16s32s8x", _ct),
    ("CT", 2): XtStruct("HHII16s32s8x", _ct),
    ("DNAT", 0): XtStruct(_RANGE_V4, partial(_nat_v4, "DNAT")),
    ("DNAT", 1): XtStruct(_RANGE, partial(_nat, "DNAT")),
    ("DNAT", 2): XtStruct(f"{_RANGE}2s2x", _nat_range2),
    ("DSCP", 0): XtStruct("B", _dscp),
    ("HL", 0): XtStruct("BB", partial(_hop_limit, "ip6", "hoplimit")),
    ("LOG", 0): XtStruct("BB30s", _log),
    ("MARK", 2): XtStruct("II", _set_mark),
    ("MASQUERADE", 0): XtStruct(_RANGE_V4, partial(_nat_v4, "MASQUERADE")),
    ("NFLOG", 0): XtStruct("IHHH2x64s", _nflog),
    ("NFQUEUE", 0): XtStruct("H", lambda fields, family: _queue(0, (*fields, 1, 0), family)),
    ("NFQUEUE", 1): XtStruct("HH", lambda fields, family: _queue(0, (*fields, 0), family)),
    ("NFQUEUE", 2): XtStruct("HHH", partial(_queue, 1)),
    ("NFQUEUE", 3): XtStruct("HHH", partial(_queue, 3)),
    ("NOTRACK", 0): XtStruct("", _notrack),
    ("REDIRECT", 0): XtStruct(_RANGE_V4, partial(_nat_v4, "REDIRECT")),
    ("REJECT", 0): XtStruct("I", _reject),
    ("SNAT", 0): XtStruct(_RANGE_V4, partial(_nat_v4, "SNAT")),
    ("SNAT", 1): XtStruct(_RANGE, partial(_nat, "SNAT")),
    ("TEE", 1): XtStruct("16s16s8x", _tee),
    ("TOS", 1): XtStruct("BB", _tos),
    ("TPROXY", 0): XtStruct("II4s2s2x", _tproxy),
    ("TPROXY", 1): XtStruct("II16s2s2x", _tproxy),
    ("TTL", 0): XtStruct("BB", partial(_hop_limit, "ip", "ttl")),
}  # fmt: skip

# Names that IPv6 gives a struct of its own, at the same revision.
TARGETS_OF_IP6: dict[tuple[str, int], XtStruct] = {
    ("MASQUERADE", 0): XtStruct(_RANGE, partial(_nat_v6, "MASQUERADE")),
    ("REDIRECT", 0): XtStruct(_RANGE, partial(_nat_v6, "REDIRECT")),
}
