# SPDX-License-Identifier: BSD-2-Clause
"""Routes of DNS queries on a machine without a default route, so that the redirection gets them.

The kernel looks up a route in the call of the socket, before any hook: without one the call fails, and
no query is redirected. So behind all other rules a query has a route by lo. The queries that are not
redirected, which would have had no route, are refused there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ..netstate.nft import Chain, CounterRef, Fib, Hook, Match, OriginPath, Payload, Reject, Rule
from ..netstate.routing import LOOPBACK_ADDRESSES, IpRule, Route
from ..policy.objects import DNS_PORT, Policy
from ..policy.validate import QUERY_TABLE
from . import matches, object_names

FAMILIES = (4, 6)
_TCP, _UDP = 6, 17
_IS_NOT_LOCAL = Match(Fib("type", ("daddr",)), "local", "!=")
_REFUSALS = {"udp": Reject("icmpx", "no-route"), "tcp": Reject("tcp reset", None)}


def ip_rules(policy: Policy) -> Iterator[IpRule]:
    """Yield the rules that give a DNS query of this machine a route if no other rule does."""
    for family, origin in _redirected_families(policy, FAMILIES).items():
        for protocol in (_UDP, _TCP):
            yield IpRule(
                family,
                object_names.QUERY_RULE_PRIORITY,
                table=QUERY_TABLE,
                iif="lo",  # packets of this machine; so the kernel dissects no packet that it forwards
                l4proto=protocol,
                dports=(DNS_PORT, DNS_PORT),
                origin=origin,
            )


def routes(policy: Policy, families: Collection[int] = FAMILIES) -> Iterator[Route]:
    """Yield the routes of these rules in the families that lo has; the kernel refuses and removes others."""
    for family, origin in _redirected_families(policy, families).items():
        yield Route(
            family,
            QUERY_TABLE,
            device="lo",
            metric=object_names.FIRST_GATEWAY_METRIC,
            # Every machine has this address; one of another device would be the source of the query otherwise.
            prefsrc=LOOPBACK_ADDRESSES[family],
            origin=origin,
        )


def refusal_chain(policy: Policy) -> Chain | None:
    """Return the chain that refuses the queries that are not redirected, None without a resolver.

    The output hook, since the kernel cannot refuse in postrouting.
    """
    origins = _redirected_families(policy, FAMILIES)
    if not origins:
        return None
    to_lo = Match(matches.OUTPUT_DEVICE, "lo")
    rules = tuple(
        Rule(
            (
                to_lo,
                Match(Payload(protocol, "dport"), DNS_PORT),
                _IS_NOT_LOCAL,
                CounterRef(object_names.UNROUTED_QUERIES),
                refusal,
            ),
            origin=next(iter(origins.values())),
        )
        for protocol, refusal in _REFUSALS.items()
    )
    return Chain(object_names.UNROUTED_QUERIES, rules, Hook("filter", "output", object_names.GUARD_PRIORITY))


def _redirected_families(policy: Policy, families: Collection[int]) -> Mapping[int, OriginPath]:
    """Return the families in which a resolver listens, with the key of the first one."""
    return {
        family: origins[0]
        for family in families
        if (
            origins := [
                ("uplink", name, "resolver", "listen")
                for name, uplink in policy.uplink.items()
                if uplink.resolver and any(listen.address.version == family for listen in uplink.resolver.listen)
            ]
        )
    }
