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

from ..model import bits
from ..model.box import Box, meet, only, uncovered
from ..model.chain_event import Event, Place
from ..model.covers import Covers
from ..model.marks import new_marks
from ..model.survey import which_mark
from ..netstate import nft, text
from .claim import BOTH, MarkTest, Region, UplinkClaim
from .ground import Ground, is_early, understood


@frozen
class Hit:
    """Violation of a lemma: part of the region, and the base chain or rule that causes it.

    `doubts` are the unsupported constructs that the result depends on.
    """

    family: int
    box: Box
    where: str
    doubts: tuple[str, ...]


def guard(
    ground: Ground, family: int, chains: Sequence[Place], region: Region, allowed: Sequence[Region] = ()
) -> Hit | None:
    """Return a part of `region` that all base chains accept and no region of `allowed` holds.

    None if there is none. One chain alone can suffice for the proof if no later chain changes the
    header of what it accepts.
    """
    passage = ground.passage(family)
    space = passage.space
    exempt = Covers((box for exempt_region in allowed for box in exempt_region.boxes(space)), space.tops)
    volatile = changing(ground, chains)
    header_final = [base_chain for base_chain in chains if not ground.rewritten_after(family, base_chain)]
    for start in region.boxes(space):
        if any(passage.first_through((base_chain,), start, exempt) is None for base_chain in header_final):
            continue
        accepted = passage.first_through(chains, start, exempt, volatile=volatile)
        if accepted is not None:
            return Hit(family, accepted, "", understood(accepted, space))
    return None


def changing(ground: Ground, chains: Sequence[Place]) -> tuple[str, ...]:
    """Return the fields that may differ from chain to chain, whatever the rules do.

    These are the fields that NAT translates, and the connection, which chains before connection
    tracking do not see.
    """
    addresses = ("saddr", "daddr", "sport", "dport") if ground.translates else ()
    connection = ("ct.", "ctmark:") if any(map(is_early, chains)) else ()
    return (*addresses, *connection)


def integrity(ground: Ground, family: int, uplink: UplinkClaim, hook: str | None = None) -> list[Hit]:
    """Return the rules that may give the uplink's mark to a packet not entitled to it.

    With `hook`, only rules of that hook. Induction over all writes: if no packet of a flow that only
    unmarked sockets and other devices than the uplink's have used carries the mark before a write, then
    none carries it after. The same holds for the mark of the flow, where a rule reads it. Users that
    the specification allows to send without a mark are entitled too.
    """
    unmarked_packets = Region(marks=(uplink.unmarked,), not_arrived=uplink.devices)
    unmarked_flows = Region(marks=(uplink.unmarked, _flow_unmarked(uplink)), not_arrived=uplink.devices)
    passage = ground.passage(family)
    if not any(_may_set_mark(ground, family, statement, uplink) for statement in ground.survey.writes):
        return []
    chains = [base_chain for base_chain in ground.every(family) if passage.writes(base_chain[0], base_chain[1].name)]
    chains = [base_chain for base_chain in chains if hook in (None, base_chain[1].hook and base_chain[1].hook.hook)]
    # Users that need no mark may get it, but a write into the flow would pass it to other packets.
    exempted_users = None
    if uplink.users and hook is None:
        exempted_users = Region({"socket": only(1), "uid": only(*uplink.users)})
    user_packets = []
    if exempted_users is not None:
        user_packets.append(Region(exempted_users.fields, (_flow_unmarked(uplink),), not_arrived=uplink.devices))
    hits = list(_mark_assignments(ground, family, chains, [unmarked_flows], uplink, "mark", exempted_users))
    flows = list(_mark_assignments(ground, family, chains, [unmarked_flows, *user_packets], uplink, "ctmark"))
    if flows and not hits:
        # A flow may carry the mark: that is a leak if a packet can get the mark from its flow.
        hits = list(_mark_assignments(ground, family, chains, [unmarked_packets], uplink, "mark", exempted_users))
        if hits:
            hits = [*flows, *hits]
    return hits


def round_the_hooks(ground: Ground) -> list[Hit]:
    """Return the statements that may bypass postrouting (queue, dup, fwd, unsupported ones)."""
    return [Hit(family, {}, statement, (statement,)) for statement in ground.survey.unknown for family in BOTH]


def settled(ground: Ground, family: int, chains: Sequence[Place], uplink: UplinkClaim) -> list[Place]:
    """Return the chains after which no rule can set the mark on packets that leave elsewhere.

    Elsewhere: by another device than the uplink's or lo.
    """
    writing_tables = {
        table.key
        for table in ground.ruleset.tables
        if any(_may_set_mark(ground, family, statement, uplink) for statement in ground.marks_written(table))
    }
    passage = ground.passage(family)
    writers = [
        base_chain
        for base_chain in ground.every(family)
        if base_chain[0].key in writing_tables and passage.writes(base_chain[0], base_chain[1].name)
    ]
    elsewhere = Region(not_out=(*uplink.devices, "lo"))
    writers_elsewhere = [
        writer
        for writer in writers
        if next(_mark_assignments(ground, family, [writer], [elsewhere], uplink, "mark"), None) is not None
    ]
    return [
        base_chain
        for base_chain in chains
        if not any(ground.is_behind(writer, base_chain) for writer in writers_elsewhere)
    ]


def _may_set_mark(ground: Ground, family: int, statement: nft.Mangle, uplink: UplinkClaim) -> bool:
    """Return True if the write can set a bit of the uplink's mark, for any packet."""
    if which_mark(statement.key) is None:
        return False
    passage = ground.passage(family)
    kind = str(which_mark(statement.key))
    marks = new_marks(passage.space, statement, {})
    changed = False
    for group in passage.space.partition:
        if not group & uplink.mask:
            continue
        field = bits.name(kind, group)
        after = marks.get(field, field)
        if isinstance(after, int) and after != bits.packed(uplink.value, group):
            return False
        changed = changed or after != field
    return changed


def _flow_unmarked(uplink: UplinkClaim) -> MarkTest:
    return MarkTest(uplink.value, uplink.mask, equal=False, of="ctmark")


def _mark_assignments(
    ground: Ground,
    family: int,
    chains: Sequence[Place],
    regions: Sequence[Region],
    uplink: UplinkClaim,
    kind: str,
    excluded: Region | None = None,
) -> Iterator[Hit]:
    """Yield the writes that give the mark to packets of `regions`, except those of `excluded`."""
    passage = ground.passage(family)
    space = passage.space
    excluded_boxes = excluded.boxes(space) if excluded is not None else []
    for base_chain in chains:
        for start in (box for region in regions for box in region.boxes(space)):
            for event in passage.mark_writes(base_chain, start):
                box = _marked_after(ground, family, event, uplink, kind)
                if box is None:
                    continue
                remaining = uncovered(box, [*event.excluded, *excluded_boxes], space.tops)
                if remaining is not None:
                    yield Hit(family, remaining, _location(event), understood(remaining, space))


def _marked_after(ground: Ground, family: int, event: Event, uplink: UplinkClaim, kind: str) -> Box | None:
    """Return the packets that carry the uplink's mark after a write; None if there are none."""
    passage = ground.passage(family)
    space = passage.space
    statement = event.statement
    if isinstance(statement, nft.Notrack):
        return None  # changes the visible connection state, not a mark
    if not isinstance(statement, nft.Mangle):
        return {**event.box, space.doubt(f"{_location(event)} may have any effect"): ((1, 1),)}
    if which_mark(statement.key) != kind or not _may_set_mark(ground, family, statement, uplink):
        return None
    marks = new_marks(passage.space, statement, {})
    box: Box | None = event.box
    for group in space.partition:
        if not group & uplink.mask:
            continue
        field = bits.name(kind, group)
        after, required = marks.get(field, field), bits.packed(uplink.value, group)
        if isinstance(after, int):
            if after != required:
                return None
        elif box is not None:
            box = meet(box, {after: ((required, required),)})
    return box


def _location(event: Event) -> str:
    table, chain = event.place
    rule = "its policy" if event.rule is None else repr(text.shown(event.rule))
    return f"{table.family} {table.name} {chain.name}: {rule}"
