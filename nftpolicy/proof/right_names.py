# SPDX-License-Identifier: BSD-2-Clause
"""P5, DNS isolation: only a service's DNS queries reach its uplink's resolver, and no other one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..model.box import Ranges, complement, only, ranges
from ..model.packet import TCP, UDP, number
from ..model.values import STATES, TOPS
from ..netstate import nft
from .claim import BOTH, Claim, Names, Owner, Region, UplinkClaim
from .findings import finding
from .ground import Ground
from .lemmas import Hit, guard
from .no_leak import headers
from .verdict import Finding
from .witness import seen
from .worn import DNS, answers

_ESTABLISHED = only(STATES["established"])
_QUERIES = Region({"protocol": only(TCP, UDP), "fragment": only(0), "dport": only(DNS)})


def right_names(ground: Ground, claim: Claim, uplink: UplinkClaim) -> Iterator[Finding]:
    """Yield the findings of P5 for one uplink, which has a resolver."""
    resolver = uplink.names
    assert resolver is not None
    owners = [owner for service in uplink.services for owner in service.owners]
    bypasses: list[Hit] = []
    redirected: list[Hit] = []
    foreign_clients: list[Hit] = []
    from_outside: list[Hit] = []
    for family in BOTH:
        bypasses += _bypasses(ground, claim, uplink, resolver, owners, family)
        for queries in _service_queries(claim, uplink, owners):
            redirected += _wrong_redirects(ground, family, queries, resolver)
        foreign_clients += _foreign_clients(ground, resolver, owners, family)
        from_outside += _arriving_queries(ground, resolver, family)

    subject = "DNS queries of a service that leave for another server"
    yield finding("P5", uplink, subject, bypasses, *seen(ground, bypasses, "leaves"))
    subject = "DNS queries of a service that are redirected to another address than its resolver"
    yield finding("P5", uplink, subject, redirected, [], [])
    subject = "sockets of no service that reach the resolver"
    yield finding("P5", uplink, subject, foreign_clients, *seen(ground, foreign_clients, "delivered"))
    if from_outside or any(not _is_loopback(family, address) for family, address, _ in resolver.listen):
        subject = "packets from outside that reach the resolver"
        yield finding("P5", uplink, subject, from_outside, *seen(ground, from_outside, "delivered"))


def _bypasses(
    ground: Ground, claim: Claim, uplink: UplinkClaim, resolver: Names, owners: Sequence[Owner], family: int
) -> Iterator[Hit]:
    """Yield violations: queries of services that postrouting accepts for another server."""
    allowed = [_to_endpoint(endpoint).with_(out=("lo",)) for endpoint in resolver.at(family)]
    # A packet of an exemption, or a reply, is not a query, whatever its port.
    for other in claim.uplinks:
        regions = (*headers(other, family), *answers(other, family))
        allowed += [region.with_(out=other.devices) for region in regions]
    chains = ground.at(family, "postrouting")
    for queries in _service_queries(claim, uplink, owners):
        hit = guard(ground, family, chains, queries, allowed)
        if hit is not None:
            yield hit


def _foreign_clients(ground: Ground, resolver: Names, owners: Sequence[Owner], family: int) -> Iterator[Hit]:
    """Yield violations: packets to the resolver over lo from sockets of no service of the uplink."""
    chains = ground.at(family, "postrouting")
    for endpoint in resolver.at(family):
        to_resolver = _to_endpoint(endpoint).with_(out=("lo",))
        foreign = to_resolver.with_(socket=only(1))
        foreign = Region({**foreign.fields, **_no_owner_of(owners)}, out=foreign.out)
        without_socket = to_resolver.with_(socket=only(0))
        established = [Region({"ct.state": _ESTABLISHED})]
        for hit in (
            guard(ground, family, chains, foreign),
            guard(ground, family, chains, without_socket, established),
        ):
            if hit is not None:
                yield hit


def _arriving_queries(ground: Ground, resolver: Names, family: int) -> Iterator[Hit]:
    """Yield violations: packets to the resolver that the input hook accepts from other devices."""
    for endpoint in resolver.at(family):
        address, _ = endpoint
        if _is_loopback(family, address):
            continue
        arriving = Region(_to_endpoint(endpoint).fields, arrived=None, not_arrived=("lo",))
        hit = guard(ground, family, ground.at(family, "input"), arriving)
        if hit is not None:
            yield hit


def _wrong_redirects(ground: Ground, family: int, queries: Region, resolver: Names) -> Iterator[Hit]:
    """Yield violations: NAT rules that redirect a service's queries elsewhere."""
    transfer = ground.passage(family)
    for base_chain in ground.translating(family, "output"):
        table, chain = base_chain
        for start in queries.boxes(transfer.space):
            for event in transfer.events(base_chain, start):
                if event.kind == "nat" and not _redirects_to(event.statement, family, resolver):
                    yield Hit(family, event.box, f"{table.family} {table.name} {chain.name}", ())


def _redirects_to(statement: object, family: int, resolver: Names) -> bool:
    if not isinstance(statement, nft.Dnat) or not isinstance(statement.address, str):
        return False
    return (number(statement.address), statement.port) in resolver.at(family)


def _service_queries(claim: Claim, uplink: UplinkClaim, owners: Sequence[Owner]) -> Iterator[Region]:
    """Yield the DNS queries of the uplink's services, for owners by group and by user.

    A socket can match two services, by its group and by its user; the first uplink takes it, so
    owners of other uplinks' services are left out.
    """
    other_owners = [
        owner
        for other in claim.uplinks
        if other is not uplink
        for service in other.services
        for owner in service.owners
    ]
    for key in sorted({owner.key for owner in owners}):
        numbers = ranges((owner.number, owner.number) for owner in owners if owner.key == key)
        fields: dict[str, Ranges] = {**_no_owner_of(other_owners), "socket": only(1), key: numbers}
        yield Region({**_QUERIES.fields, **fields})


def _no_owner_of(owners: Sequence[Owner]) -> Mapping[str, Ranges]:
    """Return the user and group ranges of sockets that none of `owners` owns."""
    return {key: _without(owner.number for owner in owners if owner.key == key) for key in ("uid", "gid")}


def _without(numbers: Iterable[int]) -> Ranges:
    return complement(ranges((value, value) for value in numbers), TOPS["uid"])


def _to_endpoint(endpoint: tuple[int, int]) -> Region:
    address, port = endpoint
    return Region({"protocol": only(TCP, UDP), "fragment": only(0), "daddr": only(address), "dport": only(port)})


def _is_loopback(family: int, address: int) -> bool:
    return address >> 24 == 127 if family == 4 else address == 1
