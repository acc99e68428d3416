# SPDX-License-Identifier: BSD-2-Clause
"""P3: the replies to a service arrive. A rule that drops them, such as a reverse path filter, stops the service.

What a firewall may leave open, such as the elements of a set that changes, refutes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..model.packet import FORWARD, SOCKET, TCP, UDP, CtInfo, Packet, address_range, evolve_packet
from ..model.symbolic.box import points, subtract_ranges
from ..model.trace import Trace
from ..netstate.nft import Fib, Match, Rule
from .concretize import choose
from .context import ProofContext
from .entitlement import DNS_PORT
from .spec import UplinkSpec
from .usability_case import UsabilityCase, device_address, needs_device, sample_packet

_MULTICAST4 = 0xE  # the upper 4 bits
_SYN_ACK = {("tcp", "flags"): 0x12}


def service_replies(
    context: ProofContext, uplink: UplinkSpec, resolver_ports: frozenset[int]
) -> Iterator[UsabilityCase]:
    """Yield a packet of the first kind that each service sends, on its way back to this machine.

    `resolver_ports`: those of the uplinks' resolvers, which get no packet from outside.
    """
    device = uplink.devices[0]
    for service in uplink.services:
        for family, regions in service.regions.items():
            own_address = device_address(context.state, family, device)
            ports = subtract_ranges(regions[0].fields.get("dport", ((1, 0xFFFF),)), points(DNS_PORT))
            if own_address is None or not ports:  # replies to DNS queries are those of the resolver
                continue
            request = sample_packet(context, family, regions[0], SOCKET)
            own_ports = regions[0].fields.get("sport", points(request.sport))
            own_ports = subtract_ranges(own_ports, points(*resolver_ports))
            is_group = needs_device(request.destination) or (family == 4 and request.destination >> 28 == _MULTICAST4)
            if is_group or not own_ports or request.protocol not in (TCP, UDP):
                continue
            server = _server(context, uplink, request)
            if server is None:
                continue
            reply = evolve_packet(
                request,
                source=server,
                destination=own_address,
                sport=choose(ports, request.dport),
                dport=choose(own_ports, request.sport),
                origin=FORWARD,
                iif=device,
                flow=CtInfo("established", "reply"),
                fields=_SYN_ACK if request.protocol == TCP else {},
            )
            title = f"service {service.name}: replies arrive"
            yield UsabilityCase("P3", uplink.name, title, service.origin, reply, "delivered", may_be_undecided=True)


def _server(context: ProofContext, uplink: UplinkSpec, request: Packet) -> int | None:
    """Return the host that replies; in a kernel without a route to that, one of the uplink's own networks.

    None without either: nothing can be asked now, so a rule that looks up the way back drops no reply.
    """
    family, lookup = request.family, context.model.router.lookup
    if not context.state.devices or lookup(family, request.destination, mark=uplink.value).error is None:
        return request.destination
    for route in context.state.routes:
        is_connected = (route.kind, route.gateway, route.nexthops) == ("unicast", None, ())
        if is_connected and (route.family, route.table) == (family, uplink.table):
            low, high = address_range(route.destination, family)
            hosts = subtract_ranges(((min(low + 1, high), max(low, high - 1)),), context.own_addresses(family))
            if hosts:
                return hosts[0][0]
    return None


def reverse_path_filter(trace: Trace) -> str | None:
    """Return the rule that dropped the packet by its way back, as text; None if no such rule did."""
    for step in trace.steps[-2:]:
        if isinstance(step.subject, Rule) and any(map(_reads_way_back, step.subject.statements)):
            chains = [each.text for each in trace.steps if each.kind == "chain"]
            return f"{step.text} ({chains[-1]})" if chains else step.text
    return None


def _reads_way_back(statement: object) -> bool:
    return isinstance(statement, Match) and isinstance(statement.left, Fib) and statement.left.result != "type"
