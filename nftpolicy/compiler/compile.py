# SPDX-License-Identifier: BSD-2-Clause
"""Compilation of a policy to one desired state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import Factory, frozen

from ..netstate.nft import NamedCounter, Table
from ..netstate.state import NetState
from ..policy.objects import Policy, Uplink
from . import dns, exemptions, guard, ip_rules, mark_owner, object_names, replies, service_sets, uplink_addresses
from .object_names import object_name
from .sysctls import required_sysctls


@frozen
class HostFacts:
    """Facts about the host that the compiled state depends on, beside the policy.

    `bridge_ports`: bridge -> its ports. `has_egress_hook`: True if the kernel has the netdev egress hook;
    without it AF_PACKET sockets are not covered. `unhookable_devices`: absent devices, on a kernel that
    cannot hook a chain at an absent device.
    """

    bridge_ports: Mapping[str, Sequence[str]] = Factory(dict)
    has_egress_hook: bool = True
    unhookable_devices: frozenset[str] = frozenset()


def compile_policy(policy: Policy, host: HostFacts = HostFacts()) -> NetState:
    """Return the state of the kernel that implements the policy."""
    tables = [_ip_table(policy)]
    if host.has_egress_hook:
        tables.append(_link_table(policy, host))
    return NetState(tuple(tables), ip_rules.ip_rules(policy), ip_rules.uplink_routes(policy), required_sysctls(policy))


def _ip_table(policy: Policy) -> Table:
    services = service_sets.collect_service_sets(policy)
    has_resolver = bool(dns.uplinks_with_resolver(policy))
    chains = [*replies.arrival_chains(policy), replies.restore_chain(policy)]
    if has_resolver:
        chains.append(dns.redirect_chain(policy, services))
    chains += guard.guard_chains(policy, services)
    for name, uplink in policy.uplink.items():
        chains.append(mark_owner.mark_owner_chain(name, uplink, services[name], has_resolver))
        chains.append(replies.reply_chain(name, uplink))
    chains += dns.resolver_chains(policy, services)
    sets = [guard.inside_set(policy)] if policy.inside else []
    for name, uplink in policy.uplink.items():
        sets += [*service_sets.nft_sets(name, services[name]), *uplink_addresses.address_sets(name, uplink)]
    sets += dns.listen_sets(policy)
    counters = [NamedCounter(object_names.UNNAMED_DEVICE)]
    for name, uplink in policy.uplink.items():
        counters += [NamedCounter(counter, ("uplink", name)) for counter in _counters(name, uplink)]
    return Table("inet", object_names.TABLE, tuple(chains), tuple(sets), tuple(counters))


def _counters(name: str, uplink: Uplink) -> list[str]:
    reasons = ["dropped", "stray", "unentitled", "unanswered", "foreign-source", "not-local"]
    if uplink.resolver:
        reasons += ["resolver-refused", "dns-blocked"]
    return [
        *(object_name(name, reason) for reason in reasons),
        *exemptions.exemption_counters(name, uplink.exempt, "inet"),
        *replies.counter_names(name, uplink),
    ]


def _link_table(policy: Policy, host: HostFacts) -> Table:
    counters = tuple(
        NamedCounter(counter, ("uplink", name))
        for name, uplink in policy.uplink.items()
        for counter in (object_name(name, "dropped"), *exemptions.exemption_counters(name, uplink.exempt, "netdev"))
    )
    chains = guard.link_chains(policy, host.bridge_ports, host.unhookable_devices)
    return Table("netdev", object_names.TABLE, chains, (), counters)
