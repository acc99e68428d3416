# SPDX-License-Identifier: BSD-2-Clause
"""Two lemmas that make a proof without any model of routing.

Integrity: if a packet's socket did not set an uplink's mark, and the packet did not arrive by the
uplink, no rule gives it the mark. Guard: whatever happened before, packets about to leave by the
uplink without its mark are dropped, except the exemptions. Together: packets that leave were sent
with the mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from ..model.symbolic import mark_bits
from ..model.symbolic.box import Box, find_uncovered, intersect_boxes, points
from ..model.symbolic.box_index import BoxIndex
from ..model.symbolic.chain_event import BaseChain, ChainEvent
from ..model.symbolic.mark_writes import marks_after
from ..model.symbolic.ruleset_scan import mark_kind
from ..netstate import nft
from ..netstate.formats import nft_text
from .context import ProofContext, runs_before_conntrack, unsupported_in
from .spec import IP_FAMILIES, MarkTest, Region, UplinkSpec


@frozen
class Violation:
    """Violation of a lemma: part of the region, and the base chain or rule that causes it.

    `unsupported` are the constructs that the result depends on.
    """

    family: int
    box: Box
    location: str
    unsupported: tuple[str, ...]


def guard_violation(
    context: ProofContext, family: int, chains: Sequence[BaseChain], region: Region, allowed: Sequence[Region] = ()
) -> Violation | None:
    """Return a part of `region` that all base chains accept and no region of `allowed` holds.

    None if there is none. One chain alone can suffice for the proof if no later chain changes the
    header of what it accepts.
    """
    transfer = context.chain_transfer(family)
    space = transfer.space
    exempt = BoxIndex((box for exempt_region in allowed for box in exempt_region.boxes(space)), space.max_values)
    unstable_names = unstable_fields(context, chains)
    header_final = [base_chain for base_chain in chains if not context.header_may_change_after(family, base_chain)]
    for start in region.boxes(space):
        if any(transfer.find_accepted((base_chain,), start, exempt) is None for base_chain in header_final):
            continue
        accepted = transfer.find_accepted(chains, start, exempt, unstable_fields=unstable_names)
        if accepted is not None:
            return Violation(family, accepted, "", unsupported_in(accepted, space))
    return None


def unstable_fields(context: ProofContext, chains: Sequence[BaseChain]) -> tuple[str, ...]:
    """Return the fields that may differ from chain to chain, whatever the rules do.

    These are the fields that NAT translates, and the connection, which chains before connection
    tracking do not see.
    """
    addresses = ("saddr", "daddr", "sport", "dport") if context.has_nat else ()
    connection = ("ct.", "ctmark:") if any(map(runs_before_conntrack, chains)) else ()
    return (*addresses, *connection)


def integrity_violations(
    context: ProofContext, family: int, uplink: UplinkSpec, hook: str | None = None
) -> list[Violation]:
    """Return the rules that may give the uplink's mark to a packet not entitled to it.

    With `hook`, only rules of that hook. Induction over all writes: if no packet of a flow that only
    unmarked sockets and other devices than the uplink's have used carries the mark before a write, then
    none carries it after. The same holds for the mark of the flow, where a rule reads it. Users that
    the specification allows to send without a mark are entitled too.
    """
    unmarked_packets = Region(marks=(uplink.lacks_mark,), not_iifname=uplink.devices)
    unmarked_flows = Region(marks=(uplink.lacks_mark, _flow_unmarked(uplink)), not_iifname=uplink.devices)
    transfer = context.chain_transfer(family)
    if not any(_may_set_mark(context, family, statement, uplink) for statement in context.ruleset_scan.mangles):
        return []
    chains = [
        base_chain for base_chain in context.all_chains(family) if transfer.can_write(base_chain[0], base_chain[1].name)
    ]
    chains = [base_chain for base_chain in chains if hook in (None, base_chain[1].hook and base_chain[1].hook.hook)]
    # Users that need no mark may get it, but a write into the flow would pass it to other packets.
    exempted_users = None
    if uplink.unmarked_uids and hook is None:
        exempted_users = Region({"socket": points(1), "uid": points(*uplink.unmarked_uids)})
    user_packets = []
    if exempted_users is not None:
        user_packets.append(Region(exempted_users.fields, (_flow_unmarked(uplink),), not_iifname=uplink.devices))
    violations = list(_mark_assignments(context, family, chains, [unmarked_flows], uplink, "mark", exempted_users))
    flows = list(_mark_assignments(context, family, chains, [unmarked_flows, *user_packets], uplink, "ctmark"))
    if flows and not violations:
        # A flow may carry the mark: that is a leak if a packet can get the mark from its flow.
        violations = list(
            _mark_assignments(context, family, chains, [unmarked_packets], uplink, "mark", exempted_users)
        )
        if violations:
            violations = [*flows, *violations]
    return violations


def hook_bypasses(context: ProofContext) -> list[Violation]:
    """Return the statements that may bypass postrouting (queue, dup, fwd, unsupported ones)."""
    return [
        Violation(family, {}, statement, (statement,))
        for statement in context.ruleset_scan.unsupported
        for family in IP_FAMILIES
    ]


def final_chains(
    context: ProofContext, family: int, chains: Sequence[BaseChain], uplink: UplinkSpec
) -> list[BaseChain]:
    """Return the chains after which no rule can set the mark on packets that leave elsewhere.

    Elsewhere: by another device than the uplink's or lo.
    """
    writing_tables = {
        table.key
        for table in context.ruleset.tables
        if any(_may_set_mark(context, family, statement, uplink) for statement in context.mark_writes(table))
    }
    transfer = context.chain_transfer(family)
    writers = [
        base_chain
        for base_chain in context.all_chains(family)
        if base_chain[0].key in writing_tables and transfer.can_write(base_chain[0], base_chain[1].name)
    ]
    elsewhere = Region(not_oifname=(*uplink.devices, "lo"))
    writers_elsewhere = [
        writer
        for writer in writers
        if next(_mark_assignments(context, family, [writer], [elsewhere], uplink, "mark"), None) is not None
    ]
    return [
        base_chain
        for base_chain in chains
        if not any(context.is_at_or_after(writer, base_chain) for writer in writers_elsewhere)
    ]


def _may_set_mark(context: ProofContext, family: int, statement: nft.Mangle, uplink: UplinkSpec) -> bool:
    """Return True if the write can set a bit of the uplink's mark, for any packet."""
    if mark_kind(statement.key) is None:
        return False
    transfer = context.chain_transfer(family)
    kind = str(mark_kind(statement.key))
    marks = marks_after(transfer.space, statement, {})
    changed = False
    for group in transfer.space.partition:
        if not group & uplink.mask:
            continue
        field = mark_bits.field_name(kind, group)
        after = marks.get(field, field)
        if isinstance(after, int) and after != mark_bits.pack_bits(uplink.value, group):
            return False
        changed = changed or after != field
    return changed


def _flow_unmarked(uplink: UplinkSpec) -> MarkTest:
    return MarkTest(uplink.value, uplink.mask, equal=False, field="ctmark")


def _mark_assignments(
    context: ProofContext,
    family: int,
    chains: Sequence[BaseChain],
    regions: Sequence[Region],
    uplink: UplinkSpec,
    kind: str,
    excluded: Region | None = None,
) -> Iterator[Violation]:
    """Yield the writes that give the mark to packets of `regions`, except those of `excluded`."""
    transfer = context.chain_transfer(family)
    space = transfer.space
    excluded_boxes = excluded.boxes(space) if excluded is not None else []
    for base_chain in chains:
        for start in (box for region in regions for box in region.boxes(space)):
            for event in transfer.mark_writes(base_chain, start):
                box = _marked_after(context, family, event, uplink, kind)
                if box is None:
                    continue
                remaining = find_uncovered(box, [*event.excluded, *excluded_boxes], space.max_values)
                if remaining is not None:
                    yield Violation(family, remaining, _location(event), unsupported_in(remaining, space))


def _marked_after(context: ProofContext, family: int, event: ChainEvent, uplink: UplinkSpec, kind: str) -> Box | None:
    """Return the packets that carry the uplink's mark after a write; None if there are none."""
    transfer = context.chain_transfer(family)
    space = transfer.space
    statement = event.statement
    if isinstance(statement, nft.Notrack):
        return None  # changes the visible connection state, not a mark
    if not isinstance(statement, nft.Mangle):
        return {**event.box, space.unsupported_field(f"{_location(event)} may have any effect"): ((1, 1),)}
    if mark_kind(statement.key) != kind or not _may_set_mark(context, family, statement, uplink):
        return None
    marks = marks_after(transfer.space, statement, {})
    box: Box | None = event.box
    for group in space.partition:
        if not group & uplink.mask:
            continue
        field = mark_bits.field_name(kind, group)
        after, required = marks.get(field, field), mark_bits.pack_bits(uplink.value, group)
        if isinstance(after, int):
            if after != required:
                return None
        elif box is not None:
            box = intersect_boxes(box, {after: ((required, required),)})
    return box


def _location(event: ChainEvent) -> str:
    table, chain = event.base_chain
    rule = "its policy" if event.rule is None else repr(nft_text.display_text(event.rule))
    return f"{table.family} {table.name} {chain.name}: {rule}"
