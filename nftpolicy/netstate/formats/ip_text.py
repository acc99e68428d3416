# SPDX-License-Identifier: BSD-2-Clause
"""Text of ip rules and routes for `ip -4 -batch` and `ip -6 -batch` (ip(8)).

Each name and address must be one word without a special meaning in ip or sh, as it may come from a
document of another machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import asdict

from ...generated_text import CheckedText
from ..routing import TABLE_LOCAL, TABLE_MAIN, IpRule, Nexthop, Route

_WORD = re.compile(r"[A-Za-z0-9_.:/@%+,=-]+")


def rule_text(item: IpRule) -> CheckedText:
    """Return the arguments of `ip rule add`, in ip-rule(8)'s order.

    Raises:
        ValueError: the rule has unsupported selectors, or a name that is not one word.
    """
    _require_writable(item)
    return CheckedText(_rule_arguments(item))


def _rule_arguments(item: IpRule) -> str:
    arguments: list[str | None] = [
        f"priority {item.priority}",
        "not" if item.invert else None,
        f"from {item.source or 'all'}",
        f"to {item.destination}" if item.destination else None,
        f"tos {item.tos:#x}" if item.tos else None,
        f"fwmark {item.mark:#x}/{item.mask:#x}" if item.mask else None,
        f"iif {item.iif}" if item.iif else None,
        f"oif {item.oif}" if item.oif else None,
        f"uidrange {item.uids[0]}-{item.uids[1]}" if item.uids else None,
        f"ipproto {item.l4proto}" if item.l4proto is not None else None,
        f"sport {_port_range(item.sports)}" if item.sports else None,
        f"dport {_port_range(item.dports)}" if item.dports else None,
        _action(item),
    ]
    if item.suppress_prefix is not None:
        arguments.append(f"suppress_prefixlength {item.suppress_prefix}")
    if item.suppress_group is not None:
        arguments.append(f"suppress_ifgroup {item.suppress_group}")
    arguments.append(f"protocol {item.protocol}")
    return _join(arguments)


def _action(item: IpRule) -> str:
    if item.l3mdev:
        return "l3mdev"
    if item.action == "lookup":
        return f"lookup {'main' if item.table == TABLE_MAIN else item.table}"
    return f"goto {item.goto}" if item.action == "goto" else item.action


def _port_range(ports: tuple[int, int]) -> str:
    low, high = ports
    return str(low) if low == high else f"{low}-{high}"


def route_text(item: Route) -> CheckedText:
    """Return the arguments of `ip route add`, in ip-route(8)'s order.

    Raises:
        ValueError: the route has unsupported attributes, or a name that is not one word.
    """
    _require_writable(item)
    return CheckedText(_route_arguments(item))


def _route_arguments(item: Route) -> str:
    has_scope = item.family == 4 and item.scope not in (None, "global", "nowhere")
    arguments: list[str | None] = [
        item.kind if item.kind != "unicast" else None,
        item.destination,
        f"from {item.source}" if item.source else None,
        f"tos {item.tos:#x}" if item.tos else None,
        _via(item.gateway, item.family) if item.gateway else None,
        f"dev {item.device}" if item.device else None,
        f"table {item.table}",
        f"metric {item.metric}" if item.metric else None,
        f"src {item.prefsrc}" if item.prefsrc else None,
        f"scope {item.scope}" if has_scope else None,
        "onlink" if item.onlink else None,
        f"pref {item.preference}" if item.preference != "medium" else None,
        f"proto {item.protocol}",
        *(_nexthop(hop, item.family) for hop in item.nexthops),
    ]
    return _join(arguments)


def _nexthop(hop: Nexthop, family: int) -> str:
    return _join(
        [
            "nexthop",
            _via(hop.gateway, family) if hop.gateway else None,
            f"dev {hop.device}" if hop.device else None,
            f"weight {hop.weight}",
            "onlink" if hop.onlink else None,
        ]
    )


def _via(gateway: str, family: int) -> str:
    gateway_family = 6 if ":" in gateway else 4
    if gateway_family == family:
        return f"via {gateway}"
    return f"via {'inet6' if gateway_family == 6 else 'inet'} {gateway}"


def _join(arguments: Iterable[str | None]) -> str:
    return " ".join(argument for argument in arguments if argument is not None)


def _require_writable(item: IpRule | Route) -> None:
    if item.unknown:
        raise ValueError(f"cannot be written for ip: unsupported {', '.join(item.unknown)}")
    for part in (item, *(item.nexthops if isinstance(item, Route) else ())):
        for name, value in asdict(part, recurse=False).items():
            if isinstance(value, str) and not is_word(value):
                raise ValueError(f"cannot be written for ip: {name} {value!r} is not one plain word")


def is_word(value: str) -> bool:
    """Return True for a word that neither ip -batch nor sh can take for more than that."""
    return _WORD.fullmatch(value) is not None


def display_text(item: IpRule | Route) -> str:
    """Return the same arguments for display, with unsupported ones in brackets at the end."""
    text = _rule_arguments(item) if isinstance(item, IpRule) else _route_arguments(item)
    return " ".join([text, *(f"[{unsupported}]" for unsupported in item.unknown)])


def batch_text(rules: tuple[IpRule, ...], routes: tuple[Route, ...], family: int) -> CheckedText:
    """Return a file for `ip -FAMILY -batch`: routes of tables precede the rules that select them."""
    lines, keys = [], set()
    for item in _sort_by_reachability(routes):
        if item.family == family:
            key = (item.table, item.destination, item.source, item.tos, item.metric)
            # `add` refuses a second route with the same key, but the kernel can have one.
            lines.append(f"route {'append' if key in keys else 'add'} {route_text(item)}")
            keys.add(key)
    lines += [f"rule add {rule_text(item)}" for item in rules if item.family == family]
    return CheckedText("".join(f"{line}\n" for line in lines))


def _sort_by_reachability(routes: tuple[Route, ...]) -> list[Route]:
    """Return the routes so that each gateway is reachable before its route (onlink needs no check)."""

    def rank(item: Route) -> int:
        if item.table == TABLE_LOCAL:
            return 0
        return 2 if any(hop.gateway and not hop.onlink for hop in item.all_nexthops) else 1

    return sorted(routes, key=rank)
