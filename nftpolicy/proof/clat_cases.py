# SPDX-License-Identifier: BSD-2-Clause
"""P3 cases of a CLAT (RFC 6877): IPv4 packets into its device, its own IPv6 packets, and the answers to them."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from ..model.packet import FORWARD, ICMPV6, SOCKET, UDP, CtInfo, Packet, address_range, evolve_packet
from .concretize import REMOTE_ADDRESS
from .context import ProofContext
from .spec import ClatSpec, Spec, UplinkSpec
from .usability_case import UsabilityCase, device_address

_PORT, _OWN_PORT = 443, 40000


def clat_cases(context: ProofContext, uplink: UplinkSpec) -> Iterator[UsabilityCase]:
    """Yield a packet of the CLAT, its answer, and packets into its device that no answer is."""
    clat = uplink.clat
    if clat is None or _obstacle(context, uplink, clat) is not None:
        return
    remote = clat.prefix[0][0] + REMOTE_ADDRESS[4]  # RFC 6052 2.2, in the last 32 bits
    own_address, device, mark = _clat_address(context, uplink, clat), clat.network[0], (uplink.value, uplink.mask)
    assert own_address is not None
    packet = Packet(6, remote, own_address, UDP, _OWN_PORT, _PORT, FORWARD, iif=clat.device)
    answer = evolve_packet(
        packet, destination=own_address, source=remote, sport=_PORT, dport=_OWN_PORT, iif=device,
        flow=CtInfo("established", "reply"),
    )  # fmt: skip
    errors = (
        evolve_packet(answer, source=REMOTE_ADDRESS[6], protocol=ICMPV6, sport=0, dport=0,
                      flow=CtInfo("related", "reply"), fields={("icmpv6", "type"): number})
        for number in (1, 2, 3, 4)
    )  # fmt: skip
    title, leaving = f"clat {clat.device}", [(packet, device), *((each, clat.device) for each in (answer, *errors))]
    for each, output in leaving:
        yield UsabilityCase("P3", uplink.name, title, clat.origin, each, "leaves", output, mark, may_be_firewalled=True)
    for each in (evolve_packet(packet, destination=REMOTE_ADDRESS[6]), evolve_packet(answer, flow=CtInfo())):
        yield UsabilityCase("P2", uplink.name, f"{title}: no other packets", clat.origin, each, "dropped")


def clat_notes(context: ProofContext, spec: Spec) -> Iterator[str]:
    """Yield why packets of a CLAT cannot be tried on this machine now."""
    for uplink in spec.uplinks:
        obstacle = _obstacle(context, uplink, uplink.clat) if uplink.clat else None
        if uplink.clat and obstacle:
            yield f"no packet of the CLAT behind {uplink.clat.device} was tried: {obstacle}"


def by_clat(context: ProofContext, uplink: UplinkSpec, case: UsabilityCase) -> UsabilityCase:
    """Return the case of a service, of which the CLAT may carry IPv4, and does if no other device has an address."""
    packet, clat = case.packet, uplink.clat
    if clat is None or packet.family == 6 or packet.origin == FORWARD or case.device not in clat.network:
        return case
    has_address = any(device_address(context.state, 4, device) is not None for device in clat.network)
    if has_address:
        return evolve(case, alternatives=(*case.alternatives, clat.device))
    return evolve(case, device=clat.device)


def into_clat(uplink: UplinkSpec, case: UsabilityCase) -> Iterator[UsabilityCase]:
    """Yield the case of a service, once more by a socket that is bound to the CLAT's device."""
    packet, clat = case.packet, uplink.clat
    if clat is not None and packet.family == 4 and packet.origin == SOCKET and packet.bound is None:
        yield evolve(case, packet=evolve_packet(packet, bound=clat.device), device=clat.device)


def _obstacle(context: ProofContext, uplink: UplinkSpec, clat: ClatSpec) -> str | None:
    """Return what keeps the CLAT from sending now; None: nothing."""
    if clat.device not in uplink.devices or clat.network[0] not in uplink.devices:
        return "not all devices of its uplink are up"
    if not all(context.model.is_forwarding(6, device) for device in (clat.device, clat.network[0])):
        return "IPv6 forwarding is off (net.ipv6.conf.all.forwarding)"
    if _clat_address(context, uplink, clat) is None:
        return f"table {uplink.table} has no IPv6 route to its address by {clat.device}"
    return None


def _clat_address(context: ProofContext, uplink: UplinkSpec, clat: ClatSpec) -> int | None:
    """Return an address to which the uplink's table has a route by the device of the CLAT."""
    for route in context.state.routes:
        key = (route.family, route.table, route.kind, route.device)
        if key == (6, uplink.table, "unicast", clat.device) and route.destination != "default":
            return address_range(route.destination, 6)[0]
    return None
