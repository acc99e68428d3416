# SPDX-License-Identifier: BSD-2-Clause
"""FIB lookup through rules and tables, for both families, and the result of a lookup."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from attrs import evolve, frozen

from ...netstate.formats import ip_text
from ...netstate.routing import TABLE_MAIN, IpRule, Nexthop, Route
from ...netstate.state import NetState
from ..branching import Choices
from ..trace_step import NullLog, TraceLog, TraceStep
from .rpdb import LOOPBACK, FlowKey, Rpdb
from .source_address import LocalAddresses
from .tables import ROUTE_ERRORS, FibMatch, FibQuery, Table4, Table6

UNKNOWN = "unknown"
# Actions of an ip rule that end the lookup, with the error for the sender (fib_rules_lookup).
RULE_ERRORS = {"unreachable": "ENETUNREACH", "prohibit": "EACCES", "blackhole": "EINVAL"}
NO_ROUTE = "ENETUNREACH"
OUTPUT_OUTCOMES = ("unicast", "broadcast", "multicast")


@frozen
class RouteResult:
    """The result of a lookup.

    `outcome` is "unicast", "broadcast" or "multicast" (the packet leaves by `device`), "local" (it
    stays on this machine), "unreachable", "prohibit", "blackhole", "none" (no route, or the packet
    is refused; `error` has the errno) or "unknown". `devices` are all devices by which it may
    leave: several if the nexthops of a route differ in the device, none for "unknown" if any is
    possible. `gateway` is None if the destination is on the link, or if the nexthops differ in it.
    `source` is the address that the kernel selects for a packet without one, None if it is not
    known. `unsupported` has the open questions and unsupported constructs that the result depends
    on.
    """

    outcome: str
    device: str | None = None
    gateway: str | None = None
    source: str | None = None
    table: int | None = None
    rule: IpRule | None = None
    route: Route | None = None
    devices: tuple[str, ...] = ()
    error: str | None = None
    unsupported: tuple[str, ...] = ()

    @property
    def leaves(self) -> bool:
        """Return True if the packet certainly leaves."""
        return self.outcome in OUTPUT_OUTCOMES


@frozen
class LookupResult:
    """The decision of the rules: a rule that refuses, or a rule, its table and a match in it."""

    rule: IpRule | None
    table: int | None = None
    match: FibMatch | None = None


class FibLookup:
    """The rules, tables, addresses and settings of one family, indexed once."""

    def __init__(self, state: NetState, family: int, addresses: LocalAddresses) -> None:
        self.addresses = addresses
        self._devices = {device.name: device for device in state.devices}
        self._values = {sysctl.path: sysctl.value for sysctl in state.sysctls}
        self.rpdb = Rpdb(family, state.rules, state.devices)
        routes: dict[int, list[Route]] = defaultdict(list)
        for route in state.routes:
            if route.family == family:
                routes[route.table].append(route)
        self.routes = routes
        table_class: type[Table4] | type[Table6] = Table4 if family == 4 else Table6
        self.tables = {number: table_class(table_routes) for number, table_routes in routes.items()}

    def sysctl(self, path: str) -> str | None:
        """Return the value of a sysctl, None if the state does not contain it."""
        return self._values.get(path)

    def resolve(self, flow_key: FlowKey, query: FibQuery, choices: Choices, log: TraceLog) -> LookupResult:
        """Return the result of the first rule that has one; without a rule there is no route."""
        for rule in self.rpdb.matching_rules(flow_key, choices):
            log_effect = step_logger(rule, log)
            if rule.action == "goto":
                log_effect(f"goto {rule.goto}")
                continue
            if rule.action == "nop":
                log_effect("continue")
                continue
            if rule.action in RULE_ERRORS:
                log_effect(rule.action)
                return LookupResult(rule)
            if rule.action != "lookup" or (rule.l3mdev and self.rpdb.has_vrf is not False):
                # An unsupported action may have any effect.
                log_effect(UNKNOWN)
                return LookupResult(rule, None, FibMatch(Route(flow_key.family, 0), (), 0, is_known=False))
            # "not l3mdev" matches packets in no VRF, and has no table then: the kernel uses main.
            number = TABLE_MAIN if rule.l3mdev else rule.table
            table = self.tables.get(number)
            match = table.find(query, choices) if table else None
            if match is None:
                log_effect(f"no route in table {number}, continue")
                continue
            if match.route.kind == "throw":
                log_effect("throw, continue")
                continue
            remaining = self._unsuppressed(rule, match, choices)
            if remaining is None:
                log_effect(f"suppresses {ip_text.display_text(match.route)}, continue")
                continue
            log_effect(f"found in table {number}")
            return LookupResult(rule, number, remaining)
        return LookupResult(None)

    def _unsuppressed(self, rule: IpRule, match: FibMatch, choices: Choices) -> FibMatch | None:
        """Return the match without suppressed nexthops, or None.

        Models fib4_rule_suppress and fib6_rule_suppress: IPv4 tests the first nexthop of a route,
        IPv6 the selected one.
        """
        route = match.route
        if route.kind in ROUTE_ERRORS:
            return match
        if rule.suppress_prefix is not None and match.length <= rule.suppress_prefix:
            return None
        if rule.suppress_group is None or not match.hops:
            return match
        if route.family == 4:
            is_suppressed = self._is_in_group(route.all_nexthops[0], rule.suppress_group, choices)
            return None if is_suppressed else match
        hops = tuple(hop for hop in match.hops if not self._is_in_group(hop, rule.suppress_group, choices))
        if len(hops) == len(match.hops):
            return match
        if not hops or choices.branch_on(f"which nexthop {ip_text.display_text(route)} uses"):
            return None
        return evolve(match, hops=hops)

    def _is_in_group(self, hop: Nexthop, group: int, choices: Choices) -> bool:
        device = self._devices.get(hop.device or "")
        if device is None:
            return choices.branch_on(f"the group of {hop.device}")
        return device.group == group


def _discard(_: str) -> None:
    pass


def step_logger(rule: IpRule, log: TraceLog) -> Callable[[str], None]:
    """Return a function that logs an effect of the rule."""

    if isinstance(log, NullLog):
        return _discard

    def log_effect(effect: str) -> None:
        log.append(TraceStep("ip-rule", ip_text.display_text(rule), rule, rule.origin, effect))

    return log_effect


def output_kind(route: Route) -> str:
    """Return the outcome for a packet that leaves by this route."""
    return route.kind if route.kind in OUTPUT_OUTCOMES else "unicast"


def local_result(result: LookupResult, source: str | None) -> RouteResult:
    """Return the result for a packet that stays on this machine."""
    match = result.match
    assert match is not None
    return RouteResult("local", LOOPBACK, None, source, result.table, result.rule, match.route)


def error_result(result: LookupResult) -> RouteResult | None:
    """Return the result of a lookup without a route or with an unusable one.

    None: the route is usable. An unsupported route gives the outcome "unknown".
    """
    match, rule, table = result.match, result.rule, result.table
    if rule is None:
        return RouteResult("none", error=NO_ROUTE)
    if match is None:
        return RouteResult(rule.action, rule=rule, error=RULE_ERRORS[rule.action])
    route = match.route
    if not match.is_known:
        text = ip_text.display_text(route) if table is not None else ip_text.display_text(rule)
        return RouteResult(UNKNOWN, None, None, None, table, rule, route, unsupported=(text,))
    if route.kind in ROUTE_ERRORS:
        kind = route.kind if route.kind != "nat" else "blackhole"
        return RouteResult(kind, None, None, None, table, rule, route, error=ROUTE_ERRORS[route.kind])
    return None


def nexthop_result(result: LookupResult, kind: str, source: Callable[[Nexthop], str | None]) -> RouteResult:
    """Return the result for a packet that leaves by a nexthop of the route.

    The outcome is "unknown" if the nexthops differ in the device.
    """
    match = result.match
    assert match is not None
    devices = tuple(dict.fromkeys(hop.device for hop in match.hops if hop.device))
    gateways = {hop.gateway for hop in match.hops}
    gateway = match.hops[0].gateway if len(gateways) == 1 else None
    sources = {source(hop) for hop in match.hops}
    own = sources.pop() if len(sources) == 1 else None
    table, rule, route = result.table, result.rule, match.route
    if len(devices) > 1:
        return RouteResult(UNKNOWN, None, gateway, own, table, rule, route, devices)
    device = devices[0] if devices else None
    return RouteResult(kind, device, gateway, own, table, rule, route, devices)


def merge_branches(results: Iterable[RouteResult], unsupported: tuple[str, ...], complete: bool) -> RouteResult:
    """Merge the results of all branches: only what they agree on is known."""
    branches = list(results)
    if not complete or any(each.outcome == UNKNOWN and not each.devices for each in branches):
        return RouteResult(UNKNOWN, unsupported=unsupported)
    first = branches[0]
    devices = tuple(dict.fromkeys(device for each in branches for device in each.devices))
    has_one_end = all(
        (each.outcome, each.device, each.error) == (first.outcome, first.device, first.error) for each in branches
    )
    if devices and not has_one_end:
        return RouteResult(UNKNOWN, devices=devices, unsupported=unsupported)
    # The packet leaves in no branch, or by this one device in all, whatever else differs.
    return evolve(
        first,
        gateway=first.gateway if all(each.gateway == first.gateway for each in branches) else None,
        source=first.source if all(each.source == first.source for each in branches) else None,
        table=first.table if all(each.table == first.table for each in branches) else None,
        rule=first.rule if all(each.rule == first.rule for each in branches) else None,
        route=first.route if all(each.route == first.route for each in branches) else None,
        devices=devices,
        unsupported=(*first.unsupported, *unsupported),
    )
