# SPDX-License-Identifier: BSD-2-Clause
"""DNS isolation: a service's DNS goes only to its uplink's resolver, and no other process reaches it.

The redirection is NAT in the output hook, keyed by the socket's group or user, for UDP and TCP in
both families and any server address. DNS packets that NAT does not redirect are dropped later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..netstate.nft import ACCEPT, Chain, Dnat, Hook, Match, Rule, Set, SetRef, Verdict
from ..policy.objects import DNS_PORT, Listen, Policy, Resolver, Server, Uplink
from . import matches, object_names
from .matches import INPUT_DEVICE, IP_HEADERS, SOCKET_UID, TCP_OR_UDP, TO_DNS
from .object_names import object_name
from .service_sets import ServiceSets, client_matches


def uplinks_with_resolver(policy: Policy) -> dict[str, tuple[Uplink, Resolver]]:
    """Return the uplinks that have a resolver."""
    return {name: (uplink, uplink.resolver) for name, uplink in policy.uplink.items() if uplink.resolver}


def _listen_addresses(resolver: Resolver, family: int) -> list[Listen]:
    return [listen for listen in resolver.listen if listen.address.version == family]


def _listen_set(name: str, family: int) -> str:
    """Return the name of the set of an uplink's resolver addresses: "wan.resolver4"."""
    return object_name(name, f"resolver{family}")


def listen_sets(policy: Policy) -> tuple[Set, ...]:
    """Return the sets of the addresses and ports on which the resolvers listen."""
    return tuple(
        Set(
            _listen_set(name, family),
            ("inet_proto", kind, "inet_service"),
            frozenset(
                (protocol, str(listen.address), listen.port) for listen in listening for protocol in ("tcp", "udp")
            ),
            origin=("uplink", name, "resolver", "listen"),
        )
        for name, (_, resolver) in uplinks_with_resolver(policy).items()
        for family, (_, kind) in IP_HEADERS.items()
        if (listening := _listen_addresses(resolver, family))
    )


def _set_servers(resolver: Resolver, family: int) -> list[Server]:
    """Return the servers that the guard permits by address and port.

    Those that the resolver learns are permitted by port 53 alone.
    """
    return [
        server
        for server in resolver.named_servers
        if server.address.version == family and not (resolver.learns_servers and server.port == DNS_PORT)
    ]


def _server_set(name: str, family: int) -> str:
    """Return the name of the set of the servers that a resolver may query: "wan.servers4"."""
    return object_name(name, f"servers{family}")


def server_sets(policy: Policy) -> tuple[Set, ...]:
    """Return the sets of the addresses and ports that the resolvers may query."""
    return tuple(
        Set(
            _server_set(name, family),
            ("inet_proto", kind, "inet_service"),
            frozenset(
                (protocol, str(server.address), server.port) for server in servers for protocol in server.protocols
            ),
            origin=("uplink", name, "resolver"),
        )
        for name, (_, resolver) in uplinks_with_resolver(policy).items()
        for family, (_, kind) in IP_HEADERS.items()
        if (servers := _set_servers(resolver, family))
    )


def entitled_resolver_rules(name: str, resolver: Resolver) -> Iterator[Rule]:
    """Yield rules that accept the queries of a resolver to its servers."""
    is_resolver, origin = Match(SOCKET_UID, resolver.user.number), ("uplink", name, "resolver")
    if resolver.learns_servers:
        yield Rule((is_resolver, TCP_OR_UDP, TO_DNS, ACCEPT), origin=origin)
    for family in IP_HEADERS:
        if _set_servers(resolver, family):
            is_server = Match(matches.transport_destination(family), SetRef(_server_set(name, family)))
            yield Rule((is_resolver, is_server, ACCEPT), origin=origin)


def redirect_chain(policy: Policy, services: Mapping[str, ServiceSets]) -> Chain:
    """Return the NAT chain; only the first packet of a flow passes it."""
    rules = [
        Rule(
            (*client, TO_DNS, TCP_OR_UDP, Dnat(family, str(listening[0].address), listening[0].port)),
            origin=("uplink", name, "resolver", "listen"),
        )
        for name, (uplink, resolver) in uplinks_with_resolver(policy).items()
        for client in client_matches(name, services[name], uplink.mark)
        for version, (family, _) in IP_HEADERS.items()
        if (listening := _listen_addresses(resolver, version))
    ]
    return Chain("dns-redirect", tuple(rules), Hook("nat", "output", object_names.REDIRECT_PRIORITY))


def resolver_dispatch_rules(policy: Policy) -> Iterator[Rule]:
    """Yield rules that send packets for a resolver to the chain that checks their sender."""
    for name, (_, resolver) in uplinks_with_resolver(policy).items():
        for family in IP_HEADERS:
            if _listen_addresses(resolver, family):
                is_addressed = Match(matches.transport_destination(family), SetRef(_listen_set(name, family)))
                yield Rule(
                    (is_addressed, Verdict("goto", object_name(name, "resolver"))),
                    origin=("uplink", name, "resolver"),
                )


def resolver_chains(policy: Policy, services: Mapping[str, ServiceSets]) -> tuple[Chain, ...]:
    """Return the chains that protect the resolvers.

    They are: access to each resolver; the drop of DNS packets of services that were not redirected;
    and the drop of packets for a resolver that arrive from a device.
    """
    if not uplinks_with_resolver(policy):
        return ()
    uplinks = uplinks_with_resolver(policy)
    access = tuple(_resolver_chain(name, services, uplink) for name, (uplink, _) in uplinks.items())
    not_redirected = tuple(
        matches.count_and_drop(
            object_name(name, "dns-blocked"), TCP_OR_UDP, *client, origin=("uplink", name, "resolver")
        )
        for name, (uplink, _) in uplinks.items()
        for client in client_matches(name, services[name], uplink.mark)
    )
    return (*access, Chain("dns", not_redirected), *_from_outside(policy))


def _resolver_chain(name: str, services: Mapping[str, ServiceSets], uplink: Uplink) -> Chain:
    origin = ("uplink", name, "resolver")
    rules = [Rule((*client, ACCEPT), origin=origin) for client in client_matches(name, services[name], uplink.mark)]
    rules.append(matches.count_and_drop(object_name(name, "resolver-refused"), matches.HAS_OWNER, origin=origin))
    rules.append(Rule((matches.IS_ESTABLISHED, ACCEPT), origin=origin))
    rules.append(matches.count_and_drop(object_name(name, "resolver-refused"), origin=origin))
    return Chain(object_name(name, "resolver"), tuple(rules), origin=origin)


def _from_outside(policy: Policy) -> tuple[Chain, ...]:
    """Return the chain that drops packets from other devices for resolvers on non-loopback addresses.

    The kernel itself drops what arrives for a loopback address (RFC 1122 3.2.1.3, RFC 4291 2.5.3).
    """
    rules = [
        matches.count_and_drop(
            object_name(name, "resolver-refused"),
            Match(INPUT_DEVICE, "lo", "!="),
            Match(matches.transport_destination(family), SetRef(_listen_set(name, family))),
            origin=("uplink", name, "resolver", "listen"),
        )
        for name, (_, resolver) in uplinks_with_resolver(policy).items()
        for family in IP_HEADERS
        if any(not listen.address.is_loopback for listen in _listen_addresses(resolver, family))
    ]
    if not rules:
        return ()
    return (Chain("from-outside", tuple(rules), Hook("filter", "input", object_names.GUARD_PRIORITY)),)
