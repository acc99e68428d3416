# SPDX-License-Identifier: BSD-2-Clause
"""ip rules and routes as lines for `ip -4 -batch` and `ip -6 -batch` (ip(8))."""

from __future__ import annotations

from .routing import TABLE_LOCAL, TABLE_MAIN, IpRule, Nexthop, Route


def _span(pair: tuple[int, int]) -> str:
    low, high = pair
    return str(low) if low == high else f"{low}-{high}"


def _action(rule: IpRule) -> str:
    if rule.l3mdev:
        return "l3mdev"
    if rule.action == "lookup":
        return f"lookup {'main' if rule.table == TABLE_MAIN else rule.table}"
    return f"goto {rule.goto}" if rule.action == "goto" else rule.action


def rule(item: IpRule) -> str:
    """The words behind `ip rule add`, in ip-rule(8)'s order. ValueError if it has something unknown."""
    return _known(item) or _rule_words(item)


def _rule_words(item: IpRule) -> str:
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
    parts += [f"suppress_ifgroup {item.suppress_group}"] if item.suppress_group is not None else []
    return " ".join([*parts, f"protocol {item.protocol}"])


def _via(gateway: str, family: int) -> str:
    of = 6 if ":" in gateway else 4
    return f"via {gateway}" if of == family else f"via {'inet6' if of == 6 else 'inet'} {gateway}"


def _hop(hop: Nexthop, family: int) -> str:
    parts = [f"nexthop {_via(hop.gateway, family)}" if hop.gateway else "nexthop"]
    parts += [f"dev {hop.device}"] if hop.device else []
    parts += [f"weight {hop.weight}", *(["onlink"] if hop.onlink else [])]
    return " ".join(parts)


def route(item: Route) -> str:
    """The words behind `ip route add`, in ip-route(8)'s order. ValueError if it has something unknown."""
    return _known(item) or _route_words(item)


def _route_words(item: Route) -> str:
    parts = [item.kind] if item.kind != "unicast" else []
    parts += [item.destination]
    parts += [f"from {item.source}"] if item.source else []
    parts += [f"tos {item.tos:#x}"] if item.tos else []
    parts += [_via(item.gateway, item.family)] if item.gateway else []
    parts += [f"dev {item.device}"] if item.device else []
    parts += [f"table {item.table}"]
    parts += [f"metric {item.metric}"] if item.metric else []
    parts += [f"src {item.prefsrc}"] if item.prefsrc else []
    parts += [f"scope {item.scope}"] if item.family == 4 and item.scope not in (None, "global", "nowhere") else []
    parts += ["onlink"] if item.onlink else []
    parts += [f"pref {item.preference}"] if item.preference != "medium" else []
    parts += [f"proto {item.protocol}"]
    return " ".join([*parts, *(_hop(hop, item.family) for hop in item.nexthops)])


def _known(item: IpRule | Route) -> str:
    if item.unknown:
        raise ValueError(f"can't be written for ip, it has {', '.join(item.unknown)}")
    return ""


def shown(item: IpRule | Route) -> str:
    """The same words for a person, with what is unknown in brackets at the end."""
    words = _rule_words(item) if isinstance(item, IpRule) else _route_words(item)
    return " ".join([words, *(f"[{one}]" for one in item.unknown)])


def batch(rules: tuple[IpRule, ...], routes: tuple[Route, ...], family: int) -> str:
    """A file for `ip -FAMILY -batch`: tables are filled before a rule leads to them."""
    lines, places = [], set()
    for one in _ordered(routes):
        if one.family == family:
            place = (one.table, one.destination, one.source, one.tos, one.metric)
            # A second one of a metric would be refused, but the kernel can hold it.
            lines.append(f"route {'append' if place in places else 'add'} {route(one)}")
            places.add(place)
    lines += [f"rule add {rule(one)}" for one in rules if one.family == family]
    return "".join(f"{line}\n" for line in lines)


def _ordered(routes: tuple[Route, ...]) -> list[Route]:
    """Such that a gateway can be reached when its route comes (with onlink nobody asks)."""

    def place(one: Route) -> int:
        if one.table == TABLE_LOCAL:
            return 0
        return 2 if any(hop.gateway and not hop.onlink for hop in one.ways) else 1

    return sorted(routes, key=place)
