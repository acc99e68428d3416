# SPDX-License-Identifier: BSD-2-Clause
"""What is claimed of a state, in terms of packets: no policy, no compiled rule is in these values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import Factory, evolve, frozen

from ..model import bits
from ..model.box import Box, Ranges, meet, only
from ..model.space import Space
from ..netstate.nft import FULL, Origin

BOTH = (4, 6)


@frozen
class MarkTest:
    """`of` ("mark" or "ctmark") & `mask` is `value`, or is not."""

    value: int
    mask: int
    equal: bool = True
    of: str = "mark"

    def boxes(self, space: Space) -> list[Box]:
        """The packets for which it holds."""
        test = bits.equal if self.equal else bits.differs
        return test(self.of, space.partition, self.mask, self.value)


@frozen
class Region:
    """Packets by the fields of model/values.py, by marks, and by device names: all that is named holds."""

    fields: Mapping[str, Ranges] = Factory(dict)
    marks: tuple[MarkTest, ...] = ()
    out: tuple[str, ...] | None = None
    not_out: tuple[str, ...] = ()
    arrived: tuple[str, ...] | None = None
    not_arrived: tuple[str, ...] = ()

    def with_(self, *marks: MarkTest, out: tuple[str, ...] | None = None, **fields: Ranges) -> Region:
        """The same, narrowed. Fields are written with _ for the dot."""
        more = {name.replace("_", ".", 1): wanted for name, wanted in fields.items()}
        return evolve(
            self,
            fields={**self.fields, **more},
            marks=(*self.marks, *marks),
            out=self.out if out is None else out,
        )

    def boxes(self, space: Space) -> list[Box]:
        """The same packets as boxes of `space`; none if its family has no such packets."""
        start = meet(space.base(), self.fields)
        found = [] if start is None else [start]
        for field, named, barred in (("oif", self.out, self.not_out), ("iif", self.arrived, self.not_arrived)):
            if named is not None:
                found = _met(found, [{field: space.some_devices(named)}])
            if barred:
                rest = space.all_but(barred)
                found = _met(found, [{field: rest}]) if rest else []
        for test in self.marks:
            found = _met(found, test.boxes(space))
        return found


def _met(some: Iterable[Box], others: list[Box]) -> list[Box]:
    return [both for one in some for other in others if (both := meet(one, other)) is not None]


@frozen
class Owner:
    """Sockets by their group or user."""

    key: str  # "gid" or "uid"
    number: int

    @property
    def fields(self) -> dict[str, Ranges]:
        """The fields of a socket that this is true of."""
        return {"socket": only(1), self.key: only(self.number)}


@frozen
class Service:
    """Who may wear the mark, and where to: `regions` are headers alone, in any of the families.

    Those of `kernel` are UDP that no process owns, or UDP from the kernel's ports if the headers say them: packets in
    a tunnel belong to the socket that made what is inside.
    """

    name: str
    origin: Origin
    owners: tuple[Owner, ...]
    kernel: bool
    regions: Mapping[int, tuple[Region, ...]]  # by family
    unmarked: bool = False  # it may send without the mark, and by the uplink alone


@frozen
class Hole:
    """An exemption: `headers` of unmarked packets by family, and `frames` of other ethertypes."""

    name: str
    origin: Origin
    headers: Mapping[int, tuple[Region, ...]]
    frames: tuple[int, ...] = ()
    report: bool = False  # kernel-made membership reports, which may wear a mark that nobody put on


@frozen
class Reply:
    """An answer: the headers of packets that go back to who asked by the uplink, by family."""

    name: str
    origin: Origin
    headers: Mapping[int, tuple[Region, ...]]


@frozen
class Names:
    """The resolver of an uplink: where it listens (family, address, port), and the user that asks upstream."""

    listen: tuple[tuple[int, int, int], ...]
    user: int
    origin: Origin

    def at(self, family: int) -> tuple[tuple[int, int], ...]:
        """Addresses and ports of a family."""
        return tuple((address, port) for version, address, port in self.listen if version == family)


@frozen
class UplinkClaim:
    """What may use one uplink. `ports` are the ports of bridges among its devices."""

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
        """Users whose sockets may send without the mark."""
        return tuple(owner.number for one in self.services if one.unmarked for owner in one.owners)

    @property
    def marked(self) -> MarkTest:
        """Wears the uplink's mark."""
        return MarkTest(self.value, self.mask)

    @property
    def unmarked(self) -> MarkTest:
        """Does not."""
        return MarkTest(self.value, self.mask, equal=False)

    @property
    def flow_marked(self) -> MarkTest:
        """The flow wears it."""
        return MarkTest(self.value, self.mask, of="ctmark")


@frozen
class Claim:
    """The whole. Without a policy (`inside` is None) only the uplinks' devices and marks are known.

    `frames`: AF_PACKET sockets are judged too; not so for a kernel without the egress hook, where that
    becomes an assumption. `families` are those that the machine has.
    """

    uplinks: tuple[UplinkClaim, ...]
    inside: tuple[str, ...] | None = None
    frames: bool = True
    families: tuple[int, ...] = BOTH

    @property
    def whole(self) -> bool:
        """Whether a policy says who may wear the marks, and which devices are not uplinks."""
        return self.inside is not None

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device or pattern that the claim names."""
        named = [name for one in self.uplinks for name in (*one.devices, *one.ports)]
        return (*named, "lo", *(self.inside or ()))

    @property
    def masks(self) -> tuple[int, ...]:
        """Every mask that the claim tests."""
        return (*(one.mask for one in self.uplinks), FULL)
