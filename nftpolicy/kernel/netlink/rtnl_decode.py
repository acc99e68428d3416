# SPDX-License-Identifier: BSD-2-Clause
"""Decode rtnetlink messages into rules, routes and devices.

Decoded here and not by a library, so that an unsupported attribute is kept, by its number, in
`unknown` of the rule or route. The attributes are those of include/uapi/linux: rtnetlink.h,
fib_rules.h, if_link.h and if_addr.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping

from ...netstate.routing import ROUTE_SCOPES, ROUTE_TYPES, IpRule, Nexthop, Route
from ...netstate.state import Device
from . import constants as nl
from .attributes import attributes, decode_text, ip_text, native_integer, nested_attributes

_FR_ACT = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_RULE_FLAGS = (
    nl.FIB_RULE_PERMANENT
    | nl.FIB_RULE_INVERT
    | nl.FIB_RULE_UNRESOLVED
    | nl.FIB_RULE_IIF_DETACHED
    | nl.FIB_RULE_OIF_DETACHED
)
_PREFERENCES = {0: "medium", 1: "high", 3: "low"}  # ICMPV6_ROUTER_PREF_*
_UNSET = 0xFFFFFFFF  # of FRA_SUPPRESS_PREFIXLEN and FRA_SUPPRESS_IFGROUP
_FULL_PORT = 0xFFFF
_PORT_MASKS = {nl.FRA_SPORT_MASK: nl.FRA_SPORT_RANGE, nl.FRA_DPORT_MASK: nl.FRA_DPORT_RANGE}

_RULE_ATTRIBUTES = frozenset(
    (
        nl.FRA_DST, nl.FRA_SRC, nl.FRA_IIFNAME, nl.FRA_GOTO, nl.FRA_PRIORITY, nl.FRA_FWMARK,
        nl.FRA_SUPPRESS_IFGROUP, nl.FRA_SUPPRESS_PREFIXLEN, nl.FRA_TABLE, nl.FRA_FWMASK, nl.FRA_OIFNAME,
        nl.FRA_L3MDEV, nl.FRA_UID_RANGE, nl.FRA_PROTOCOL, nl.FRA_IP_PROTO, nl.FRA_SPORT_RANGE,
        nl.FRA_DPORT_RANGE,
    )
)  # fmt: skip
_RULE_NEUTRAL = frozenset((nl.FRA_FLOW, nl.FRA_PAD))  # realms are for statistics
_RULE_SUPPORTED = _RULE_ATTRIBUTES | _RULE_NEUTRAL
_RULE_NAMES = {
    nl.FRA_TUN_ID: "tun_id",
    nl.FRA_DSCP: "dscp",
    nl.FRA_FLOWLABEL: "flowlabel",
    nl.FRA_FLOWLABEL_MASK: "flowlabel mask",
    nl.FRA_SPORT_MASK: "sport mask",
    nl.FRA_DPORT_MASK: "dport mask",
    nl.FRA_DSCP_MASK: "dscp mask",
}

_TICKS = 100  # USER_HZ of rta_cacheinfo: 100 a second on every architecture but alpha
_ROUTE_ATTRIBUTES = frozenset(
    (
        nl.RTA_DST, nl.RTA_SRC, nl.RTA_OIF, nl.RTA_GATEWAY, nl.RTA_PRIORITY, nl.RTA_PREFSRC,
        nl.RTA_MULTIPATH, nl.RTA_TABLE, nl.RTA_VIA, nl.RTA_PREF,
    )
)  # fmt: skip
# Without effect on the route lookup.
_ROUTE_NEUTRAL = frozenset(
    (
        nl.RTA_IIF, nl.RTA_METRICS, nl.RTA_FLOW, nl.RTA_CACHEINFO, nl.RTA_MARK, nl.RTA_EXPIRES, nl.RTA_PAD,
        nl.RTA_UID, nl.RTA_TTL_PROPAGATE,
    )
)  # fmt: skip
_ROUTE_SUPPORTED = _ROUTE_ATTRIBUTES | _ROUTE_NEUTRAL
_ROUTE_NAMES = {
    nl.RTA_NEWDST: "newdst",
    nl.RTA_ENCAP_TYPE: "encap type",
    nl.RTA_ENCAP: "encap",
    nl.RTA_NH_ID: "nhid",
}


def _text_or_none(raw: bytes | None) -> str | None:
    return decode_text(raw) if raw else None


def _integer_or_none(raw: bytes | None) -> int | None:
    return None if raw is None else native_integer(raw)


def _set_or_none(raw: bytes | None) -> int | None:
    """Return the number of an attribute that the kernel always sends, None for its value "unset"."""
    number = _UNSET if raw is None else native_integer(raw)
    return None if number == _UNSET else number


def _range(raw: bytes | None) -> tuple[int, int] | None:
    """Return first and last number of a range of users or ports."""
    if raw is None:
        return None
    half = len(raw) // 2
    return native_integer(raw[:half]), native_integer(raw[half:])


def _prefix(raw: bytes | None, length: int) -> str | None:
    return f"{ip_text(raw)}/{length}" if raw is not None and length else None


def _unsupported(
    values: Mapping[int, bytes], supported: frozenset[int], names: Mapping[int, str], noun: str
) -> list[str]:
    """Return name and value of each attribute that is not supported.

    `noun` names one without a name.
    """
    return [
        f"{names.get(kind, f'{noun} {kind}')} {native_integer(raw[:8])}"
        for kind, raw in values.items()
        if kind not in supported
    ]


def decode_rule(raw: bytes, start: int, end: int) -> IpRule:
    """Return the rule of a RTM_NEWRULE with its struct fib_rule_hdr at `start`."""
    family, dst_length, src_length, tos, table, _, _, number, flags = nl.FIB_RULE_HDR.unpack_from(raw, start)
    values = dict(attributes(raw, start + nl.FIB_RULE_HDR.size, end))
    action = _FR_ACT.get(number, f"action-{number}")
    for mask, ports in _PORT_MASKS.items():
        if mask in values:  # a full one is none; with another one, other ports match too
            values.pop(mask if native_integer(values[mask]) == _FULL_PORT else ports, None)
    unknown = _unsupported(values, _RULE_SUPPORTED, _RULE_NAMES, "selector")
    if flags & ~_RULE_FLAGS:
        unknown.append(f"flags {flags & ~_RULE_FLAGS:#x}")
    if number not in _FR_ACT:
        unknown.append(f"action {number}")
    return IpRule(
        6 if family == socket.AF_INET6 else 4,
        native_integer(values.get(nl.FRA_PRIORITY)),
        action,
        (native_integer(values.get(nl.FRA_TABLE)) or table) if action == "lookup" else 0,
        native_integer(values.get(nl.FRA_FWMARK)),
        native_integer(values.get(nl.FRA_FWMASK)),
        _prefix(values.get(nl.FRA_SRC), src_length),
        _prefix(values.get(nl.FRA_DST), dst_length),
        _text_or_none(values.get(nl.FRA_IIFNAME)),
        _text_or_none(values.get(nl.FRA_OIFNAME)),
        _range(values.get(nl.FRA_UID_RANGE)),
        _integer_or_none(values.get(nl.FRA_IP_PROTO)),
        _range(values.get(nl.FRA_SPORT_RANGE)),
        _range(values.get(nl.FRA_DPORT_RANGE)),
        tos,
        bool(flags & nl.FIB_RULE_INVERT),
        _integer_or_none(values.get(nl.FRA_GOTO)),
        _set_or_none(values.get(nl.FRA_SUPPRESS_PREFIXLEN)),
        _set_or_none(values.get(nl.FRA_SUPPRESS_IFGROUP)),
        bool(native_integer(values.get(nl.FRA_L3MDEV))),
        native_integer(values.get(nl.FRA_PROTOCOL)),
        unknown=tuple(unknown),
    )


def decode_route(raw: bytes, start: int, end: int, names: Mapping[int, str]) -> Route:
    """Return the route of a RTM_NEWROUTE with its struct rtmsg at `start`.

    `names` are the names of the devices by index.
    """
    family, dst_length, src_length, tos, table, protocol, scope, kind, flags = nl.RTMSG.unpack_from(raw, start)
    values = dict(attributes(raw, start + nl.RTMSG.size, end))
    unknown: list[str] = []
    if values.keys() - _ROUTE_ATTRIBUTES:
        unknown = _unsupported(values, _ROUTE_SUPPORTED, _ROUTE_NAMES, "attribute")
    hops: tuple[Nexthop, ...] = ()
    if nl.RTA_MULTIPATH in values:
        hops = tuple(_nexthops(values[nl.RTA_MULTIPATH], names, unknown))
    if nl.RTA_NH_ID in values and (hops or nl.RTA_OIF in values):
        # The kernel shows the nexthops of the nexthop object, unless net.ipv4.nexthop_compat_mode
        # is off.
        unknown = [entry for entry in unknown if not entry.startswith("nhid ")]
    if flags & nl.RTNH_F_UNRESOLVED:
        unknown.append("flag unresolved")
    if kind not in ROUTE_TYPES:
        unknown.append(f"type {kind}")
    return Route(
        6 if family == socket.AF_INET6 else 4,
        native_integer(values.get(nl.RTA_TABLE)) or table,
        f"{ip_text(values[nl.RTA_DST])}/{dst_length}" if dst_length else "default",
        ROUTE_TYPES.get(kind, f"type-{kind}"),
        _gateway(values),
        _output_device(values, names),
        native_integer(values.get(nl.RTA_PRIORITY)),
        bool(flags & nl.RTNH_F_ONLINK),
        protocol,
        nexthops=hops,
        prefsrc=ip_text(values[nl.RTA_PREFSRC]) if nl.RTA_PREFSRC in values else None,
        source=_prefix(values.get(nl.RTA_SRC), src_length),
        tos=tos,
        preference=_PREFERENCES.get(native_integer(values.get(nl.RTA_PREF)), "medium"),
        scope=ROUTE_SCOPES.get(scope, str(scope)),
        linkdown=bool(flags & nl.RTNH_F_LINKDOWN),
        dead=bool(flags & nl.RTNH_F_DEAD),
        unknown=tuple(unknown),
        expires=_expiry_seconds(values.get(nl.RTA_CACHEINFO, b"")),
    )


def _expiry_seconds(raw: bytes) -> int | None:
    """Return the seconds until a route expires, at least 1; None if it does not expire."""
    if len(raw) < nl.CACHEINFO_EXPIRES_OFFSET + 4:
        return None
    ticks = struct.unpack_from("=i", raw, nl.CACHEINFO_EXPIRES_OFFSET)[0]
    return max(1, ticks // _TICKS) if ticks else None


def _output_device(values: Mapping[int, bytes], names: Mapping[int, str]) -> str | None:
    index = native_integer(values.get(nl.RTA_OIF))
    return names.get(index, str(index)) if index else None


def _gateway(values: Mapping[int, bytes]) -> str | None:
    if nl.RTA_GATEWAY in values:
        return ip_text(values[nl.RTA_GATEWAY])
    if nl.RTA_VIA in values:
        return ip_text(values[nl.RTA_VIA][2:])  # behind the address family
    return None


def _nexthops(raw: bytes, names: Mapping[int, str], unknown: list[str]) -> Iterator[Nexthop]:
    """Yield the nexthops of a multipath route; add their unsupported attributes to `unknown`."""
    offset = 0
    while offset + nl.RTNEXTHOP.size <= len(raw):
        length, flags, hops, index = nl.RTNEXTHOP.unpack_from(raw, offset)
        values = dict(attributes(raw, offset + nl.RTNEXTHOP.size, offset + length))
        unknown += _unsupported(values, _ROUTE_SUPPORTED, _ROUTE_NAMES, "attribute")
        yield Nexthop(
            names.get(index, str(index)),
            _gateway(values),
            hops + 1,
            bool(flags & nl.RTNH_F_ONLINK),
            bool(flags & nl.RTNH_F_LINKDOWN),
            bool(flags & nl.RTNH_F_DEAD),
        )
        offset += max(length, nl.RTNEXTHOP.size) + 3 & ~3


def decode_link(raw: bytes, start: int, end: int) -> tuple[int, int | None, Device]:
    """Return index, index of the master, and the device of a RTM_NEWLINK."""
    _, link_type, index, flags, _ = nl.IFINFOMSG.unpack_from(raw, start)
    values = dict(attributes(raw, start + nl.IFINFOMSG.size, end))
    kind = decode_text(nested_attributes(values.get(nl.IFLA_LINKINFO)).get(nl.IFLA_INFO_KIND))
    name = decode_text(values.get(nl.IFLA_IFNAME)) or str(index)
    group = native_integer(values.get(nl.IFLA_GROUP))
    device = Device(
        name, (), bool(flags & nl.IFF_UP), group, None, kind, link_type=link_type, other_names=_other_names(values)
    )
    return index, native_integer(values.get(nl.IFLA_MASTER)) or None, device


def _other_names(values: Mapping[int, bytes]) -> tuple[str, ...]:
    properties = values.get(nl.IFLA_PROP_LIST, b"")
    names = attributes(properties, 0, len(properties))
    return tuple(decode_text(raw) for kind, raw in names if kind == nl.IFLA_ALT_IFNAME)


def decode_relations(raw: bytes, start: int, end: int) -> tuple[int | None, bool, bool]:
    """Return the index of the device below or of the other end (IFLA_LINK) of a RTM_NEWLINK, or None.

    The second result is True if it is in another network namespace, the third if an XDP program is attached.
    """
    values = dict(attributes(raw, start + nl.IFINFOMSG.size, end))
    xdp = nested_attributes(values.get(nl.IFLA_XDP))
    is_elsewhere = nl.IFLA_LINK_NETNSID in values
    return (
        native_integer(values.get(nl.IFLA_LINK)) or None,
        is_elsewhere,
        bool(native_integer(xdp.get(nl.IFLA_XDP_ATTACHED))),
    )


def decode_address(raw: bytes, start: int, end: int) -> tuple[int, str]:
    """Return the index of the device and ADDRESS/LENGTH of a RTM_NEWADDR."""
    _, length, _, _, index = nl.IFADDRMSG.unpack_from(raw, start)
    values = dict(attributes(raw, start + nl.IFADDRMSG.size, end))
    own = values[nl.IFA_LOCAL] if nl.IFA_LOCAL in values else values[nl.IFA_ADDRESS]
    return index, f"{ip_text(own)}/{length}"
