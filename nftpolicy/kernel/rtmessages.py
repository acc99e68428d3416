# SPDX-License-Identifier: BSD-2-Clause
"""rtnetlink's answers as values: rules, routes, devices.

Read here and not by a library, so that an attribute that nobody knows is kept, by its number, in
`unknown` of the rule or route. Numbers are those of include/uapi/linux: rtnetlink.h,
fib_rules.h, if_link.h and if_addr.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping

from ..netstate.routing import KINDS, SCOPES, IpRule, Nexthop, Route
from ..netstate.state import Device

AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_INVERT = 0x2
# Of fib_rule_hdr.flags: permanent, invert, and what the kernel finds out about names.
_RULE_FLAGS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10
_DEAD, _ONLINK, _LINKDOWN, _UNRESOLVED = 0x1, 0x4, 0x10, 0x20  # RTNH_F_*
_PREFERENCES = {0: "medium", 1: "high", 3: "low"}  # ICMPV6_ROUTER_PREF_*
_NONE = 0xFFFFFFFF
_FULL_PORT = 0xFFFF

_HEADER = struct.Struct("=BBBBBBBBI")  # of struct rtmsg and struct fib_rule_hdr
_ATTRIBUTE = struct.Struct("=HH")
_HOP = struct.Struct("=HBBi")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_U32 = struct.Struct("=I")
_TYPE_MASK = 0x3FFF

(_FRA_DST, _FRA_SRC, _FRA_IIF, _FRA_GOTO, _FRA_PRIORITY, _FRA_MARK, _FRA_FLOW, _FRA_GROUP, _FRA_PREFIXLEN, _FRA_TABLE,
 _FRA_MASK, _FRA_OIF, _FRA_PAD, _FRA_L3MDEV, _FRA_UIDS, _FRA_PROTOCOL, _FRA_IP_PROTO, _FRA_SPORTS, _FRA_DPORTS) = (
    1, 2, 3, 4, 6, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24)  # fmt: skip
_FRA_SPORT_MASK, _FRA_DPORT_MASK = 28, 29
_FRA_NAMES = {12: "tun_id", 25: "dscp", 26: "flowlabel", 27: "flowlabel mask", 28: "sport mask", 29: "dport mask",
              30: "dscp mask"}  # fmt: skip
_BIG = frozenset((12,))
_FRA_KNOWN = frozenset((1, 2, 3, 4, 6, 10, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24))
_FRA_IDLE = frozenset((_FRA_FLOW, _FRA_PAD))  # realms are for statistics

(_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA,
 _RTA_PREF) = (1, 2, 4, 5, 6, 7, 9, 15, 18, 20)  # fmt: skip
_RTA_CACHEINFO, _RTA_NEXTHOP = 12, 30
_EXPIRES_AT, _TICKS = 8, 100  # in struct rta_cacheinfo, in USER_HZ, which is 100 everywhere but on alpha
_RTA_KNOWN = frozenset((1, 2, 4, 5, 6, 7, 9, 15, 18, 20))
# Metrics, realms, ages, expiry, padding, the asked mark and uid, TTL propagation: nothing that decides.
_RTA_IDLE = frozenset((3, 8, 11, 12, 16, 23, 24, 25, 26))
_RTA_NAMES = {19: "newdst", 21: "encap type", 22: "encap", _RTA_NEXTHOP: "nhid"}


def attributes(raw: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute between two offsets."""
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(raw, start)
        if length < 4:
            return
        yield kind & _TYPE_MASK, raw[start + 4 : start + length]
        start += length + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, filled up to a multiple of four."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _address(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", "little" if struct.pack("=H", 1)[0] else "big")


def _text(raw: bytes | None) -> str | None:
    return raw.rstrip(b"\0").decode("utf-8", "surrogateescape") if raw else None


def _pair(raw: bytes | None) -> tuple[int, int] | None:
    if raw is None:
        return None
    half = len(raw) // 2
    return _number(raw[:half]), _number(raw[half:])


def _unknown(found: Mapping[int, bytes], known: frozenset[int], names: Mapping[int, str], what: str) -> list[str]:
    return [
        f"{names.get(kind, f'{what} {kind}')} {_number(raw[:8])}" for kind, raw in found.items() if kind not in known
    ]


def rule(raw: bytes, start: int, end: int) -> IpRule:
    """The value of the RTM_NEWRULE whose struct fib_rule_hdr begins at `start`."""
    af, to, of, tos, table, _, _, number, flags = _HEADER.unpack_from(raw, start)
    found = dict(attributes(raw, start + _HEADER.size, end))
    action = _ACTIONS.get(number, f"action-{number}")
    prefixlen, group = (_number(found[one]) if one in found else _NONE for one in (_FRA_PREFIXLEN, _FRA_GROUP))
    idle = {one for one in (_FRA_SPORT_MASK, _FRA_DPORT_MASK) if _number(found.get(one)) == _FULL_PORT}
    unknown = _unknown(found, _FRA_KNOWN | _FRA_IDLE | idle, _FRA_NAMES, "selector")
    if flags & ~_RULE_FLAGS:
        unknown.append(f"flags {flags & ~_RULE_FLAGS:#x}")
    if number not in _ACTIONS:
        unknown.append(f"action {number}")
    return IpRule(
        6 if af == socket.AF_INET6 else 4,
        _number(found.get(_FRA_PRIORITY)),
        action,
        (_number(found.get(_FRA_TABLE)) or table) if action == "lookup" else 0,
        _number(found.get(_FRA_MARK)),
        _number(found.get(_FRA_MASK)),
        f"{_address(found[_FRA_SRC])}/{of}" if of and _FRA_SRC in found else None,
        f"{_address(found[_FRA_DST])}/{to}" if to and _FRA_DST in found else None,
        _text(found.get(_FRA_IIF)),
        _text(found.get(_FRA_OIF)),
        _pair(found.get(_FRA_UIDS)),
        _number(found[_FRA_IP_PROTO]) if _FRA_IP_PROTO in found else None,
        _pair(found.get(_FRA_SPORTS)),
        _pair(found.get(_FRA_DPORTS)),
        tos,
        bool(flags & _INVERT),
        _number(found[_FRA_GOTO]) if _FRA_GOTO in found else None,
        None if prefixlen == _NONE else prefixlen,
        None if group == _NONE else group,
        bool(_number(found.get(_FRA_L3MDEV))),
        _number(found.get(_FRA_PROTOCOL)),
        unknown=tuple(unknown),
    )


def route(raw: bytes, start: int, end: int, names: Mapping[int, str]) -> Route:
    """The value of the RTM_NEWROUTE whose struct rtmsg begins at `start`; `names` are those of the devices."""
    af, to, of, tos, table, protocol, scope, kind, flags = _HEADER.unpack_from(raw, start)
    found = dict(attributes(raw, start + _HEADER.size, end))
    unknown = _unknown(found, _RTA_KNOWN | _RTA_IDLE, _RTA_NAMES, "attribute") if found.keys() - _RTA_KNOWN else []
    hops = tuple(_hops(found[_RTA_MULTIPATH], names, unknown)) if _RTA_MULTIPATH in found else ()
    if _RTA_NEXTHOP in found and (hops or _RTA_OIF in found):
        # The kernel says where the nexthop object leads, unless net.ipv4.nexthop_compat_mode is off.
        unknown = [one for one in unknown if not one.startswith("nhid ")]
    if flags & _UNRESOLVED:
        unknown.append("flag unresolved")
    if kind not in KINDS:
        unknown.append(f"type {kind}")
    return Route(
        6 if af == socket.AF_INET6 else 4,
        _number(found.get(_RTA_TABLE)) or table,
        f"{_address(found[_RTA_DST])}/{to}" if to else "default",
        KINDS.get(kind, f"type-{kind}"),
        _gateway(found),
        _name(found, names),
        _number(found.get(_RTA_PRIORITY)),
        bool(flags & _ONLINK),
        protocol,
        nexthops=hops,
        prefsrc=_address(found[_RTA_PREFSRC]) if _RTA_PREFSRC in found else None,
        source=f"{_address(found[_RTA_SRC])}/{of}" if of and _RTA_SRC in found else None,
        tos=tos,
        preference=_PREFERENCES.get(_number(found.get(_RTA_PREF)), "medium"),
        scope=SCOPES.get(scope, str(scope)),
        linkdown=bool(flags & _LINKDOWN),
        dead=bool(flags & _DEAD),
        unknown=tuple(unknown),
        expires=_expires(found.get(_RTA_CACHEINFO, b"")),
    )


def _expires(raw: bytes) -> int | None:
    ticks = struct.unpack_from("=i", raw, _EXPIRES_AT)[0] if len(raw) >= _EXPIRES_AT + 4 else 0
    return max(1, ticks // _TICKS) if ticks else None


def _name(found: Mapping[int, bytes], names: Mapping[int, str]) -> str | None:
    index = _number(found.get(_RTA_OIF))
    return names.get(index, str(index)) if index else None


def _gateway(found: Mapping[int, bytes]) -> str | None:
    if _RTA_GATEWAY in found:
        return _address(found[_RTA_GATEWAY])
    return _address(found[_RTA_VIA][2:]) if _RTA_VIA in found else None


def _hops(raw: bytes, names: Mapping[int, str], unknown: list[str]) -> Iterator[Nexthop]:
    at = 0
    while at + _HOP.size <= len(raw):
        length, flags, hops, index = _HOP.unpack_from(raw, at)
        found = dict(attributes(raw, at + _HOP.size, at + length))
        unknown += _unknown(found, _RTA_KNOWN | _RTA_IDLE, _RTA_NAMES, "attribute")
        onlink, linkdown, dead = (bool(flags & one) for one in (_ONLINK, _LINKDOWN, _DEAD))
        yield Nexthop(names.get(index, str(index)), _gateway(found), hops + 1, onlink, linkdown, dead)
        at += max(length, _HOP.size) + 3 & ~3


def is_up(flags: int) -> bool:
    """IFF_UP."""
    return bool(flags & 1)


def link(raw: bytes, start: int, end: int) -> tuple[int, int | None, Device]:
    """Index, index of the master, and the device of a RTM_NEWLINK."""
    _, _, index, flags, _ = _LINK.unpack_from(raw, start)
    found = dict(attributes(raw, start + _LINK.size, end))
    info = dict(attributes(found.get(18, b""), 0, len(found.get(18, b""))))
    device = Device(
        _text(found.get(3)) or str(index), (), is_up(flags), _number(found.get(27)), None, _text(info.get(1)) or ""
    )
    return index, _number(found.get(10)) or None, device


def address(raw: bytes, start: int, end: int) -> tuple[int, str]:
    """Index of the device, and ADDRESS/LENGTH, of a RTM_NEWADDR."""
    _, length, _, _, index = _ADDRESS.unpack_from(raw, start)
    found = dict(attributes(raw, start + _ADDRESS.size, end))
    return index, f"{_address(found[2] if 2 in found else found[1])}/{length}"
