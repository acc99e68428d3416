# SPDX-License-Identifier: BSD-2-Clause
"""The plan: what the runner on the router holds the kernel to, in lines that a shell can read and compare.

Rules and routes are in the words of `ip -N rule show` and `ip -N route show table all proto 78`, so that what
is wanted and what is there can be held against each other as text. `ip -N` writes numbers for names, since a
router may have names of its own for tables.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..compiler import guard, ladder
from ..compiler.sysctls import sysctls
from ..netstate import text
from ..netstate.nft import FULL, Chain
from ..netstate.routing import KINDS, IpRule, Route
from ..policy.objects import Policy, Uplink

_NUMBERS = {name: number for number, name in KINDS.items()}
_PORT = "/"  # stands for a port of a bridge; no device is called so


def plan(policy: Policy, link_guard: bool = True) -> str:
    """The whole file."""
    lines = [f"policy {policy.name}"]
    lines += [f"rule{rule.family} {_rule(rule)}" for rule in map(whole, ladder.rules(policy))]
    lines += [f"route{route.family} {_route(route)}" for route in ladder.routes(policy)]
    lines += [f"sysctl {one.path} {one.value}" for one in sysctls(policy)]
    if link_guard:
        lines += [line for uplink in policy.uplink.values() for line in _hooked(policy, uplink)]
    lines += [line for name, uplink in policy.uplink.items() for line in _resolver(name, uplink)]
    return "".join(f"{line}\n" for line in lines)


def whole(rule: IpRule) -> IpRule:
    """The rule. ValueError if it selects by something that lines and sections of a router do not say here: a rule
    without one of its selectors would be for more packets than it should."""
    said = IpRule(
        rule.family, rule.priority, rule.action, rule.table, rule.mark, rule.mask, destination=rule.destination,
        uids=rule.uids,
    )  # fmt: skip
    if said != rule or rule.unknown:
        raise ValueError(f"an ip rule that can't be written for a router: {rule}")
    return rule


def _rule(rule: IpRule) -> str:
    parts = [f"{rule.priority}: from all"]
    parts += [f"to {rule.destination}"] if rule.destination else []
    parts += [f"fwmark {rule.mark:#x}" + (f"/{rule.mask:#x}" if rule.mask != FULL else "")] if rule.mask else []
    parts += [f"uidrange {rule.uids[0]}-{rule.uids[1]}"] if rule.uids else []
    return " ".join([*parts, f"lookup {rule.table}" if rule.action == "lookup" else str(_NUMBERS[rule.action])])


def _route(route: Route) -> str:
    parts = [route.kind] if route.kind != "unicast" else []
    parts += [route.destination, *([f"via {route.gateway}"] if route.gateway else [])]
    parts += [f"dev {route.device}"] if route.device else []
    parts += [f"table {route.table}", f"metric {route.metric}", *(["onlink"] if route.onlink else [])]
    return " ".join(parts)


def _hooked(policy: Policy, uplink: Uplink) -> Iterator[str]:
    """For each device, how its chain at the egress goes on, for itself and for its ports if it is a bridge."""
    for device in uplink.devices:
        for chain in guard.link_chains(policy, {device: (_PORT,)}):
            if chain.hook and chain.hook.device in (device, _PORT):
                yield f"{'own' if chain.hook.device == device else 'port'} {device} {_body(chain)}"


def _body(chain: Chain) -> str:
    assert chain.hook
    hook = f"priority {int(chain.hook.priority)}; policy {chain.hook.policy};"
    return " ".join([hook, "; ".join(map(text.rule, chain.rules))])


def _resolver(name: str, uplink: Uplink) -> Iterator[str]:
    """How its dnsmasq is started, and where its servers come from."""
    resolver = uplink.resolver
    if resolver is None:
        return
    addresses = " ".join(str(one.address) for one in resolver.listen)
    yield f"resolver {name} {uplink.mark.value} {resolver.user.number} {resolver.listen[0].port} {addresses}"
    fixed = " ".join(map(str, resolver.servers))
    yield f"servers {name} fixed {fixed}" if fixed else f"servers {name} learned {' '.join(uplink.devices)}"
