# SPDX-License-Identifier: BSD-2-Clause
"""Permissions of a policy, in words: which sender may use which uplink, for which ports and destinations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from attrs import evolve, frozen

from .objects import Account, Lan, Network, Policy, Port, Resolver, Service

ANSWERS = "get answers from"  # verb
_PING = Port("ping", 0, 0)


@frozen
class Permission:
    """Permission of a sender to use an uplink, for one port and one network.

    `traffic` is a port, or another kind of traffic as text; None: anything. `network`: the destinations, or the peers
    of an answer; None: any. `uplink` is "" for devices inside.
    """

    sender: str
    verb: str
    uplink: str
    traffic: Port | str | None = None
    network: Network | None = None

    def covers(self, other: Permission) -> bool:
        """Return True if it permits all that `other` permits."""
        if evolve(self, traffic=None, network=None) != evolve(other, traffic=None, network=None):
            return False
        if isinstance(self.traffic, Port) and isinstance(other.traffic, Port):
            has_traffic = self.traffic.contains(other.traffic)
        else:
            has_traffic = self.traffic in (None, other.traffic)
        return has_traffic and (self.network is None or _contains(self.network, other.network))


def _contains(network: Network, other: Network | None) -> bool:
    return other is not None and network.version == other.version and other.subnet_of(network)  # type: ignore[arg-type]


def permissions(policy: Policy) -> tuple[Permission, ...]:
    """Return all permissions of a policy, each once."""
    return tuple(dict.fromkeys(_permissions(policy)))


def _permissions(policy: Policy) -> Iterator[Permission]:
    for pattern in policy.inside:
        yield Permission("every program", "may use device", "", pattern)
    for name, uplink in policy.uplink.items():
        for word in uplink.exempt:
            yield Permission("every program", "may send", name, word)
        for answer in uplink.answer:
            for network in answer.source or (None,):
                yield Permission("hosts in its network", ANSWERS, name, answer.port or _PING, network)
        if uplink.resolver is not None:
            yield Permission("its services", "send DNS queries to", name, _servers(uplink.resolver))
    for service in policy.service.values():
        yield from _each(Permission(_socket_owner(service), "may send", service.uplink), service.ports, service.to)
    for forward in policy.forward.values():
        source = f" from {', '.join(map(str, forward.source))}" if forward.source else ""
        sender = f"hosts behind {', '.join(forward.devices)}{source}"
        yield from _each(Permission(sender, "may send", forward.uplink), forward.ports, forward.to)
    for published in policy.publish.values():
        yield Permission("hosts in its network", f"reach, behind {published.to},", published.uplink, published.port)
    for lan in policy.lan.values():
        yield from _each(Permission(_lan_sender(lan), "may send without a mark", lan.uplink), lan.ports, lan.to)


def _each(permission: Permission, ports: Collection[Port], networks: Collection[Network]) -> Iterator[Permission]:
    """Yield the permission for each port and each network."""
    for port in ports or (None,):
        for network in networks or (None,):
            yield evolve(permission, traffic=port, network=network)


def _socket_owner(service: Service) -> str:
    accounts = _accounts(service.group, service.user)
    if not service.kernel:
        return accounts
    ports = f" from {', '.join(map(str, service.sport))}" if service.sport else ""
    return f"the kernel{ports}{f' and {accounts}' if accounts else ''}"


def _accounts(group: Account | None, user: Account | None) -> str:
    return " as ".join(f"{kind} {each.name}" for kind, each in (("group", group), ("user", user)) if each is not None)


def _lan_sender(lan: Lan) -> str:
    ports = f" from {', '.join(map(str, lan.sport))}" if lan.sport else ""
    return f"{_accounts(lan.group, lan.user) or 'every program'}{ports}"


def _servers(resolver: Resolver) -> str:
    servers = ", ".join(map(str, resolver.servers)) or "the servers that the network names"
    domains = (f"{', '.join(map(str, each))} for {domain}" for domain, each in resolver.domains.items())
    return "; ".join((servers, *domains))


def by_sender(listed: Iterable[Permission]) -> dict[Permission, list[Permission]]:
    """Return the permissions of each sender by each uplink; the key is the permission of anything."""
    groups: dict[Permission, list[Permission]] = {}
    for each in listed:
        groups.setdefault(evolve(each, traffic=None, network=None), []).append(each)
    return groups


def describe_permissions(listed: Iterable[Permission]) -> list[str]:
    """Return one line for all permissions of a sender by an uplink."""
    return [
        f"{f'uplink {sender.uplink}: ' if sender.uplink else ''}{sender.sender} {sender.verb} {describe_traffic(group)}"
        for sender, group in by_sender(listed).items()
    ]


def describe_traffic(group: Iterable[Permission]) -> str:
    """Return the traffic that the permissions of one sender are for."""
    by_network: dict[Network | None, list[str]] = {}
    direction = "to"
    for each in group:
        by_network.setdefault(each.network, []).append("anything" if each.traffic is None else str(each.traffic))
        direction = "for" if each.verb == ANSWERS else "to"
    by_ports: dict[str, list[str]] = {}
    for network, ports in by_network.items():
        by_ports.setdefault(", ".join(ports), []).append(str(network or ""))
    return "; ".join(
        f"{ports} {direction} {', '.join(networks)}" if any(networks) else ports for ports, networks in by_ports.items()
    )
