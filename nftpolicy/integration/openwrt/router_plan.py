# SPDX-License-Identifier: BSD-2-Clause
"""Router plan: the target state for the script on the router, in lines that a shell can compare.

Rules and routes have the form of `ip -N rule show` and `ip -N route show table all proto 78`, so that
the target and the kernel's state can be compared as text. `ip -N` prints numbers instead of names,
since a router may have its own table names.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...compiler import guard, ip_rules
from ...compiler.sysctls import required_sysctls
from ...netstate.formats import nft_text
from ...netstate.nft import FULL_MASK, Chain
from ...netstate.routing import ROUTE_TYPES, IpRule, Route
from ...policy.objects import Policy, Uplink

_ROUTE_TYPES = {name: number for number, name in ROUTE_TYPES.items()}
_PORT = "/"  # placeholder for a bridge port; not valid in a device name


def router_plan(policy: Policy, link_guard: bool = True) -> str:
    """Return the text of the plan file."""
    lines = [f"policy {policy.name}"]
    lines += [f"rule{rule.family} {_rule(rule)}" for rule in map(require_expressible, ip_rules.ip_rules(policy))]
    lines += [f"route{route.family} {_route(route)}" for route in ip_rules.uplink_routes(policy)]
    lines += [f"sysctl {sysctl.path} {sysctl.value}" for sysctl in required_sysctls(policy)]
    if link_guard:
        lines += [line for uplink in policy.uplink.values() for line in _egress_chains(policy, uplink)]
    lines += [line for name, uplink in policy.uplink.items() for line in _resolver(name, uplink)]
    return "".join(f"{line}\n" for line in lines)


def require_expressible(rule: IpRule) -> IpRule:
    """Return the rule, if plan lines and UCI sections can express it.

    Raises:
        ValueError: the rule has another selector; without it, it would match too many packets.
    """
    expressible = IpRule(
        rule.family, rule.priority, rule.action, rule.table, rule.mark, rule.mask, destination=rule.destination,
        uids=rule.uids,
    )  # fmt: skip
    if expressible != rule or rule.unknown:
        raise ValueError(f"ip rule with a selector that the router plan does not support: {rule}")
    return rule


def _rule(rule: IpRule) -> str:
    parts = [f"{rule.priority}: from all"]
    if rule.destination:
        parts.append(f"to {rule.destination}")
    if rule.mask:
        mask = f"/{rule.mask:#x}" if rule.mask != FULL_MASK else ""
        parts.append(f"fwmark {rule.mark:#x}{mask}")
    if rule.uids:
        parts.append(f"uidrange {rule.uids[0]}-{rule.uids[1]}")
    parts.append(f"lookup {rule.table}" if rule.action == "lookup" else str(_ROUTE_TYPES[rule.action]))
    return " ".join(parts)


def _route(route: Route) -> str:
    parts = [route.destination]
    if route.kind != "unicast":
        parts.insert(0, route.kind)
    if route.gateway:
        parts.append(f"via {route.gateway}")
    if route.device:
        parts.append(f"dev {route.device}")
    parts += [f"table {route.table}", f"metric {route.metric}"]
    if route.onlink:
        parts.append("onlink")
    return " ".join(parts)


def _egress_chains(policy: Policy, uplink: Uplink) -> Iterator[str]:
    """Yield the egress chain of each device: own, and port if the device is a bridge."""
    for device in uplink.devices:
        for chain in guard.link_chains(policy, {device: (_PORT,)}):
            if chain.hook and chain.hook.device in (device, _PORT):
                keyword = "own" if chain.hook.device == device else "port"
                yield f"{keyword} {device} {_chain_body(chain)}"


def _chain_body(chain: Chain) -> str:
    assert chain.hook
    hook = f"priority {int(chain.hook.priority)}; policy {chain.hook.policy};"
    return " ".join([hook, "; ".join(map(nft_text.rule_text, chain.rules))])


def _resolver(name: str, uplink: Uplink) -> Iterator[str]:
    """Yield how the dnsmasq of an uplink is started, and the source of its servers."""
    resolver = uplink.resolver
    if resolver is None:
        return
    addresses = " ".join(str(endpoint.address) for endpoint in resolver.listen)
    yield f"resolver {name} {uplink.mark.value} {resolver.user.number} {resolver.listen[0].port} {addresses}"
    fixed = " ".join(map(str, resolver.servers))
    yield f"servers {name} fixed {fixed}" if fixed else f"servers {name} learned {' '.join(uplink.devices)}"
