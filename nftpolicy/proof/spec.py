# SPDX-License-Identifier: BSD-2-Clause
"""Specification of a state in terms of packets; contains no policy object and no compiled rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import Factory, frozen

from ..model.packet import ESP, L2TP
from ..model.symbolic import field_values, mark_bits
from ..model.symbolic.box import Box, Ranges, intersect_boxes, merge_ranges, points
from ..model.symbolic.header_space import HeaderSpace
from ..netstate.nft import FULL_MASK, OriginPath
from ..netstate.nft.symbols import CT_DIRECTIONS

IP_FAMILIES = (4, 6)
ARRIVAL = "iif"  # field of the input device, 0 for none
_FIRST_GROUP = {4: 0xE0 << 24, 6: 0xFF << 120}  # of multicast; behind it IPv4 has the limited broadcast


@frozen
class MarkTest:
    """Test of a mark: `field` ("mark" or "ctmark") & `mask` equals `value`.

    If not `equal`, it must differ.
    """

    value: int
    mask: int
    equal: bool = True
    field: str = "mark"

    def boxes(self, space: HeaderSpace) -> list[Box]:
        """Return the packets of a header space that pass the test."""
        test = mark_bits.equal_boxes if self.equal else mark_bits.unequal_boxes
        return test(self.field, space.partition, self.mask, self.value)


@frozen
class Region:
    """Set of packets: the conjunction of all given conditions.

    `fields` are the fields of symbolic/field_values.py; the other conditions are marks and device
    names (None: any device).
    """

    fields: Mapping[str, Ranges] = Factory(dict)
    marks: tuple[MarkTest, ...] = ()
    oifname: tuple[str, ...] | None = None
    not_oifname: tuple[str, ...] = ()
    iifname: tuple[str, ...] | None = None
    not_iifname: tuple[str, ...] = ()

    def narrowed(self, *marks: MarkTest, oifname: tuple[str, ...] | None = None, **fields: Ranges) -> Region:
        """Return the region with more conditions. In keywords, _ stands for the dot of a field."""
        named_fields = {name.replace("_", ".", 1): ranges for name, ranges in fields.items()}
        return Region(
            {**self.fields, **named_fields},
            (*self.marks, *marks),
            self.oifname if oifname is None else oifname,
            self.not_oifname,
            self.iifname,
            self.not_iifname,
        )

    def holds(self, values: Mapping[str, int]) -> bool:
        """Return True if the header fields of a packet with these values are in the region; it has no other field."""
        return all(
            name in values and any(low <= values[name] <= high for low, high in ranges)
            for name, ranges in self.fields.items()
        )

    def readable_boxes(self, space: HeaderSpace) -> list[Box]:
        """Return the region as boxes; if it names a field of the transport header, of packets that have one."""
        if not any(map(field_values.is_transport_field, self.fields)):
            return self.boxes(space)
        whole = {field_values.READABLE: field_values.WHOLE, field_values.LINK_READABLE: field_values.WHOLE}
        return _intersections(self.boxes(space), [whole])

    def boxes(self, space: HeaderSpace) -> list[Box]:
        """Return the region as boxes of `space`; empty if the family has no such packets."""
        start = intersect_boxes(space.family_box(), self.fields)
        boxes = [] if start is None else [start]
        conditions = (("oif", self.oifname, self.not_oifname), ("iif", self.iifname, self.not_iifname))
        for field, included, excluded in conditions:
            if included is not None:
                boxes = _intersections(boxes, [{field: space.union_of_devices(included)}])
            if excluded:
                remaining = space.devices_except(excluded)
                boxes = _intersections(boxes, [{field: remaining}]) if remaining else []
        for test in self.marks:
            boxes = _intersections(boxes, test.boxes(space))
        return boxes


def _intersections(first: Iterable[Box], second: list[Box]) -> list[Box]:
    return [both for box in first for condition in second if (both := intersect_boxes(box, condition)) is not None]


@frozen
class OwnerSpec:
    """Owner of sockets: a group or a user.

    `marked`: only its sockets with the uplink's mark, in flows that they began: the other programs of root have
    sockets of this owner, too, and some of them answer.
    """

    key: str  # "gid" or "uid"
    number: int
    marked: bool = False

    @property
    def match_fields(self) -> dict[str, Ranges]:
        """Return the field ranges that match sockets of this owner."""
        fields = {"socket": points(1), self.key: points(self.number)}
        return {**fields, "ct.direction": points(CT_DIRECTIONS["original"])} if self.marked else fields


@frozen
class ServiceSpec:
    """Service that may use the uplink's mark: its socket owners and destinations.

    `regions` hold header conditions only, by family; a family without an entry is not allowed.
    `kernel` services are UDP without an owning process, or packets of the kernel's ports or tunnels if the
    headers name them: packets in a tunnel belong to the socket that created the inner packet.
    """

    name: str
    origin: OriginPath
    owners: tuple[OwnerSpec, ...]
    kernel: bool
    regions: Mapping[int, tuple[Region, ...]]  # by family
    unmarked: bool = False  # its packets may be sent without the mark, and only by the uplink

    @property
    def has_no_owner(self) -> bool:
        """Return True if some of its packets are those that no process owns."""
        return any("socket" in each.fields for regions in self.regions.values() for each in regions)

    @property
    def has_marked_owner(self) -> bool:
        """Return True if the mark alone distinguishes it from other programs of its owner, root."""
        return any(owner.marked for owner in self.owners)

    @property
    def names_source_port(self) -> bool:
        """Return True if some of its packets are those of named ports of the kernel's sockets (`sport`)."""
        return self.kernel and any("sport" in each.fields for regions in self.regions.values() for each in regions)

    @property
    def is_tunnel(self) -> bool:
        """Return True if some of its packets are those of the kernel's tunnels, whatever their owner."""
        regions = [each for listed in self.regions.values() for each in listed]
        return self.kernel and self.unmarked and any("socket" not in each.fields for each in regions)

    def ipsec_ends(self, family: int) -> Ranges:
        """Return the other ends of IPsec: an ip rule leads all packets to them to the uplink's table."""
        regions = self.regions.get(family, ()) if self.kernel else ()
        return merge_ranges(
            pair for each in regions if each.fields.get("protocol") == points(ESP) for pair in each.fields["daddr"]
        )

    @property
    def is_l2tp(self) -> bool:
        """Return True if some of its packets are those of L2TP over IP."""
        regions = [each for listed in self.regions.values() for each in listed]
        return self.kernel and any(each.fields.get("protocol") == points(L2TP) for each in regions)


@frozen
class ExemptionSpec:
    """Exemption: `headers` of unmarked packets by family, and other `frames`.

    `is_lan`: packets to the uplink's own network, which a route in table main leads there; `detail` says which.
    """

    name: str
    origin: OriginPath
    headers: Mapping[int, tuple[Region, ...]]
    frames: tuple[Region, ...] = ()
    is_report: bool = False  # membership reports of the kernel, which may carry a mark by accident
    is_lan: bool = False
    detail: str = ""


@frozen
class ReplySpec:
    """Replies allowed by an `answer`: header conditions by family, sent back by the uplink.

    `exclusive`: also those whose source address the kernel selects, while a default route leads inside.
    """

    name: str
    origin: OriginPath
    headers: Mapping[int, tuple[Region, ...]]
    exclusive: bool = False


@frozen
class ForwardSpec:
    """Forwarded packets that may use the uplink: they arrive by `devices`.

    `arriving` and `leaving`: their header conditions by family, at arrival and when they leave (NAT may change the
    source). `elsewhere`: packets of these devices that are sent elsewhere. `inside`: networks of all forwards, by
    family. `masquerade`: with the uplink's address.
    """

    name: str
    origin: OriginPath
    devices: tuple[str, ...]
    arriving: Mapping[int, tuple[Region, ...]]
    leaving: Mapping[int, tuple[Region, ...]]
    elsewhere: Mapping[int, tuple[Region, ...]]
    inside: Mapping[int, Ranges] = Factory(dict)
    masquerade: bool = False


@frozen
class PublishSpec:
    """Port whose requests are forwarded from the uplink to `device`; `replies`: headers of its replies."""

    name: str
    origin: OriginPath
    device: str
    replies: Region


@frozen
class ResolverSpec:
    """Resolver of an uplink: listening endpoints (family, address, port), and its UID.

    `upstream`: header conditions of its own queries, by family.
    """

    listen: tuple[tuple[int, int, int], ...]
    uid: int
    origin: OriginPath
    upstream: Mapping[int, tuple[Region, ...]]

    def endpoints(self, family: int) -> tuple[tuple[int, int], ...]:
        """Return the (address, port) pairs of one family."""
        return tuple((address, port) for version, address, port in self.listen if version == family)


@frozen
class ClatSpec:
    """Translator of 464XLAT: its device, and the addresses that its IPv6 packets are for.

    Its IPv6 packets leave by `network`, the other devices of the uplink.
    """

    device: str
    prefix: Ranges
    network: tuple[str, ...]
    origin: OriginPath = ()


@frozen
class UplinkSpec:
    """Specification of one uplink. `ports` are the ports of bridges and bonds among its devices.

    `resets`: RSTs of closed ports, by family. `addresses`: by family, addresses of other devices with
    which the uplink may be used, too.
    `marked_flows` and `marked_sockets` are the numbers of conntrack entries and sockets that carry
    the mark in the kernel; None if they were not read. `bpdus`: frames of the spanning tree protocol that
    the kernel itself may send by `ports`.
    """

    name: str
    devices: tuple[str, ...]
    value: int
    mask: int
    table: int | None = None
    ports: tuple[str, ...] = ()
    exemptions: tuple[ExemptionSpec, ...] = ()
    services: tuple[ServiceSpec, ...] = ()
    replies: tuple[ReplySpec, ...] = ()
    resets: Mapping[int, tuple[Region, ...]] = Factory(dict)
    resolver: ResolverSpec | None = None
    origin: OriginPath = ()
    marked_flows: int | None = None
    marked_sockets: int | None = None
    forwards: tuple[ForwardSpec, ...] = ()
    publishes: tuple[PublishSpec, ...] = ()
    addresses: Mapping[int, Ranges] = Factory(dict)
    bpdus: tuple[Region, ...] = ()
    clat: ClatSpec | None = None

    @property
    def clat_devices(self) -> tuple[str, ...]:
        """Return the device of the CLAT, by which no exemption lets a packet leave; () without one."""
        return (self.clat.device,) if self.clat else ()

    def lan_networks(self, family: int) -> list[tuple[int, int]]:
        """Return the ranges of hosts in the uplink's own network to which packets may leave without a mark."""
        regions = [region for each in self.exemptions if each.is_lan for region in each.headers.get(family, ())]
        return [span for region in regions for span in region.fields["daddr"] if span[1] < _FIRST_GROUP[family]]

    @property
    def unmarked_uids(self) -> tuple[int, ...]:
        """Return the UIDs of unmarked users: their sockets may send without the mark."""
        return tuple(owner.number for service in self.services if service.unmarked for owner in service.owners)

    @property
    def forward_devices(self) -> tuple[str, ...]:
        """Return the devices, and patterns, by which packets to forward arrive."""
        return tuple(dict.fromkeys(device for forward in self.forwards for device in forward.devices))

    @property
    def has_mark(self) -> MarkTest:
        """Return the test for packets with the uplink's mark."""
        return MarkTest(self.value, self.mask)

    @property
    def lacks_mark(self) -> MarkTest:
        """Return the test for packets without the uplink's mark."""
        return MarkTest(self.value, self.mask, equal=False)

    @property
    def flow_has_mark(self) -> MarkTest:
        """Return the test for packets of flows with the uplink's mark."""
        return MarkTest(self.value, self.mask, field="ctmark")


@frozen
class Spec:
    """Specification of all uplinks of a machine.

    Without a policy, `inside` is None and only the devices and marks of the uplinks are known.
    `frames`: AF_PACKET sockets are checked too; without the egress hook of netdev in the kernel they
    become an assumption instead. `families` are the IP families of the machine, `loopback_families` those
    of lo, for a state without devices. `absent_devices` do not exist and have no chain at the egress
    hook: no frame can leave by them.
    """

    uplinks: tuple[UplinkSpec, ...]
    inside: tuple[str, ...] | None = None
    frames: bool = True
    families: tuple[int, ...] = IP_FAMILIES
    loopback_families: tuple[int, ...] = IP_FAMILIES
    absent_devices: frozenset[str] = frozenset()

    def ipsec_ends(self, family: int) -> Ranges:
        """Return the other ends of IPsec of all uplinks."""
        services = (service for uplink in self.uplinks for service in uplink.services)
        return merge_ranges(pair for service in services for pair in service.ipsec_ends(family))

    def frame_devices(self, uplink: UplinkSpec) -> tuple[str, ...]:
        """Return the devices by which frames of an uplink can leave."""
        return tuple(name for name in (*uplink.devices, *uplink.ports) if name not in self.absent_devices)

    @property
    def has_policy(self) -> bool:
        """Return True if a policy names the users of the marks, and the inside devices."""
        return self.inside is not None

    @property
    def devices(self) -> tuple[str, ...]:
        """Return every device name or pattern of the specification."""
        names = [name for uplink in self.uplinks for name in (*uplink.devices, *uplink.ports)]
        forwards = [device for uplink in self.uplinks for device in uplink.forward_devices]
        publishes = [publish.device for uplink in self.uplinks for publish in uplink.publishes]
        return (*names, "lo", *(self.inside or ()), *forwards, *publishes)

    @property
    def masks(self) -> tuple[int, ...]:
        """Return every mask that the specification tests."""
        return (*(uplink.mask for uplink in self.uplinks), FULL_MASK)
