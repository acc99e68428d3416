# SPDX-License-Identifier: BSD-2-Clause
"""ip rules and routes as lines for `ip -4 -batch` and `ip -6 -batch` (ip(8))."""

from __future__ import annotations

from .routing import TABLE_MAIN, IpRule, Route


def _span(pair: tuple[int, int]) -> str:
    low, high = pair
    return str(low) if low == high else f"{low}-{high}"


def _action(rule: IpRule) -> str:
    if rule.action == "lookup":
        return f"lookup {'main' if rule.table == TABLE_MAIN else rule.table}"
    return f"goto {rule.goto}" if rule.action == "goto" else rule.action


def rule(item: IpRule) -> str:
    """The words behind `ip rule add`, in ip-rule(8)'s order."""
    parts = [f"priority {item.priority}"]
    parts += ["not"] if item.invert else []
    parts += [f"from {item.source or 'all'}"]
    parts += [f"to {item.destination}"] if item.destination else []
    parts += [f"tos {item.tos:#x}"] if item.tos else []
    parts += [f"fwmark {item.mark:#x}/{item.mask:#x}"] if item.mask else []
    parts += [f"iif {item.iif}"] if item.iif else []
    parts += [f"oif {item.oif}"] if item.oif else []
    parts += [f"uidrange {item.uids[0]}-{item.uids[1]}"] if item.uids else []
    parts += [f"ipproto {item.l4proto}"] if item.l4proto is not None else []
    parts += [f"sport {_span(item.sports)}"] if item.sports else []
    parts += [f"dport {_span(item.dports)}"] if item.dports else []
    parts += [_action(item)]
    parts += [f"suppress_prefixlength {item.suppress_prefix}"] if item.suppress_prefix is not None else []
    return " ".join([*parts, f"protocol {item.protocol}"])


def route(item: Route) -> str:
    """The words behind `ip route add`, in ip-route(8)'s order."""
    parts = [item.kind] if item.kind != "unicast" else []
    parts += [item.destination]
    parts += [f"via {item.gateway}"] if item.gateway else []
    parts += [f"dev {item.device}"] if item.device else []
    parts += [f"table {item.table}"]
    parts += [f"metric {item.metric}"] if item.metric else []
    parts += ["onlink"] if item.onlink else []
    return " ".join([*parts, f"proto {item.protocol}"])


def batch(rules: tuple[IpRule, ...], routes: tuple[Route, ...], family: int) -> str:
    """A file for `ip -FAMILY -batch`: tables are filled before a rule leads to them."""
    lines = [f"route add {route(one)}" for one in routes if one.family == family]
    lines += [f"rule add {rule(one)}" for one in rules if one.family == family]
    return "".join(f"{line}\n" for line in lines)
