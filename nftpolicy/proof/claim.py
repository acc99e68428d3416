# SPDX-License-Identifier: BSD-2-Clause
"""Specification of a state in terms of packets; contains no policy object and no compiled rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import Factory, frozen

from ..model import bits
from ..model.box import Box, Ranges, meet, only
from ..model.space import Space
from ..netstate.nft import FULL, Origin

BOTH = (4, 6)


@frozen
class MarkTest:
    """Test of a mark: field `of` ("mark" or "ctmark") & `mask` equals `value`.

    If not `equal`, it must differ.
    """

    value: int
    mask: int
    equal: bool = True
    of: str = "mark"

    def boxes(self, space: Space) -> list[Box]:
        """Return the packets of a header space that pass the test."""
        test = bits.equal if self.equal else bits.differs
        return test(self.of, space.partition, self.mask, self.value)


@frozen
class Region:
    """Set of packets: the conjunction of all given conditions.

    `fields` are the fields of symbolic/field_values.py; the other conditions are marks and device
    names (None: any device).
    """

    fields: Mapping[str, Ranges] = Factory(dict)
    marks: tuple[MarkTest, ...] = ()
    out: tuple[str, ...] | None = None
    not_out: tuple[str, ...] = ()
    arrived: tuple[str, ...] | None = None
    not_arrived: tuple[str, ...] = ()

    def with_(self, *marks: MarkTest, out: tuple[str, ...] | None = None, **fields: Ranges) -> Region:
        """Return the region with more conditions. In keywords, _ stands for the dot of a field."""
        named_fields = {name.replace("_", ".", 1): ranges for name, ranges in fields.items()}
        return Region(
            {**self.fields, **named_fields},
            (*self.marks, *marks),
            self.out if out is None else out,
            self.not_out,
            self.arrived,
            self.not_arrived,
        )

    def boxes(self, space: Space) -> list[Box]:
        """Return the region as boxes of `space`; empty if the family has no such packets."""
        start = meet(space.base(), self.fields)
        boxes = [] if start is None else [start]
        conditions = (("oif", self.out, self.not_out), ("iif", self.arrived, self.not_arrived))
        for field, included, excluded in conditions:
            if included is not None:
                boxes = _intersections(boxes, [{field: space.some_devices(included)}])
            if excluded:
                remaining = space.all_but(excluded)
                boxes = _intersections(boxes, [{field: remaining}]) if remaining else []
        for test in self.marks:
            boxes = _intersections(boxes, test.boxes(space))
        return boxes


def _intersections(first: Iterable[Box], second: list[Box]) -> list[Box]:
    return [both for box in first for condition in second if (both := meet(box, condition)) is not None]


@frozen
class Owner:
    """Owner of sockets: a group or a user."""

    key: str  # "gid" or "uid"
    number: int

    @property
    def fields(self) -> dict[str, Ranges]:
        """Return the field ranges that match sockets of this owner."""
        return {"socket": only(1), self.key: only(self.number)}


@frozen
class Service:
    """Service that may use the uplink's mark: its socket owners and destinations.

    `regions` hold header conditions only, by family; a family without an entry is not allowed.
    `kernel` services are UDP without an owning process, or UDP from the kernel's ports if the headers
    name them: packets in a tunnel belong to the socket that created the inner packet.
    """

    name: str
    origin: Origin
    owners: tuple[Owner, ...]
    kernel: bool
    regions: Mapping[int, tuple[Region, ...]]  # by family
    unmarked: bool = False  # its sockets may send without the mark, and only by the uplink


@frozen
class Hole:
    """Exemption: `headers` of unmarked packets by family, and `frames`, other ethertypes."""

    name: str
    origin: Origin
    headers: Mapping[int, tuple[Region, ...]]
    frames: tuple[int, ...] = ()
    report: bool = False  # membership reports of the kernel, which may carry a mark by accident


@frozen
class Reply:
    """Replies allowed by an `answer`: header conditions by family, sent back by the uplink."""

    name: str
    origin: Origin
    headers: Mapping[int, tuple[Region, ...]]


@frozen
class Names:
    """Resolver of an uplink: listening endpoints (family, address, port), and its UID."""

    listen: tuple[tuple[int, int, int], ...]
    user: int
    origin: Origin

    def at(self, family: int) -> tuple[tuple[int, int], ...]:
        """Return the (address, port) pairs of one family."""
        return tuple((address, port) for version, address, port in self.listen if version == family)


@frozen
class UplinkClaim:
    """Specification of one uplink. `ports` are the ports of bridges among its devices."""

    name: str
    devices: tuple[str, ...]
    value: int
    mask: int
    table: int | None = None
    ports: tuple[str, ...] = ()
    holes: tuple[Hole, ...] = ()
    services: tuple[Service, ...] = ()
    replies: tuple[Reply, ...] = ()
    resets: bool = False
    names: Names | None = None
    origin: Origin = ()

    @property
    def users(self) -> tuple[int, ...]:
        """Return the UIDs of unmarked users: their sockets may send without the mark."""
        return tuple(owner.number for service in self.services if service.unmarked for owner in service.owners)

    @property
    def marked(self) -> MarkTest:
        """Return the test for packets with the uplink's mark."""
        return MarkTest(self.value, self.mask)

    @property
    def unmarked(self) -> MarkTest:
        """Return the test for packets without the uplink's mark."""
        return MarkTest(self.value, self.mask, equal=False)

    @property
    def flow_marked(self) -> MarkTest:
        """Return the test for packets of flows with the uplink's mark."""
        return MarkTest(self.value, self.mask, of="ctmark")


@frozen
class Claim:
    """Specification of all uplinks of a machine.

    Without a policy, `inside` is None and only the devices and marks of the uplinks are known.
    `frames`: AF_PACKET sockets are checked too; without the egress hook of netdev in the kernel they
    become an assumption instead. `families` are the IP families of the machine.
    """

    uplinks: tuple[UplinkClaim, ...]
    inside: tuple[str, ...] | None = None
    frames: bool = True
    families: tuple[int, ...] = BOTH

    @property
    def whole(self) -> bool:
        """Return True if a policy names the users of the marks, and the inside devices."""
        return self.inside is not None

    @property
    def devices(self) -> tuple[str, ...]:
        """Return every device name or pattern of the specification."""
        names = [name for uplink in self.uplinks for name in (*uplink.devices, *uplink.ports)]
        return (*names, "lo", *(self.inside or ()))

    @property
    def masks(self) -> tuple[int, ...]:
        """Return every mask that the specification tests."""
        return (*(uplink.mask for uplink in self.uplinks), FULL)
