# SPDX-License-Identifier: BSD-2-Clause
"""IPv4 routing besides rules and tables (net/ipv4/route.c): source checks, devices, multicast.

The methods follow the kernel's own functions, which their docstrings name.
"""

from __future__ import annotations

from attrs import evolve

from ...netstate.routing import TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, Nexthop
from ...netstate.state import NetState
from ..branching import Choices
from ..packet import IGMP
from ..trace_step import TraceLog, TraceStep
from .lookup import (
    NO_ROUTE,
    UNKNOWN,
    FibLookup,
    LookupResult,
    RouteResult,
    error_result,
    local_result,
    nexthop_result,
    output_kind,
)
from .rpdb import LOOPBACK, FlowKey
from .source_address import (
    IPV4_BROADCAST,
    LOCAL_MULTICAST,
    LocalAddresses,
    format_ipv4,
    is_loopback4,
    is_multicast4,
)
from .tables import ROUTE_ERRORS, FibQuery, Table4

NO_RULE_EVER_ADDED = "whether no ip rule was ever added"
_KERNEL = 2  # RTPROT_KERNEL
_STRICT = 1  # rp_filter: the source must be reachable by the device of arrival
_DEFAULT_GATEWAY_BITS = 4  # __mkroute_output: multicast by a shorter prefix has no gateway


class Ipv4Router(FibLookup):
    """Lookups of IPv4 packets."""

    def __init__(self, state: NetState, local_addresses: LocalAddresses) -> None:
        super().__init__(state, 4, local_addresses)
        # Until the first ip rule is added, IPv4 looks up the local and the main table as one.
        both = (*self.routes.get(TABLE_LOCAL, ()), *self.routes.get(TABLE_MAIN, ()))
        self._merged = Table4(both) if self.rpdb.is_default else None
        local_table = self.tables.get(TABLE_LOCAL)
        self._local_table = local_table if isinstance(local_table, Table4) else None
        self._has_custom_local_routes = any(
            route.kind == "local" and route.protocol != _KERNEL for routes in self.routes.values() for route in routes
        )

    # --- output ------------------------------------------------------------------------

    def output(self, flow_key: FlowKey, choices: Choices, log: TraceLog, any_source: bool) -> RouteResult:
        """Route a packet that this machine sends (ip_route_output_key_hash_rcu)."""
        routed = self._output_by_source(flow_key, choices, any_source)
        if routed is None:
            routed = self._output_by_device(flow_key)
        if routed is not None:
            return routed
        destination, oif = flow_key.destination, flow_key.oif
        to_multicast = is_multicast4(destination)
        if oif is not None and flow_key.source is None and (to_multicast or not destination):
            source = self.addresses.select_source4(oif, None, loops=not to_multicast)
            flow_key = evolve(flow_key, source=source)
        if not destination:
            return self._make_output(flow_key, RouteResult("local", LOOPBACK, source=format_ipv4(flow_key.source)))
        result = self._lookup(flow_key, FibQuery(destination, 0, oif, flow_key.tos), choices, log)
        error = error_result(result)
        if error is None:
            return self._output_by_route(flow_key, result)
        if error.outcome != UNKNOWN and oif is not None:
            # "Apparently, routing tables are wrong. Assume, that the destination is on link."
            # (route.c)
            log.append(_assumed_on_link(error, oif))
            return self._output_on_link(flow_key, oif)
        return error

    def _output_by_source(self, flow_key: FlowKey, choices: Choices, any_source: bool) -> RouteResult | None:
        """Check the source address; return the result if it already decides, else None."""
        source, destination = flow_key.source, flow_key.destination
        if source is None:
            return None
        if is_multicast4(source) or source == IPV4_BROADCAST:
            return RouteResult("none", error="EINVAL")
        if flow_key.oif is None and (is_multicast4(destination) or destination == IPV4_BROADCAST):
            # As if the socket were bound to the device that has the source address.
            device = self._device_of_source(source, choices)
            if not device:
                return RouteResult("none", error=NO_ROUTE)
            return self._output_on_link(flow_key, device)
        must_be_ours = not any_source and self.addresses.are_known
        if must_be_ours and self._device_of_source(source, choices) is None:
            return RouteResult("none", error=NO_ROUTE)
        return None

    def _output_by_device(self, flow_key: FlowKey) -> RouteResult | None:
        """Handle a bound device; return the result if no lookup is needed, else None."""
        oif, destination = flow_key.oif, flow_key.destination
        if oif is None:
            return None
        if not self.addresses.is_up(oif):
            return RouteResult("none", error=NO_ROUTE)
        to_link = destination >> 8 == LOCAL_MULTICAST or destination == IPV4_BROADCAST
        if to_link or flow_key.protocol == IGMP:
            return self._output_on_link(flow_key, oif)
        return None

    def _output_by_route(self, flow_key: FlowKey, result: LookupResult) -> RouteResult:
        """Return the result of a lookup that found a usable route."""
        match = result.match
        assert match is not None
        route, destination = match.route, flow_key.destination
        if route.kind == "local":
            return self._make_output(flow_key, local_result(result, route.prefsrc or format_ipv4(destination)))
        if destination == IPV4_BROADCAST:
            kind = "broadcast"
        elif is_multicast4(destination):
            kind = "multicast"
        else:
            kind = output_kind(route)

        def source(hop: Nexthop) -> str | None:
            allows_loopback = self._routes_loopback(hop.device or "")
            return route.prefsrc or self.addresses.source4(hop, allows_loopback)

        routed = nexthop_result(result, kind, source)
        # A default route shows a multicast packet the device, not the gateway.
        is_by_default = kind == "multicast" and match.length < _DEFAULT_GATEWAY_BITS
        if kind == "broadcast" or is_by_default:
            routed = evolve(routed, gateway=None)
        return self._make_output(flow_key, routed)

    def _output_on_link(self, flow_key: FlowKey, device: str) -> RouteResult:
        """Return a result by the device, without a route."""
        kind = "unicast"
        if flow_key.destination == IPV4_BROADCAST:
            kind = "broadcast"
        elif is_multicast4(flow_key.destination):
            kind = "multicast"
        source = self.addresses.select_source4(device, None, self._routes_loopback(device))
        return self._make_output(flow_key, RouteResult(kind, device, source=format_ipv4(source), devices=(device,)))

    def _make_output(self, flow_key: FlowKey, routed: RouteResult) -> RouteResult:
        """Keep loopback source addresses on loopback (__mkroute_output)."""
        if flow_key.source is None:
            return routed
        source = format_ipv4(flow_key.source)
        if routed.source != source:
            routed = evolve(routed, source=source)
        if not is_loopback4(flow_key.source):
            return routed
        refusing = [device for device in routed.devices if device != LOOPBACK and not self._routes_loopback(device)]
        if not refusing:
            return routed
        if len(refusing) < len(routed.devices):
            question = f"a loopback address by {' or '.join(refusing)}"
            return evolve(routed, unsupported=(*routed.unsupported, question))
        return RouteResult("none", error="EINVAL")

    def _device_of_source(self, address: int, choices: Choices) -> str | None:
        """Return the device of a local address, or of its local route (__ip_dev_find)."""
        device = self.addresses.device_of(4, address)
        if device:
            return device
        device = _local_device(self._local_table, address, choices)
        if self._merged is None:
            return device
        merged = _local_device(self._merged, address, choices)
        return merged if merged != device and choices.branch_on(NO_RULE_EVER_ADDED) else device

    # --- lookup ------------------------------------------------------------------------

    def _lookup(self, flow_key: FlowKey, query: FibQuery, choices: Choices, log: TraceLog) -> LookupResult:
        """Look up the rules and tables (fib_lookup).

        As long as no ip rule was ever added, the longest prefix of the merged tables wins.
        """
        result = self.resolve(flow_key, query, choices, log)
        if self._merged is None:
            return result
        match = self._merged.find(query, choices)
        last = self.tables.get(TABLE_DEFAULT)
        if last and (match is None or match.route.kind in ROUTE_ERRORS):
            match = last.find(query, choices) or match
        route = match.route if match else None
        is_same = route is (result.match.route if result.match else None)
        if is_same or not choices.branch_on(NO_RULE_EVER_ADDED):
            return result
        in_table = (rule for rule in self.rpdb.rules if route and rule.table == route.table)
        rule = next(in_table, None)
        return LookupResult(rule, rule.table if rule else None, match)

    # --- input -------------------------------------------------------------------------

    def input(self, flow_key: FlowKey, choices: Choices, log: TraceLog) -> RouteResult:
        """Route a received packet (ip_route_input_rcu, ip_route_input_slow)."""
        source, destination, device = flow_key.source or 0, flow_key.destination, flow_key.iif
        if is_multicast4(destination):
            return RouteResult("multicast", source=format_ipv4(source), error=None)
        if is_multicast4(source) or source == IPV4_BROADCAST:
            return RouteResult("none", error="EINVAL")
        if destination == IPV4_BROADCAST or (not destination and not source):
            broadcast = RouteResult("local", LOOPBACK)
            if not source:
                return broadcast
            return self._validated(evolve(flow_key, destination=0), broadcast, choices)
        # lo too: packets that return by it are not routed again, so only foreign ones arrive here.
        is_loopback = is_loopback4(source) or is_loopback4(destination)
        if not source or not destination or (is_loopback and not self._routes_loopback(device)):
            return RouteResult("none", error="EINVAL")
        result = self._lookup(flow_key, FibQuery(destination, 0, None, flow_key.tos), choices, log)
        error = error_result(result)
        kind = result.match.route.kind if result.match else None
        if error is None and kind in ("local", "broadcast"):
            if kind == "broadcast":
                flow_key = evolve(flow_key, destination=0)
            return self._validated(flow_key, local_result(result, None), choices)
        is_unknown = error is not None and error.outcome == UNKNOWN
        if not self._sysctl("forwarding", device, missing=1) and not is_unknown:
            return RouteResult("none", error="EHOSTUNREACH")
        if error is not None:
            return error
        if kind != "unicast":
            return RouteResult("none", error="EINVAL")
        return self._validated(flow_key, nexthop_result(result, "unicast", lambda hop: None), choices)

    def _validated(self, flow_key: FlowKey, routed: RouteResult, choices: Choices) -> RouteResult:
        """Apply the reverse-path filter, which also refuses own source addresses.

        Each possible output device is tested; a difference between them is an open question.
        """
        devices = routed.devices or (LOOPBACK,)
        passes = {oif: self._validate_source(flow_key, oif, choices) for oif in devices}
        if None in passes.values():
            return RouteResult(UNKNOWN, unsupported=(*routed.unsupported, "the reverse route"))
        if len(set(passes.values())) > 1:
            question = "the reverse route, which differs between the output devices"
            return evolve(routed, unsupported=(*routed.unsupported, question))
        return routed if passes[devices[0]] else RouteResult("none", error="EINVAL")

    def _validate_source(self, flow_key: FlowKey, oif: str, choices: Choices) -> bool | None:
        """Return True if a packet of the source may arrive and leave by `oif` (fib_validate_source).

        None: not known.
        """
        strictness = self._sysctl("rp_filter", flow_key.iif)
        accepts_local = bool(self._sysctl("accept_local", flow_key.iif))
        is_quick = not strictness and oif != flow_key.iif
        if is_quick and accepts_local:
            return True
        passes = self._validate_reverse(flow_key, oif, strictness, accepts_local, choices)
        if passes is None or not is_quick or not self.rpdb.is_default or self._has_custom_local_routes:
            return passes
        # Until the first ip rule is added, the kernel only checks that the source is not a local
        # address.
        is_foreign = self.addresses.device_of(4, flow_key.source or 0) is None
        return is_foreign if is_foreign == passes or choices.branch_on(NO_RULE_EVER_ADDED) else passes

    def _validate_reverse(
        self, flow_key: FlowKey, oif: str, strictness: int, accepts_local: bool, choices: Choices
    ) -> bool | None:
        """Return True if the reverse packet leaves by the input device (__fib_validate_source).

        None: not known.
        """
        device, source = flow_key.iif, flow_key.source or 0
        mark = flow_key.mark if self._sysctl("src_valid_mark", device) else 0
        protocol, sport, dport = 0, 0, 0
        if self.rpdb.reads_ports:
            protocol, sport, dport = flow_key.protocol, flow_key.dport, flow_key.sport
        reverse = FlowKey(
            4, source, flow_key.destination or None, mark, oif, None, 0, flow_key.tos, protocol, sport, dport
        )
        match = self._lookup(reverse, FibQuery(source, 0, None, flow_key.tos), choices, []).match
        if match is None or match.route.kind in ROUTE_ERRORS:
            return not strictness
        if not match.is_known:
            return None
        kind = match.route.kind
        if kind != "unicast" and not (kind == "local" and accepts_local):
            return False
        if strictness != _STRICT or (kind == "local" and device == LOOPBACK):
            return True
        return any(hop.device == device for hop in match.route.all_nexthops)

    # --- settings ----------------------------------------------------------------------

    def _routes_loopback(self, device: str) -> bool:
        """Return True if the device routes loopback addresses like others (route_localnet)."""
        return bool(self._sysctl("route_localnet", device))

    def _sysctl(self, name: str, device: str, missing: int = 0) -> int:
        """Return the higher IPv4 setting of a device and of "all"; "forwarding" counts by device only.

        `missing`: the value if neither is known.
        """
        scopes = (device,) if name == "forwarding" else ("all", device)
        values = [self.sysctl(f"net/ipv4/conf/{scope}/{name}") for scope in scopes]
        numbers = [int(value) if value.isdigit() else missing for value in values if value is not None]
        return max(numbers, default=missing)


def _local_device(table: Table4 | None, address: int, choices: Choices) -> str | None:
    """Return the device of the local route to an address, or None."""
    match = table.find(FibQuery(address), choices) if table else None
    return match.route.device if match and match.route.kind == "local" else None


def _assumed_on_link(error: RouteResult, oif: str) -> TraceStep:
    text = f"bound to {oif}: leaves there although there is no route ({error.outcome})"
    origin = error.route.origin if error.route else ()
    return TraceStep("route", text, error.route, origin, f"leaves by {oif}")
