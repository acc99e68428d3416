# SPDX-License-Identifier: BSD-2-Clause
"""The two lemmas that make a proof without any model of routing.

Integrity: no rule gives an uplink's mark to a packet whose socket did not set it and that did not
arrive by the uplink. Guard: whatever happened before, what is about to leave by the uplink without
its mark is dropped, but for the exemptions. Together: what leaves was sent with the mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve, frozen

from ..model import bits
from ..model.box import Box, meet, only, uncovered
from ..model.covers import Covers
from ..model.marks import new_marks
from ..model.passage import Event, Place
from ..model.survey import which_mark
from ..netstate import nft, text
from .claim import BOTH, MarkTest, Region, UplinkClaim
from .ground import Ground, is_early, understood


@frozen
class Hit:
    """Where a lemma fails: part of the region, the base chain or the rule that lets it, and what was not understood."""

    family: int
    box: Box
    where: str
    doubts: tuple[str, ...]


def guard(
    ground: Ground, family: int, places: Sequence[Place], region: Region, allowed: Sequence[Region] = ()
) -> Hit | None:
    """A part of `region` that all of `places` accept and that is in no region of `allowed`; None if there is none.

    One chain can stand for all, if what it accepts is what leaves.
    """
    passage = ground.passage(family)
    space = passage.space
    holes = Covers((box for one in allowed for box in one.boxes(space)), space.tops)
    volatile = changing(ground, places)
    last = [place for place in places if not ground.rewritten_after(family, place)]
    for start in region.boxes(space):
        if any(passage.first_through((place,), start, holes) is None for place in last):
            continue
        found = passage.first_through(places, start, holes, volatile=volatile)
        if found is not None:
            return Hit(family, found, "", understood(found, space))
    return None


def changing(ground: Ground, places: Sequence[Place]) -> tuple[str, ...]:
    """Fields that differ from chain to chain whatever the rules say: what NAT translates, and the connection, which
    chains before connection tracking do not see."""
    addresses = ("saddr", "daddr", "sport", "dport") if ground.translates else ()
    return (*addresses, *(("ct.", "ctmark:") if any(map(is_early, places)) else ()))


def integrity(ground: Ground, family: int, uplink: UplinkClaim, hook: str | None = None) -> list[Hit]:
    """The rules (of one hook, if it is told) that may give the uplink's mark to a packet that is not entitled to it.

    Induction over all writes: if no packet of a flow that only unmarked sockets and other devices than the
    uplink's have used wears the mark before a write, then none wears it after. The same for the mark of
    the flow, where a rule reads that. Entitled are also the users that the claim lets send without a mark.
    """
    fair = Region(marks=(uplink.unmarked,), not_arrived=uplink.devices)
    strict = Region(marks=(uplink.unmarked, _flow_unmarked(uplink)), not_arrived=uplink.devices)
    passage = ground.passage(family)
    if not any(_may_give(ground, family, statement, uplink) for statement in ground.survey.writes):
        return []
    places = [place for place in ground.every(family) if passage.writes(place[0], place[1].name)]
    places = [place for place in places if hook in (None, place[1].hook and place[1].hook.hook)]
    # Users that need no mark may get it; but who writes it into the flow would hand it on.
    users = Region({"socket": only(1), "uid": only(*uplink.users)}) if uplink.users and hook is None else None
    lent = [evolve(users, marks=(_flow_unmarked(uplink),), not_arrived=uplink.devices)] if users else []
    hits = list(_gives(ground, family, places, [strict], uplink, "mark", users))
    flows = list(_gives(ground, family, places, [strict, *lent], uplink, "ctmark"))
    if flows and not hits:
        # A flow may wear the mark: that is a leak if a packet can get it back from there.
        hits = list(_gives(ground, family, places, [fair], uplink, "mark", users))
        if hits:
            hits = [*flows, *hits]
    return hits


def round_the_hooks(ground: Ground) -> list[Hit]:
    """Statements that may do anything, or send packets by another way than through postrouting."""
    return [Hit(family, {}, where, (where,)) for where in ground.survey.unknown for family in BOTH]


def settled(ground: Ground, family: int, places: Sequence[Place], uplink: UplinkClaim) -> list[Place]:
    """Those of `places` behind whose tests nothing can put the uplink's mark on what leaves by another device."""
    giving = {
        table.key
        for table in ground.ruleset.tables
        if any(_may_give(ground, family, one, uplink) for one in ground.marks_written(table))
    }
    passage = ground.passage(family)
    writers = [
        place for place in ground.every(family) if place[0].key in giving and passage.writes(place[0], place[1].name)
    ]
    elsewhere = Region(not_out=(*uplink.devices, "lo"))
    giving_elsewhere = [
        one for one in writers if next(_gives(ground, family, [one], [elsewhere], uplink, "mark"), None) is not None
    ]
    return [place for place in places if not any(ground.is_behind(one, place) for one in giving_elsewhere)]


def _may_give(ground: Ground, family: int, statement: nft.Mangle, uplink: UplinkClaim) -> bool:
    """Whether a write can change a bit of the uplink's mark towards it, whatever the packet."""
    if which_mark(statement.key) is None:
        return False
    passage = ground.passage(family)
    of = str(which_mark(statement.key))
    marks = new_marks(passage.space, statement, {})
    changed = False
    for group in passage.space.partition:
        if not group & uplink.mask:
            continue
        field = bits.name(of, group)
        after = marks.get(field, field)
        if isinstance(after, int) and after != bits.packed(uplink.value, group):
            return False
        changed = changed or after != field
    return changed


def _flow_unmarked(uplink: UplinkClaim) -> MarkTest:
    return MarkTest(uplink.value, uplink.mask, equal=False, of="ctmark")


def _gives(
    ground: Ground,
    family: int,
    places: Sequence[Place],
    regions: Sequence[Region],
    uplink: UplinkClaim,
    of: str,
    but: Region | None = None,
) -> Iterator[Hit]:
    """Where the mark is given to packets of `regions`, those of `but` left out."""
    passage = ground.passage(family)
    space = passage.space
    spared = but.boxes(space) if but is not None else []
    for place in places:
        for start in (box for region in regions for box in region.boxes(space)):
            for event in passage.mark_writes(place, start):
                box = _afterwards(ground, family, event, uplink, of)
                if box is None:
                    continue
                left = uncovered(box, [*event.decided(box), *spared], space.tops)
                if left is not None:
                    yield Hit(family, left, _where(event), understood(left, space))


def _afterwards(ground: Ground, family: int, event: Event, uplink: UplinkClaim, of: str) -> Box | None:
    """The packets of a write that wear the uplink's mark after it; None if there are none."""
    passage = ground.passage(family)
    space = passage.space
    statement = event.statement
    if isinstance(statement, nft.Notrack):
        return None  # it changes what is seen of the connection, and no mark
    if not isinstance(statement, nft.Mangle):
        return {**event.box, space.doubt(f"{_where(event)} may do anything"): ((1, 1),)}
    if which_mark(statement.key) != of or not _may_give(ground, family, statement, uplink):
        return None
    marks = new_marks(passage.space, statement, {})
    box: Box | None = event.box
    for group in space.partition:
        if not group & uplink.mask:
            continue
        field = bits.name(of, group)
        after, wanted = marks.get(field, field), bits.packed(uplink.value, group)
        if isinstance(after, int):
            if after != wanted:
                return None
        elif box is not None:
            box = meet(box, {after: ((wanted, wanted),)})
    return box


def _where(event: Event) -> str:
    table, chain = event.place
    rule = "its policy" if event.rule is None else repr(text.shown(event.rule))
    return f"{table.family} {table.name} {chain.name}: {rule}"
