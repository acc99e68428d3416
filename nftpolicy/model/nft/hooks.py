# SPDX-License-Identifier: BSD-2-Clause
"""Netfilter hooks of one packet: base chains of all tables in order, NAT at its own priority."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from ...netstate import nft
from ..branching import Choices
from ..packet_view import PacketView
from ..trace_step import NullLog, TraceLog, TraceStep
from .chains import DROP, PreparedBaseChain, Ruleset
from .match import EvalContext

DROPPED = "dropped"

RerouteKey = tuple[int, int, int]  # mark, source, destination

_TRACKING = (nft.Ct, nft.CtHelper, nft.Masquerade, nft.Redirect, nft.CtCount, nft.FlowOffload)
# Substrings in the JSON of unsupported statements that need tracking.
_TRACKING_JSON = ('"ct', "nat", "masquerade", "redirect", "flow", "synproxy")
_NAMES = {4: "ip", 6: "ip6"}
_FAMILIES = {0x0800: 4, 0x86DD: 6}  # by ethertype; only chains of a device get other frames


def needs_conntrack(tables: Iterable[nft.Table], family: int) -> bool | None:
    """Return True if a rule needs connection tracking.

    None: only unsupported constructs may need it.
    """
    is_unknown = False
    for table in tables:
        if table.family not in (_NAMES[family], "inet", "bridge"):
            continue
        for part in (*table.chains, *table.objects, *map(nft.UnknownStatement, table.unknown)):
            needs = _needs_tracking(part, _NAMES[family])
            if needs:
                return True
            is_unknown = is_unknown or needs is None
    return None if is_unknown else False


def may_lose_conntrack(tables: Iterable[nft.Table], family: int) -> bool:
    """Return True if a set of connection counts may have ended connection tracking, whatever else needs it.

    The kernel ends a use of it for each element that gets its statement from such a set: nft_expr_destroy in
    nft_add_set_elem (net/netfilter/nf_tables_api.c), without a matching begin. Seen with Linux 6.18.
    """
    own = [table for table in tables if table.family in (_NAMES[family], "inet")]
    statements = [each for table in own for named in table.sets for each in named.statements]
    statements += [each for table in own for named in table.maps for each in named.statements]
    texts = [raw for table in own for raw in table.unknown]
    return any(isinstance(each, nft.CtCount) for each in statements) or any(
        word in raw for raw in texts for word in ("connlimit", "ct count")
    )


def _needs_tracking(value: object, family: str) -> bool | None:
    match value:
        case nft.UnknownStatement(raw) | nft.UnknownExpression(raw):
            return True if any(word in raw for word in _TRACKING_JSON) else None
        case nft.UnmodelledMatch(_, needs_conntrack) | nft.NeutralTarget(_, needs_conntrack):
            return needs_conntrack
        case nft.Undecided(_, _, needs_conntrack, _, key):
            needs = _needs_tracking(key, family)
            return needs if needs or needs_conntrack is False else needs_conntrack
        case nft.ObjectRef("synproxy"):
            return True
        # A statement of the other family needs no tracking of this one.
        case nft.Dnat(nat_family) | nft.Snat(nat_family) if nat_family in (None, family):
            return True
        case str() | int() | None:
            return False
        case tuple() | frozenset():
            parts: Iterable[object] = value
        case _ if isinstance(value, _TRACKING):
            return True
        case _ if attrs.has(type(value)):
            parts = (getattr(value, name) for name in _field_names(type(value)))
        case _:
            return False
    result: bool | None = False
    for part in parts:
        needs = _needs_tracking(part, family)
        if needs:
            return True
        if needs is None:
            result = None
    return result


_FIELD_NAMES: dict[type, tuple[str, ...]] = {}  # by attrs class


def _field_names(attrs_class: type) -> tuple[str, ...]:
    names = _FIELD_NAMES.get(attrs_class)
    if names is None:
        names = tuple(attribute.name for attribute in attrs.fields(attrs_class))
        _FIELD_NAMES[attrs_class] = names
    return names


class HookTraversal:
    """The traversal of hooks by one packet. `view` keeps what chains write."""

    def __init__(
        self,
        ruleset: Ruleset,
        tracked: Callable[[], bool | None],
        view: PacketView,
        choices: Choices,
        log: TraceLog,
    ) -> None:
        self._ruleset, self._has_conntrack = ruleset, tracked
        self.view, self._choices, self._log = view, choices, log
        self._records = not isinstance(log, NullLog)
        self._run = EvalContext(view, choices, log if self._records else None)

    def traverse(
        self,
        hook: str,
        *,
        iif: str | None = None,
        oif: str | None = None,
        device: str | None = None,
        nat: bool = True,
        has_local_copy: bool = False,
        after_chain: Callable[[nft.Hook, RerouteKey], str | None] | None = None,
    ) -> str | None:
        """Evaluate the chains at one hook; return the outcome if the trace ends here, else None.

        `after_chain` is called after each chain with the packet's key before it; it may end the
        trace too. `nat`: nat chains are evaluated at this traversal. `has_local_copy`: a copy for
        this machine, which has no socket, may have passed the nat chains before.
        """
        view = self.view
        view.iif, view.oif = iif, oif
        family = _FAMILIES.get(view.protocol_number, 0)
        chains = self._ruleset.evaluation_order(family, hook, device)
        if chains and self._records:
            self._log.append(TraceStep("hook", _title(hook, iif, oif, device)))
        is_translated = False
        for base in chains:
            is_nat = base.hook.type == "nat"
            if is_nat and (is_translated or not nat or not self._uses_nat()):
                continue
            may_reroute = after_chain is not None and base.hook.type != "filter"
            before = reroute_key(view) if may_reroute else None
            is_done = has_local_copy and is_nat and self._is_translated_by_copy(base)
            if not is_done and self._evaluate(base) == DROP:
                return DROPPED
            if is_nat:
                is_translated = view.dnat if hook in ("prerouting", "output") else view.snat
            if after_chain is not None and before is not None:
                ended = after_chain(base.hook, before)
                if ended is not None:
                    return ended
        return None

    def _uses_nat(self) -> bool:
        """Return True if nat chains apply: to tracked connections in the original direction.

        The kernel evaluates them for the first packet only and translates later ones alike, so the
        model evaluates them for every packet.
        """
        view = self.view
        if view.notrack or view.ct_direction != "original" or view.ct_state not in ("new", "established"):
            return False
        has_conntrack = self._has_conntrack()
        if has_conntrack is None:
            return self._choices.branch_on("whether connections are tracked")
        return has_conntrack

    def _is_translated_by_copy(self, base: PreparedBaseChain) -> bool:
        view = self.view
        if not self._choices.branch_on(f"whether a copy for this machine has passed {base.chain.name} before"):
            return False
        saved = view.uid, view.gid, view.cgroup, view.mark
        view.drop_socket()
        verdict = self._evaluate(base)
        view.uid, view.gid, view.cgroup, view.mark = saved
        return verdict != DROP

    def _evaluate(self, base: PreparedBaseChain) -> str:
        view = self.view
        if base.hook.type != "nat" or view.ct_state != "established":
            return base.evaluate(self._run)
        view.ct_state = "new"
        try:
            base.evaluate(self._run)
        finally:
            view.ct_state = "established"
        # A packet that a nat chain would drop now was accepted at the start of the connection
        return "accept"


def reroute_key(view: PacketView) -> RerouteKey:
    """Return the values that the kernel compares to decide if a packet is rerouted."""
    return view.mark, view.source, view.destination


def _title(hook: str, iif: str | None, oif: str | None, device: str | None) -> str:
    if device is not None:
        return f"{hook} of {device}"
    return hook + (f" from {iif}" if iif else "") + (f" to {oif}" if oif else "")
