# SPDX-License-Identifier: BSD-2-Clause
"""`ip -j -N rule` and `ip -j -N route show table all`, of one family each, back into values.

Whatever this version does not know is named in `unknown` of the rule or route; it is never left
out, so that what is concluded from the result can say what was not understood.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

from .nft import PROTOCOLS
from .routing import KINDS, SCOPES, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, IpRule, Nexthop, Route

_FULL = 0xFFFFFFFF
_TABLES = {"default": TABLE_DEFAULT, "main": TABLE_MAIN, "local": TABLE_LOCAL}
_L4 = {name: number for number, name in PROTOCOLS.items()} | {"udplite": 136, "dccp": 33, "ah": 51, "ipv6": 41, "ip": 0}
# Of iproute2's etc/iproute2/rt_protos; who made a rule or route decides nothing, so other names are 0.
_OWNERS = {"kernel": 2, "boot": 3, "static": 4, "ra": 9, "dhcp": 16}
_BOOT = 3  # what ip leaves out where it does not show details
_ENDS = ("unreachable", "prohibit", "blackhole")
_SELECTORS = frozenset((
    "priority", "not", "src", "srclen", "dst", "dstlen", "tos", "dsfield", "fwmark", "fwmask", "iif", "oif",
    "l3mdev", "uid_start", "uid_end", "ipproto", "sport", "sport_start", "sport_end", "dport", "dport_start",
    "dport_end", "table", "goto", "nop", "action", "suppress_prefixlen", "suppress_ifgroup", "protocol",
    "family",
))  # fmt: skip
_PARTS = frozenset((
    "type", "dst", "from", "tos", "gateway", "via", "dev", "table", "protocol", "scope", "prefsrc", "metric",
    "flags", "pref", "nexthops", "family", "nhid",
))  # fmt: skip
_HOP_PARTS = frozenset((
    "gateway", "via", "dev", "weight", "flags",
))  # fmt: skip
# What can't change a decision: realms, what ip found out about names, properties of the path, statistics.
_IDLE = frozenset((
    "iif_detached", "oif_detached", "unresolved", "flow_to", "flow_from", "flow", "realms", "realm", "metrics",
    "expires", "users", "age", "used", "tsage", "ts", "error", "ttl-propagate", "mtu", "advmss", "hoplimit",
    "window", "rtt", "rttvar", "ssthresh", "cwnd", "initcwnd", "initrwnd", "reordering", "features", "quickack",
    "rto_min", "congestion", "cc_algo", "fastopen_no_cookie",
))  # fmt: skip
_IDLE_FLAGS = frozenset(("pervasive", "offload", "trap", "offload_failed", "rt_offload", "rt_trap", "notify"))

Item = dict[str, Any]


def rules(document: Any, family: int | None = None) -> tuple[IpRule, ...]:
    """The rules of a parsed `ip -j rule`, in order. `family` is 4 or 6; None: what the addresses say.

    Raises:
        ValueError: it is not such a document, or says nothing of the family.
    """
    items = _items(document, "rule")
    family = family or _family(items, "rule", ("src", "dst"))
    return tuple(_read(_rule, item, family, "rule") for item in items)


def routes(document: Any, family: int | None = None) -> tuple[Route, ...]:
    """The routes of a parsed `ip -j route show table all`. `family` as for `rules`.

    Raises:
        ValueError: it is not such a document, or says nothing of the family.
    """
    items = _items(document, "route")
    family = family or _family(items, "route", ("dst", "prefsrc", "from", "gateway"))
    return tuple(_read(_route, item, family, "route") for item in items)


def _items(document: Any, what: str) -> list[Item]:
    if not isinstance(document, list) or not all(isinstance(one, dict) for one in document):
        raise ValueError(f'expected the JSON of "ip -j -N {what}": a list of objects')
    return [one for one in document if one]  # ip prints {} for what it filtered out


def _family(items: list[Item], what: str, keys: tuple[str, ...]) -> int:
    for item in items:
        named = {"inet": 4, "inet6": 6}.get(str(item.get("family")))
        if named:
            return named
        for key in keys:
            value = item.get(key)
            if isinstance(value, str) and (":" in value or "." in value):
                return 6 if ":" in value else 4
    if not items:
        return 4
    raise ValueError(f"no {what} here says whether it is of IPv4 or IPv6")


def _read(reader: Any, item: Item, family: int, what: str) -> Any:
    try:
        return reader(item, family)
    except (KeyError, TypeError, AttributeError, AddressValueError) as error:
        raise ValueError(f"not an ip {what}: {type(error).__name__} {error} in {item}") from None
    except ValueError as error:
        raise ValueError(f"not an ip {what}: {error} in {item}") from None


def _number(value: Any, low: int = 0, high: int = _FULL) -> int:
    """An integer, also one in a string such as 0x10."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no number")
    found = int(value, 0) if isinstance(value, str) else value
    if not low <= found <= high:
        raise ValueError(f"{found} is not between {low} and {high}")
    return found


def _address(value: Any, family: int) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no address")
    return str(IPv4Address(value) if family == 4 else IPv6Address(value))


def _prefix(value: Any, family: int, length: Any = None) -> str | None:
    """ADDRESS/LENGTH, or None for all addresses."""
    if value in ("all", "default", "any"):
        return None
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no prefix")
    address, slash, told = value.partition("/")
    width = 32 if family == 4 else 128
    bits = _number(told if slash else width if length is None else length, high=width)
    return f"{_address(address, family)}/{bits}" if bits else None


def _table(value: Any) -> int:
    if isinstance(value, str) and not value[:1].isdigit():
        if value not in _TABLES:
            raise ValueError(f"table {value} has no number here (ask with ip -N)")
        return _TABLES[value]
    return _number(value)


def _owner(value: Any, missing: int) -> int:
    if value is None:
        return missing
    return _number(value, high=255) if str(value)[:1].isdigit() else _OWNERS.get(str(value), 0)


def _span(item: Item, name: str) -> tuple[int, int] | None:
    """A port or a range of ports."""
    if name in item:
        port = _number(item[name], high=0xFFFF)
        return port, port
    if f"{name}_start" not in item:
        return None
    return _number(item[f"{name}_start"], high=0xFFFF), _number(item[f"{name}_end"], high=0xFFFF)


def _named(item: Item, key: str, names: dict[str, int], unknown: list[str], high: int = _FULL) -> int | None:
    """A number, or a name that we may know; one that we don't know is added to `unknown`."""
    value = item.get(key)
    if value is None:
        return None
    text = str(value).removeprefix("ipproto-")
    if text[:1].isdigit():
        return _number(text, high=high)
    if text not in names:
        unknown.append(f"{key} {value}")
    return names.get(text)


def _strange(item: Item, known: frozenset[str]) -> list[str]:
    return [f"{key} {value}" for key, value in item.items() if key not in known and key not in _IDLE]


def _rule(item: Item, family: int) -> IpRule:
    unknown = _strange(item, _SELECTORS)
    action, table, goto = _action(item, unknown)
    marked = "fwmark" in item or "fwmask" in item
    return IpRule(
        family,
        _number(item.get("priority", 0)),
        action,
        table,
        _number(item.get("fwmark", 0)),
        _number(item.get("fwmask", _FULL)) if marked else 0,
        _prefix(item.get("src", "all"), family, item.get("srclen")),
        _prefix(item.get("dst", "all"), family, item.get("dstlen")),
        _name(item.get("iif")),
        _name(item.get("oif")),
        (_number(item["uid_start"]), _number(item["uid_end"])) if "uid_start" in item else None,
        _named(item, "ipproto", _L4, unknown, 255),
        _span(item, "sport"),
        _span(item, "dport"),
        _named(item, "tos" if "tos" in item else "dsfield", {}, unknown, 255) or 0,
        "not" in item,
        goto,
        _suppressed(item),
        _named(item, "suppress_ifgroup", {"default": 0}, unknown),
        "l3mdev" in item,
        _owner(item.get("protocol"), 0),
        unknown=tuple(unknown),
    )


def _suppressed(item: Item) -> int | None:
    length = item.get("suppress_prefixlen")
    return None if length in (None, -1) else _number(length, high=128)


def _action(item: Item, unknown: list[str]) -> tuple[str, int, int | None]:
    """What is done, the table, and where to go."""
    if "goto" in item:
        return "goto", 0, None if item["goto"] == "none" else _number(item["goto"])
    if "nop" in item:
        return "nop", 0, None
    if "action" in item:
        kind = str(item["action"])
        name = KINDS.get(int(kind), kind) if kind.isdigit() else kind
        if name not in _ENDS:
            unknown.append(f"action {kind}")
        return name, 0, None
    if "l3mdev" in item:
        return "lookup", 0, None
    return "lookup", _table(item["table"]), None


def _name(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no device")
    return value


def _gateway(item: Item, family: int) -> str | None:
    if "via" in item:
        via = item["via"]
        return _address(via["host"], {"inet": 4, "inet6": 6}[via["family"]])
    gateway = item.get("gateway")
    return None if gateway is None else _address(gateway, family)


def _flags(item: Item, unknown: list[str]) -> frozenset[str]:
    flags = item.get("flags", [])
    if not isinstance(flags, list) or not all(isinstance(one, str) for one in flags):
        raise ValueError(f"{flags!r} are no flags")
    unknown += [f"flag {one}" for one in flags if one not in ("onlink", "linkdown", "dead") and one not in _IDLE_FLAGS]
    return frozenset(flags)


def _route(item: Item, family: int) -> Route:
    if item.get("encap") in ("ip", "ip6"):
        raise ValueError("ip -j prints the destination of a tunnel over that of its route")
    unknown = _strange(item, _PARTS)
    if "nhid" in item and not ("dev" in item or "nexthops" in item):
        # A nexthop object, of which the kernel does not say where it leads (net.ipv4.nexthop_compat_mode).
        unknown.append(f"nhid {item['nhid']}")
    kind = str(item.get("type", "unicast"))
    name = KINDS.get(int(kind), f"type-{kind}") if kind.isdigit() else kind
    if name not in KINDS.values():
        unknown.append(f"type {kind}")
    flags = _flags(item, unknown)
    hops = item.get("nexthops")
    return Route(
        family,
        _table(item.get("table", "main")),
        _prefix(item["dst"], family) or "default",
        name,
        _gateway(item, family),
        _name(item.get("dev")),
        _number(item.get("metric", 0)),
        "onlink" in flags,
        _owner(item.get("protocol"), _BOOT),
        nexthops=tuple(_hop(hop, family, unknown) for hop in hops) if hops else (),
        prefsrc=None if item.get("prefsrc") is None else _address(item["prefsrc"], family),
        source=_prefix(item.get("from", "all"), family),
        tos=_named(item, "tos", {}, unknown, 255) or 0,
        preference=_preference(item, unknown),
        scope=_scope(item.get("scope", "global")),
        linkdown="linkdown" in flags,
        dead="dead" in flags,
        unknown=tuple(unknown),
    )


def _hop(item: Item, family: int, unknown: list[str]) -> Nexthop:
    unknown += _strange(item, _HOP_PARTS)
    flags = _flags(item, unknown)
    return Nexthop(
        _name(item.get("dev")),
        _gateway(item, family),
        _number(item.get("weight", 1)),
        "onlink" in flags,
        "linkdown" in flags,
        "dead" in flags,
    )


def _preference(item: Item, unknown: list[str]) -> str:
    told = item.get("pref", "medium")
    if told not in ("low", "medium", "high"):
        unknown.append(f"pref {told}")
    return str(told)


def _scope(value: Any) -> str:
    text = str(value)
    return SCOPES.get(int(text), text) if text.isdigit() else text
