# SPDX-License-Identifier: BSD-2-Clause
"""P5: a service's questions for names reach its uplink's resolver and no other, and nobody else's reach that one."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.box import Ranges, complement, only, ranges
from ..model.packet import TCP, UDP, number
from ..model.values import STATES, TOPS
from ..netstate import nft
from .claim import BOTH, Claim, Names, Region, UplinkClaim
from .findings import finding
from .ground import Ground
from .lemmas import Hit, guard
from .no_leak import headers
from .verdict import Finding
from .witness import seen
from .worn import DNS, answers

_ESTABLISHED = only(STATES["established"])


def right_names(ground: Ground, claim: Claim, one: UplinkClaim) -> Iterator[Finding]:
    """P5 of one uplink."""
    names = one.names
    assert names is not None
    owners = [owner for service in one.services for owner in service.owners]
    clients = [
        {"socket": only(1), key: ranges((owner.number, owner.number) for owner in owners if owner.key == key)}
        for key in sorted({owner.key for owner in owners})
    ]
    asks = Region({"protocol": only(TCP, UDP), "fragment": only(0), "dport": only(DNS)})
    past, strangers, outside, elsewhere = [], [], [], []
    for family in BOTH:
        post = ground.at(family, "postrouting")
        own = [_listening(place).with_(out=("lo",)) for place in names.at(family)]
        # What an exemption names, or answers, is no question, whatever its port.
        own += [
            region.with_(out=other.devices)
            for other in claim.uplinks
            for region in (*headers(other, family), *answers(other, family))
        ]
        for client in clients:
            mine = asks.with_(**{**_of_no_other(claim, one), **client})
            hit = guard(ground, family, post, mine, own)
            past += [hit] if hit else []
            elsewhere += _translated(ground, family, mine, names)
        for place in names.at(family):
            nobody = {key: _not(owner.number for owner in owners if owner.key == key) for key in ("uid", "gid")}
            region = _listening(place).with_(out=("lo",), socket=only(1), **nobody)
            hit = guard(ground, family, post, region)
            strangers += [hit] if hit else []
            hit = guard(
                ground, family, post, _listening(place).with_(out=("lo",), socket=only(0)),
                [Region({"ct.state": _ESTABLISHED})],
            )  # fmt: skip
            strangers += [hit] if hit else []
            if not _loopback(family, place[0]):
                door = Region(_listening(place).fields, arrived=None, not_arrived=("lo",))
                hit = guard(ground, family, ground.at(family, "input"), door)
                outside += [hit] if hit else []
    yield finding("P5", one, "names that a service asks of another server", past, *seen(ground, past, "leaves"))
    yield finding("P5", one, "names of a service that are sent to another place than its resolver", elsewhere, [], [])
    reached = seen(ground, strangers, "delivered")
    yield finding("P5", one, "sockets of no service that reach the resolver", strangers, *reached)
    if outside or any(not _loopback(version, address) for version, address, _ in names.listen):
        reached = seen(ground, outside, "delivered")
        yield finding("P5", one, "packets from outside that reach the resolver", outside, *reached)


def _of_no_other(claim: Claim, one: UplinkClaim) -> dict[str, Ranges]:
    """Sockets of no other uplink's service. One can be two services' by its group and its user; the first has it."""
    others = [owner for other in claim.uplinks if other is not one for two in other.services for owner in two.owners]
    return {key: _not(owner.number for owner in others if owner.key == key) for key in ("uid", "gid")}


def _listening(place: tuple[int, int]) -> Region:
    address, port = place
    return Region({"protocol": only(TCP, UDP), "fragment": only(0), "daddr": only(address), "dport": only(port)})


def _loopback(family: int, address: int) -> bool:
    return address >> 24 == 127 if family == 4 else address == 1


def _not(numbers: Iterator[int]) -> Ranges:
    return complement(ranges((one, one) for one in numbers), TOPS["uid"])


def _translated(ground: Ground, family: int, region: Region, names: Names) -> list[Hit]:
    """Where a service's questions are sent to another place than its resolver."""
    passage, found = ground.passage(family), []
    for place in ground.translating(family, "output"):
        for start in region.boxes(passage.space):
            for event in passage.events(place, start):
                if event.kind == "nat" and not _home(event.statement, family, names):
                    where = f"{place[0].family} {place[0].name} {place[1].name}"
                    found.append(Hit(family, event.box, where, ()))
    return found


def _home(statement: object, family: int, names: Names) -> bool:
    if not isinstance(statement, nft.Dnat) or not isinstance(statement.address, str):
        return False
    return (number(statement.address), statement.port) in names.at(family)
