# SPDX-License-Identifier: BSD-2-Clause
"""Who may use each uplink, as the rows of its sets: any number of services is a fixed number of rules."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from ipaddress import collapse_addresses
from itertools import product

from attrs import Factory, frozen

from ..netstate.nft import Concat, Element, Expression, Match, Payload, Set, SetRef
from ..policy.checks import accounts
from ..policy.objects import Network, Policy, Port, Service
from . import phrases
from .names import of
from .phrases import GROUP, OWNER, TO_PORT, TRANSPORT

# How a service is known -> what nft reads, and its data type.
KEYS: dict[str, tuple[Expression, str]] = {"group": (GROUP, "gid"), "user": (OWNER, "uid")}
_ADDRESS = {4: (Payload("ip", "daddr"), "ipv4_addr"), 6: (Payload("ip6", "daddr"), "ipv6_addr")}
_PORTS = ((TRANSPORT, "inet_proto"), (TO_PORT, "inet_service"))


@frozen(eq=False)
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


@frozen
class Members:
    """The services of one uplink. `clients`: the groups ("group") and users ("user") that have it.
    `rows`: the same with where they may send. `kernel`: the services of the kernel's own sockets on any port.
    `sports`: the ports of those that say theirs. `unmarked`: the users whose sockets wear no mark."""

    clients: dict[str, set[int]] = Factory(dict)
    unmarked: set[int] = Factory(set)
    rows: dict[Shape, set[Element]] = Factory(dict)
    kernel: list[str] = Factory(list)
    sports: list[Port] = Factory(list)


def members(policy: Policy) -> dict[str, Members]:
    """The members of every uplink, in one pass over the services."""
    found = {name: Members() for name in policy.uplink}
    for name, service in policy.service.items():
        mine = found[service.uplink]
        if service.kernel and not service.sport:
            mine.kernel.append(name)
        mine.sports.extend(service.sport)
        if service.unmarked and service.user:
            mine.unmarked.add(service.user.number)
        for key, account in accounts(service):
            mine.clients.setdefault(key, set()).add(account.number)
            # A service that may send anywhere is a row of one column.
            for shape, rest in _destinations(key, service):
                mine.rows.setdefault(shape, set()).add((account.number, *rest) if rest else account.number)
    return found


def sets(name: str, mine: Members) -> tuple[Set, ...]:
    """The sets of uplink `name`, those that would be empty left out."""
    origin = ("uplink", name)
    clients = [
        Set(_client_set(name, key), (KEYS[key][1],), frozenset(numbers), origin=origin)
        for key, numbers in mine.clients.items()
    ]
    rows = [
        Set(
            shape.set_name(name),
            tuple(kind for _, kind in shape.columns()),
            frozenset(mine.rows[shape]),
            frozenset({"interval"}) if shape.intervals else frozenset(),
            origin=origin,
        )
        for shape in sorted(mine.rows, key=lambda one: one.set_name(name))
    ]
    unmarked = Set(unmarked_set(name), (KEYS["user"][1],), frozenset(mine.unmarked), origin=origin)
    return (*clients, *([unmarked] if mine.unmarked else []), *rows, *_sports(name, mine))


def _sports(name: str, mine: Members) -> Iterator[Set]:
    if mine.sports:
        merged = _merged(tuple(mine.sports))
        flags = frozenset({"interval"}) if any(map(_is_range, merged)) else frozenset[str]()
        numbers = frozenset(map(phrases.ports, merged))
        yield Set(of(name, "kernel-ports"), ("inet_service",), numbers, flags, origin=("uplink", name))


def _client_set(uplink: str, key: str) -> str:
    return of(uplink, f"{key}s")


def unmarked_set(uplink: str) -> str:
    """The set of users without marks: "wan.unmarked"."""
    return of(uplink, "unmarked")


def is_unmarked(name: str, mine: Members) -> list[Match]:
    """The test for "a socket of a service whose sockets wear no mark", if there are any."""
    return [Match(OWNER, SetRef(unmarked_set(name)))] if mine.unmarked else []


def is_client(name: str, mine: Members) -> list[Match]:
    """Tests for "a socket of a service of this uplink"; any of them suffices."""
    return [Match(KEYS[key][0], SetRef(_client_set(name, key))) for key in KEYS if key in mine.clients]


def lookups(name: str, mine: Members) -> list[Match]:
    """Tests for "a socket of a service that may send there", and for the kernel's; the quick ones first."""
    found = []
    for shape in sorted(mine.rows, key=lambda one: (len(one.columns()), one.intervals, one.set_name(name))):
        parts = tuple(expression for expression, _ in shape.columns())
        found.append(Match(parts[0] if len(parts) == 1 else Concat(parts), SetRef(shape.set_name(name))))
    # A packet that the kernel has put into a tunnel still belongs to the socket that made what is inside (since Linux
    # 4.19, net/core/skbuff.c: skb_scrub_packet), so that the port of the tunnel is all that tells whose it is.
    return [*found, Match(Payload("udp", "sport"), SetRef(of(name, "kernel-ports")))] if mine.sports else found


def services(uplink: str, policy: Policy) -> dict[str, Service]:
    """The services of an uplink."""
    return {name: service for name, service in policy.service.items() if service.uplink == uplink}


def _destinations(key: str, service: Service) -> Iterator[tuple[Shape, tuple[int | str, ...]]]:
    """The rest of each row of a service, with the shape of the row."""
    addresses = [_address(network) for network in _networks(service)] or [(None, False, ())]
    ports = [(True, _is_range(one), (one.protocol, phrases.ports(one))) for one in _merged(service.ports)]
    for (family, wide, address), (narrow, ranged, port) in product(addresses, ports or [(False, False, ())]):
        yield _shape(key, family, narrow, wide or ranged), (*address, *port)


def _address(network: Network) -> tuple[int, bool, tuple[str]]:
    """Family, whether it is more than one address, and how nft writes it."""
    wide = network.prefixlen != network.max_prefixlen
    return network.version, wide, (str(network) if wide else str(network.network_address),)


@cache
def _shape(key: str, family: int | None, ports: bool, intervals: bool) -> Shape:
    """One object for each shape: to build and compare them by value would cost as much as the rows."""
    return Shape(key, family, ports, intervals)


def _networks(service: Service) -> list[Network]:
    """`to` without overlaps, which a set of intervals does not take."""
    if all(network.prefixlen == network.max_prefixlen for network in service.to):
        return list(service.to)
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


def _is_range(port: Port) -> bool:
    return port.low != port.high
