# SPDX-License-Identifier: BSD-2-Clause
"""Compilation of a policy to one desired state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import Factory, frozen

from ..netstate.nft import NamedCounter, Table
from ..netstate.state import NetState
from ..policy.objects import Policy, Uplink
from . import answers, dns, exemptions, guard, identity, ladder, members, names
from .names import of
from .sysctls import sysctls


@frozen
class Machine:
    """Facts about the host that the compiled state depends on, beside the policy.

    `ports`: bridge -> its ports. `link_guard`: True if the kernel has the netdev egress hook;
    without it AF_PACKET sockets are not covered. `unhooked`: absent devices, on a kernel that
    cannot hook a chain at an absent device.
    """

    ports: Mapping[str, Sequence[str]] = Factory(dict)
    link_guard: bool = True
    unhooked: frozenset[str] = frozenset()


def compile_policy(policy: Policy, host: Machine = Machine()) -> NetState:
    """Return the state of the kernel that implements the policy."""
    tables = [_ip_table(policy)]
    if host.link_guard:
        tables.append(_link_table(policy, host))
    return NetState(tuple(tables), ladder.rules(policy), ladder.routes(policy), sysctls(policy))


def _ip_table(policy: Policy) -> Table:
    services = members.members(policy)
    has_resolver = bool(dns.resolvers(policy))
    chains = [*answers.arrival(policy), answers.restore(policy)]
    if has_resolver:
        chains.append(dns.redirect(policy, services))
    chains += guard.chains(policy, services)
    for name, uplink in policy.uplink.items():
        chains.append(identity.chain(name, uplink, services[name], has_resolver))
        chains.append(answers.chain(name, uplink))
    chains += dns.chains(policy, services)
    sets = [guard.inside_set(policy)] if policy.inside else []
    for name in policy.uplink:
        sets += members.sets(name, services[name])
    sets += dns.sets(policy)
    counters = [NamedCounter(names.UNKNOWN_DEVICE)]
    for name, uplink in policy.uplink.items():
        counters += [NamedCounter(counter, ("uplink", name)) for counter in _counters(name, uplink)]
    return Table("inet", names.TABLE, tuple(chains), tuple(sets), tuple(counters))


def _counters(name: str, uplink: Uplink) -> list[str]:
    reasons = ["dropped", "stray", "unentitled", "unanswered", "not-mine"]
    if uplink.resolver:
        reasons += ["resolver-refused", "dns-blocked"]
    return [
        *(of(name, reason) for reason in reasons),
        *exemptions.counters(name, uplink.exempt, "inet"),
        *answers.counters(name, uplink),
    ]


def _link_table(policy: Policy, host: Machine) -> Table:
    counters = tuple(
        NamedCounter(counter, ("uplink", name))
        for name, uplink in policy.uplink.items()
        for counter in (of(name, "dropped"), *exemptions.counters(name, uplink.exempt, "netdev"))
    )
    chains = guard.link_chains(policy, host.ports, host.unhooked)
    return Table("netdev", names.TABLE, chains, (), counters)
