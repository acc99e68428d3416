# SPDX-License-Identifier: BSD-2-Clause
"""The trace of one packet through Linux, with every decision; the proofs are checked against it.

The path may be longer in the model than in the kernel, never shorter: checks that only drop packets
(hop limits, packet size, a few special addresses, neighbours that do not answer) are omitted.
Fragments and bridges are not modelled: a packet that leaves by a bridge counts as sent.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attrs import evolve, frozen

from ..netstate import nft
from ..netstate.routing import ipv6_switched_off
from ..netstate.state import NetState
from .branching import Branches, Choices, explore_branches
from .fib.address_type import AddressTypes
from .fib.output_route import OutputRoute, OutputRouting
from .fib.route_device import route_device
from .fib.router import Router
from .fib.rpdb import LOOPBACK
from .fib.source_address import are_loopback_only6, is_link_local6, is_multicast4, is_node_multicast6
from .nft.chains import Ruleset
from .nft.hooks import DROPPED, HookTraversal, RerouteKey, may_lose_conntrack, needs_conntrack, reroute_key
from .packet import ETHERTYPES, FORWARD, FRAME, Packet
from .packet_view import PacketView
from .trace_step import NullLog, TraceLog, TraceStep, sender_step

_IS_TRACKED = "whether connections are tracked beside a set of connection counts"
LEAVES, DELIVERED, UNROUTABLE, UNKNOWN = "leaves", "delivered", "unroutable", "unknown"


@frozen
class Trace:
    """The trace of a packet and its outcome.

    `device` is the output device ("unknown": the packet may leave by it). Mark, addresses and port
    are those at the end, after NAT; `source` is None if the kernel's choice is not known.
    `unsupported` has the open questions and unsupported constructs on the path. `ct_mark` is the
    mark of the connection at the end. `unanimous`: all branches end in the same state. `branches`
    are the traces of all branches, if their outcomes are known; empty without a branch.
    """

    packet: Packet
    steps: tuple[TraceStep, ...]
    outcome: str
    device: str | None
    mark: int
    source: int | None
    destination: int
    dport: int
    unsupported: tuple[str, ...] = ()
    ct_mark: int = 0
    unanimous: bool = True
    branches: tuple[Trace, ...] = ()

    @property
    def possible_traces(self) -> tuple[Trace, ...] | None:
        """Return the traces that are possible, each with a known outcome; None: not known."""
        if self.branches or not self.unsupported:
            return self.branches or (self,)
        return None

    @property
    def final_state(self) -> tuple[object, ...]:
        """Return the final state except for the source address."""
        return self.outcome, self.device, self.mark, self.ct_mark, self.destination, self.dport


class Model:
    """The packet path of Linux in one state."""

    def __init__(self, state: NetState, ruleset: Ruleset | None = None) -> None:
        """Index the state; `ruleset` is its ruleset if it is prepared already."""
        self.router = Router(state)
        self.ruleset = ruleset or Ruleset(state.tables)
        self.output_routing = OutputRouting(self.router, state)
        self.address_types = AddressTypes(state)
        self._has_conntrack: dict[int, bool | None] = {}
        self.untracked_families = {each for each in (4, 6) if may_lose_conntrack(self.ruleset.tables, each)}
        self._sysctls = {sysctl.path: sysctl.value for sysctl in state.sysctls}
        self.switched_off = ipv6_switched_off(state.sysctls)
        self.link_types = {each.name: each.link_type for each in state.devices if each.link_type is not None}

    def trace(self, packet: Packet, record: bool = True) -> Trace:
        """Trace a packet.

        "unknown": it may leave. `record` False: without steps, which is faster.
        """
        branches = explore_branches(lambda choices: _Tracer(self, packet, choices, record).trace())
        return _merge(branches) if branches.unsupported else branches.results[0]

    def has_conntrack(self, family: int) -> bool | None:
        """Return True if connections are tracked; None if that is not known."""
        if family not in self._has_conntrack:
            self._has_conntrack[family] = needs_conntrack(self.ruleset.tables, family)
        return self._has_conntrack[family]

    def evaluate_fib(self, result: str, keys: tuple[str, ...], view: PacketView) -> str | None:
        """Return the value of a fib expression, None if not known."""
        if result in ("oif", "oifname"):
            return route_device(self.router, keys, view)
        address_type = self.address_types.evaluate(result, keys, view)
        if address_type is None or view.family == 4:
            return address_type
        # IPv6 also does a route lookup; if it fails, its error is the value (nft_fib6_eval_type).
        address, other = view.source, view.destination
        if "daddr" in keys:
            address, other = other, address
        device = None
        if "iif" in keys:
            device = view.iif
        elif "oif" in keys:
            device = view.oif
        oif = (device or view.oif or view.iif) if is_link_local6(address) else None
        routed = self.router.lookup(6, address, source=other, oif=oif, protocol=view.protocol, exact=True)
        if routed.outcome == UNKNOWN:
            return None
        if routed.outcome != "local" and not routed.leaves:
            return "unreachable" if routed.outcome == "none" else routed.outcome
        if routed.device == LOOPBACK and routed.leaves:
            return "unreachable"
        if device is None and routed.leaves and address_type in ("local", "anycast"):
            return "unicast"
        return address_type

    def is_forwarding(self, family: int, iif: str) -> bool:
        """Return True if packets that arrive by a device are forwarded.

        Unknown sysctls count as on.
        """
        value: str | None
        if family == 4:
            default = self._sysctls.get("net/ipv4/ip_forward", "1")
            value = self._sysctls.get(f"net/ipv4/conf/{iif}/forwarding", default)
        else:
            value = self._sysctls.get("net/ipv6/conf/all/forwarding", "1")
            if value == "0":
                value = self._sysctls.get(f"net/ipv6/conf/{iif}/force_forwarding", "0")
        return value != "0"

    def is_switched_off(self, family: int, device: str) -> bool:
        """Return True if the kernel drops all IPv6 packets that arrive or leave by a device (disable_ipv6).

        AF_PACKET sockets still send. Source: ip6_output, ip6_rcv_core.
        """
        return family == 6 and device in self.switched_off


class _Tracer:
    """The trace of one packet in one branch."""

    def __init__(self, model: Model, packet: Packet, choices: Choices, records: bool) -> None:
        self._model, self._packet, self._choices = model, packet, choices
        self._records = records
        self._log: TraceLog = [] if records else NullLog()
        self._source = packet.source
        self._original_source = packet.source or 0
        self._route: OutputRoute
        self._view = PacketView.from_packet(packet, packet.source or 0)
        self._view.fib = model.evaluate_fib
        self._view.link_types = model.link_types
        if packet.family in model.untracked_families and not choices.branch_on(_IS_TRACKED):
            self._view.ct_state = "invalid"  # that of a packet without a connection (nft_ct_get_eval)
        has_conntrack = partial(model.has_conntrack, packet.family)
        self._hooks = HookTraversal(model.ruleset, has_conntrack, self._view, choices, self._log)

    def trace(self) -> Trace:
        """Trace the packet from its origin."""
        if self._packet.origin == FRAME:
            return self._send_frame()
        if self._packet.origin == FORWARD:
            return self._receive()
        return self._send()

    # Origins

    def _send_frame(self) -> Trace:
        device = self._packet.bound
        if device is None:
            raise ValueError("a frame is sent by a device: Packet.bound")
        text = f"a packet socket on {device}, mark {self._packet.mark:#x}: no route and no inet hook"
        self._record("source", text)
        if device != LOOPBACK:
            return self._transmit(device)
        # A frame that is sent by lo arrives there, like a packet of another host.
        stop = self._traverse("egress", oif=device, device=device)
        self._view.drop_socket()
        self._view.origin = FORWARD
        # The receiver reads the ethertype of the frame (eth_type_trans).
        frame_type = self._packet.frame_type
        self._view.ethertype = None if frame_type == ETHERTYPES[self._packet.family] else frame_type
        return stop or self._input(device)

    def _send(self) -> Trace:
        packet = self._packet
        if self._records:
            self._log.append(sender_step(packet))
        route = self._model.output_routing.initial(packet, self._choices, self._log)
        if route is None:
            return self._end(UNROUTABLE)
        self._route = route
        self._source = packet.source if route.source is None else route.source
        self._view.source = self._original_source = self._source or 0
        stop = self._traverse("output", oif=route.device, after_chain=self._reroute)
        return stop or self._output(None)

    def _receive(self) -> Trace:
        packet, iif = self._packet, self._packet.iif
        if iif is None:
            raise ValueError("a forwarded packet arrives by a device: Packet.iif")
        self._record("source", f"arrives by {iif}")
        if packet.family == 6 and iif != LOOPBACK and are_loopback_only6(packet.source or 0, packet.destination):
            self._record("route", "its addresses are not for packets from another device than lo", "drop")
            return self._end(DROPPED)
        return self._drop_if_switched_off(iif) or self._input(iif)

    def _input(self, iif: str) -> Trace:
        packet, view = self._packet, self._view
        stop = self._traverse("ingress", iif=iif, device=iif)
        stop = stop or self._traverse("prerouting", iif=iif, after_chain=self._resolve_redirect)
        if stop is not None:
            return stop
        route = self._model.output_routing.route_input(packet, view, iif, self._choices, self._log)
        if route is None:
            return self._end(UNROUTABLE)
        self._route = route
        if route.is_local:
            return self._traverse("input", iif=iif) or self._end(DELIVERED)
        if view.is_diverted:
            self._record("route", "not forwarded: it is assigned to a local socket", "drop")  # ip_forward, ip6_forward
            return self._end(DROPPED)
        if not self._model.is_forwarding(packet.family, iif):
            self._record("route", f"not forwarded: forwarding is off for {iif}", "drop")
            return self._end(DROPPED)
        if packet.family == 6 and not view.source:
            self._record("route", "not forwarded: it has no source address", "drop")  # ip6_forward
            return self._end(DROPPED)
        if packet.family == 6 and is_link_local6(view.source) and route.device != iif:
            self._record("route", f"not forwarded: its source address is valid on {iif} only", "drop")
            return self._end(DROPPED)
        stop = self._traverse("forward", iif=iif, oif=route.device)
        return stop or self._output(iif)

    # After a chain

    def _reroute(self, hook: nft.Hook, before: RerouteKey) -> str | None:
        """Reroute the packet if a chain of the output hook changed it.

        The hook keeps the old device.
        """
        now = reroute_key(self._view)
        if now == before or hook.type not in ("route", "nat"):
            return None
        if hook.type == "nat" and now[2] == before[2]:
            return None
        self._record("reroute", "mark or addresses were changed, so the packet is routed again")
        device = self._route.device
        route = self._model.output_routing.reroute(self._packet, self._view, device, self._choices, self._log)
        if route is None:
            return UNROUTABLE
        self._route = route
        return None

    def _resolve_redirect(self, hook: nft.Hook, before: RerouteKey) -> str | None:
        """Set the destination of a redirected packet to an address of the input device."""
        view = self._view
        if view.is_redirected and view.iif is not None:
            own = self._model.output_routing.own_address(view, view.iif, self._choices)
            if own is None:
                return DROPPED
            view.destination, view.is_redirected = own, False
        return None

    def _resolve_masquerade(self, hook: nft.Hook, before: RerouteKey) -> str | None:
        """Set the source of a masqueraded packet to an address of the output device."""
        view = self._view
        if view.snat and view.new_source is None:
            view.new_source = self._model.output_routing.own_address(view, self._route.device, self._choices)
            if view.new_source is None:
                return DROPPED
            view.source = view.new_source
        return None

    # Output

    def _has_local_copy(self) -> bool:
        """Return True if IPv4 sends a copy to this machine first (ip_mc_output).

        That copy may be the first packet of the connection.
        """
        if self._packet.family == 6 or self._view.origin == FORWARD:
            return False
        return self._route.is_broadcast or is_multicast4(self._view.destination)

    def _output(self, iif: str | None) -> Trace:
        """Trace from postrouting to the wire, or back to input by the loopback device."""
        device = self._route.device
        if self._packet.family == 6 and device == LOOPBACK and not self._route.is_local:
            self._record("route", "by lo, but not to this machine: IPv6 discards it", "drop")
            return self._end(DROPPED)
        stop = self._drop_if_switched_off(device) or self._traverse(
            "postrouting",
            iif=iif,
            oif=device,
            has_local_copy=self._has_local_copy(),
            after_chain=self._resolve_masquerade,
        )
        if stop is not None:
            return stop
        if self._view.source != self._original_source:
            self._source = self._view.source
        if self._packet.family == 6 and device != LOOPBACK and is_node_multicast6(self._view.destination):
            self._record("route", "to a group of this node only", "drop")  # ip6_finish_output2
            return self._end(DROPPED)
        return self._transmit(device)

    def _transmit(self, device: str) -> Trace:
        stop = self._traverse("egress", oif=device, device=device)
        if stop is not None:
            return stop
        if device != LOOPBACK:
            return self._end(LEAVES, device)
        # lo removes the socket but keeps connection and route: no second NAT, no second routing.
        self._view.drop_socket()
        stop = self._traverse("ingress", iif=device, device=device)
        stop = stop or self._traverse("prerouting", iif=device, nat=False)
        if stop is None and not self._route.is_local and self._view.origin == FORWARD:
            self._record("route", "loops by lo until its hop limit is exhausted", "drop")
            return self._end(DROPPED)
        stop = stop or self._traverse("input", iif=device, nat=False)
        return stop or self._end(DELIVERED)

    # Helpers

    def _drop_if_switched_off(self, device: str) -> Trace | None:
        """Return the trace that ends here if IPv6 is switched off on the device, else None."""
        if not self._model.is_switched_off(self._packet.family, device):
            return None
        self._record("route", f"IPv6 is switched off on {device} (disable_ipv6)", "drop")
        return self._end(DROPPED)

    def _record(self, kind: str, text: str, effect: str = "continue") -> None:
        if self._records:
            self._log.append(TraceStep(kind, text, effect=effect))

    def _traverse(self, hook: str, **options: Any) -> Trace | None:
        """Pass a hook; return the trace if it ends there, else None."""
        outcome = self._hooks.traverse(hook, **options)
        return None if outcome is None else self._end(outcome)

    def _end(self, outcome: str, device: str | None = None) -> Trace:
        view = self._view
        if self._records:
            self._record("end", outcome + (f" by {device}" if device else ""), outcome)
        return Trace(
            self._packet,
            tuple(self._log),
            outcome,
            device,
            view.mark,
            self._source,
            view.destination,
            view.dport,
            ct_mark=view.ct_mark,
        )


# Outcomes by length of the path: if branches differ and none leaves, the longest is the result.
_BY_LENGTH = (UNROUTABLE, DROPPED, DELIVERED)


def _merge(branches: Branches[Trace]) -> Trace:
    """Merge all branches into one trace: only what they agree on is known."""
    leaving = [trace for trace in branches.results if trace.outcome == LEAVES]
    is_known = branches.is_complete and not branches.undetermined
    is_unanimous = is_known and len({trace.final_state for trace in branches.results}) == 1
    known_branches = branches.results if is_known else ()
    if not leaving and is_known:
        longest = max(branches.results, key=lambda trace: _BY_LENGTH.index(trace.outcome))
        return evolve(longest, unsupported=branches.unsupported, unanimous=is_unanimous, branches=known_branches)
    if not leaving:
        first, source, has_outcome = branches.results[0], None, False
    else:
        first = leaving[0]
        source = first.source if len({trace.source for trace in leaving}) == 1 else None
        ends = {(trace.outcome, trace.device, trace.mark, trace.destination, trace.dport) for trace in leaving}
        has_outcome = is_known and len(ends) == 1 and len(leaving) == len(branches.results)
    return evolve(
        first,
        outcome=first.outcome if has_outcome else UNKNOWN,
        source=source,
        unsupported=branches.unsupported,
        unanimous=is_unanimous,
        branches=known_branches,
    )
