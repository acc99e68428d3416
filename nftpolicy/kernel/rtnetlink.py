# SPDX-License-Identifier: BSD-2-Clause
"""ip rules and routes by rtnetlink: a typed adapter over pyroute2.

pyroute2 ignores keys that it does not know, which would silently widen a rule; so only the
keys that are written here are ever passed, and what was written is read back by the caller.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import Any

from ..netstate.routing import IpRule, Route

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
# include/uapi/linux/fib_rules.h
_ACTIONS = {"lookup": 1, "goto": 2, "nop": 3, "blackhole": 6, "unreachable": 7, "prohibit": 8}
_ACTION_NAMES = {number: name for name, number in _ACTIONS.items()}
_INVERT = 0x2  # FIB_RULE_INVERT
# include/uapi/linux/rtnetlink.h, RTN_*
_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable",
          8: "prohibit", 9: "throw"}  # fmt: skip
_VERBS = {"add": "add", "delete": "del", "replace": "replace"}
_ONLINK = 0x4  # RTNH_F_ONLINK


def _rule_keys(rule: IpRule) -> dict[str, Any]:
    unsupported = (rule.iif, rule.oif, rule.uids, rule.l4proto, rule.sports, rule.dports, rule.source, rule.goto)
    if any(one is not None for one in unsupported) or rule.tos or rule.invert or rule.suppress_prefix is not None:
        raise ValueError(f"the compiler writes no such rule: {rule}")
    keys: dict[str, Any] = {
        "family": _FAMILY[rule.family],
        "priority": rule.priority,
        "action": _ACTIONS[rule.action],
        "protocol": rule.protocol,
    }
    if rule.action == "lookup":
        keys["table"] = rule.table
    if rule.mask:
        keys |= {"fwmark": rule.mark, "fwmask": rule.mask}
    if rule.destination:
        address, length = rule.destination.split("/")
        keys |= {"dst": address, "dst_len": int(length)}
    return keys


def _route_keys(route: Route, devices: dict[str, int]) -> dict[str, Any]:
    default = {4: "0.0.0.0/0", 6: "::/0"}[route.family]
    keys: dict[str, Any] = {
        "family": _FAMILY[route.family],
        "dst": default if route.destination == "default" else route.destination,
        "table": route.table,
        "type": route.kind,
        "proto": route.protocol,
        "priority": route.metric,
    }
    if route.gateway:
        keys["gateway"] = route.gateway
    if route.device and route.kind == "unicast":
        if route.device not in devices:
            raise OSError(errno.ENODEV, f"there is no device {route.device}")
        keys["oif"] = devices[route.device]
    if route.onlink:
        keys["flags"] = ["onlink"]
    return keys


def _pair(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    low, _, high = str(value).partition(":")
    return int(low), int(high or low)


def _prefix(address: str | None, length: int) -> str | None:
    return f"{address}/{length}" if address and length else None


def rule_of(message: Any, family: int) -> IpRule:
    """The value of one RTM_NEWRULE message."""
    field = message.get_attr
    action = _ACTION_NAMES.get(message["action"], f"action-{message['action']}")
    suppress = field("FRA_SUPPRESS_PREFIXLEN")
    return IpRule(
        family,
        field("FRA_PRIORITY") or 0,
        action,
        (field("FRA_TABLE") or message["table"]) if action == "lookup" else 0,
        field("FRA_FWMARK") or 0,
        field("FRA_FWMASK") or 0,
        _prefix(field("FRA_SRC"), message["src_len"]),
        _prefix(field("FRA_DST"), message["dst_len"]),
        field("FRA_IIFNAME"),
        field("FRA_OIFNAME"),
        _pair(field("FRA_UID_RANGE")),
        field("FRA_IP_PROTO"),
        _pair(field("FRA_SPORT_RANGE")),
        _pair(field("FRA_DPORT_RANGE")),
        message["tos"],
        bool(message["flags"] & _INVERT),
        field("FRA_GOTO"),
        None if suppress in (None, 0xFFFFFFFF) else suppress,
        None,
        bool(field("FRA_L3MDEV")),
        field("FRA_PROTOCOL") or 0,
    )


def route_of(message: Any, family: int, names: dict[int, str]) -> Route:
    """The value of one RTM_NEWROUTE message."""
    field = message.get_attr
    length = message["dst_len"]
    device = field("RTA_OIF")
    return Route(
        family,
        field("RTA_TABLE") or message["table"],
        f"{field('RTA_DST')}/{length}" if length else "default",
        _KINDS.get(message["type"], f"type-{message['type']}"),
        field("RTA_GATEWAY"),
        names.get(device, str(device)) if device else None,
        field("RTA_PRIORITY") or 0,
        bool(message["flags"] & _ONLINK),
        message["proto"],
    )


class RtNetlink:
    """Rules, routes and links of the namespace that the calling thread is in."""

    def __init__(self) -> None:
        from pyroute2 import IPRoute  # slow to import

        self._open = IPRoute
        self._changes = IPRoute()

    def rules(self, family: int) -> list[IpRule]:
        """All ip rules of a family, in order."""
        with self._open() as link:
            return [rule_of(message, family) for message in link.get_rules(family=_FAMILY[family])]

    def routes(self, family: int, protocol: int) -> list[Route]:
        """The routes of one protocol, over all tables."""
        # A fresh socket: dumps on one that carried changes were seen to lose entries.
        with self._open() as link:
            names = {index: name for name, index in self._devices(link).items()}
            found = [message for message in link.get_routes(family=_FAMILY[family]) if message["proto"] == protocol]
            return [route_of(message, family, names) for message in found]

    def change_rule(self, verb: str, rule: IpRule) -> None:
        """Add or delete; OSError with the kernel's errno."""
        self._acked(self._changes.rule, _VERBS[verb], _rule_keys(rule))

    def change_route(self, verb: str, route: Route) -> None:
        """Add, delete or replace; OSError with the kernel's errno."""
        with self._open() as link:
            devices = self._devices(link) if route.device and route.kind == "unicast" else {}
        self._acked(self._changes.route, _VERBS[verb], _route_keys(route, devices))

    def names(self) -> set[str]:
        """The names of all network devices."""
        with self._open() as link:
            return set(self._devices(link))

    def bridge_ports(self, devices: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Bridge -> ports, for those of `devices` that are bridges."""
        with self._open() as link:
            links = list(link.get_links())
        index = {message.get_attr("IFLA_IFNAME"): message["index"] for message in links}
        kinds = {m.get_attr("IFLA_IFNAME"): (m.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")) for m in links}
        return {
            device: tuple(
                sorted(m.get_attr("IFLA_IFNAME") for m in links if m.get_attr("IFLA_MASTER") == index[device])
            )
            for device in devices
            if device in index and kinds[device] == "bridge"
        }

    @staticmethod
    def _devices(link: Any) -> dict[str, int]:
        return {message.get_attr("IFLA_IFNAME"): message["index"] for message in link.get_links()}

    @staticmethod
    def _acked(function: Any, verb: str, keys: dict[str, Any]) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            function(verb, **keys)
        except NetlinkError as error:
            raise OSError(error.code, str(error.args[1] if len(error.args) > 1 else error)) from None
