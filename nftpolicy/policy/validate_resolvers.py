# SPDX-License-Identifier: BSD-2-Clause
"""Validation of the resolvers of a policy. Each check yields (key path, what to do)."""

from __future__ import annotations

from collections.abc import Iterator

from .objects import DNS_PORT, Policy, Resolver, Server
from .toml_positions import KeyPath
from .validate_forwards import PolicyFault


def find_resolver_faults(policy: Policy) -> Iterator[PolicyFault]:
    """Yield the faults of the resolvers' own keys."""
    owners: dict[tuple[str, int], str] = {}
    for name, uplink in policy.uplink.items():
        if uplink.resolver is None:
            continue
        path: KeyPath = ("uplink", name, "resolver")
        yield from _listen_addresses((*path, "listen"), name, uplink.resolver, owners)
        if uplink.resolver.user.number == 0:
            yield (
                (*path, "user"),
                "the resolver cannot run as root: other programs of root have sockets too; choose a user of its own",
            )
        if uplink.resolver.servers and uplink.resolver.lease:
            yield (*path, "lease"), "excludes 'servers'; remove one of them"
        yield from _sources((*path, "sources"), uplink.resolver)
        yield from _servers(path, uplink.resolver)


def _servers(path: KeyPath, resolver: Resolver) -> Iterator[PolicyFault]:
    """Check `servers` and `domains` of one resolver."""
    lists: list[tuple[KeyPath, tuple[Server, ...]]] = [((*path, "servers"), resolver.servers)]
    for domain, servers in resolver.domains.items():
        lists.append(((*path, "domains", domain), servers))
        if not servers:
            yield (*path, "domains", domain), "names no server; remove the domain, or name its servers"
    for list_path, servers in lists:
        for index, server in enumerate(servers):
            if bool(server.tls_name) != bool(servers[0].tls_name):
                yield (
                    (*list_path, index),
                    f"{server} and {servers[0]} in one list: a query could leave without TLS; use one kind",
                )
    if resolver.uses_tls and resolver.learns_servers:
        yield (*path, "domains"), "a server with tls:// needs 'servers', too: unbound does not follow learned servers"


def _listen_addresses(
    path: KeyPath, name: str, resolver: Resolver, owners: dict[tuple[str, int], str]
) -> Iterator[PolicyFault]:
    """Check `listen` of one resolver; `owners` maps (address, port) to an uplink and is updated."""
    if not resolver.listen:
        yield path, "a resolver needs an address; omit the key for 127.0.0.1:54 and [::1]:54"
    if len({listen.port for listen in resolver.listen}) > 1:
        yield path, "a resolver uses the same port on all its addresses"
    for index, listen in enumerate(resolver.listen):
        key = (str(listen.address), listen.port)
        if key in owners:
            yield (*path, index), f"{listen} is already used by the resolver of uplink {owners[key]!r}"
        if listen.port == DNS_PORT and listen.address.is_loopback:
            yield (
                (*path, index),
                f"{listen} is the address of the system resolver; choose another port, such as 54",
            )
        version = listen.address.version
        family_addresses = [other for other in resolver.listen if other.address.version == version]
        if family_addresses.index(listen):
            yield (
                (*path, index),
                f"a resolver has one address per family, and {family_addresses[0]} is already listed",
            )
        owners[key] = name


def _sources(path: KeyPath, resolver: Resolver) -> Iterator[PolicyFault]:
    if resolver.sources and (resolver.servers or resolver.lease):
        other = "servers" if resolver.servers else "lease"
        yield path, f"excludes {other!r}; remove one of them"
    if "auto" in resolver.sources and len(resolver.sources) > 1:
        yield (
            (*path, resolver.sources.index("auto")),
            "'auto' includes every source; remove it or the other sources",
        )


def find_resolver_user_faults(policy: Policy) -> Iterator[PolicyFault]:
    """Yield the services whose user runs a resolver."""
    resolvers = {uplink.resolver.user.number: name for name, uplink in policy.uplink.items() if uplink.resolver}
    for name, service in policy.service.items():
        if service.user and service.user.number in resolvers:
            yield (
                ("service", name, "user"),
                f"user {service.user.name!r} runs the resolver of uplink "
                f"{resolvers[service.user.number]!r}, and its queries would be redirected to itself; "
                "choose another",
            )
