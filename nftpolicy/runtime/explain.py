# SPDX-License-Identifier: BSD-2-Clause
"""Explanation of one packet: the model's trace, the policy keys, and a cross-check of its routes.

The cross-check compares each route lookup of the model with the kernel's (RTM_GETROUTE).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence, Set

from attrs import evolve, field, frozen

from ..compiler import object_names
from ..compiler.compile import HostFacts, compile_policy
from ..compiler.reply_routing import answered_udp_ports
from ..model.fib.lookup import RouteResult
from ..model.packet import ADDRESS_BITS, FORWARD, ICMP, ICMPV6, SOCKET, TCP, UDP, Packet, format_address
from ..model.trace import Model, Trace
from ..model.trace_step import TraceStep
from ..netstate.formats.nft_implied_tests import RuleProgram, program_of
from ..netstate.nft import Chain, Concat, Match, Meta, OriginPath, Rule, SetRef, Table
from ..netstate.routing import RTPROT_KERNEL, RTPROT_NFTPOLICY, TABLE_LOCAL, TABLE_MAIN, IpRule, Route
from ..netstate.state import NetState
from ..policy.objects import Policy
from ..proof.assumptions import assumed_address

_PRIORITY_MAIN = 32766  # of the ip rule for table main, ip-rule(8)
_GETROUTE_PROTOCOLS = (TCP, UDP, ICMP, ICMPV6)  # accepted by RTM_GETROUTE; 0 is any protocol
_SERVICE_ORIGIN_PARTS = 2  # ("uplink", NAME)
# Error of RTM_GETROUTE -> the route type that causes it.
_ERROR_ROUTES = {errno.EACCES: "prohibit", errno.EHOSTUNREACH: "unreachable", errno.EINVAL: "blackhole"}


@frozen
class RouteQuery:
    """A route query (RTM_GETROUTE), as values of the model. Addresses are numbers."""

    family: int
    destination: int
    source: int | None
    mark: int
    iif: str | None
    oif: str | None
    uid: int
    protocol: int
    sport: int
    dport: int


@frozen
class RouteAnswer:
    """The route that the kernel or the model finds; `kind` is "none" without a route."""

    kind: str
    device: str | None = None
    gateway: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        words = [self.kind]
        if self.gateway:
            words.append(f"via {self.gateway}")
        if self.device:
            words.append(f"dev {self.device}")
        if self.source:
            words.append(f"src {self.source}")
        return " ".join(words)


# Queries the kernel; returns None if the kernel cannot answer this query.
QueryRoute = Callable[[RouteQuery], RouteAnswer | None]


@frozen
class RouteComparison:
    """A route lookup by the model and by the kernel; `name` names the lookup."""

    name: str
    model: RouteAnswer
    kernel: RouteAnswer
    agrees: bool


@frozen
class Explanation:
    """The trace of one packet, and the comparison of its route lookups with the kernel's.

    `notes` say what the packet cannot be: a reply to a request by an uplink.
    """

    trace: Trace
    comparisons: tuple[RouteComparison, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def mismatches(self) -> tuple[RouteComparison, ...]:
        """The lookups where kernel and model disagree."""
        return tuple(comparison for comparison in self.comparisons if not comparison.agrees)


@frozen
class Explainer:
    """Explains packets in one state.

    `policy` gives the names of services; `query_route` queries the kernel, None skips the
    cross-check.
    """

    state: NetState
    policy: Policy | None = None
    query_route: QueryRoute | None = None
    model: Model = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "model", Model(self.state))

    def explain(self, packet: Packet) -> Explanation:
        """Trace a packet. Raises ValueError if no such packet can exist."""
        trace = self.model.trace(packet)
        if self.policy is not None:
            steps = tuple(self._name_service(step, packet) for step in trace.steps)
            trace = evolve(trace, steps=steps)
        return Explanation(trace, tuple(self._compare_routes(trace)), tuple(self._reply_notes(packet, trace)))

    def _reply_notes(self, packet: Packet, trace: Trace) -> Iterator[str]:
        """Yield a note for each uplink that answers the packet's port, if the kernel selects a source of another."""
        is_unbound = packet.source is None and packet.origin == SOCKET and packet.protocol == UDP
        if self.policy is None or not is_unbound or trace.source is None:
            return
        address_type = self.model.address_types.address_type
        for name, uplink in self.policy.uplink.items():
            is_answered = any(port.low <= packet.sport <= port.high for port in answered_udp_ports(uplink))
            types = [address_type(packet.family, trace.source, device) for device in uplink.devices]
            if is_answered and "local" not in types:
                yield (
                    f"a reply to a request by uplink {name} needs the address that was asked: bind the server to it, "
                    "let it send from there (IP_PKTINFO), or make the answer 'exclusive'"
                )

    def _name_service(self, step: TraceStep, packet: Packet) -> TraceStep:
        """Return the step; if its rule matches a service's owner, the service is the origin."""
        assert self.policy is not None
        if not isinstance(step.subject, Rule) or not _matches_owner(step.subject):
            return step
        if len(step.origin) != _SERVICE_ORIGIN_PARTS:
            return step
        for name, service in self.policy.service.items():
            same_group = service.group is not None and service.group.number == packet.gid
            same_user = service.user is not None and service.user.number == packet.uid
            if (same_group or same_user) and service.uplink == step.origin[1]:
                return evolve(step, origin=("service", name))
        return step

    # --- cross-check with the kernel ---

    def _compare_routes(self, trace: Trace) -> list[RouteComparison]:
        """Compare the route lookups of a trace with the kernel's."""
        if self.query_route is None:
            return []
        comparisons = []
        for name, query in _route_queries(trace):
            answer = self.query_route(query)
            if answer is None:
                continue
            comparison = self._compare(name, query, answer)
            if comparison is not None:
                comparisons.append(comparison)
        return comparisons

    def _compare(self, name: str, query: RouteQuery, kernel: RouteAnswer) -> RouteComparison | None:
        """Compare one lookup; None if the model does not know the result."""
        result = self.model.router.lookup(
            query.family,
            query.destination,
            source=query.source,
            mark=query.mark,
            iif=query.iif,
            oif=query.oif,
            uid=query.uid,
            protocol=query.protocol,
            sport=query.sport,
            dport=query.dport,
            forwarded=query.iif is not None,
            exact=True,
        )
        if result.outcome == "unknown":
            return None
        model = RouteAnswer(result.outcome, result.device, result.gateway, result.source)
        return RouteComparison(name, model, kernel, _is_allowed(kernel, result))


def _route_queries(trace: Trace) -> list[tuple[str, RouteQuery]]:
    """Return name and query of each route lookup of a trace."""
    packet = trace.packet
    if not any(step.kind in ("ip-rule", "route") for step in trace.steps):
        return []
    uid = packet.uid if packet.has_socket else 0
    is_forwarded = packet.origin == FORWARD
    has_ports = packet.protocol in (TCP, UDP)
    first = RouteQuery(
        family=packet.family,
        destination=packet.destination,
        source=packet.source,
        mark=trace.mark if is_forwarded else packet.mark,
        iif=packet.iif if is_forwarded else None,
        oif=None if is_forwarded else packet.bound,
        uid=uid,
        protocol=packet.protocol if packet.protocol in _GETROUTE_PROTOCOLS else 0,
        sport=packet.sport if has_ports else 0,
        dport=packet.dport if has_ports else 0,
    )
    queries = [("the route", first)]
    if packet.source is None and trace.source is not None:
        queries.append(("the route from its source address", evolve(first, source=trace.source)))
    if not is_forwarded and any(step.kind == "reroute" for step in trace.steps):
        # IPv4 looks up as root here, whatever the user (ip_route_me_harder).
        rerouted = evolve(
            first,
            destination=trace.destination,
            source=trace.source,
            dport=trace.dport if has_ports else 0,
            mark=trace.mark,
            uid=0 if packet.family == 4 else uid,
        )
        queries.append(("the route after the output hook", rerouted))
    return queries


def _is_allowed(kernel: RouteAnswer, result: RouteResult) -> bool:
    """Return True if the kernel's route is one that the model's result allows."""
    if kernel.kind != result.outcome:
        return not _has_device(kernel.kind) and not _has_device(result.outcome)
    if not result.leaves:
        return True  # the device of a local or unroutable packet has no meaning
    if result.route is not None and len(result.route.all_nexthops) > 1:
        return kernel.device in result.devices  # the hash of the flow selects the nexthop
    return (kernel.device, kernel.gateway) == (result.device, result.gateway)


def _has_device(kind: str) -> bool:
    return kind not in ("none", "unreachable", "prohibit", "blackhole", "throw")


def kernel_route_query(links: Set[str]) -> QueryRoute:
    """Return a function that queries this kernel, which has the devices `links`."""
    from ..kernel.netlink.rtnetlink import RouteLookups

    kernel = RouteLookups()

    def query_kernel(query: RouteQuery) -> RouteAnswer | None:
        if not {query.iif, query.oif} <= {None, *links}:
            return None
        route = kernel.get_route(
            query.family,
            format_address(query.family, query.destination),
            None if query.source is None else format_address(query.family, query.source),
            mark=query.mark,
            iif=query.iif,
            oif=query.oif,
            uid=query.uid,
            protocol=query.protocol,
            sport=query.sport,
            dport=query.dport,
        )
        if isinstance(route, int):
            return RouteAnswer(_ERROR_ROUTES.get(route, "none"))
        return RouteAnswer(route.kind, route.device, route.gateway, route.prefsrc)

    return query_kernel


# --- the explained state -----------------------------------------------------------------------


def with_origins(state: NetState, desired: NetState) -> NetState:
    """Return the state of the kernel with the policy keys of the equal objects in `desired`.

    The kernel stores no keys, so one of our objects that differs from the compiled one has none.
    """
    keys = {table.key: table for table in desired.tables}
    tables = tuple(
        _table_with_origins(table, keys[table.key]) if table.key in keys else table for table in state.tables
    )
    rule_origins = {rule: rule.origin for rule in desired.rules}
    route_origins = {route: route.origin for route in desired.routes}
    return evolve(
        state,
        tables=tables,
        rules=tuple(evolve(rule, origin=rule_origins.get(rule, ())) for rule in state.rules),
        routes=tuple(
            evolve(route, origin=route_origins[route]) if route in route_origins else route for route in state.routes
        ),
    )


def _table_with_origins(table: Table, desired: Table) -> Table:
    desired_chains = {chain.name: chain for chain in desired.chains}
    set_origins = {nft_set.name: nft_set.origin for nft_set in desired.sets}
    chains = tuple(
        _chain_with_origins(chain, desired_chains[chain.name], table.family) if chain.name in desired_chains else chain
        for chain in table.chains
    )
    sets = tuple(evolve(nft_set, origin=set_origins.get(nft_set.name, ())) for nft_set in table.sets)
    return evolve(table, chains=chains, sets=sets)


def _chain_with_origins(chain: Chain, desired: Chain, family: str) -> Chain:
    """Return the chain with origins; of several equal rules, each gets the next origin."""
    origins: dict[RuleProgram, list[OriginPath]] = {}
    for rule in desired.rules:
        origins.setdefault(program_of(rule, family), []).append(rule.origin)

    def complete(rule: Rule) -> Rule:
        remaining = origins.get(program_of(rule, family))
        return evolve(rule, origin=remaining.pop(0)) if remaining else rule

    return evolve(chain, rules=tuple(map(complete, chain.rules)), origin=desired.origin)


def _matches_owner(rule: Rule) -> bool:
    """Return True if a rule matches the user or group of the packet's socket."""
    owner = {Meta("skgid"), Meta("skuid")}
    for statement in rule.statements:
        if isinstance(statement, Match) and isinstance(statement.right, SetRef | int):
            left = statement.left
            parts = left.parts if isinstance(left, Concat) else (left,)
            if not owner.isdisjoint(parts):
                return True
    return False


def compile_for(policy: Policy, ports: Mapping[str, Sequence[str]] | None = None) -> NetState:
    """Return the compiled policy, for a machine with these bridge ports."""
    return compile_policy(policy, HostFacts(ports or {}))


def assumed_environment(policy: Policy) -> tuple[NetState, tuple[str, ...]]:
    """Return the assumed environment of a policy, if no machine is given, and its description.

    The machine has no known address but those that a rule asks for; each routing table has its default route.
    """
    rules = [IpRule(family, 0, table=TABLE_LOCAL, protocol=RTPROT_KERNEL) for family in (4, 6)]
    rules += [IpRule(family, _PRIORITY_MAIN, table=TABLE_MAIN, protocol=RTPROT_KERNEL) for family in (4, 6)]
    routes = [
        Route(family, TABLE_LOCAL, prefix, "local", device="lo", protocol=RTPROT_KERNEL)
        for family, prefix in ((4, "127.0.0.0/8"), (6, "::1/128"))
    ]
    descriptions = ["the kernel's own ip rules", "127.0.0.0/8 and ::1 are this machine"]
    defaults = [(uplink.table, uplink.devices[0]) for uplink in policy.uplink.values()]
    defaults += [(TABLE_MAIN, device) for device in policy.inside[:1]]
    for table, pattern in defaults:
        device = pattern.replace("*", "0")
        routes += [Route(family, table, device=device, protocol=0, metric=1) for family in (4, 6)]
        table_name = "main" if table == TABLE_MAIN else table
        descriptions.append(f"table {table_name} has a default route by {device}")
    # Where a rule asks for the device of a source address, each device of a route needs one.
    masquerading = {forward.uplink for forward in policy.forward.values() if forward.masquerade}
    has_udp_answers = any(map(answered_udp_ports, policy.uplink.values()))
    named = [uplink.devices[0] for name, uplink in policy.uplink.items() if has_udp_answers or name in masquerading]
    named += [device.replace("*", "0") for device in policy.inside[:1] if has_udp_answers]
    for index, device in enumerate(named):
        texts = [format_address(family, assumed_address(family, index)) for family in (4, 6)]
        routes += [
            Route(family, TABLE_LOCAL, f"{text}/{ADDRESS_BITS[family]}", "local", device=device, protocol=RTPROT_KERNEL)
            for family, text in zip((4, 6), texts, strict=True)
        ]
        descriptions.append(f"{device} has the addresses {' and '.join(texts)}")
    return NetState(rules=tuple(rules), routes=tuple(routes)), tuple(descriptions)


def merge_states(ours: NetState, environment: NetState) -> NetState:
    """Return both states together, without the objects of nftpolicy in `environment`."""
    foreign_tables = tuple(table for table in environment.tables if table.name != object_names.TABLE)
    foreign_rules = [rule for rule in environment.rules if rule.protocol != RTPROT_NFTPOLICY]
    foreign_routes = [route for route in environment.routes if route.protocol != RTPROT_NFTPOLICY]
    rules = sorted((*ours.rules, *foreign_rules), key=lambda rule: (rule.family, rule.priority))
    return NetState(
        (*ours.tables, *foreign_tables),
        tuple(rules),
        (*ours.routes, *foreign_routes),
        (*ours.sysctls, *environment.sysctls),
        environment.devices,
        environment.looks,
    )
