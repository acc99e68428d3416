# SPDX-License-Identifier: BSD-2-Clause
"""Nft sets of the services of each uplink: any number of services needs a fixed number of rules."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from itertools import product

from attrs import Factory, evolve, frozen

from ..netstate.nft import AnonymousSet, Concat, Element, Expression, Match, Payload, Set, SetRef
from ..policy.mark import Mark
from ..policy.objects import ROOT, Network, Policy, Port, Service
from ..policy.validate import account_selectors
from . import matches
from .matches import DEST_PORT, L4PROTO, SOCKET_GID, SOCKET_UID
from .object_names import object_name

# Selector of a service -> nft expression, and its data type.
ACCOUNT_KEYS: dict[str, tuple[Expression, str]] = {"group": (SOCKET_GID, "gid"), "user": (SOCKET_UID, "uid")}
# Root's sockets with the mark: any of root's servers may get a reply marked, so only flows that began here count.
_ROOT_KEY = "root"
_COLUMNS = {**ACCOUNT_KEYS, _ROOT_KEY: ACCOUNT_KEYS["user"]}
_ADDRESS = {family: (Payload(header, "daddr"), kind) for family, (header, kind) in matches.IP_HEADERS.items()}
_ECHO_REQUEST = {
    family: Match(Payload(header, "type"), "echo-request") for family, header in {4: "icmp", 6: "icmpv6"}.items()
}
PORT_COLUMNS = ((L4PROTO, "inet_proto"), (DEST_PORT, "inet_service"))


def match_in_set(columns: Sequence[tuple[Expression, str]], set_name: str) -> Match:
    """Return the match for packets whose values of these columns (expression, data type) are an element of the set."""
    parts = tuple(expression for expression, _ in columns)
    return Match(parts[0] if len(parts) == 1 else Concat(parts), SetRef(set_name))


@frozen(eq=False)
class SetSchema:
    """Columns of a set: the fields that are looked up together. Each schema in use is one set.

    `kind` of packets: "ports" (with columns of protocol and port), "ping" (echo requests) or "" (all).
    `number`: of the set; services of one account can have intervals that overlap, which no set accepts.
    """

    key: str
    family: int | None  # of the address column, None without one
    kind: str
    intervals: bool  # prefixes or port ranges; exact elements stay in a hash, which is faster
    number: int = 1

    def columns(self) -> tuple[tuple[Expression, str], ...]:
        """Return the expression and the data type of each column."""
        address = (_ADDRESS[self.family],) if self.family else ()
        return (_COLUMNS[self.key], *address, *(PORT_COLUMNS if self.kind == "ports" else ()))

    def lookups(self, uplink: str) -> list[tuple[Match, ...]]:
        """Return the matches for packets in the set; any of them suffices."""
        is_listed = match_in_set(self.columns(), self.set_name(uplink))
        direction = (matches.IS_ORIGINAL,) if self.key == _ROOT_KEY else ()
        if self.kind != "ping":
            return [(*direction, is_listed)]
        return [
            (*direction, _ECHO_REQUEST[family], is_listed) for family in _ECHO_REQUEST if self.family in (None, family)
        ]

    def set_name(self, uplink: str) -> str:
        """Return the name of the set, for example "wan.group-anywhere", "wan.group-to4-ports"."""
        parts = []
        if self.family:
            parts.append(f"to{self.family}")
        if self.kind:
            parts.append(self.kind)
        parts = parts or ["anywhere"]
        if self.intervals:
            parts.append("ranges")
        if self.number > 1:
            parts.append(str(self.number))
        return object_name(uplink, "-".join([self.key, *parts]))


@frozen
class ServiceSets:
    """Set contents of the services of one uplink.

    `clients`: groups ("group") and users ("user") of the services. `has_root`: root's sockets with the mark
    are of a service, too. `unmarked`: users with sockets that carry no mark. `rows`: elements with
    destinations, by schema. `kernel`: services of the kernel's own sockets on any port. `sports`: ports of
    the kernel's sockets that the policy names.
    """

    clients: dict[str, set[int]] = Factory(dict)
    unmarked: set[int] = Factory(set)
    rows: dict[SetSchema, set[Element]] = Factory(dict)
    kernel: list[str] = Factory(list)
    sports: list[Port] = Factory(list)
    has_root: bool = False


def collect_service_sets(policy: Policy) -> dict[str, ServiceSets]:
    """Return the set contents of every uplink, in one pass over the services."""
    by_uplink = {
        name: ServiceSets(has_root=any(service.of_root for service in uplink_services(name, policy).values()))
        for name in policy.uplink
    }
    by_account: dict[tuple[str, str, int], dict[SetSchema, set[_Destination]]] = {}
    for name, service in policy.service.items():
        contents = by_uplink[service.uplink]
        if service.kernel and not service.sport and not service.ports:
            contents.kernel.append(name)
        contents.sports.extend(service.sport)
        if service.unmarked and service.user:
            contents.unmarked.add(service.user.number)
        for selector, account in account_selectors(service):
            key = _ROOT_KEY if service.of_root else selector
            if not service.of_root:
                contents.clients.setdefault(key, set()).add(account.number)
            earlier = by_account.setdefault((service.uplink, key, account.number), {})
            added = [(_without_overlaps(schema, to, earlier), to) for schema, to in _destinations(key, service)]
            for schema, to in added:
                earlier.setdefault(schema, set()).add(to)
                # A service that may send anywhere is an element with one column.
                row: Element = (account.number, *to.columns) if to.columns else account.number
                contents.rows.setdefault(schema, set()).add(row)
    return by_uplink


@frozen
class _Destination:
    """Destination of a service: a network and ports, None for any."""

    network: Network | None
    port: Port | None

    @property
    def columns(self) -> tuple[int | str, ...]:
        """Return the columns of an element behind that of the account."""
        address = () if self.network is None else (network_text(self.network),)
        if self.port is None or self.port.protocol == "ping":
            return address
        return (*address, self.port.protocol, matches.port_value(self.port))

    def overlaps(self, other: _Destination) -> bool:
        """Return True if some packet is to both; they are of one schema."""
        if self.network and other.network and not self.network.overlaps(other.network):
            return False
        return not (self.port and other.port) or self.port.overlaps(other.port)


def _without_overlaps(
    schema: SetSchema, destination: _Destination, earlier: Mapping[SetSchema, Collection[_Destination]]
) -> SetSchema:
    """Return the first set of a schema in which no destination of an earlier service of the account overlaps with it.

    One that is equal is the same element.
    """
    while (
        schema.intervals
        and destination not in earlier.get(schema, ())
        and any(destination.overlaps(other) for other in earlier.get(schema, ()))
    ):
        schema = _schema(schema.key, schema.family, schema.kind, schema.intervals, schema.number + 1)
    return schema


def nft_sets(name: str, contents: ServiceSets) -> tuple[Set, ...]:
    """Return the sets of uplink `name`, without those that would be empty."""
    origin = ("uplink", name)
    result = [
        Set(_client_set(name, key), (ACCOUNT_KEYS[key][1],), frozenset(numbers), origin=origin)
        for key, numbers in contents.clients.items()
    ]
    if contents.unmarked:
        types = (ACCOUNT_KEYS["user"][1],)
        result.append(Set(_unmarked_set(name), types, frozenset(contents.unmarked), origin=origin))
    for schema in sorted(contents.rows, key=lambda schema: schema.set_name(name)):
        result.append(
            Set(
                schema.set_name(name),
                tuple(data_type for _, data_type in schema.columns()),
                frozenset(contents.rows[schema]),
                frozenset({"interval"}) if schema.intervals else frozenset(),
                origin=origin,
            )
        )
    if contents.sports:
        result.append(_kernel_ports_set(name, contents.sports))
    return tuple(result)


def _kernel_ports_set(name: str, sports: list[Port]) -> Set:
    merged = merge_ports(tuple(sports))
    flags = frozenset({"interval"}) if any(map(is_port_range, merged)) else frozenset[str]()
    numbers = frozenset(map(matches.port_value, merged))
    return Set(object_name(name, "kernel-ports"), ("inet_service",), numbers, flags, origin=("uplink", name))


def _client_set(uplink: str, key: str) -> str:
    return object_name(uplink, f"{key}s")


def _unmarked_set(uplink: str) -> str:
    """Return the name of the set of users without marks: "wan.unmarked"."""
    return object_name(uplink, "unmarked")


def unmarked_user_matches(name: str, contents: ServiceSets) -> list[Match]:
    """Return the match for sockets of users without marks; [] if no service has such a user."""
    return [Match(SOCKET_UID, SetRef(_unmarked_set(name)))] if contents.unmarked else []


def client_matches(name: str, contents: ServiceSets, mark: Mark) -> list[tuple[Match, ...]]:
    """Return the matches for sockets of the services of an uplink with this mark; any tuple of them suffices."""
    clients: list[tuple[Match, ...]] = [
        (Match(expression, SetRef(_client_set(name, key))),)
        for key, (expression, _) in ACCOUNT_KEYS.items()
        if key in contents.clients
    ]
    return [*clients, *([(Match(SOCKET_UID, ROOT), matches.has_mark(mark))] if contents.has_root else [])]


def entitlement_matches(name: str, contents: ServiceSets) -> list[tuple[Match, ...]]:
    """Return the matches of sockets that may send to the packet's destination; any tuple of them suffices.

    The fast ones are first, the kernel's own sockets last.
    """
    matches: list[tuple[Match, ...]] = []
    for schema in sorted(
        contents.rows,
        key=lambda schema: (len(schema.columns()), schema.intervals, schema.set_name(name)),
    ):
        matches += schema.lookups(name)
    if contents.sports:
        # A packet that the kernel has encapsulated keeps the socket of the inner packet (since Linux
        # 4.19, net/core/skbuff.c: skb_scrub_packet), so only the tunnel's port identifies it.
        matches.append((Match(Payload("udp", "sport"), SetRef(object_name(name, "kernel-ports"))),))
    return matches


def uplink_services(uplink: str, policy: Policy) -> dict[str, Service]:
    """Return the services of an uplink."""
    return {name: service for name, service in policy.service.items() if service.uplink == uplink}


def _destinations(key: str, service: Service) -> Iterator[tuple[SetSchema, _Destination]]:
    """Yield schema and destination of each element of a service."""
    networks: Sequence[Network | None] = merge_networks(service.to) or [None]
    ports: Sequence[Port | None] = merge_ports(service.ports) or [None]
    for network, port in product(networks, ports):
        family = None if network is None else network.version
        is_wide = network is not None and network.prefixlen != network.max_prefixlen
        kind = "" if port is None else "ping" if port.protocol == "ping" else "ports"
        is_range = port is not None and is_port_range(port)
        yield _schema(key, family, kind, is_wide or is_range), _Destination(network, port)


@cache
def _schema(key: str, family: int | None, kind: str, intervals: bool, number: int = 1) -> SetSchema:
    """Return the only object of a schema: comparison by value would cost as much as the elements."""
    return SetSchema(key, family, kind, intervals, number)


def network_text(network: Network) -> str:
    """Return an element of a set of addresses: a prefix, or the only address of one."""
    return str(network if network.prefixlen < network.max_prefixlen else network.network_address)


def merge_networks(networks: Sequence[Network]) -> list[Network]:
    """Return networks without overlaps, which a set of intervals does not accept."""
    if all(network.prefixlen == network.max_prefixlen for network in networks):
        return list(networks)
    ipv4 = [network for network in networks if isinstance(network, IPv4Network)]
    ipv6 = [network for network in networks if isinstance(network, IPv6Network)]
    return [*collapse_addresses(ipv4), *collapse_addresses(ipv6)]


def merge_ports(ports: tuple[Port, ...]) -> list[Port]:
    """Return port ranges without overlaps."""
    merged: list[Port] = []
    for port in sorted(ports, key=lambda port: (port.protocol, port.low)):
        last = merged[-1] if merged else None
        if last and last.protocol == port.protocol and port.low <= last.high:
            merged[-1] = Port(port.protocol, last.low, max(last.high, port.high))
        else:
            merged.append(port)
    return merged


def any_port(ports: tuple[Port, ...]) -> int | str | AnonymousSet:
    """Return a value that matches ports, as the kernel lists it: adjacent ones of a set of intervals are merged."""
    merged = merge_ports(ports)
    if any(map(is_port_range, merged)):
        joined = merged[:1]
        for port in merged[1:]:
            if port.low == joined[-1].high + 1:
                joined[-1] = evolve(joined[-1], high=port.high)
            else:
                joined.append(port)
        merged = joined
    values = [matches.port_value(port) for port in merged]
    return values[0] if len(values) == 1 else AnonymousSet(frozenset(values))


def is_port_range(port: Port) -> bool:
    """Return True if the entry has more than one port."""
    return port.low != port.high
