# SPDX-License-Identifier: BSD-2-Clause
"""Who may wear an uplink's mark: sets of groups and users, and the chain that asks them.

The chain runs in postrouting, on packets that are about to leave by the uplink with its mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import collapse_addresses
from itertools import product

from attrs import frozen

from ..netstate.nft import ACCEPT, Chain, Concat, Element, Expression, Match, Payload, Rule, Set, SetRef, Verdict
from ..policy.checks import accounts
from ..policy.objects import Network, Policy, Port, Service, Uplink
from . import exemptions, phrases
from .names import of
from .phrases import GROUP, OWNER, TCP_OR_UDP, TO_DNS, TO_PORT, TRANSPORT

# How a service is known -> what nft reads, and its data type.
KEYS: dict[str, tuple[Expression, str]] = {"group": (GROUP, "gid"), "user": (OWNER, "uid")}
_ADDRESS = {4: (Payload("ip", "daddr"), "ipv4_addr"), 6: (Payload("ip6", "daddr"), "ipv6_addr")}
_PORTS = ((TRANSPORT, "inet_proto"), (TO_PORT, "inet_service"))


@frozen
class Shape:
    """One kind of row: what is looked up together. Each shape that a policy needs is one set."""

    key: str
    family: int | None  # of the address, if there is one
    ports: bool
    intervals: bool  # prefixes or port ranges; exact rows stay in a hash, which is quicker

    def columns(self) -> tuple[tuple[Expression, str], ...]:
        """What is read, and the data type of each."""
        address = (_ADDRESS[self.family],) if self.family else ()
        return (KEYS[self.key], *address, *(_PORTS if self.ports else ()))

    def set_name(self, uplink: str) -> str:
        """For example "wan.group-anywhere", "wan.group-to4-ports"."""
        narrowed = [f"to{self.family}" if self.family else "", "ports" if self.ports else ""]
        words = [word for word in narrowed if word] or ["anywhere"]
        return of(uplink, "-".join([self.key, *words, *(["ranges"] if self.intervals else [])]))


def client_set(uplink: str, key: str) -> str:
    """The set of all groups (or users) that have this uplink: those whose DNS it serves."""
    return of(uplink, f"{key}s")


def sets(name: str, policy: Policy) -> tuple[Set, ...]:
    """The sets of uplink `name`, those that would be empty left out."""
    members = {key: _numbers(services(name, policy), key) for key in KEYS}
    clients = [
        Set(client_set(name, key), (KEYS[key][1],), numbers, origin=("uplink", name))
        for key, numbers in members.items()
        if numbers
    ]
    rows = [
        Set(
            shape.set_name(name),
            tuple(kind for _, kind in shape.columns()),
            frozenset(elements),
            frozenset({"interval"}) if shape.intervals else frozenset(),
            origin=("uplink", name),
        )
        for shape, elements in sorted(_rows(name, policy).items(), key=lambda item: item[0].set_name(name))
    ]
    return (*clients, *rows)


def services(uplink: str, policy: Policy) -> dict[str, Service]:
    """The services of an uplink."""
    return {name: service for name, service in policy.service.items() if service.uplink == uplink}


def _numbers(chosen: dict[str, Service], key: str) -> frozenset[int]:
    return frozenset(
        account.number for service in chosen.values() for kind, account in accounts(service) if kind == key
    )


def _rows(uplink: str, policy: Policy) -> dict[Shape, set[Element]]:
    """Every service as rows. A service that may send anywhere is a row of one column."""
    found: dict[Shape, set[Element]] = {}
    for service in services(uplink, policy).values():
        for key, account in accounts(service):
            for shape, rest in _destinations(key, service):
                row = (account.number, *rest)
                found.setdefault(shape, set()).add(row if rest else account.number)
    return found


def _destinations(key: str, service: Service) -> Iterator[tuple[Shape, tuple[int | str, ...]]]:
    for network, port in product(_networks(service) or (None,), _merged(service.ports) or (None,)):
        wide = network is not None and network.prefixlen != network.max_prefixlen
        shape = Shape(key, network.version if network else None, port is not None, wide or _is_range(port))
        address = () if network is None else (str(network if wide else network.network_address),)
        yield shape, (*address, *((port.protocol, phrases.ports(port)) if port else ()))


def _networks(service: Service) -> list[Network]:
    """`to` without overlaps, which a set of intervals does not take."""
    if all(network.prefixlen == network.max_prefixlen for network in service.to):
        return list(dict.fromkeys(service.to))
    versions = ([net for net in service.to if net.version == version] for version in (4, 6))
    return [network for same in versions for network in collapse_addresses(same)]


def _merged(ports: tuple[Port, ...]) -> list[Port]:
    """Port ranges without overlaps."""
    merged: list[Port] = []
    for port in sorted(ports, key=lambda one: (one.protocol, one.low)):
        last = merged[-1] if merged else None
        if last and last.protocol == port.protocol and port.low <= last.high:
            merged[-1] = Port(port.protocol, last.low, max(last.high, port.high))
        else:
            merged.append(port)
    return merged


def _is_range(port: Port | None) -> bool:
    return port is not None and port.low != port.high


def chain(name: str, uplink: Uplink, policy: Policy) -> Chain:
    """The chain "wan.identity": accept whose mark it is, drop the rest."""
    origin = ("uplink", name, "mark")
    rules = [Rule((TO_DNS, Verdict("jump", "names")), origin=origin)] if uplink.resolver else []
    rules += [_lookup(shape, name) for shape in sorted(_rows(name, policy), key=_quickest_first)]
    if uplink.resolver:
        mine = Match(OWNER, uplink.resolver.user.number)
        rules.append(Rule((mine, TCP_OR_UDP, TO_DNS, ACCEPT), origin=("uplink", name, "resolver")))
    rules.append(
        Rule(
            (phrases.IS_REPLY, phrases.wears(uplink.mark, phrases.FLOW_MARK), Verdict("goto", of(name, "answers"))),
            origin=origin,
        )
    )
    rules += exemptions.rules(name, exemptions.reports_of(uplink.exempt), "inet")
    rules.append(phrases.drop(of(name, "unentitled"), phrases.HAS_OWNER, origin=origin))
    # From here on: packets without an owner, of the kernel's own sockets or of sockets that a
    # process has closed, whose earlier packets passed above.
    rules += [
        Rule((Match(TRANSPORT, "udp"), ACCEPT), origin=("service", service, "kernel"))
        for service, value in services(name, policy).items()
        if value.kernel
    ][:1]
    rules.append(Rule((phrases.IS_ESTABLISHED, ACCEPT), origin=origin))
    rules.append(phrases.drop(of(name, "unentitled"), origin=origin))
    return Chain(of(name, "identity"), tuple(rules), origin=origin)


def _quickest_first(shape: Shape) -> tuple[int, bool, str]:
    return len(shape.columns()), shape.intervals, shape.set_name("")


def _lookup(shape: Shape, name: str) -> Rule:
    parts = tuple(expression for expression, _ in shape.columns())
    left = parts[0] if len(parts) == 1 else Concat(parts)
    return Rule((Match(left, SetRef(shape.set_name(name))), ACCEPT), origin=("uplink", name))
