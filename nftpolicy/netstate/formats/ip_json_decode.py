# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of `ip -j -N rule` and `ip -j -N route show table all`, of one family each.

Unsupported keys and values are listed in `unknown` of the rule or route, never dropped, so that
proofs can report them.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, TypeVar

from ..nft import PROTOCOL_NAMES
from ..routing import (
    ROUTE_SCOPES,
    ROUTE_TYPES,
    RTPROT_BOOT,
    TABLE_DEFAULT,
    TABLE_LOCAL,
    TABLE_MAIN,
    IpRule,
    Nexthop,
    Route,
)

_MAX_U32 = 0xFFFFFFFF
_MAX_PORT = 0xFFFF
_FAMILIES = {"inet": 4, "inet6": 6}
_ADDRESS_BITS = {4: 32, 6: 128}
_TABLES = {"default": TABLE_DEFAULT, "main": TABLE_MAIN, "local": TABLE_LOCAL}
_L4 = {name: number for number, name in PROTOCOL_NAMES.items()} | {
    "udplite": 136,
    "dccp": 33,
    "ah": 51,
    "ipencap": 4,
    "ipv6": 41,
    "ip": 0,
}
# Of iproute2's etc/iproute2/rt_protos; the protocol decides nothing, so other names are 0.
_RT_PROTOCOLS = {"kernel": 2, "boot": 3, "static": 4, "ra": 9, "dhcp": 16}
_REFUSALS = ("unreachable", "prohibit", "blackhole")
_RULE_KEYS = frozenset((
    "priority", "not", "src", "srclen", "dst", "dstlen", "tos", "dsfield", "fwmark", "fwmask", "iif", "oif",
    "l3mdev", "uid_start", "uid_end", "ipproto", "sport", "sport_start", "sport_end", "dport", "dport_start",
    "dport_end", "table", "goto", "nop", "action", "suppress_prefixlen", "suppress_ifgroup", "protocol",
    "family", "sport_mask", "dport_mask",
))  # fmt: skip
_ROUTE_KEYS = frozenset((
    "type", "dst", "from", "tos", "gateway", "via", "dev", "table", "protocol", "scope", "prefsrc", "metric",
    "flags", "pref", "nexthops", "family", "nhid",
))  # fmt: skip
_NEXTHOP_KEYS = frozenset((
    "gateway", "via", "dev", "weight", "flags",
))  # fmt: skip
# Keys that cannot change a routing decision: realms, name resolution, path properties, statistics.
_IGNORED_KEYS = frozenset((
    "iif_detached", "oif_detached", "unresolved", "flow_to", "flow_from", "flow", "realms", "realm", "metrics",
    "expires", "users", "age", "used", "tsage", "ts", "error", "ttl-propagate", "mtu", "advmss", "hoplimit",
    "window", "rtt", "rttvar", "ssthresh", "cwnd", "initcwnd", "initrwnd", "reordering", "features", "quickack",
    "rto_min", "congestion", "cc_algo", "fastopen_no_cookie",
))  # fmt: skip
_FLAGS = frozenset(("onlink", "linkdown", "dead"))
_IGNORED_FLAGS = frozenset(("pervasive", "offload", "trap", "offload_failed", "rt_offload", "rt_trap", "notify"))

_JsonObject = dict[str, Any]
_Decoded = TypeVar("_Decoded", IpRule, Route)


def decode_rules(document: Any, family: int | None = None) -> tuple[IpRule, ...]:
    """Return the rules of a parsed `ip -j rule`, in order.

    `family` is 4 or 6; None: infer it from the addresses.

    Raises:
        ValueError: not such a document, or the family cannot be inferred.
    """
    items = _items(document, "rule")
    family = family or _infer_family(items, "rule", ("src", "dst"))
    return tuple(_decode(_rule, item, family, "rule") for item in items)


def decode_routes(document: Any, family: int | None = None) -> tuple[Route, ...]:
    """Return the routes of a parsed `ip -j route show table all`; `family` as for `decode_rules`.

    Raises:
        ValueError: not such a document, or the family cannot be inferred.
    """
    items = _items(document, "route")
    family = family or _infer_family(items, "route", ("dst", "prefsrc", "from", "gateway"))
    return tuple(_decode(_route, item, family, "route") for item in items)


def _items(document: Any, command: str) -> list[_JsonObject]:
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise ValueError(f'expected the JSON of "ip -j -N {command}": a list of objects')
    return [item for item in document if item]  # ip prints {} for filtered items


def _infer_family(items: list[_JsonObject], command: str, keys: tuple[str, ...]) -> int:
    for item in items:
        explicit = _FAMILIES.get(str(item.get("family")))
        if explicit:
            return explicit
        for key in keys:
            value = item.get(key)
            if isinstance(value, str) and (":" in value or "." in value):
                return 6 if ":" in value else 4
    if not items:
        return 4
    raise ValueError(f"no {command} contains an address, so the family (IPv4 or IPv6) is unknown")


def _decode(decoder: Callable[[_JsonObject, int], _Decoded], item: _JsonObject, family: int, command: str) -> _Decoded:
    try:
        return decoder(item, family)
    except (KeyError, TypeError, AttributeError, AddressValueError) as error:
        raise ValueError(f"not an ip {command}: {type(error).__name__} {error} in {item}") from None
    except ValueError as error:
        raise ValueError(f"not an ip {command}: {error} in {item}") from None


def _number(value: Any, low: int = 0, high: int = _MAX_U32) -> int:
    """Return an integer, which may be in a string such as 0x10."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a number")
    number = int(value, 0) if isinstance(value, str) else value
    if not low <= number <= high:
        raise ValueError(f"{number} is not between {low} and {high}")
    return number


def _address(value: Any, family: int) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an address")
    if "%" in value:  # ip(8) prints no zones
        raise ValueError(f"{value!r} is not an address without a zone")
    return str(IPv4Address(value) if family == 4 else IPv6Address(value))


def _prefix(value: Any, family: int, length: Any = None) -> str | None:
    """Return ADDRESS/LENGTH, or None for all addresses."""
    if value in ("all", "default", "any"):
        return None
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a prefix")
    address, slash, suffix = value.partition("/")
    width = _ADDRESS_BITS[family]
    if slash:
        length = suffix
    elif length is None:
        length = width
    bits = _number(length, high=width)
    return f"{_address(address, family)}/{bits}" if bits else None


def _table(value: Any) -> int:
    if isinstance(value, str) and not value[:1].isdigit():
        if value not in _TABLES:
            raise ValueError(f"table {value} is not a number; use ip -N")
        return _TABLES[value]
    return _number(value)


def _protocol(value: Any, missing: int) -> int:
    if value is None:
        return missing
    return _number(value, high=255) if str(value)[:1].isdigit() else _RT_PROTOCOLS.get(str(value), 0)


def _port_range(item: _JsonObject, name: str, unknown: list[str]) -> tuple[int, int] | None:
    """Return a range of ports, or None; a mask other than 0xffff is added to `unknown`, since other ports match too."""
    mask = _number(item.get(f"{name}_mask", _MAX_PORT), high=_MAX_PORT)
    if mask != _MAX_PORT:
        unknown.append(f"{name} mask {mask}")
        return None
    if name in item:
        port = _number(item[name], high=_MAX_PORT)
        return port, port
    if f"{name}_start" not in item:
        return None
    return _number(item[f"{name}_start"], high=_MAX_PORT), _number(item[f"{name}_end"], high=_MAX_PORT)


def _number_or_name(
    item: _JsonObject, key: str, names: dict[str, int], unknown: list[str], high: int = _MAX_U32
) -> int | None:
    """Return a number, or the number of a known name; other names are added to `unknown`."""
    value = item.get(key)
    if value is None:
        return None
    text = str(value).removeprefix("ipproto-")
    if text[:1].isdigit():
        return _number(text, high=high)
    if text not in names:
        unknown.append(f"{key} {value}")
    return names.get(text)


def _unsupported(item: _JsonObject, known: frozenset[str]) -> list[str]:
    return [f"{key} {value}" for key, value in item.items() if key not in known and key not in _IGNORED_KEYS]


def _rule(item: _JsonObject, family: int) -> IpRule:
    unknown = _unsupported(item, _RULE_KEYS)
    action, table, goto = _action(item, unknown)
    marked = "fwmark" in item or "fwmask" in item
    return IpRule(
        family,
        _number(item.get("priority", 0)),
        action,
        table,
        _number(item.get("fwmark", 0)),
        _number(item.get("fwmask", _MAX_U32)) if marked else 0,
        _prefix(item.get("src", "all"), family, item.get("srclen")),
        _prefix(item.get("dst", "all"), family, item.get("dstlen")),
        _device(item.get("iif")),
        _device(item.get("oif")),
        (_number(item["uid_start"]), _number(item["uid_end"])) if "uid_start" in item else None,
        _number_or_name(item, "ipproto", _L4, unknown, 255),
        _port_range(item, "sport", unknown),
        _port_range(item, "dport", unknown),
        _number_or_name(item, "tos" if "tos" in item else "dsfield", {}, unknown, 255) or 0,
        "not" in item,
        goto,
        _suppress_prefix(item),
        _number_or_name(item, "suppress_ifgroup", {"default": 0}, unknown),
        "l3mdev" in item,
        _protocol(item.get("protocol"), 0),
        unknown=tuple(unknown),
    )


def _suppress_prefix(item: _JsonObject) -> int | None:
    length = item.get("suppress_prefixlen")
    return None if length in (None, -1) else _number(length, high=128)


def _action(item: _JsonObject, unknown: list[str]) -> tuple[str, int, int | None]:
    """Return action, table (0 without a lookup) and priority of the goto target."""
    if "goto" in item:
        return "goto", 0, None if item["goto"] == "none" else _number(item["goto"])
    if "nop" in item:
        return "nop", 0, None
    if "action" in item:
        kind = str(item["action"])
        name = ROUTE_TYPES.get(int(kind), kind) if kind.isdigit() else kind
        if name not in _REFUSALS:
            unknown.append(f"action {kind}")
        return name, 0, None
    if "l3mdev" in item:
        return "lookup", 0, None
    return "lookup", _table(item["table"]), None


def _device(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is not a device")
    return value


def _gateway(item: _JsonObject, family: int) -> str | None:
    if "via" in item:
        via = item["via"]
        return _address(via["host"], _FAMILIES[via["family"]])
    gateway = item.get("gateway")
    return None if gateway is None else _address(gateway, family)


def _flags(item: _JsonObject, unknown: list[str]) -> frozenset[str]:
    flags = item.get("flags", [])
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise ValueError(f"{flags!r} is not a list of flags")
    unknown += [f"flag {flag}" for flag in flags if flag not in _FLAGS and flag not in _IGNORED_FLAGS]
    return frozenset(flags)


def _route(item: _JsonObject, family: int) -> Route:
    if item.get("encap") in ("ip", "ip6"):
        raise ValueError(
            "the route has a tunnel encapsulation: ip -j prints the tunnel's destination instead of the route's"
        )
    unknown = _unsupported(item, _ROUTE_KEYS)
    if "nhid" in item and not ("dev" in item or "nexthops" in item):
        # A nexthop object; the kernel does not list its device and gateway
        # (net.ipv4.nexthop_compat_mode).
        unknown.append(f"nhid {item['nhid']}")
    kind = str(item.get("type", "unicast"))
    name = ROUTE_TYPES.get(int(kind), f"type-{kind}") if kind.isdigit() else kind
    if name not in ROUTE_TYPES.values():
        unknown.append(f"type {kind}")
    flags = _flags(item, unknown)
    hops = item.get("nexthops")
    return Route(
        family,
        _table(item.get("table", "main")),
        _prefix(item["dst"], family) or "default",
        name,
        _gateway(item, family),
        _device(item.get("dev")),
        _number(item.get("metric", 0)),
        "onlink" in flags,
        _protocol(item.get("protocol"), RTPROT_BOOT),  # ip omits it without -details
        nexthops=tuple(_nexthop(hop, family, unknown) for hop in hops) if hops else (),
        prefsrc=None if item.get("prefsrc") is None else _address(item["prefsrc"], family),
        source=_prefix(item.get("from", "all"), family),
        tos=_number_or_name(item, "tos", {}, unknown, 255) or 0,
        preference=_preference(item, unknown),
        scope=_scope(item.get("scope", "global")),
        linkdown="linkdown" in flags,
        dead="dead" in flags,
        unknown=tuple(unknown),
    )


def _nexthop(item: _JsonObject, family: int, unknown: list[str]) -> Nexthop:
    unknown += _unsupported(item, _NEXTHOP_KEYS)
    flags = _flags(item, unknown)
    return Nexthop(
        _device(item.get("dev")),
        _gateway(item, family),
        _number(item.get("weight", 1)),
        "onlink" in flags,
        "linkdown" in flags,
        "dead" in flags,
    )


def _preference(item: _JsonObject, unknown: list[str]) -> str:
    preference = item.get("pref", "medium")
    if preference not in ("low", "medium", "high"):
        unknown.append(f"pref {preference}")
    return str(preference)


def _scope(value: Any) -> str:
    """Return the name of a scope, or its number as text."""
    if isinstance(value, str) and value in ROUTE_SCOPES.values():
        return value
    number = _number(value, high=255)
    return ROUTE_SCOPES.get(number, str(number))
