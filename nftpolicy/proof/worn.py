# SPDX-License-Identifier: BSD-2-Clause
"""Packets entitled to an uplink's mark on egress.

Packets of unmarked users count as entitled.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from ..model.box import meet, only
from ..model.packet import TCP, UDP
from ..model.values import STATES
from .claim import MarkTest, Region, UplinkClaim

DNS = 53
_ESTABLISHED = only(STATES["established"])
_ORIGINAL, _REPLY = 0, 1  # ct.direction


def worn(uplink: UplinkClaim, family: int) -> Iterator[Region]:
    """Yield the packets that may carry the mark at the uplink."""
    for service in uplink.services:
        for region in service.regions.get(family, ()):
            if region.fields:
                for owner in service.owners:
                    yield Region({**region.fields, **owner.fields}, region.marks)
            if service.kernel:
                yield region if region.fields else _kernel_udp()
    unrestricted = [
        service for service in uplink.services if any(not region.fields for region in service.regions.get(family, ()))
    ]
    for key in ("gid", "uid"):
        numbers = [owner.number for service in unrestricted for owner in service.owners if owner.key == key]
        if numbers:
            yield Region({"socket": only(1), key: only(*numbers)})
    # Last packets of closed connections, but not of those that began at the uplink: for these, only
    # replies are allowed.
    closed = Region({"socket": only(0), "ct.state": _ESTABLISHED})
    yield closed.with_(ct_direction=only(_ORIGINAL))
    yield closed.with_(MarkTest(uplink.value, uplink.mask, equal=False, of="ctmark"))
    if uplink.names is not None:
        queries = Region({"protocol": only(TCP, UDP), "fragment": only(0), "dport": only(DNS)})
        yield queries.with_(socket=only(1), uid=only(uplink.names.user))
    yield from answers(uplink, family)
    for exemption in uplink.holes:
        if exemption.report:
            yield from exemption.headers.get(family, ())


def answers(uplink: UplinkClaim, family: int) -> Iterator[Region]:
    """Yield the replies of flows that began at the uplink."""
    fields, marks = {"ct.direction": only(_REPLY)}, (uplink.flow_marked,)
    for reply in uplink.replies:
        for region in reply.headers.get(family, ()):
            yield Region({**region.fields, **fields}, marks)
    if uplink.resets:
        yield Region({"protocol": only(TCP), "fragment": only(0), "tcp.rst": only(1), **fields}, marks)


def _kernel_udp() -> Region:
    return Region({"socket": only(0), "protocol": only(UDP)})


def of_users(uplink: UplinkClaim, family: int) -> Iterator[Region]:
    """Yield the packets that unmarked users may send: the entitled packets, without the mark."""
    sockets = {"socket": only(1), "uid": only(*uplink.users)}
    for region in worn(uplink, family) if uplink.users else ():
        fields = meet(region.fields, sockets)
        if fields is not None:
            yield evolve(region, fields=fields)
