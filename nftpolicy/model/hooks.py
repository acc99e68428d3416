# SPDX-License-Identifier: BSD-2-Clause
"""The hooks that one packet passes: base chains of all tables in order, and NAT at its own place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import attrs

from ..netstate import nft
from .chains import DROP, Base, Ruleset
from .decision import Decision, Untold
from .matching import Run
from .unknown import Doubts
from .view import View

DROPPED = "dropped"

Compared = tuple[int, int, int]  # mark, source, destination


_TRACKING = (nft.Ct, nft.CtHelper, nft.Masquerade, nft.Redirect, nft.Connections, nft.FlowAdd)
_WORDS = ('"ct', "nat", "masquerade", "redirect", "flow", "synproxy")  # of those in JSON
_NAMES = {4: "ip", 6: "ip6"}
_SEEN_AS = {0x0800: 4, 0x86DD: 6}  # by ethertype; all others are met by chains of a device alone


def tracks(tables: Iterable[nft.Table], family: int) -> bool | None:
    """Whether connections are tracked, which takes a rule that needs it; None: something unknown may need it."""
    unknown = False
    for table in tables:
        if table.family not in (_NAMES[family], "inet", "bridge"):
            continue
        for part in (*table.chains, *table.objects, *map(nft.UnknownStatement, table.unknown)):
            found = _needs_tracking(part, _NAMES[family])
            if found:
                return True
            unknown = unknown or found is None
    return None if unknown else False


def _needs_tracking(value: object, family: str) -> bool | None:
    match value:
        case nft.UnknownStatement(raw) | nft.UnknownExpression(raw):
            return True if any(word in raw for word in _WORDS) else None
        case nft.Dnat(of) | nft.Snat(of) if of in (None, family):  # in an inet table too: not of the other family
            return True
        case str() | int() | None:
            return False
        case tuple() | frozenset():
            parts: Iterable[object] = value
        case _ if isinstance(value, _TRACKING):
            return True
        case _ if attrs.has(type(value)):
            parts = (getattr(value, name) for name in _names(type(value)))
        case _:
            return False
    answer: bool | None = False
    for one in parts:
        found = _needs_tracking(one, family)
        if found:
            return True
        answer = None if found is None else answer
    return answer


@cache
def _names(of: type) -> tuple[str, ...]:
    return tuple(one.name for one in attrs.fields(of))


class Hooks:
    """One packet's passage through hooks. What chains write stays in `view`."""

    def __init__(
        self, ruleset: Ruleset, tracked: Callable[[], bool | None], view: View, doubts: Doubts, log: list[Decision]
    ) -> None:
        self._ruleset, self._tracked = ruleset, tracked
        self.view, self._doubts, self._log = view, doubts, log
        self._told = not isinstance(log, Untold)
        self._run = Run(view, doubts, log if self._told else None)
        self._family = _SEEN_AS.get(view.protocol_number, 0)

    def passes(
        self,
        hook: str,
        *,
        iif: str | None = None,
        oif: str | None = None,
        device: str | None = None,
        nat: bool = True,
        copied: bool = False,
        after: Callable[[nft.Hook, Compared], str | None] | None = None,
    ) -> str | None:
        """Let the packet pass the chains at one hook; the outcome if its way ends here, "dropped" for one.

        `after` is called behind each chain with what the packet was before it; it may end the way too.
        `nat` is whether this is where the addresses of a flow are settled, `copied` whether a copy for
        this machine, which has no socket, may have settled them before.
        """
        view = self.view
        view.iif, view.oif = iif, oif
        met = self._ruleset.met(self._family, hook, device)
        if met and self._told:
            self._log.append(Decision("hook", _title(hook, iif, oif, device)))
        settled = False
        for base in met:
            of_nat = base.hook.type == "nat"
            if of_nat and (settled or not nat or not self._nat_is_asked()):
                continue
            before = compared(view) if after is not None else None
            by_copy = copied and of_nat and self._settled_by_copy(base)
            if not by_copy and self._evaluate(base) == DROP:
                return DROPPED
            if of_nat:
                settled = view.dnat if hook in ("prerouting", "output") else view.snat
            if after is not None and before is not None:
                ended = after(base.hook, before)
                if ended is not None:
                    return ended
        return None

    def _nat_is_asked(self) -> bool:
        """NAT is settled by a flow's first packet; nobody is asked about flows that are not tracked.

        The packets that follow in the same direction are treated alike, so they are asked here too.
        """
        view = self.view
        if view.notrack or view.ct_direction != "original" or view.ct_state not in ("new", "established"):
            return False
        tracked = self._tracked()
        return self._doubts.ask("whether connections are tracked at all") if tracked is None else tracked

    def _settled_by_copy(self, base: Base) -> bool:
        view = self.view
        if not self._doubts.ask(f"whether a copy for this machine has passed {base.chain.name} before"):
            return False
        kept = view.uid, view.gid, view.cgroup, view.mark
        view.uid = view.gid = view.cgroup = None
        verdict = self._evaluate(base)
        view.uid, view.gid, view.cgroup, view.mark = kept
        return verdict != DROP

    def _evaluate(self, base: Base) -> str:
        view = self.view
        if base.hook.type != "nat" or view.ct_state != "established":
            return base.evaluate(self._run)
        view.ct_state = "new"
        try:
            base.evaluate(self._run)
        finally:
            view.ct_state = "established"
        return "accept"  # what a nat chain would drop now was not dropped when the flow began


def compared(view: View) -> Compared:
    """What the kernel compares to know whether a packet has to be routed again."""
    return view.mark, view.source, view.destination


def _title(hook: str, iif: str | None, oif: str | None, device: str | None) -> str:
    if device is not None:
        return f"{hook} of {device}"
    return hook + (f" from {iif}" if iif else "") + (f" to {oif}" if oif else "")
