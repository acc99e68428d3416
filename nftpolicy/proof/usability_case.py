# SPDX-License-Identifier: BSD-2-Clause
"""Case of P3 or P4, and helpers that choose its packets and addresses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count, islice, product

from attrs import evolve, frozen

from ..model.fib.source_address import is_link_local6, is_multicast6
from ..model.packet import KERNEL, SOCKET, Packet, address_range
from ..model.symbolic.box import Ranges, intersect_ranges, points, subtract_ranges
from ..model.trace import Trace
from ..netstate.nft import OriginPath
from ..netstate.routing import TABLE_LOCAL
from ..netstate.state import NetState
from .assumptions import device_matches
from .concretize import concretize, host_ranges
from .context import ProofContext
from .source_addresses import own_sources
from .spec import Region, Spec, UplinkSpec

_MAX_PARTS = 64  # of one region


@frozen
class UsabilityCase:
    """Packet and its required result: `packet` must have `outcome`, by `device` if that is given.

    `entry` is the policy entry as text. `mark` and `flow_mark` are (value, mask) at the end of the
    trace, `endpoint` is the destination address and port there; None requires nothing.
    """

    property: str
    uplink: str
    entry: str
    origin: OriginPath
    packet: Packet
    outcome: str
    device: str | None = None
    mark: tuple[int, int] | None = None
    endpoint: tuple[int, int] | None = None
    flow_mark: tuple[int, int] | None = None
    may_equal_unmarked: bool = False  # the outcome of the same packet without its mark suffices, too
    must_not_leave_by: str | None = None  # any outcome but "leaves" by this device or an alternative suffices
    alternatives: tuple[str, ...] = ()  # devices and patterns that count as `device`: routes choose among them
    may_be_firewalled: bool = False  # dropped by a foreign rule, after it has the mark, suffices
    may_be_undecided: bool = False  # one branch that meets the case suffices

    def is_met(self, trace: Trace) -> bool:
        """Return True if the trace has the required result."""
        if self.must_not_leave_by is not None:
            may_leave = trace.outcome in ("leaves", "unknown")
            return not (may_leave and (trace.device is None or self._is_by(self.must_not_leave_by, trace.device)))
        if trace.outcome != self.outcome or (self.device is not None and not self._is_by(self.device, trace.device)):
            return False
        return self.has_marks(trace) and (self.endpoint is None or (trace.destination, trace.dport) == self.endpoint)

    def _is_by(self, device: str, output: str | None) -> bool:
        return output is not None and any(device_matches(pattern, output) for pattern in (device, *self.alternatives))

    def is_violated(self, trace: Trace) -> bool:
        """Return True if the trace ends in what the property forbids; a packet that is dropped violates only P3."""
        if self.is_met(trace):
            return False
        match self.property:
            case "P1":
                return trace.outcome == "leaves" and not self.has_marks(trace)
            case "P2":
                return trace.outcome in ("leaves", "delivered")
            case "P5":
                return trace.outcome == "leaves" or (trace.outcome == "delivered" and self.endpoint is not None)
        return True

    def has_marks(self, trace: Trace) -> bool:
        """Return True if packet and flow have the required marks at the end of the trace."""
        return _has_mark(trace.mark, self.mark) and _has_mark(trace.ct_mark, self.flow_mark)


def _has_mark(mark: int, required: tuple[int, int] | None) -> bool:
    return required is None or mark & required[1] == required[0]


def sample_packet(context: ProofContext, family: int, region: Region, origin: str, bound: str | None = None) -> Packet:
    """Return a packet of the region; of any headers if the family has none in it.

    To another machine, if the region has such packets.
    """
    packet = _sample(context, family, region, origin, bound)
    own, destinations = context.own_addresses(family), region.fields.get("daddr")
    if destinations and any(low <= packet.destination <= high for low, high in own):
        elsewhere = subtract_ranges(destinations, own)
        if elsewhere:  # in the largest range, which is not only the address of a network
            largest = max(elsewhere, key=lambda span: span[1] - span[0])
            region = evolve(region, fields={**region.fields, "daddr": (largest,)})
            return _sample(context, family, region, origin, bound)
    return packet


def _sample(context: ProofContext, family: int, region: Region, origin: str, bound: str | None) -> Packet:
    boxes = region.readable_boxes(context.space(family))
    return concretize(context.space(family), boxes[0] if boxes else {}, origin, bound)


def region_parts(family: int, region: Region, with_ends: bool = False) -> Iterator[Region]:
    """Return the region in parts: by each range of its fields, and each ICMP type.

    A rule or a set has one row for each part. With `with_ends`, the last value of each range is a part too,
    since two rows can be adjacent.
    """
    parts: dict[str, list[Ranges]] = {}
    for name, ranges in region.fields.items():
        spans = host_ranges(family, ranges) if name == "daddr" else ranges
        parts[name] = [((low, high),) for low, high in spans]
        if name.endswith(".type"):
            parts[name] = [points(value) for low, high in ranges for value in range(low, high + 1)]
        elif with_ends:
            parts[name] += [points(high) for low, high in spans if high > low]
    for combination in islice(product(*parts.values()), _MAX_PARTS):
        yield Region(dict(zip(parts, combination, strict=True)), region.marks)


def needs_device(address: int) -> bool:
    """Return True if an IPv6 address is link-local or a group, which a socket uses by a device."""
    return is_link_local6(address) or is_multicast6(address)


def is_loopback(family: int, address: int) -> bool:
    """Return True if an address is in 127.0.0.0/8, or is ::1."""
    return address >> 24 == 127 if family == 4 else address == 1


def lacks_source(context: ProofContext, spec: Spec, case: UsabilityCase) -> bool:
    """Return True if the packet has to leave by an uplink's device that has no such address now."""
    packet, device = case.packet, case.device
    uplink = next((uplink for uplink in spec.uplinks if device in uplink.devices), None)
    if case.outcome != "leaves" or uplink is None or device is None:
        return False
    if packet.origin not in (SOCKET, KERNEL):
        return False
    if packet.source is not None:
        if any(low <= packet.source <= high for low, high in own_sources(uplink, packet.family)):
            return False
        return context.model.address_types.address_type(packet.family, packet.source, device) != "local"
    is_link_scoped = packet.family == 6 and needs_device(packet.destination)
    return not is_link_scoped and device_address(context.state, packet.family, device) is None


def free_port(spec: Spec) -> int:
    """Return a port that no resolver listens on."""
    return next(port for port in count(9) if port not in resolver_ports(spec))


def resolver_ports(spec: Spec) -> frozenset[int]:
    """Return the ports that the uplinks' resolvers listen on."""
    resolvers = (uplink.resolver for uplink in spec.uplinks if uplink.resolver is not None)
    return frozenset(port for resolver in resolvers for _, _, port in resolver.listen)


def free_source_port(spec: Spec) -> int | None:
    """Return a port from which no uplink answers over UDP, None without one.

    Packets from other ports may be replies, which do not go inside.
    """
    answered = [
        span
        for uplink in spec.uplinks
        for reply in uplink.replies
        for regions in reply.headers.values()
        for region in regions
        for span in region.fields.get("sport", ())
    ]
    usual_first = chain(range(40000, 65536), range(39999, 0, -1))
    return next((port for port in usual_first if not any(low <= port <= high for low, high in answered)), None)


def link_local_address(state: NetState, device: str) -> int:
    """Return the link-local address of a device; fe80::2 if the state has none."""
    low, high = address_range("fe80::/10", 6)
    for route in state.routes:
        if (route.family, route.table, route.kind, route.device) == (6, TABLE_LOCAL, "local", device):
            address, _ = address_range(route.destination, 6)
            if low <= address <= high:
                return address
    return low + 2


def known_address(state: NetState, uplink: UplinkSpec, family: int) -> int | None:
    """Return an address of the machine that is one of the uplink's `addresses`; None if it has none."""
    for route in state.routes:
        if (route.family, route.table, route.kind) == (family, TABLE_LOCAL, "local"):
            low, high = address_range(route.destination, family)
            part = intersect_ranges(((low, high),), uplink.addresses.get(family, ()))
            if part:
                return part[0][0]
    return None


def device_address(state: NetState, family: int, device: str) -> int | None:
    """Return an address of the machine on a device, not link-local; None if it has none."""
    for route in state.routes:
        if (route.family, route.table, route.kind, route.device) == (family, TABLE_LOCAL, "local", device):
            low, _ = address_range(route.destination, family)
            if family == 4 or not is_link_local6(low):
                return low
    return None


def inside_address(state: NetState, family: int, spec: Spec) -> int | None:
    """Return an address of a device that is neither an uplink nor lo, and that no uplink knows; None without one."""
    uplinks = {device for uplink in spec.uplinks for device in uplink.devices}
    known = [span for uplink in spec.uplinks for span in uplink.addresses.get(family, ())]
    for route in state.routes:
        is_local = (route.family, route.table, route.kind) == (family, TABLE_LOCAL, "local")
        if is_local and route.device and route.device not in (*uplinks, "lo"):
            address = device_address(state, family, route.device)
            if address is not None and not any(low <= address <= high for low, high in known):
                return address
    return None
