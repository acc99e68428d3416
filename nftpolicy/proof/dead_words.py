# SPDX-License-Identifier: BSD-2-Clause
"""P3: every word of the policy can be used. P4: in both families alike."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from ..model.packet import changed
from ..model.walk import Walk
from ..netstate.nft import CounterRef, Rule
from .claim import Claim
from .ground import Ground
from .surroundings import here
from .verdict import PROVED, REFUTED, UNKNOWN, Counterexample, Finding
from .words import Word, words

Title = tuple[str, str, str, tuple[str, ...]]  # property, uplink, word, origin


@frozen
class _Tried:
    """A word; where it does not hold, the packet that shows it."""

    word: Word
    shown: Counterexample | None

    @property
    def held(self) -> bool:
        return self.shown is None


def used_words(ground: Ground, claim: Claim) -> tuple[list[Finding], tuple[str, ...]]:
    """P3: each word by the walk of a packet. P4: both families alike. And what could not be tried on this machine."""
    mine, skipped = here(ground.state, claim)
    told: dict[Title, dict[int, list[_Tried]]] = {}
    for word in words(ground, mine):
        if word.packet.family not in claim.families:
            continue
        tried = _tried(ground, word)
        if tried.shown is not None and ground.state.devices and tried.shown.walk.outcome == "unroutable":
            skipped[f"there is no route for it now: {word.word} (IPv{word.packet.family})"] = None
            continue
        families = told.setdefault((word.property, word.uplink, word.word, word.origin), {})
        families.setdefault(word.packet.family, []).append(tried)
    found = [_used(title, families) for title, families in told.items()]
    found += [_alike(title, families) for title, families in told.items() if len(families) == 2]
    return found, tuple(skipped)


def _tried(ground: Ground, word: Word) -> _Tried:
    walk = ground.model.walk(word.packet, told=False)
    held = word.holds(walk) and (walk.agreed or walk.outcome in ("unroutable", "dropped"))
    if not held and word.borrowed and walk.outcome in ("unroutable", "dropped"):
        # No worse than without the mark that it came with.
        held = ground.model.walk(changed(word.packet, mark=0), told=False).outcome == walk.outcome
    if held:
        return _Tried(word, None)
    walk = ground.model.walk(word.packet)
    if word.firewalled and walk.agreed and word.wears(walk) and _others_drop(walk, word.uplink):
        return _Tried(word, None)
    why = f"{walk.outcome}{f' by {walk.device}' if walk.device else ''}, mark {walk.mark:#x}"
    return _Tried(word, Counterexample(word.packet, walk, word.device or "", why))


def _others_drop(walk: Walk, uplink: str) -> bool:
    """Whether it was dropped, and not by what the policy compiles to: that counts what it drops, by the uplink."""
    by = walk.decisions[-2:]
    counted = {
        statement.name
        for one in by
        if isinstance(one.thing, Rule)
        for statement in one.thing.statements
        if isinstance(statement, CounterRef)
    }
    return walk.outcome == "dropped" and not any(name.startswith(f"{uplink}.") for name in counted)


def _used(title: Title, families: Mapping[int, list[_Tried]]) -> Finding:
    name, uplink, word, origin = title
    failed = tuple(one.shown for some in families.values() for one in some if one.shown is not None)
    doubts = tuple(doubt for one in failed for doubt in one.walk.doubts)
    verdict = PROVED if not failed else UNKNOWN if doubts else REFUTED
    return Finding(name, uplink, word, verdict, failed[0].why if failed else "", failed, doubts, origin=origin)


def _alike(title: Title, families: Mapping[int, list[_Tried]]) -> Finding:
    _, uplink, word, origin = title
    four, six = ([one.held for one in families[family]] for family in (4, 6))
    same = all(four) == all(six) and any(four) == any(six)
    detail = (
        "" if same else f"IPv4 {'can' if all(four) else 'can not'} be used, IPv6 {'can' if all(six) else 'can not'}"
    )
    return Finding("P4", uplink, word, PROVED if same else REFUTED, detail, origin=origin)
