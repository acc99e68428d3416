# SPDX-License-Identifier: BSD-2-Clause
"""P1, source addresses: what leaves by an uplink has an address of that uplink, or none yet.

An address that the machine has elsewhere, such as the inner address of a tunnel, is the owner's: as a source it tells
the uplink's network what else the machine is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from ..model.packet import Packet, address_range, evolve_packet
from ..model.symbolic.box import Ranges, complement, intersect_boxes, merge_ranges
from ..model.trace import Trace
from ..netstate.nft import Fib
from ..netstate.routing import TABLE_LOCAL
from .concretize import REMOTE_ADDRESS, concretize
from .context import ProofContext
from .counterexample import local_origins, trace_candidate
from .entitlement import translated_regions
from .findings import finding
from .lemmas import Violation, guard_violation
from .spec import IP_FAMILIES, Region, UplinkSpec
from .verdict import Counterexample, Finding

_LAST_ADDRESS = {4: (1 << 32) - 1, 6: (1 << 128) - 1}
# Whether the source is an address of the output device; by any other value of the lookup it is not.
_SOURCE_TYPE, _OWN = Fib("type", ("saddr", "oif")), "local"
_MAX_SOURCES = 8  # that are tried


def own_sources(uplink: UplinkSpec, family: int) -> Ranges:
    """Return the sources that are right on any device: those of the policy, and the unspecified address."""
    return merge_ranges([(0, 0), *uplink.addresses.get(family, ())])


def check_source_addresses(context: ProofContext, uplink: UplinkSpec) -> Finding:
    """Return the finding about packets from an address that is not the uplink's."""
    # Hosts behind these have addresses of their own.
    devices = (
        *(name for each in uplink.forwards for name in each.devices),
        *(each.device for each in uplink.publishes),
    )
    violations = []
    for family in IP_FAMILIES:
        space = context.space(family)
        field = space.field_of(_SOURCE_TYPE)
        own = field.parse(_OWN) if field is not None else None
        if field is None or own is None:
            raise AssertionError("the header space has no field for address types")
        foreign = {
            field.name: complement(own, space.max_values[field.name]),
            "saddr": complement(own_sources(uplink, family), _LAST_ADDRESS[family]),
        }
        translated = list(translated_regions(uplink, family))  # from the addresses of the CLAT, and of other hosts
        region = Region(foreign, oifname=uplink.devices, not_iifname=devices)
        violation = guard_violation(context, family, context.filter_chains(family, "postrouting"), region, translated)
        if violation is not None:
            violations.append(violation)
    subject = f"packets that leave by {', '.join(uplink.devices)} from an address of another device"
    examples, unsupported = _search(context, uplink, violations)
    return finding(context, "P1", uplink, subject, violations, examples, unsupported)


def _search(
    context: ProofContext, uplink: UplinkSpec, violations: list[Violation]
) -> tuple[list[Counterexample], list[str]]:
    """Return packets that leave from a foreign address, and the unsupported constructs of those that may."""
    examples: list[Counterexample] = []
    unsupported: list[str] = []
    for violation in violations:
        for packet in _candidates(context, uplink, violation):
            trace = trace_candidate(context, packet)
            if trace.outcome == "unknown":
                unsupported += trace.unsupported
            elif trace.outcome == "leaves" and _is_foreign(context, uplink, trace):
                examples.append(Counterexample(packet, trace, str(trace.device), "its source is not of this uplink"))
                break
    return examples, list(dict.fromkeys(unsupported))


def _candidates(context: ProofContext, uplink: UplinkSpec, violation: Violation) -> Iterator[Packet]:
    """Yield packets of a violation from each address of another device; from one of no device if there is none.

    First those with the uplink's mark, which other rules let leave.
    """
    space, family = context.space(violation.family), violation.family
    marked = (intersect_boxes(violation.box, box) for box in uplink.has_mark.boxes(space))
    boxes = [*(box for box in marked if box is not None), violation.box]
    for device, box in product(uplink.devices, boxes):
        sources = _addresses_elsewhere(context, family, device) or [REMOTE_ADDRESS[family] + 1]
        for origin in local_origins(violation):
            packet = concretize(space, box, origin, device)
            yield from (evolve_packet(packet, source=source) for source in sources[:_MAX_SOURCES])


def _addresses_elsewhere(context: ProofContext, family: int, device: str) -> list[int]:
    local = (route for route in context.state.routes if (route.family, route.table) == (family, TABLE_LOCAL))
    addresses = (
        address_range(route.destination, family)[0]
        for route in local
        if route.kind == "local" and route.device not in (device, "lo")
    )
    return list(dict.fromkeys(addresses))


def _is_foreign(context: ProofContext, uplink: UplinkSpec, trace: Trace) -> bool:
    """Return True if the packet leaves by the uplink with a source that is not right there."""
    family, source = trace.packet.family, trace.source
    if source is None or trace.device not in uplink.devices:
        return False
    if any(low <= source <= high for low, high in own_sources(uplink, family)):
        return False
    return context.model.address_types.address_type(family, source, trace.device) != _OWN
