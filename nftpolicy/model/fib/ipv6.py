# SPDX-License-Identifier: BSD-2-Clause
"""IPv6 routing besides rules and tables (net/ipv6/route.c): strict devices, source selection."""

from __future__ import annotations

from attrs import evolve

from ...netstate.routing import Nexthop, Route
from ...netstate.state import NetState
from ..branching import Choices
from ..trace_step import TraceLog
from . import source_address
from .lookup import (
    OUTPUT_OUTCOMES,
    UNKNOWN,
    FibLookup,
    RouteResult,
    error_result,
    local_result,
    merge_branches,
    nexthop_result,
)
from .rpdb import LOOPBACK, FlowKey
from .source_address import LOOPBACK6, LocalAddresses
from .tables import FibQuery

_KERNEL = 2  # RTPROT_KERNEL


class Ipv6Router(FibLookup):
    """Lookups of IPv6 packets."""

    def __init__(self, state: NetState, local_addresses: LocalAddresses) -> None:
        super().__init__(state, 6, local_addresses)

    def output(self, flow_key: FlowKey, choices: Choices, log: TraceLog, exact: bool) -> RouteResult:
        """Route a packet that this machine sends (ip6_route_output, ip6_dst_lookup_tail)."""
        # A bound socket leaves by its device only; for RTM_GETROUTE with a source it is a
        # preference.
        is_bound = flow_key.oif is not None
        routed = self._output_once(flow_key, choices, log, is_bound and (flow_key.source is None or not exact))
        if exact or flow_key.source is not None or routed.outcome in (*OUTPUT_OUTCOMES, "local", UNKNOWN):
            return routed
        # ip6_dst_lookup_tail: without a route, the kernel selects a source and retries with it.
        retries = [
            self._output_once(evolve(flow_key, source=own), choices, [], is_bound)
            for own in self.addresses.source_candidates6(flow_key.oif)
        ]
        return merge_branches(retries, (), True) if retries else routed

    def _output_once(self, flow_key: FlowKey, choices: Choices, log: TraceLog, strict: bool) -> RouteResult:
        is_strict = strict or source_address.needs_device6(flow_key.destination)
        query = FibQuery(flow_key.destination, flow_key.source or 0, flow_key.oif, flow_key.tos, is_strict)
        return self._lookup(flow_key, query, choices, log)

    def input(self, flow_key: FlowKey, choices: Choices, log: TraceLog, exact: bool) -> RouteResult:
        """Route a received packet (ip6_route_input)."""
        # The device of arrival is also preferred as output device.
        is_strict = source_address.needs_device6(flow_key.destination)
        query = FibQuery(flow_key.destination, flow_key.source or 0, flow_key.iif, flow_key.tos, is_strict)
        routed = self._lookup(flow_key, query, choices, log)
        is_off = self.sysctl("net/ipv6/conf/all/forwarding") == "0"
        if not exact and routed.outcome != "local" and is_off:
            return RouteResult("none", error="EHOSTUNREACH")
        return routed

    def _lookup(self, flow_key: FlowKey, query: FibQuery, choices: Choices, log: TraceLog) -> RouteResult:
        result = self.resolve(flow_key, query, choices, log)
        error = error_result(result)
        if error:
            return error
        match = result.match
        assert match is not None
        route, destination = match.route, flow_key.destination
        # An anycast address added by a user is local for received packets only.
        is_anycast = route.kind == "anycast" and (flow_key.iif != LOOPBACK or _is_by_kernel(route))
        if route.kind == "local" or is_anycast:
            has_owner = self.addresses.device_of(6, destination) is not None
            own = None
            if has_owner and destination != LOOPBACK6:
                own = source_address.format_ipv6(destination)
            return local_result(result, route.prefsrc or own)

        def source(hop: Nexthop) -> str | None:
            return route.prefsrc or self.addresses.source6(hop, destination)

        kind = "multicast" if source_address.is_multicast6(destination) else "unicast"
        routed = nexthop_result(result, kind, source)
        if flow_key.source is None:
            return routed
        return evolve(routed, source=source_address.format_ipv6(flow_key.source))


def _is_by_kernel(route: Route) -> bool:
    """Return True if the kernel added the route, for an address of this machine."""
    return route.protocol == _KERNEL
