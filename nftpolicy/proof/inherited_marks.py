# SPDX-License-Identifier: BSD-2-Clause
"""Marks that packets inherit without a rule: from earlier flows, and from accepted sockets.

Conntrack entries survive the ruleset that marked them. With the sysctl tcp_fwmark_accept a socket gets the mark of
the SYN that it accepts, and keeps it when the process connects it elsewhere (connect(2), AF_UNSPEC).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..model.packet import TCP
from ..model.symbolic.box import Ranges, points
from ..model.symbolic.chain_event import BaseChain
from ..netstate import nft
from ..netstate.state import NetState
from .context import ProofContext
from .lemmas import (
    ARRIVAL_HOOKS,
    Violation,
    chains_before_reset,
    count_marked,
    guard_violation,
    integrity_violations,
    marks_arriving_tcp,
    marks_replies,
    writing_chains,
)
from .spec import IP_FAMILIES, Region, Spec, UplinkSpec

_OWNER_FIELDS: Mapping[object, str] = {nft.Meta("skuid"): "uid", nft.Meta("skgid"): "gid"}
_ACCEPT_SYSCTL = "net/ipv4/tcp_fwmark_accept"  # of both families


def accepted_socket_violations(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> list[Violation]:
    """Return the ways by which any listening socket may get sockets with the uplink's mark.

    A rule marks the SYN that arrives by the uplink, or a marked socket of this machine connects to it by lo.
    Empty if the specification has a policy: its guard tests the owner of each packet with the mark.
    Users and groups that rules name by number are the owners that the ruleset means to have the mark.
    """
    if spec.has_policy or _accepts_marks(context.state) != "1":
        return []
    violations = []
    owners = [Region({"socket": points(1), **numbers}) for numbers in _named_owners(context.state)]
    for family in IP_FAMILIES:
        connection = {"socket": points(1), "protocol": points(TCP), "ct.direction": points(0)}
        marked = Region(connection, (uplink.has_mark,), uplink.devices)
        chains = context.filter_chains(family, "postrouting")
        if guard_violation(context, family, chains, marked, owners) is None:
            continue
        by_loopback = Violation(family, {}, "a marked socket of this machine connects to it", ())
        for violation in (*marks_arriving_tcp(context, family, uplink), by_loopback):
            location = (
                f"an accepted socket keeps the mark (tcp_fwmark_accept) and may connect anywhere: {violation.location}"
            )
            violations.append(Violation(family, violation.box, location, violation.unsupported))
    return violations


def harmless_chains(context: ProofContext, spec: Spec, family: int, uplink: UplinkSpec) -> list[BaseChain]:
    """Return the chains that may mark any packet that arrives.

    Those of all packets that arrive if the machine forwards none, and those before a chain that takes the mark again.
    The kernel may copy the mark of a packet to its reply (fwmark_reflect), so this holds only with a policy, whose
    guard tests the sender of each packet with the mark.
    """
    if not spec.has_policy:
        return []
    if not context.may_forward(family):
        return writing_chains(context, family, ARRIVAL_HOOKS)
    return chains_before_reset(context, family, uplink)


def _named_owners(state: NetState) -> Iterator[Mapping[str, Ranges]]:
    """Yield the users and groups that matches of the state test, each as one number."""
    for table in state.tables:
        sets = {item.name: item.elements for item in table.sets}
        matches = (part for chain in table.chains for rule in chain.rules for part in rule.statements)
        for match in matches:
            if not isinstance(match, nft.Match):
                continue
            parts = match.left.parts if isinstance(match.left, nft.Concat) else (match.left,)
            for index, part in enumerate(parts):
                if part in _OWNER_FIELDS:
                    for element in _elements(match.right, sets):
                        number = element[index] if isinstance(element, tuple) else element
                        if isinstance(number, int):
                            yield {_OWNER_FIELDS[part]: points(number)}


def _elements(right: nft.MatchRight, sets: Mapping[str, frozenset[nft.Element]]) -> Iterable[nft.Element]:
    if isinstance(right, nft.SetRef):
        return sets.get(right.name, frozenset())
    return right.elements if isinstance(right, nft.AnonymousSet) else (right,) if isinstance(right, int) else ()


def _accepts_marks(state: NetState) -> str | None:
    """Return the value of tcp_fwmark_accept, or None if the state does not have it."""
    return next((sysctl.value for sysctl in state.sysctls if sysctl.path == _ACCEPT_SYSCTL), None)


def _expecting_rules(state: NetState) -> str:
    """Return the chains with a rule that assigns a conntrack helper or an expectation."""
    chains = {
        f"{table.family} {table.name} {chain.name}": None
        for table in state.tables
        for chain in table.chains
        for rule in chain.rules
        for statement in rule.statements
        if isinstance(statement, nft.ObjectRef) and statement.kind in ("ct helper", "ct expectation")
    }
    return ", ".join(chains)


def inherited_mark_assumptions(context: ProofContext, spec: Spec) -> Iterator[str]:
    """Yield the assumptions about the marks of earlier flows and of sockets."""
    for family in IP_FAMILIES:
        if spec.has_policy and not context.may_forward(family):
            marking = [
                violation.location
                for uplink in spec.uplinks
                for skipped in (chains_before_reset(context, family, uplink),)
                for hook in ARRIVAL_HOOKS
                for violation in integrity_violations(context, family, uplink, hook, skipped)
            ]
            if marking:
                yield f"this machine forwards no IPv{family} packet, as now: {'; '.join(marking)} may mark one"
    for uplink in spec.uplinks:
        if any(marks_replies(context, family, uplink) for family in IP_FAMILIES):
            yield from _assumptions_about_flows(context, uplink)
        if uplink.marked_sockets:
            yield f"{count_marked(uplink.marked_sockets, 'socket', uplink)}, and their programs may use it"
    if not spec.has_policy and _accepts_marks(context.state) is None:
        yield "sysctl net.ipv4.tcp_fwmark_accept is 0"


def _assumptions_about_flows(context: ProofContext, uplink: UplinkSpec) -> Iterator[str]:
    mark = f"the mark of uplink {uplink.name}"
    if uplink.marked_flows is None:
        yield f"a flow from before these rules carries {mark} only if it began at the uplink"
    elif uplink.marked_flows:
        yield f"{count_marked(uplink.marked_flows, 'flow', uplink)}, and began there"
    if chains := _expecting_rules(context.state):
        yield f"a flow that a conntrack helper expects ({chains}) inherits {mark} only if it began at the uplink"
