# SPDX-License-Identifier: BSD-2-Clause
"""P3 cases of an uplink's exemptions: packets and frames that need no mark."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.fib.output_route import is_link_scoped
from ..model.packet import FRAME, KERNEL, Packet, evolve_packet, parse_address
from ..model.symbolic.box import points
from . import exemption_spec
from .assumptions import sample_device
from .context import ProofContext
from .spec import Spec, UplinkSpec
from .usability_case import UsabilityCase, link_local_address, needs_device, region_parts, sample_packet

_ARPHRD_ETHER = 1  # include/uapi/linux/if_arp.h
_ALL_NODES = parse_address("ff02::1")  # RFC 4291 2.7.1


def exemption_cases(context: ProofContext, uplink: UplinkSpec, spec: Spec) -> Iterator[UsabilityCase]:
    """Yield packets of each exemption of an uplink but its own network: as frames, and from the kernel."""
    hooked = context.egress_devices()
    for exemption in (each for each in uplink.exemptions if not each.is_lan):
        title = f"exemption {exemption.name}"
        for device in (each for each in (*uplink.devices, *uplink.ports) if each not in uplink.clat_devices):
            has_link_header = context.model.link_types.get(device, _ARPHRD_ETHER) == _ARPHRD_ETHER
            frames = exemption.frames if has_link_header else ()
            for part in (part for region in frames for part in region_parts(0, region, with_ends=True)):
                frame = sample_packet(context, 0, part, FRAME, device)
                yield UsabilityCase("P3", uplink.name, title, exemption.origin, frame, "leaves", device)
            for family, regions in exemption.headers.items():
                for region in (part for full_region in regions for part in region_parts(family, full_region)):
                    frame = sample_packet(context, family, region, FRAME, device)
                    if family == 6:
                        source = frame.source if frame.source == 0 else link_local_address(context.state, device)
                        destination = frame.destination if "daddr" in region.fields else _ALL_NODES
                        frame = evolve_packet(frame, source=source, destination=destination)
                    if device in hooked and region.fields.get("socket") != points(0):
                        yield UsabilityCase("P3", uplink.name, title, exemption.origin, frame, "leaves", device)
                    if device not in uplink.devices or not _needs_no_route(frame):
                        continue
                    by_kernel = evolve_packet(frame, origin=KERNEL)
                    yield UsabilityCase("P3", uplink.name, title, exemption.origin, by_kernel, "leaves", device)
                    if exemption.is_report:
                        marked = evolve_packet(by_kernel, mark=uplink.value)
                        by_accident = f"{title}, marked by accident"
                        yield UsabilityCase("P3", uplink.name, by_accident, exemption.origin, marked, "leaves", device)
    yield from _marked_reports(context, uplink, spec)


def _needs_no_route(packet: Packet) -> bool:
    """Return True if a packet that is bound to a device leaves by it whatever routes there are."""
    return packet.family == 4 or needs_device(packet.destination) or is_link_scoped(packet)


def _marked_reports(context: ProofContext, uplink: UplinkSpec, spec: Spec) -> Iterator[UsabilityCase]:
    """Yield membership reports inside: they may carry marks by accident and must not be lost."""
    if not spec.inside:
        return
    for name in exemption_spec.REPORT_EXEMPTIONS:
        for family, regions in exemption_spec.exemption(name, uplink.name).headers.items():
            device = sample_device(spec.inside[0])
            for region in (part for full_region in regions for part in region_parts(family, full_region)):
                report = evolve_packet(sample_packet(context, family, region, KERNEL, device), mark=uplink.value)
                if family == 6 and report.source is None:
                    report = evolve_packet(report, source=link_local_address(context.state, device))
                yield UsabilityCase("P3", uplink.name, f"{name} inside", ("inside",), report, "leaves", device)
