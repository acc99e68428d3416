# SPDX-License-Identifier: BSD-2-Clause
"""P1: what leaves by an uplink was sent with its mark, or matches an exemption that the policy names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..model.box import Ranges, only
from ..model.packet import FORWARD, FRAME, SOCKET
from ..netstate import nft
from .claim import BOTH, Claim, Region, UplinkClaim
from .findings import by_mark, finding, judged
from .ground import Ground
from .lemmas import Hit, guard, integrity, round_the_hooks
from .verdict import Finding
from .witness import seen
from .worn import of_users, worn

_EVERY_ORIGIN = {SOCKET: "sockets", FORWARD: "forwarded packets", FRAME: "AF_PACKET sockets"}


def headers(one: UplinkClaim, family: int) -> list[Region]:
    """The headers of an uplink's exemptions in a family."""
    return [region for exempt in one.holes for region in exempt.headers.get(family, ())]


def no_leak(ground: Ground, claim: Claim, one: UplinkClaim) -> Iterator[Finding]:
    """P1 of one uplink."""
    writes = {family: integrity(ground, family, one) for family in BOTH}
    unmarked = Region(marks=(one.unmarked,))
    blind = {
        family: guard(
            ground,
            family,
            ground.at(family, "postrouting"),
            unmarked.with_(out=one.devices),
            [*headers(one, family), *of_users(one, family)],
        )
        for family in BOTH
    }
    around = round_the_hooks(ground)
    given = [hit for family in BOTH for hit in _dressed(ground, one, writes[family])]
    for origin, title in _EVERY_ORIGIN.items():
        # AF_PACKET frames meet the egress hook alone.
        hits = [*around, *given] if origin != FRAME else [
            hit for family in BOTH for hit in integrity(ground, family, one, "egress")
        ]  # fmt: skip
        for family in BOTH:
            holes = [*headers(one, family), *(of_users(one, family) if origin == SOCKET else ())]
            if origin == FRAME:
                for device in (*one.devices, *one.ports):
                    if not claim.frames:
                        continue  # stated among the assumptions
                    hit = _frames(ground, family, device, unmarked, holes)
                    hits += [hit] if hit else []
            elif blind[family] is not None:
                hits += _sent(ground, family, one, origin, unmarked, holes)
        subject = f"{title}: what leaves by {', '.join(one.devices)} without the mark"
        devices = (*one.devices, *one.ports) if origin == FRAME else one.devices
        yield judged(ground, "P1", one, subject, hits, origin, devices)
    if claim.frames:
        yield _other_frames(ground, claim, one, unmarked)
    if claim.whole:
        yield from _owners(ground, one)


def _dressed(ground: Ground, one: UplinkClaim, hits: Sequence[Hit]) -> list[Hit]:
    """Of packets that are given the mark: those that the guard then takes for a service's."""
    found = []
    for hit in hits:
        fields = {name: wanted for name, wanted in hit.box.items() if not name.startswith(("mark:", "ctmark:", "?"))}
        fields = {name: wanted for name, wanted in fields.items() if name not in ("iif", "oif")}
        for device in one.devices:
            places = [*ground.at(hit.family, "postrouting"), *ground.at(hit.family, "egress", device)]
            past = guard(ground, hit.family, places, Region(fields, (one.marked,), (device,)))
            if past is not None:
                box = {name: wanted for name, wanted in past.box.items() if not name.startswith(("mark:", "oif"))}
                begun = {name: wanted for name, wanted in hit.box.items() if name.startswith("mark:")}
                found.append(Hit(hit.family, {**box, **begun}, hit.where, hit.doubts))
    return [*found, *hits]


def _frames(ground: Ground, family: int, device: str, region: Region, holes: Sequence[Region]) -> Hit | None:
    places = ground.at(family, "egress", device)
    return guard(ground, family, places, region.with_(out=(device,), **_of_this_machine(ground)), holes)


def _of_this_machine(ground: Ground) -> dict[str, Ranges]:
    """What a bridge passes on from another port does not read as "host"; unless a rule says what is what."""
    written = any(statement.key == nft.Meta("pkttype") for statement in ground.survey.writes)
    return {} if written else {"pkttype": only(0)}


def _sent(
    ground: Ground, family: int, one: UplinkClaim, origin: str, region: Region, holes: Sequence[Region]
) -> list[Hit]:
    """Where packets of the IP layer get through, if postrouting alone does not stop them."""
    found = []
    for device in one.devices:
        places = [*ground.at(family, "postrouting"), *ground.at(family, "egress", device)]
        mine = region.with_(out=(device,), **_of_this_machine(ground))
        if origin == FORWARD:
            mine = mine.with_(socket=only(0))
            mine = Region(mine.fields, mine.marks, mine.out, not_arrived=("lo", *one.devices))
            places += ground.at(family, "forward")
        elif not _rerouted(ground, family):
            places += ground.at(family, "output")
        hit = guard(ground, family, places, mine, holes)
        found += [hit] if hit else []
    return found


def _rerouted(ground: Ground, family: int) -> bool:
    """Whether the device that the output hook shows may not be the last word."""
    hooks = (chain.hook for _, chain in ground.ruleset.hooked(family, "output"))
    return any(hook is not None and hook.type in ("route", "nat") for hook in hooks)


def _other_frames(ground: Ground, claim: Claim, one: UplinkClaim, region: Region) -> Finding:
    allowed = [kind for exempt in one.holes for kind in exempt.frames]
    holes = [Region({"ethertype": only(*allowed)})] if allowed else []
    hits = integrity(ground, 0, one, "egress")
    hits += [hit for device in (*one.devices, *one.ports) if (hit := _frames(ground, 0, device, region, holes))]
    subject = f"frames of other ethertypes: what leaves by {', '.join(one.devices)} without the mark"
    return judged(ground, "P1", one, subject, hits, FRAME, (*one.devices, *one.ports), (0,), claim.whole)


def _owners(ground: Ground, one: UplinkClaim) -> Iterator[Finding]:
    """Who may wear the mark."""
    hits = []
    for family in BOTH:
        region = Region(marks=(one.marked,), out=one.devices)
        hit = guard(ground, family, ground.at(family, "postrouting"), region, list(worn(one, family)))
        hits += [hit] if hit else []
    subject = f"sockets that are no service's: what leaves by {', '.join(one.devices)} with the mark"
    examples, doubts = by_mark(ground, one, hits)
    yield finding("P1", one, subject, hits, examples, doubts)


def unnamed_devices(ground: Ground, claim: Claim) -> Iterator[Finding]:
    """A device that nobody named is an uplink that nobody may use."""
    known = (*(device for one in claim.uplinks for device in one.devices), "lo", *(claim.inside or ()))
    hits = []
    for family in BOTH:
        hit = guard(ground, family, ground.at(family, "postrouting"), Region(not_out=known))
        hits += [hit] if hit else []
    examples, doubts = seen(ground, hits, "leaves")
    yield finding("P1", None, "devices that the policy does not name: what leaves by them", hits, examples, doubts)
