# SPDX-License-Identifier: BSD-2-Clause
"""Where Linux sends a packet: ip rules, routing tables, and what IPv4 and IPv6 do beside them.

This is what ip_route_output_key, ip_route_input (net/ipv4/route.c) and ip6_route_output
(net/ipv6/route.c) decide. VRFs and gateways that do not answer are not modelled: with the first
a lookup is "unknown", of the second it is assumed that all answer.
"""

from __future__ import annotations

from attrs import evolve

from ..netstate import iproute
from ..netstate.state import NetState
from .addresses import Addresses
from .decision import Decision, Untold
from .packet import IGMP
from .routing4 import Router4
from .routing6 import Router6
from .rules import LOOPBACK, Asked
from .search import UNKNOWN, Log, Routed, agreed
from .unknown import Doubts, explore

__all__ = ["Routed", "Router"]


class Router:
    """The rules and routes of a state, indexed once."""

    def __init__(self, state: NetState) -> None:
        self._masters = {one.name: one.master for one in state.devices}
        self._vrfs = {one.name for one in state.devices if one.kind == "vrf"}
        known = Addresses(state)
        self._4, self._6 = Router4(state, known), Router6(state, known)
        self._answers: dict[tuple[object, ...], Routed] = {}

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
        log: Log | None = None,
    ) -> Routed:
        """Route one packet. `forwarded`: it came in by `iif`; else this machine sends it, with `oif` if it is bound.

        `any_source`: an IPv4 source that is not of this machine is not refused (IP_TRANSPARENT, IP_HDRINCL).
        `exact`: this one lookup and no more, as RTM_GETROUTE does it. Without it an IPv6 packet that has no
        source and finds no route is looked up again with an address of this machine, as for a socket.
        Without a `log`, or with one for nobody, an answer is given once for all packets that no rule and no route
        tells apart.
        """
        log = None if isinstance(log, Untold) else log
        if log is None:
            reads = (self._4 if family == 4 else self._6).rules.reads
            # IPv4 itself looks for IGMP; all else of a packet's header above IP is for rules alone.
            key = (family, destination, source, mark & reads.mark, iif, oif, uid if reads.uid else 0, tos,
                   protocol if reads.protocol or protocol == IGMP else 0, (sport, dport) if reads.ports else None,
                   forwarded, any_source, exact)  # fmt: skip
            known = self._answers.get(key)
            if known is not None:
                return known
        asked = Asked(family, destination, source or None, mark, LOOPBACK, oif, uid, tos, protocol, sport, dport)
        if forwarded:
            # Nobody owns a forwarded packet; rules take it for root's.
            asked = evolve(asked, iif=iif or LOOPBACK, oif=None, uid=0)
        if self._vrfs and self._in_vrf(asked):
            return Routed(UNKNOWN, doubts=("a VRF",))

        def run(doubts: Doubts) -> tuple[Routed, Log]:
            said: Log = [] if log is not None else Untold()
            if forwarded:
                found = self._4.input(asked, doubts, said) if family == 4 else self._6.input(asked, doubts, said, exact)
            elif family == 4:
                found = self._4.output(asked, doubts, said, any_source)
            else:
                found = self._6.output(asked, doubts, said, exact)
            return found, said

        doubts = Doubts()
        result, said = run(doubts)
        if doubts.asked:
            forks = explore(run)
            result = agreed([found for found, _ in forks.results], forks.doubts, forks.complete)
        if log is None:
            self._answers[key] = result
        else:
            log += said
            log.append(_decided(result))
        return result

    def reads_ports(self, family: int) -> bool:
        """Whether the kernel reads protocol and ports from a packet that is there already, to look it up."""
        return (self._4 if family == 4 else self._6).rules.reads_ports

    def _in_vrf(self, asked: Asked) -> bool:
        return any({one, self._masters.get(one or "")} & self._vrfs for one in (asked.iif, asked.oif))


def _decided(routed: Routed) -> Decision:
    route = routed.route
    text = iproute.shown(route) if route else "no route"
    effect = routed.outcome
    if routed.devices:
        effect = f"{'leaves' if routed.leaves else 'may leave'} by {' or '.join(routed.devices)}"
    return Decision("route", text, route, route.origin if route else (), effect)
