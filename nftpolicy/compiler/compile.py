# SPDX-License-Identifier: BSD-2-Clause
"""The whole of a policy as one desired state."""

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
    """What the compiled state depends on beside the policy.

    `ports`: bridge -> its ports. `link_guard`: whether the kernel has the netdev egress hook;
    without it AF_PACKET sockets are not covered. `unhooked`: devices that are not there, on a kernel
    that can't hook a chain at such a device.
    """

    ports: Mapping[str, Sequence[str]] = Factory(dict)
    link_guard: bool = True
    unhooked: frozenset[str] = frozenset()


def compile_policy(policy: Policy, machine: Machine = Machine()) -> NetState:
    """The state of the kernel that carries out the policy."""
    tables = (_ip_table(policy), *((_link_table(policy, machine),) if machine.link_guard else ()))
    return NetState(tables, ladder.rules(policy), ladder.routes(policy), sysctls(policy))


def _ip_table(policy: Policy) -> Table:
    who = members.members(policy)
    chains = [*answers.arrival(policy), answers.restore(policy)]
    if dns.resolvers(policy):
        chains.append(dns.redirect(policy, who))
    chains += guard.chains(policy, who)
    for name, uplink in policy.uplink.items():
        chains += [identity.chain(name, uplink, who[name], bool(dns.resolvers(policy))), answers.chain(name, uplink)]
    chains += dns.chains(policy, who)
    sets = [guard.inside_set(policy)] if policy.inside else []
    for name in policy.uplink:
        sets += members.sets(name, who[name])
    sets += dns.sets(policy)
    counters = [NamedCounter(names.UNKNOWN_DEVICE)]
    for name, uplink in policy.uplink.items():
        counters += [NamedCounter(counter, ("uplink", name)) for counter in _counters(name, uplink)]
    return Table("inet", names.TABLE, tuple(chains), tuple(sets), tuple(counters))


def _counters(name: str, uplink: Uplink) -> list[str]:
    reasons = ["dropped", "stray", "unentitled", "unanswered", "not-mine"]
    reasons += ["resolver-refused", "dns-blocked"] if uplink.resolver else []
    return [
        *(of(name, reason) for reason in reasons),
        *exemptions.counters(name, uplink.exempt, "inet"),
        *answers.counters(name, uplink),
    ]


def _link_table(policy: Policy, machine: Machine) -> Table:
    counters = tuple(
        NamedCounter(counter, ("uplink", name))
        for name, uplink in policy.uplink.items()
        for counter in (of(name, "dropped"), *exemptions.counters(name, uplink.exempt, "netdev"))
    )
    return Table("netdev", names.TABLE, guard.link_chains(policy, machine.ports, machine.unhooked), (), counters)
