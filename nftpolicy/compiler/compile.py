# SPDX-License-Identifier: BSD-2-Clause
"""Compilation of a policy to one desired state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from attrs import Factory, frozen

from ..netstate.nft import NamedCounter, Table
from ..netstate.routing import IpRule, Route
from ..netstate.state import NetState
from ..policy.objects import Policy, Uplink
from . import (
    clat,
    dns,
    exemptions,
    forwards,
    guard,
    ip_rules,
    lans,
    mark_owner,
    object_names,
    query_routing,
    replies,
    reply_routing,
    service_sets,
    tunnels,
    uplink_addresses,
    wildcard_replies,
)
from .object_names import object_name
from .sysctls import required_sysctls


@frozen
class HostFacts:
    """Facts about the host that the compiled state depends on, beside the policy.

    `bridge_ports`: bridge -> its ports. `has_egress_hook`: True if the kernel has the netdev egress hook;
    without it AF_PACKET sockets are not covered. `unhookable_devices`: absent devices, on a kernel that
    cannot hook a chain at an absent device. `loopback_families`: the IP families that lo has, without which
    there is neither a resolver on lo nor a route by it.
    """

    bridge_ports: Mapping[str, Sequence[str]] = Factory(dict)
    has_egress_hook: bool = True
    unhookable_devices: frozenset[str] = frozenset()
    loopback_families: tuple[int, ...] = query_routing.FAMILIES


def compile_policy(policy: Policy, host: HostFacts = HostFacts()) -> NetState:
    """Return the state of the kernel that implements the policy."""
    tables = [_ip_table(policy)]
    if host.has_egress_hook:
        tables.append(_link_table(policy, host))
    return NetState(
        tuple(tables),
        tuple(sorted(policy_ip_rules(policy), key=lambda rule: (rule.family, rule.priority))),
        policy_routes(policy, host.loopback_families),
        required_sysctls(policy),
    )


def policy_ip_rules(policy: Policy) -> tuple[IpRule, ...]:
    """Return the ip rules of a policy, part by part."""
    return (
        *ip_rules.ip_rules(policy),
        *tunnels.ip_rules(policy),
        *lans.ip_rules(policy),
        *query_routing.ip_rules(policy),
        *reply_routing.ip_rules(policy),
    )


def policy_routes(policy: Policy, families: Collection[int] = query_routing.FAMILIES) -> tuple[Route, ...]:
    """Return the routes of a policy on a machine whose lo has these families."""
    return (*ip_rules.uplink_routes(policy), *query_routing.routes(policy, families))


def _ip_table(policy: Policy) -> Table:
    services = service_sets.collect_service_sets(policy)
    has_resolver = bool(dns.uplinks_with_resolver(policy))
    chains = [*replies.arrival_chains(policy), replies.restore_chain(policy)]
    tunnel_chain = tunnels.tunnel_chain(policy)
    if tunnel_chain is not None:
        chains.append(tunnel_chain)
    chains += forwards.forward_chains(policy)
    if has_resolver:
        chains.append(dns.redirect_chain(policy, services))
    refusal_chain = query_routing.refusal_chain(policy)
    if refusal_chain is not None:
        chains.append(refusal_chain)
    chains += guard.guard_chains(policy, services)
    for name, uplink in policy.uplink.items():
        chains.append(mark_owner.mark_owner_chain(name, uplink, services[name], policy))
        chains.append(replies.reply_chain(name, uplink))
    chains += dns.resolver_chains(policy, services)
    sets = [guard.inside_set(policy)] if policy.inside else []
    for name, uplink in policy.uplink.items():
        sets += service_sets.nft_sets(name, services[name])
        sets += [*tunnels.tunnel_sets(name, policy), *tunnels.tcp_sets(name, policy)]
        sets += uplink_addresses.address_sets(name, uplink)
        sets += replies.source_sets(name, uplink)
        sets += lans.sets(policy, name)
        sets += wildcard_replies.sets(name, uplink)
    sets += dns.listen_sets(policy)
    sets += dns.server_sets(policy)
    sets += forwards.forward_sets(policy)
    counters = [NamedCounter(object_names.UNNAMED_DEVICE)]
    if refusal_chain is not None:
        counters.append(NamedCounter(object_names.UNROUTED_QUERIES))
    for name, uplink in policy.uplink.items():
        counters += [NamedCounter(counter, ("uplink", name)) for counter in _counters(name, uplink, policy)]
    return Table("inet", object_names.TABLE, tuple(chains), tuple(sets), tuple(counters))


def _counters(name: str, uplink: Uplink, policy: Policy) -> list[str]:
    reasons = ["dropped", "stray", "unentitled", "unanswered", "foreign-source", "not-local"]
    if reply_routing.answered_udp_ports(uplink):
        reasons.append(object_names.MISROUTED_REPLIES)
    if uplink.resolver:
        reasons += ["resolver-refused", "dns-blocked"]
    return [
        *(object_name(name, reason) for reason in reasons),
        *exemptions.exemption_counters(name, uplink.exempt, "inet"),
        *lans.counter_names(policy, name),
        *replies.counter_names(name, uplink),
        *forwards.counter_names(policy, name),
        *clat.counter_names(name, uplink),
    ]


def _link_table(policy: Policy, host: HostFacts) -> Table:
    counters = tuple(
        NamedCounter(counter, ("uplink", name))
        for name, uplink in policy.uplink.items()
        for counter in (
            object_name(name, "dropped"),
            *exemptions.exemption_counters(name, uplink.exempt, "netdev"),
            *lans.counter_names(policy, name),
        )
    )
    sets = tuple(nft_set for name in policy.uplink for nft_set in lans.sets(policy, name))
    chains = guard.link_chains(policy, host.bridge_ports, host.unhookable_devices)
    return Table("netdev", object_names.TABLE, chains, sets, counters)
