# SPDX-License-Identifier: BSD-2-Clause
"""Names: a service's DNS goes to its uplink's resolver and to no other, nobody else's goes there.

Redirection is NAT in the output hook, keyed by the socket's group or user, for UDP and TCP in
both families and whatever server was asked. What NAT did not catch is dropped later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..netstate.nft import ACCEPT, Chain, Dnat, Hook, Match, Rule, Set, SetRef, Verdict
from ..policy.objects import Listen, Policy, Resolver, Uplink
from . import names, phrases
from .members import Members, is_client
from .names import of
from .phrases import IN, TCP_OR_UDP, TO_DNS

_FAMILY = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}


def resolvers(policy: Policy) -> dict[str, tuple[Uplink, Resolver]]:
    """The uplinks that have a resolver."""
    return {name: (uplink, uplink.resolver) for name, uplink in policy.uplink.items() if uplink.resolver}


def _listening(resolver: Resolver, family: int) -> list[Listen]:
    return [one for one in resolver.listen if one.address.version == family]


def place_set(name: str, family: int) -> str:
    """The set of an uplink's resolver addresses: "wan.resolver4"."""
    return of(name, f"resolver{family}")


def sets(policy: Policy) -> tuple[Set, ...]:
    """Where the resolvers listen."""
    return tuple(
        Set(
            place_set(name, family),
            ("inet_proto", kind, "inet_service"),
            frozenset((proto, str(one.address), one.port) for one in found for proto in ("tcp", "udp")),
            origin=("uplink", name, "resolver", "listen"),
        )
        for name, (_, resolver) in resolvers(policy).items()
        for family, (_, kind) in _FAMILY.items()
        if (found := _listening(resolver, family))
    )


def redirect(policy: Policy, who: Mapping[str, Members]) -> Chain:
    """The NAT chain; only the first packet of a flow passes it."""
    rules = [
        Rule(
            (client, TO_DNS, TCP_OR_UDP, Dnat(family, str(found[0].address), found[0].port)),
            origin=("uplink", name, "resolver", "listen"),
        )
        for name, (_, resolver) in resolvers(policy).items()
        for client in is_client(name, who[name])
        for version, (family, _) in _FAMILY.items()
        if (found := _listening(resolver, version))
    ]
    return Chain("dns-redirect", tuple(rules), Hook("nat", "output", names.REDIRECT))


def to_resolvers(policy: Policy) -> Iterator[Rule]:
    """Rules that send packets for a resolver to the chain that asks who they are from."""
    for name, (_, resolver) in resolvers(policy).items():
        for family in _FAMILY:
            if _listening(resolver, family):
                reached = Match(phrases.destination(family), SetRef(place_set(name, family)))
                yield Rule((reached, Verdict("goto", of(name, "resolver"))), origin=("uplink", name, "resolver"))


def chains(policy: Policy, who: Mapping[str, Members]) -> tuple[Chain, ...]:
    """Who may reach each resolver; DNS of services that went round the redirection; the door from outside."""
    if not resolvers(policy):
        return ()
    doors = tuple(_door(name, who) for name in resolvers(policy))
    stray = tuple(
        phrases.drop(of(name, "dns-blocked"), TCP_OR_UDP, client, origin=("uplink", name, "resolver"))
        for name in resolvers(policy)
        for client in is_client(name, who[name])
    )
    return (*doors, Chain("names", stray), *_from_outside(policy))


def _door(name: str, who: Mapping[str, Members]) -> Chain:
    origin = ("uplink", name, "resolver")
    rules = [Rule((client, ACCEPT), origin=origin) for client in is_client(name, who[name])]
    rules.append(phrases.drop(of(name, "resolver-refused"), phrases.HAS_OWNER, origin=origin))
    rules.append(Rule((phrases.IS_ESTABLISHED, ACCEPT), origin=origin))
    rules.append(phrases.drop(of(name, "resolver-refused"), origin=origin))
    return Chain(of(name, "resolver"), tuple(rules), origin=origin)


def _from_outside(policy: Policy) -> tuple[Chain, ...]:
    """A resolver on an address of another device than lo must not be reached from there.

    The kernel itself drops what arrives for a loopback address (RFC 1122 3.2.1.3, RFC 4291 2.5.3).
    """
    rules = [
        phrases.drop(
            of(name, "resolver-refused"),
            Match(IN, "lo", "!="),
            Match(phrases.destination(family), SetRef(place_set(name, family))),
            origin=("uplink", name, "resolver", "listen"),
        )
        for name, (_, resolver) in resolvers(policy).items()
        for family in _FAMILY
        if any(not one.address.is_loopback for one in _listening(resolver, family))
    ]
    return (Chain("from-outside", tuple(rules), Hook("filter", "input", names.GUARD)),) if rules else ()
