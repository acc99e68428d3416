# SPDX-License-Identifier: BSD-2-Clause
"""P5, DNS isolation: only a service's DNS queries reach its uplink's resolver, and no other one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..model.packet import TCP, UDP, parse_address
from ..model.symbolic.box import Ranges, complement, intersect_ranges, merge_ranges, points
from ..model.symbolic.field_values import CT_STATES, MAX_VALUES
from ..netstate import nft
from ..netstate.formats import nft_text
from ..netstate.nft.symbols import CT_DIRECTIONS
from ..policy.objects import ROOT
from .bypass import redirect_violations
from .context import ProofContext
from .counterexample import search_outcome
from .entitlement import DNS_PORT, forwarded_regions, reply_regions, translated_regions
from .findings import finding
from .lemmas import Violation, guard_violation
from .no_leak import exempt_headers
from .spec import IP_FAMILIES, OwnerSpec, Region, ResolverSpec, Spec, UplinkSpec
from .usability_case import is_loopback
from .verdict import Finding

_ESTABLISHED = points(CT_STATES["established"])
_QUERIES = Region({"protocol": points(TCP, UDP), "fragment": points(0), "dport": points(DNS_PORT)})


def check_dns_isolation(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Iterator[Finding]:
    """Yield the findings of P5 for one uplink, which has a resolver."""
    resolver = uplink.resolver
    assert resolver is not None
    owners = [owner for service in uplink.services for owner in service.owners]
    bypasses: list[Violation] = []
    redirected: list[Violation] = redirect_violations(context.state)
    foreign_clients: list[Violation] = []
    from_outside: list[Violation] = []
    for family in IP_FAMILIES:
        bypasses += _bypasses(context, spec, uplink, resolver, owners, family)
        for queries in _service_queries(spec, uplink, owners):
            redirected += _wrong_redirects(context, family, queries, resolver)
        foreign_clients += _foreign_clients(context, uplink, resolver, owners, family)
        from_outside += _arriving_queries(context, resolver, family)

    subject = "DNS queries of a service that leave for another server"
    yield finding(context, "P5", uplink, subject, bypasses, *search_outcome(context, bypasses, "leaves"))
    subject = "DNS queries of a service that are redirected to another address than its resolver"
    yield finding(context, "P5", uplink, subject, redirected, [], [])
    subject = "sockets of no service that reach the resolver"
    yield finding(
        context, "P5", uplink, subject, foreign_clients, *search_outcome(context, foreign_clients, "delivered")
    )
    if from_outside or any(not is_loopback(family, address) for family, address, _ in resolver.listen):
        subject = "packets from outside that reach the resolver"
        yield finding(context, "P5", uplink, subject, from_outside, *search_outcome(context, from_outside, "delivered"))


def _bypasses(
    context: ProofContext,
    spec: Spec,
    uplink: UplinkSpec,
    resolver: ResolverSpec,
    owners: Sequence[OwnerSpec],
    family: int,
) -> Iterator[Violation]:
    """Yield violations: queries of services that postrouting accepts for another server."""
    allowed = [_to_endpoint(endpoint).narrowed(oifname=("lo",)) for endpoint in resolver.endpoints(family)]
    # A packet of an exemption, a reply, or a forwarded packet is not a query of a service, whatever its port.
    for other in spec.uplinks:
        regions = (*exempt_headers(other, family), *reply_regions(other, family), *forwarded_regions(other, family))
        allowed += [region.narrowed(oifname=other.devices) for region in regions]
        allowed += translated_regions(other, family)
    chains = context.filter_chains(family, "postrouting")
    for queries in _service_queries(spec, uplink, owners):
        violation = guard_violation(context, family, chains, queries, allowed)
        if violation is not None:
            yield violation


def _foreign_clients(
    context: ProofContext, uplink: UplinkSpec, resolver: ResolverSpec, owners: Sequence[OwnerSpec], family: int
) -> Iterator[Violation]:
    """Yield violations: packets to the resolver over lo from sockets of no service of the uplink."""
    marked_owners = [owner for owner in owners if owner.marked]
    chains = context.filter_chains(family, "postrouting")
    for endpoint in resolver.endpoints(family):
        to_resolver = _to_endpoint(endpoint).narrowed(oifname=("lo",))
        foreign = to_resolver.narrowed(socket=points(1))
        of_no_service = Region({**foreign.fields, **_no_owner_of(owners)}, oifname=foreign.oifname)
        fields = {**foreign.fields, **_no_owner_of([owner for owner in owners if not owner.marked])}
        without_mark = [
            Region({**fields, owner.key: points(owner.number)}, (uplink.lacks_mark,), foreign.oifname)
            for owner in dict.fromkeys(marked_owners)
        ]
        without_socket = to_resolver.narrowed(socket=points(0))
        established = [Region({"ct.state": _ESTABLISHED})]
        for violation in (
            *(guard_violation(context, family, chains, region) for region in (of_no_service, *without_mark)),
            guard_violation(context, family, chains, without_socket, established),
        ):
            if violation is not None:
                yield violation


def _arriving_queries(context: ProofContext, resolver: ResolverSpec, family: int) -> Iterator[Violation]:
    """Yield violations: packets to the resolver that the input hook accepts from other devices."""
    for endpoint in resolver.endpoints(family):
        address, _ = endpoint
        if is_loopback(family, address):
            continue
        arriving = Region(_to_endpoint(endpoint).fields, iifname=None, not_iifname=("lo",))
        violation = guard_violation(context, family, context.filter_chains(family, "input"), arriving)
        if violation is not None:
            yield violation


def _wrong_redirects(
    context: ProofContext, family: int, queries: Region, resolver: ResolverSpec
) -> Iterator[Violation]:
    """Yield violations: NAT rules that redirect a service's queries elsewhere."""
    transfer = context.chain_transfer(family)
    for base_chain in context.nat_chains(family, "output"):
        table, chain = base_chain
        for start in queries.readable_boxes(transfer.space):
            for event in transfer.events(base_chain, start):
                if event.kind == "nat" and not _redirects_to(event.statement, family, resolver):
                    rule = nft_text.display_text(event.rule) if event.rule is not None else "its policy"
                    yield Violation(family, event.box, f"{table.family} {table.name} {chain.name}: {rule}", ())


def _redirects_to(statement: object, family: int, resolver: ResolverSpec) -> bool:
    if not isinstance(statement, nft.Dnat) or not isinstance(statement.address, str):
        return False
    return (parse_address(statement.address), statement.port) in resolver.endpoints(family)


def _service_queries(spec: Spec, uplink: UplinkSpec, owners: Sequence[OwnerSpec]) -> Iterator[Region]:
    """Yield the DNS queries of the uplink's services, for owners by group and by user.

    A socket can match two services, by its group and by its user; the first uplink takes it, so
    owners of other uplinks' services are left out, except for root: a socket has one mark.
    """
    other_owners = [
        owner
        for other in spec.uplinks
        if other is not uplink
        for service in other.services
        for owner in service.owners
        if not owner.marked
    ]
    root_elsewhere = [
        other
        for other in spec.uplinks
        if other is not uplink and any(service.has_marked_owner for service in other.services)
    ]
    for key, is_marked in sorted({(owner.key, owner.marked) for owner in owners}):
        numbers = merge_ranges(
            (owner.number, owner.number) for owner in owners if (owner.key, owner.marked) == (key, is_marked)
        )
        fields: dict[str, Ranges] = {**_no_owner_of(other_owners), "socket": points(1), key: numbers}
        queries = Region({**_QUERIES.fields, **fields})
        if is_marked:
            yield queries.narrowed(uplink.has_mark, ct_direction=points(CT_DIRECTIONS["original"]))
        elif root_elsewhere and key == "gid":  # root may have the group
            uids = fields["uid"]
            yield queries.narrowed(uid=intersect_ranges(uids, _all_but([ROOT])))
            lack_marks = (other.lacks_mark for other in root_elsewhere)
            yield queries.narrowed(*lack_marks, uid=intersect_ranges(uids, points(ROOT)))
        else:
            yield queries


def _no_owner_of(owners: Sequence[OwnerSpec]) -> Mapping[str, Ranges]:
    """Return the user and group ranges of sockets that none of `owners` owns."""
    return {key: _all_but(owner.number for owner in owners if owner.key == key) for key in ("uid", "gid")}


def _all_but(numbers: Iterable[int]) -> Ranges:
    return complement(merge_ranges((value, value) for value in numbers), MAX_VALUES["uid"])


def _to_endpoint(endpoint: tuple[int, int]) -> Region:
    address, port = endpoint
    return Region(
        {"protocol": points(TCP, UDP), "fragment": points(0), "daddr": points(address), "dport": points(port)}
    )
