# SPDX-License-Identifier: BSD-2-Clause
"""Output route selection: the FIB lookups of a packet in their order, and its source address.

The routing tables decide one lookup. A packet may need several: IPv6 looks up again with a source
if there was no route without one (ip6_dst_lookup_tail), a connected socket when its source is
selected (ip_route_connect), and a packet that the output hook changed is rerouted
(ip_route_me_harder, ip6_route_me_harder).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from ...netstate.routing import TABLE_LOCAL
from ...netstate.state import NetState
from ..branching import Choices
from ..packet import ICMPV6, KERNEL, TCP, UDP, Packet, address_range, format_address, parse_address
from ..packet_view import PacketView
from ..trace_step import NullLog, TraceLog, TraceStep, empty_like
from .lookup import RouteResult
from .router import Router
from .rpdb import LOOPBACK
from .source_address import LOOPBACK6, is_link_local6, is_link_multicast6, is_loopback4, is_multicast6

_NEIGHBOUR_DISCOVERY = frozenset({133, 134, 135, 136, 137})  # RFC 4861 4


@frozen
class OutputRoute:
    """The route of a packet. `source` is the address that it gets, None if that is not known."""

    device: str
    source: int | None = None
    is_local: bool = False
    is_broadcast: bool = False

    def with_source(self, source: int | None) -> OutputRoute:
        """Return the same route with another source address."""
        if source == self.source:
            return self
        return OutputRoute(self.device, source, self.is_local, self.is_broadcast)


class OutputRouting:
    """Routes of the packets that this machine sends and receives."""

    def __init__(self, router: Router, state: NetState) -> None:
        self._router = router
        self._sources = _SourceAddresses(state)

    def initial(self, packet: Packet, choices: Choices, log: TraceLog) -> OutputRoute | None:
        """Return the route of a packet before its first hook; None: the sender gets an error."""
        source = packet.source
        route = self._lookup_sent(packet, source, choices, log)
        if source is not None:
            return route and route.with_source(source)
        if route is None and packet.family == 6:
            source = self._sources.choose(6, packet.destination, None, choices)  # of any device
            if source is None:
                return None
            if not isinstance(log, NullLog):
                text = f"no route without a source address; looked up again from {format_address(6, source)}"
                log.append(TraceStep("source", text))
            route = self._lookup_sent(packet, source, choices, log)
            route = route and route.with_source(source)
        if route is None:
            return None
        if route.source is None:
            source = self._sources.choose(packet.family, packet.destination, route.device, choices)
            route = route.with_source(source)
        if route.source is None:
            return route
        if not isinstance(log, NullLog):
            text = f"the source address is {format_address(packet.family, route.source)}"
            log.append(TraceStep("source", text))
        return self._connect(packet, route, choices, log)

    def _connect(self, packet: Packet, route: OutputRoute, choices: Choices, log: TraceLog) -> OutputRoute | None:
        """Look up the route of a connected socket again with its source address.

        IPv4 does so when a socket connects, IPv6 when the cached route of the socket has become
        stale. Only TCP sockets are certainly connected.
        """
        if packet.origin == KERNEL or packet.protocol not in (TCP, UDP):
            return route
        steps = empty_like(log)
        new = self._lookup_sent(packet, route.source, choices, steps)
        if new is not None and (new.device, new.is_local) == (route.device, route.is_local):
            return route
        connects = packet.protocol == TCP and packet.family == 4
        if not connects and not choices.branch_on("whether the socket is looked up again with its source address"):
            return route
        log.append(TraceStep("reroute", "the connected socket is looked up again with its source address"))
        log += steps
        return new and new.with_source(route.source)

    def reroute(
        self, packet: Packet, view: PacketView, old: str, choices: Choices, log: TraceLog
    ) -> OutputRoute | None:
        """Return the route after the output hook changed the packet (ip_route_me_harder).

        `old` is the output device so far. IPv4 looks up as user 0, whatever the sender.
        """
        oif = packet.bound if packet.origin != KERNEL else None
        if packet.family == 6 and oif is None:
            destination = view.destination
            if is_link_local6(destination) or is_multicast6(destination):
                oif = old
        uid = packet.uid if packet.has_socket and packet.family == 6 else 0
        return self._lookup_existing(packet, view, choices, log, oif=oif, uid=uid, any_source=True)

    def route_input(
        self, packet: Packet, view: PacketView, iif: str, choices: Choices, log: TraceLog
    ) -> OutputRoute | None:
        """Return the route of a packet that arrived by a device; None: it is refused."""
        return self._lookup_existing(packet, view, choices, log, iif=iif, forwarded=True)

    def _lookup_existing(
        self, packet: Packet, view: PacketView, choices: Choices, log: TraceLog, **options: Any
    ) -> OutputRoute | None:
        """Return the route of an existing packet.

        The kernel dissects protocol and ports only if a rule that is not for this machine's own
        packets selects by them (fib4_rules_early_flow_dissect); ip6_route_input always knows the
        protocol.
        """
        is_input = options.get("forwarded")
        protocol, sport, dport = packet.protocol, view.sport, view.dport
        if not self._router.reads_ports(packet.family):
            protocol = packet.protocol if packet.family == 6 and is_input else 0
            sport = dport = 0
        routed = self._router.lookup(
            packet.family,
            view.destination,
            source=view.source,
            mark=view.mark,
            tos=_tos(packet),
            protocol=protocol,
            sport=sport,
            dport=dport,
            log=log,
            **options,
        )
        if routed.outcome == "multicast" and is_input:
            # Multicast routing is not modelled: at most this machine receives the packet.
            return OutputRoute(LOOPBACK, is_local=True)
        return self._to_route(routed, packet.family, choices)

    def own_address(self, view: PacketView, device: str, choices: Choices) -> int | None:
        """Return the device's address for masquerade or redirect."""
        return self._sources.choose(view.family, view.destination, device, choices)

    def _lookup_sent(self, packet: Packet, source: int | None, choices: Choices, log: TraceLog) -> OutputRoute | None:
        """Look up the packet once as its sender sent it."""
        oif = packet.bound
        if packet.origin == KERNEL and packet.family == 6 and oif and is_link_scoped(packet):
            log.append(TraceStep("route", f"sent by the kernel, on the link of {oif}"))
            return OutputRoute(oif, source)
        routed = self._router.lookup(
            packet.family,
            packet.destination,
            source=source,
            mark=packet.mark,
            oif=oif,
            uid=packet.uid if packet.has_socket else 0,
            tos=_tos(packet),
            protocol=packet.protocol,
            sport=packet.sport,
            dport=packet.dport,
            any_source=packet.origin == KERNEL or packet.protocol not in (TCP, UDP),
            # A reply of the kernel prefers the device of the request; a bound socket uses its
            # device only.
            exact=source is None or packet.origin == KERNEL,
            log=log,
        )
        return self._to_route(routed, packet.family, choices)

    def _to_route(self, routed: RouteResult, family: int, choices: Choices) -> OutputRoute | None:
        """Return the output route of a lookup result; branch for each possible device."""
        prefsrc = routed.source
        if family == 6 and routed.outcome != "local":  # the scope of the destination decides too
            prefsrc = routed.route.prefsrc if routed.route else None
        source = None if prefsrc is None else parse_address(prefsrc)
        if routed.outcome == "local":
            return OutputRoute(LOOPBACK, source, is_local=True)
        if routed.leaves and routed.device is not None:
            return OutputRoute(routed.device, source, is_broadcast=routed.outcome == "broadcast")
        if routed.outcome != "unknown":
            return None
        reasons = ", ".join(routed.unsupported) or "several nexthops of equal cost"
        for device in routed.devices:
            if choices.branch_on(f"whether it is routed by {device} ({reasons})"):
                return OutputRoute(device, source)
        if not routed.devices:
            choices.mark_unsupported(f"the route ({reasons})")
        return None


class _SourceAddresses:
    """The addresses that the kernel may select for a packet without source."""

    def __init__(self, state: NetState) -> None:
        self._own_addresses: dict[tuple[int, str], list[int]] = defaultdict(list)
        self._cache: dict[tuple[int, int, str | None], Sequence[int]] = {}
        for device in state.devices:
            for prefix in device.addresses:
                address = prefix.partition("/")[0]
                self._own_addresses[6 if ":" in address else 4, device.name].append(parse_address(address))
        for route in () if state.devices else state.routes:
            if route.table == TABLE_LOCAL and route.kind == "local" and route.device:
                low, high = address_range(route.destination, route.family)
                if low == high:
                    self._own_addresses[route.family, route.device].append(low)

    def choose(self, family: int, destination: int, device: str | None, choices: Choices) -> int | None:
        """Return one of the candidates, a branch for each; None if there is no candidate."""
        key = (family, destination, device)
        candidates = self._cache.get(key)
        if candidates is None:
            candidates = self._cache[key] = self._candidates(family, device, destination)
        for address in candidates[:-1]:
            if choices.branch_on(f"whether the address is {format_address(family, address)}"):
                return address
        return candidates[-1] if candidates else None

    def _candidates(self, family: int, device: str | None, destination: int) -> Sequence[int]:
        every = [
            address
            for (version, owner), owned in self._own_addresses.items()
            for address in owned
            if version == family and owner != LOOPBACK
        ]
        near = every if device is None else self._own_addresses.get((family, device), [])
        if family == 4:
            return [address for address in near if not is_loopback4(address)] or every
        # An address of the destination's scope is preferred, then one of the device (RFC 6724,
        # rules 2 and 5).
        narrow = [address for address in near if is_link_local6(address) or address == LOOPBACK6]
        if is_link_local6(destination) or destination == LOOPBACK6 or is_link_multicast6(destination):
            return narrow
        if destination in every:  # rule 1
            return [destination]
        wide = [address for address in near if address not in narrow]
        return wide or [address for address in every if not is_link_local6(address)] or narrow


def _tos(packet: Packet) -> int:
    return packet.fields.get(("ip" if packet.family == 4 else "ip6", "dscp"), 0) << 2


def is_link_scoped(packet: Packet) -> bool:
    """Return True if the kernel sends the packet without a route lookup: groups, neighbour discovery.

    ndisc_send_skb makes the route itself (icmp6_dst_alloc).
    """
    kind = packet.fields.get(("icmpv6", "type")) if packet.protocol == ICMPV6 else None
    return is_multicast6(packet.destination) or kind in _NEIGHBOUR_DISCOVERY
