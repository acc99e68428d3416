# SPDX-License-Identifier: BSD-2-Clause
"""Routing decisions of Linux: ip rules, routing tables, IPv4 and IPv6 specifics.

Models ip_route_output_key, ip_route_input (net/ipv4/route.c) and ip6_route_output
(net/ipv6/route.c). VRFs and gateways that do not answer are not modelled: with a VRF the result of
a lookup is "unknown", and all gateways are assumed to answer.
"""

from __future__ import annotations

from attrs import evolve

from ...netstate.formats import ip_text
from ...netstate.state import NetState
from ..branching import Choices, explore_branches
from ..packet import IGMP
from ..trace_step import NullLog, TraceLog, TraceStep
from .ipv4 import Ipv4Router
from .ipv6 import Ipv6Router
from .lookup import UNKNOWN, FibLookup, RouteResult, merge_branches
from .rpdb import LOOPBACK, FlowKey
from .source_address import LocalAddresses

__all__ = ["RouteResult", "Router"]


class Router:
    """The rules and routes of a state, indexed once."""

    def __init__(self, state: NetState) -> None:
        self._masters = {device.name: device.master for device in state.devices}
        self._vrfs = {device.name for device in state.devices if device.kind == "vrf"}
        local_addresses = LocalAddresses(state)
        self._ipv4, self._ipv6 = Ipv4Router(state, local_addresses), Ipv6Router(state, local_addresses)
        self._cache: dict[tuple[object, ...], RouteResult] = {}

    def lookup(
        self,
        family: int,
        destination: int,
        *,
        source: int | None = None,
        mark: int = 0,
        iif: str | None = None,
        oif: str | None = None,
        uid: int = 0,
        tos: int = 0,
        protocol: int = 0,
        sport: int = 0,
        dport: int = 0,
        forwarded: bool = False,
        any_source: bool = False,
        exact: bool = False,
        log: TraceLog | None = None,
    ) -> RouteResult:
        """Route one packet.

        `forwarded`: it arrived by `iif`; else this machine sends it, bound to the device `oif` if
        given. `any_source`: an IPv4 source that is not of this machine is accepted (IP_TRANSPARENT,
        IP_HDRINCL). `exact`: exactly one lookup, as RTM_GETROUTE does. Without it an IPv6 packet
        without source and route is looked up again with an address of this machine, as for a
        socket. Without a `log`, or with a null log, results are cached for all packets that no rule
        and no route distinguishes.
        """
        log = None if isinstance(log, NullLog) else log
        if log is None:
            reads = self._router(family).rpdb.selector_use
            # IPv4 itself tests for IGMP; only rules read other fields of the transport header.
            key = (family, destination, source, mark & reads.mark, iif, oif, uid if reads.uid else 0, tos,
                   protocol if reads.protocol or protocol == IGMP else 0, (sport, dport) if reads.ports else None,
                   forwarded, any_source, exact)  # fmt: skip
            cached = self._cache.get(key)
            if cached is not None:
                return cached
        flow_key = FlowKey(family, destination, source or None, mark, LOOPBACK, oif, uid, tos, protocol, sport, dport)
        if forwarded:
            # A forwarded packet has no owner; rules treat it as root's.
            flow_key = evolve(flow_key, iif=iif or LOOPBACK, oif=None, uid=0)
        if self._vrfs and self._in_vrf(flow_key):
            return RouteResult(UNKNOWN, unsupported=("a VRF",))

        def run(choices: Choices) -> tuple[RouteResult, TraceLog]:
            steps: TraceLog = [] if log is not None else NullLog()
            if forwarded and family == 4:
                routed = self._ipv4.input(flow_key, choices, steps)
            elif forwarded:
                routed = self._ipv6.input(flow_key, choices, steps, exact)
            elif family == 4:
                routed = self._ipv4.output(flow_key, choices, steps, any_source)
            else:
                routed = self._ipv6.output(flow_key, choices, steps, exact)
            return routed, steps

        choices = Choices()
        result, steps = run(choices)
        if choices.questions:
            branches = explore_branches(run)
            results = [routed for routed, _ in branches.results]
            result = merge_branches(results, branches.unsupported, branches.is_complete)
        if log is None:
            self._cache[key] = result
        else:
            log += steps
            log.append(_result_step(result))
        return result

    def reads_ports(self, family: int) -> bool:
        """Return True if the kernel dissects protocol and ports of a packet for a lookup."""
        return self._router(family).rpdb.reads_ports

    def _router(self, family: int) -> FibLookup:
        return self._ipv4 if family == 4 else self._ipv6

    def _in_vrf(self, flow_key: FlowKey) -> bool:
        devices = (flow_key.iif, flow_key.oif)
        return any({device, self._masters.get(device or "")} & self._vrfs for device in devices)


def _result_step(routed: RouteResult) -> TraceStep:
    route = routed.route
    text = ip_text.display_text(route) if route else "no route"
    effect = routed.outcome
    if routed.devices:
        verb = "leaves" if routed.leaves else "may leave"
        effect = f"{verb} by {' or '.join(routed.devices)}"
    return TraceStep("route", text, route, route.origin if route else (), effect)
