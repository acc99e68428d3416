# SPDX-License-Identifier: BSD-2-Clause
"""Who may wear an uplink's mark as a packet leaves, in terms of packets; and who counts as if he wore it."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from ..model.box import meet, only
from ..model.packet import TCP, UDP
from ..model.values import STATES
from .claim import MarkTest, Region, UplinkClaim

DNS = 53
_ESTABLISHED = only(STATES["established"])


def worn(one: UplinkClaim, family: int) -> Iterator[Region]:
    """Packets that may wear the mark at the uplink."""
    for service in one.services:
        for region in service.regions.get(family, ()):
            if region.fields:
                yield from (region.with_(**owner.fields) for owner in service.owners)
            if service.kernel:
                yield region if region.fields else _udp_of_the_kernel()
    free = [service for service in one.services if any(not region.fields for region in service.regions.get(family, ()))]
    for key in ("gid", "uid"):
        numbers = [owner.number for service in free for owner in service.owners if owner.key == key]
        if numbers:
            yield Region({"socket": only(1), key: only(*numbers)})
    # The rest of closed connections, but not of those that began at the uplink: of them only answers go back.
    closed = Region({"socket": only(0), "ct.state": _ESTABLISHED})
    yield closed.with_(ct_direction=only(0))
    yield closed.with_(MarkTest(one.value, one.mask, equal=False, of="ctmark"))
    if one.names is not None:
        asks = Region({"protocol": only(TCP, UDP), "fragment": only(0), "dport": only(DNS)})
        yield asks.with_(socket=only(1), uid=only(one.names.user))
    yield from answers(one, family)
    for exempt in one.holes:
        if exempt.report:
            yield from exempt.headers.get(family, ())


def answers(one: UplinkClaim, family: int) -> Iterator[Region]:
    """Replies to whoever asked by the uplink."""
    back = Region({"ct.direction": only(1)}, (one.flow_marked,))
    for reply in one.replies:
        for region in reply.headers.get(family, ()):
            yield Region({**region.fields, **back.fields}, back.marks)
    if one.resets:
        yield Region({"protocol": only(TCP), "fragment": only(0), "tcp.rst": only(1), **back.fields}, back.marks)


def _udp_of_the_kernel() -> Region:
    return Region({"socket": only(0), "protocol": only(UDP)})


def of_users(one: UplinkClaim, family: int) -> Iterator[Region]:
    """What sockets of users without marks may send: what anybody may with the mark, they may without."""
    mine = {"socket": only(1), "uid": only(*one.users)}
    for region in worn(one, family) if one.users else ():
        both = meet(region.fields, mine)
        if both is not None:
            yield evolve(region, fields=both)
