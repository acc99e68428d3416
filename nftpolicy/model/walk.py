# SPDX-License-Identifier: BSD-2-Clause
"""The way of one packet through Linux, with every decision: what the other proofs are held against.

The way may be longer in the model than in the kernel, never shorter: what can only drop a packet (hop limits,
its size, a few strange addresses, neighbours that do not answer) is left out. Fragments are too, and bridges:
what leaves by a bridge counts as gone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attrs import evolve, frozen

from ..netstate import nft
from ..netstate.state import NetState
from .chains import Ruleset
from .decision import Decision, Untold
from .hooks import DROPPED, Compared, Hooks, compared, tracks
from .kinds import Kinds
from .packet import FORWARD, FRAME, KERNEL, Packet
from .routing import Router
from .rules import LOOPBACK
from .sending import Sending, Way
from .unknown import Doubts, Forks, explore
from .view import View

LOOPBACK6, LINK_LOCAL6 = 1, 0x3FA  # ::1; the first ten bits of fe80::/10
MULTICAST4 = 0xE  # the first four bits of 224.0.0.0/4
LEAVES, DELIVERED, UNROUTABLE, UNKNOWN = "leaves", "delivered", "unroutable", "unknown"


@frozen
class Walk:
    """What became of a packet.

    `device` is the one by which it leaves ("unknown": may leave). Mark, addresses and port are those at
    the end, after NAT; `source` is None if the kernel's choice is not known. `doubts` says what was not
    understood, where. `flow_mark` is the mark of the connection (ct mark) at the end. `agreed` is whether all
    answers to the doubts come to this same end.
    """

    packet: Packet
    decisions: tuple[Decision, ...]
    outcome: str
    device: str | None
    mark: int
    source: int | None
    destination: int
    dport: int
    doubts: tuple[str, ...] = ()
    flow_mark: int = 0
    agreed: bool = True

    @property
    def end(self) -> tuple[object, ...]:
        """All that a walk comes to but for the source address."""
        return self.outcome, self.device, self.mark, self.flow_mark, self.destination, self.dport


class Model:
    """Linux, as far as it decides where packets go, in one state."""

    def __init__(self, state: NetState, ruleset: Ruleset | None = None) -> None:
        """`ruleset`: that of the state, if it is ready already."""
        self.router = Router(state)
        self.ruleset = ruleset or Ruleset(state.tables)
        self.sending = Sending(self.router, state)
        self.kinds = Kinds(state)
        self._tracked: dict[int, bool | None] = {}
        self._sysctls = {sysctl.path: sysctl.value for sysctl in state.sysctls}

    def walk(self, packet: Packet, told: bool = True) -> Walk:
        """The way of a packet. "unknown" means that it may leave. Not `told`: no decisions, which is quicker."""
        forks = explore(lambda doubts: _Run(self, packet, doubts, told).walk())
        return _agreed(packet, forks) if forks.doubts else forks.results[0]

    def tracked(self, family: int) -> bool | None:
        """Whether there is connection tracking; None if that is not known."""
        if family not in self._tracked:
            self._tracked[family] = tracks(self.ruleset.tables, family)
        return self._tracked[family]

    def fib(self, result: str, keys: tuple[str, ...], view: View) -> str | None:
        """The answer to a fib expression. For IPv6 it takes a look-up, and what refuses that is the answer."""
        answer = self.kinds.fib(result, keys, view)
        if answer is None or view.family == 4:
            return answer
        ends = (view.destination, view.source) if "daddr" in keys else (view.source, view.destination)
        device = view.iif if "iif" in keys else view.oif if "oif" in keys else None
        oif = (device or view.oif or view.iif) if ends[0] >> 118 == LINK_LOCAL6 else None
        routed = self.router.lookup(6, ends[0], source=ends[1], oif=oif, protocol=view.protocol, exact=True)
        if routed.outcome == UNKNOWN:
            return None
        if routed.outcome != "local" and not routed.leaves:
            return "unreachable" if routed.outcome == "none" else routed.outcome
        if routed.device == LOOPBACK and routed.leaves:
            return "unreachable"
        return "unicast" if device is None and routed.leaves and answer in ("local", "anycast") else answer

    def forwards(self, family: int, iif: str) -> bool:
        """Whether packets that arrive by a device are passed on, unless a sysctl in the state says no."""
        read = self._sysctls.get
        if family == 4:
            value = read(f"net/ipv4/conf/{iif}/forwarding", read("net/ipv4/ip_forward", "1"))
        else:
            value = read("net/ipv6/conf/all/forwarding", "1")
            if value == "0":
                value = read(f"net/ipv6/conf/{iif}/force_forwarding", "0")
        return value != "0"


class _Run:
    """One packet under one set of answers."""

    def __init__(self, model: Model, packet: Packet, doubts: Doubts, told: bool) -> None:
        self._model, self._packet, self._doubts = model, packet, doubts
        self._told = told
        self._log: list[Decision] = [] if told else Untold()
        self._source = packet.source
        self._sent_from = packet.source or 0
        self._way: Way
        self._view = View.of(packet, packet.source or 0)
        self._view.fib = model.fib
        self._hooks = Hooks(model.ruleset, partial(model.tracked, packet.family), self._view, doubts, self._log)

    def walk(self) -> Walk:
        if self._packet.origin == FRAME:
            return self._frame()
        if self._packet.origin == FORWARD:
            return self._forwarded()
        return self._sent()

    # The ways to begin

    def _frame(self) -> Walk:
        device = self._packet.bound
        if device is None:
            raise ValueError("a frame is sent by a device: Packet.bound")
        self._say("source", f"a packet socket on {device}, mark {self._packet.mark:#x}: no route and no inet hook")
        if device != LOOPBACK:
            return self._out_by(device)
        # What is put on lo arrives there, like a packet of another host.
        stop = self._stopped("egress", oif=device, device=device)
        self._view.uid = self._view.gid = self._view.cgroup = None
        self._view.origin = FORWARD
        return stop or self._arrived(device)

    def _sent(self) -> Walk:
        packet = self._packet
        if self._told:
            self._log.append(_sender(packet))
        way = self._model.sending.first(packet, self._doubts, self._log)
        if way is None:
            return self._end(UNROUTABLE)
        self._way = way
        self._source = packet.source if way.source is None else way.source
        self._view.source = self._sent_from = self._source or 0
        return self._stopped("output", oif=way.device, after=self._routed_again) or self._leave(None)

    def _forwarded(self) -> Walk:
        packet, iif = self._packet, self._packet.iif
        if iif is None:
            raise ValueError("a forwarded packet arrives by a device: Packet.iif")
        self._say("source", f"arrives by {iif}")
        if packet.family == 6 and LOOPBACK6 in (packet.source, packet.destination) and iif != LOOPBACK:
            self._say("route", "the address of lo, and from another device: not taken in", "drop")
            return self._end(DROPPED)
        return self._arrived(iif)

    def _arrived(self, iif: str) -> Walk:
        packet, view = self._packet, self._view
        stop = self._stopped("ingress", iif=iif, device=iif)
        stop = stop or self._stopped("prerouting", iif=iif, after=self._redirected)
        if stop is not None:
            return stop
        way = self._model.sending.arrived(packet, view, iif, self._doubts, self._log)
        if way is None:
            return self._end(UNROUTABLE)
        self._way = way
        if way.is_local:
            return self._stopped("input", iif=iif) or self._end(DELIVERED)
        if not self._model.forwards(packet.family, iif):
            self._say("route", f"not passed on: forwarding is off for {iif}", "drop")
            return self._end(DROPPED)
        if packet.family == 6 and view.source >> 118 == LINK_LOCAL6 and way.device != iif:
            self._say("route", f"not passed on: its source means something by {iif} only", "drop")
            return self._end(DROPPED)
        return self._stopped("forward", iif=iif, oif=way.device) or self._leave(iif)

    # The ways on

    def _routed_again(self, at: nft.Hook, before: Compared) -> str | None:
        """What a chain in the output hook changed may lead elsewhere; the hook goes on with the old device."""
        now = compared(self._view)
        if now == before or (at.type == "nat" and now[2] == before[2]) or at.type not in ("route", "nat"):
            return None
        self._say("reroute", "what decides on the way was changed, so it is routed again")
        way = self._model.sending.again(self._packet, self._view, self._way.device, self._doubts, self._log)
        if way is None:
            return UNROUTABLE
        self._way = way
        return None

    def _redirected(self, at: nft.Hook, before: Compared) -> str | None:
        """To an address of the device of arrival."""
        view = self._view
        if view.redirected and view.iif is not None:
            own = self._model.sending.own_address(view, view.iif, self._doubts)
            if own is None:
                return DROPPED
            view.destination, view.redirected = own, False
        return None

    def _masqueraded(self, at: nft.Hook, before: Compared) -> str | None:
        """From an address of the device by which it leaves."""
        view = self._view
        if view.snat and view.new_source is None:
            view.new_source = self._model.sending.own_address(view, self._way.device, self._doubts)
            if view.new_source is None:
                return DROPPED
            view.source = view.new_source
        return None

    def _is_copied(self) -> bool:
        """Whether IPv4 sends a copy to this machine first, which may be the first packet of the flow."""
        if self._packet.family == 6 or self._view.origin == FORWARD:
            return False
        return self._way.is_broadcast or self._view.destination >> 28 == MULTICAST4

    def _leave(self, iif: str | None) -> Walk:
        """From postrouting to the wire, or back in by the loopback device."""
        device = self._way.device
        if self._packet.family == 6 and device == LOOPBACK and not self._way.is_local:
            self._say("route", "by lo, but not to this machine: IPv6 discards it", "drop")
            return self._end(DROPPED)
        copied = self._is_copied()
        stop = self._stopped("postrouting", iif=iif, oif=device, copied=copied, after=self._masqueraded)
        if stop is not None:
            return stop
        if self._view.source != self._sent_from:
            self._source = self._view.source
        return self._out_by(device)

    def _out_by(self, device: str) -> Walk:
        stop = self._stopped("egress", oif=device, device=device)
        if stop is not None:
            return stop
        if device != LOOPBACK:
            return self._end(LEAVES, device)
        # The socket is forgotten on the way; connection and route are not, so nothing is translated or routed again.
        self._view.uid = self._view.gid = self._view.cgroup = None
        stop = self._stopped("ingress", iif=device, device=device)
        stop = stop or self._stopped("prerouting", iif=device, nat=False)
        if stop is None and not self._way.is_local and self._view.origin == FORWARD:
            self._say("route", "goes round lo until its hops are used up", "drop")
            return self._end(DROPPED)
        return stop or self._stopped("input", iif=device, nat=False) or self._end(DELIVERED)

    # Parts

    def _say(self, kind: str, text: str, effect: str = "goes on") -> None:
        if self._told:
            self._log.append(Decision(kind, text, effect=effect))

    def _stopped(self, hook: str, **how: Any) -> Walk | None:
        outcome = self._hooks.passes(hook, **how)
        return None if outcome is None else self._end(outcome)

    def _end(self, outcome: str, device: str | None = None) -> Walk:
        view = self._view
        if self._told:
            self._say("end", outcome + (f" by {device}" if device else ""), outcome)
        return Walk(
            self._packet,
            tuple(self._log),
            outcome,
            device,
            view.mark,
            self._source,
            view.destination,
            view.dport,
            flow_mark=view.ct_mark,
        )


def _sender(packet: Packet) -> Decision:
    if packet.origin == KERNEL:
        return Decision("reflect", f"the kernel itself sends, mark {packet.mark:#x}")
    bound = f", bound to {packet.bound}" if packet.bound else ""
    return Decision("source", f"a socket of user {packet.uid}, group {packet.gid}, mark {packet.mark:#x}{bound}")


# How far a packet came, by outcome: where forks differ and none leaves, the farthest is told.
_FAR = (UNROUTABLE, DROPPED, DELIVERED)


def _agreed(packet: Packet, forks: Forks[Walk]) -> Walk:
    """One walk out of all forks: what is known is what they agree on."""
    leaving = [walk for walk in forks.results if walk.outcome == LEAVES]
    ends = {(walk.outcome, walk.device, walk.mark, walk.destination, walk.dport) for walk in leaving}
    known = forks.complete and not forks.noted
    agreed = known and len({walk.end for walk in forks.results}) == 1
    if not leaving and known:
        best = max(forks.results, key=lambda walk: _FAR.index(walk.outcome))
        return evolve(best, doubts=forks.doubts, agreed=agreed)
    if leaving:
        first = leaving[0]
        sources = {walk.source for walk in leaving}
        source = first.source if len(sources) == 1 else None
        if known and len(ends) == 1 and len(leaving) == len(forks.results):
            return evolve(first, source=source, doubts=forks.doubts, agreed=agreed)
        return evolve(first, outcome=UNKNOWN, source=source, doubts=forks.doubts, agreed=agreed)
    return evolve(forks.results[0], outcome=UNKNOWN, source=None, doubts=forks.doubts, agreed=agreed)
