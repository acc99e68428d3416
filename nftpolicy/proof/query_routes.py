# SPDX-License-Identifier: BSD-2-Clause
"""P5: a DNS query has a route, since without one the call fails before any hook redirects the query.

Proved only for rules whose last table leads all queries to lo: other default routes come and go. A
query that an earlier rule or route refuses has none; what refuses only some servers is an assumption.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from attrs import field, frozen

from ..model.packet import TCP, UDP, Packet, evolve_packet
from ..model.trace import Trace
from ..netstate.formats import ip_text
from ..netstate.routing import LOOPBACK_ADDRESSES, IpRule, Route
from ..netstate.state import NetState
from .concretize import remote_address
from .context import ProofContext
from .entitlement import DNS_PORT
from .spec import IP_FAMILIES, OwnerSpec, Spec, UplinkSpec
from .verdict import Counterexample, Finding, Proved, Refuted, Unknown

_REFUSALS = ("unreachable", "prohibit", "blackhole")  # of rules and routes


@frozen
class QueryRouting:
    """Lookups of all unmarked queries by one protocol.

    `has_route`: each has a route. `reaches_lo`: a rule leads them to lo, reached or not. `refusals`:
    rules and routes that refuse the queries to some servers, as text.
    """

    has_route: bool
    reaches_lo: bool
    refusals: tuple[str, ...] = field(default=())


def check_query_routes(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Iterator[Finding]:
    """Yield the finding that the queries of the uplink's services have a route."""
    subject = "DNS queries of a service that have no route before they are redirected"
    unrouted: list[Counterexample] = []
    is_unproved = is_ours = False
    for packet in _queries(context, spec, uplink):
        routing = query_routing(context.state, packet.family, packet.protocol, _routed_by_user(spec))
        if routing.has_route:
            continue
        is_unproved, is_ours = True, is_ours or not routing.reaches_lo
        trace = context.model.trace(packet)
        if trace.outcome == "unroutable":
            unrouted.append(Counterexample(packet, trace, "", "unroutable: no hook sees the query"))
    if unrouted:
        # Another program may refuse all packets without a route: then no query leaves either.
        result = Refuted(unrouted[0], tuple(unrouted[1:]))
        yield Finding("P5", uplink.name, subject, result, is_ours, uplink.origin)
    elif is_unproved:
        reason = "no ip rule leads them to lo, so they have a route only as long as another one is there"
        yield Finding("P5", uplink.name, subject, Unknown(reason), is_ours, uplink.origin)
    else:
        yield Finding("P5", uplink.name, subject, Proved())


def query_route_assumptions(state: NetState, spec: Spec) -> Iterator[str]:
    """Yield what refuses the queries to some servers, as assumptions."""
    families = {
        family
        for uplink in spec.uplinks
        if uplink.resolver is not None
        for family in IP_FAMILIES
        if uplink.resolver.endpoints(family) and _has_loopback(state, spec, family)
    }
    refusals = (
        refusal for family in families for protocol in (UDP, TCP)
        for refusal in query_routing(state, family, protocol, _routed_by_user(spec)).refusals
    )  # fmt: skip
    for refusal in dict.fromkeys(refusals):
        yield f"no service asks a DNS server that this refuses before the redirection: {refusal}"


def query_routing(state: NetState, family: int, protocol: int, ignored_users: Collection[int] = ()) -> QueryRouting:
    """Return how the unmarked queries of this machine by a protocol are routed, to any server.

    `ignored_users`: users whose queries do not count.
    """
    refusals: list[str] = []
    has_route: bool | None = None
    reaches_lo = False
    for rule in state.rules:
        if rule.family != family or not _may_match(rule, protocol) or (rule.oif and not rule.invert):
            continue  # oif: of sockets that are bound to a device
        if rule.uids and rule.uids[0] == rule.uids[1] and rule.uids[0] in ignored_users and not rule.invert:
            continue
        takes_all = _matches_all(rule, protocol)
        if rule.action in _REFUSALS:
            if not takes_all:
                refusals.append(ip_text.display_text(rule))
            elif has_route is None:
                has_route = False
        elif rule.action == "lookup":
            routes = [route for route in state.routes if (route.family, route.table) == (family, rule.table)]
            if takes_all and any(map(_is_default_by_lo, routes)):
                has_route, reaches_lo = has_route is None or has_route, True
                continue
            refused = [route for route in routes if route.kind in _REFUSALS]
            if takes_all and any(route.destination == "default" and not route.source for route in refused):
                has_route = False if has_route is None else has_route
            elif has_route is None:
                refusals += map(ip_text.display_text, refused)
        elif rule.action != "nop" and has_route is None:
            has_route = False  # "goto" and unsupported actions
    return QueryRouting(bool(has_route), reaches_lo, tuple(refusals))


def has_no_route(trace: Trace) -> bool:
    """Return True if a packet has no route, or is a query that has only the one by lo, and is not redirected."""
    if trace.outcome != "dropped":
        return trace.outcome == "unroutable"
    return any(isinstance(step.subject, Route) and _is_default_by_lo(step.subject) for step in trace.steps)


def _queries(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Iterator[Packet]:
    """Yield a query of each owner whose packets without the mark are not routed by the uplink's table."""
    assert uplink.resolver is not None
    owners: dict[OwnerSpec, None] = {
        owner: None
        for service in uplink.services
        if not service.unmarked
        for owner in service.owners
        if not owner.marked
    }
    for family in spec.families:
        if not uplink.resolver.endpoints(family) or not _has_loopback(context.state, spec, family):
            continue
        for protocol in (UDP, TCP):
            for owner in owners:
                remote = remote_address(family, spec)
                query = Packet(family, remote, None, protocol, dport=DNS_PORT, mark=0)
                yield evolve_packet(query, **{owner.key: owner.number})


def _routed_by_user(spec: Spec) -> frozenset[int]:
    """Return the users whose packets an ip rule sends to an uplink's table, as it does with a mark."""
    return frozenset(uid for uplink in spec.uplinks for uid in uplink.unmarked_uids)


def _has_loopback(state: NetState, spec: Spec, family: int) -> bool:
    """Return True if lo has the family: without it there is nothing to redirect a query to."""
    if not state.devices:
        return family in spec.loopback_families
    own = f"{LOOPBACK_ADDRESSES[family]}/"
    return any(
        device.name == "lo" and device.up and any(address.startswith(own) for address in device.addresses)
        for device in state.devices
    )


def _is_default_by_lo(route: Route) -> bool:
    return (
        (route.kind, route.destination, route.device) == ("unicast", "default", "lo")
        and not (route.source or route.tos or route.gateway or route.dead or route.unknown)
    )  # fmt: skip


def _may_match(rule: IpRule, protocol: int) -> bool:
    """Return True if some unmarked query of this machine matches."""
    if rule.invert or rule.unknown:
        return True
    return (
        not rule.mark & rule.mask
        and rule.iif in (None, "lo")
        and rule.l4proto in (None, 0, protocol)
        and (rule.dports is None or rule.dports[0] <= DNS_PORT <= rule.dports[1])
    )


def _matches_all(rule: IpRule, protocol: int) -> bool:
    """Return True if all of these queries match, and the rule takes every route of its table."""
    limits = (
        rule.source, rule.destination, rule.oif, rule.uids, rule.sports, rule.suppress_prefix, rule.suppress_group,
    )  # fmt: skip
    is_limited = any(limit is not None for limit in limits) or bool(rule.tos or rule.l3mdev)
    return _may_match(rule, protocol) and not (is_limited or rule.invert or rule.unknown)
