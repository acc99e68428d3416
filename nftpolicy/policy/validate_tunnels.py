# SPDX-License-Identifier: BSD-2-Clause
"""Validation of the destinations of the kernel's own packets. Each check yields (key path, what to do)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from . import vocabulary
from .objects import DNS_PORT, Policy, Service
from .scalars import is_routed
from .toml_positions import KeyPath
from .validate_forwards import PolicyFault

_MAX_RULE_PORT = 65534  # include/net/fib_rules.h: fib_rule_port_range_valid


def find_tunnel_faults(path: KeyPath, service: Service) -> Iterator[PolicyFault]:
    """Yield the faults of `to`, `ports` and `sport` of a kernel service, and protocols of other services."""
    if service.kernel:
        yield from _kernel_destinations(path, service)
        return
    for index, port in enumerate(service.ports):
        if port.protocol in vocabulary.TUNNEL_PROTOCOLS:
            yield (
                (*path, "ports", index),
                f"the kernel sends {port} packets, whichever user sent the packet in the tunnel; "
                "name them in a service with 'kernel = true'",
            )


def _kernel_destinations(path: KeyPath, service: Service) -> Iterator[PolicyFault]:
    if service.to and not service.ports:
        yield (
            (*path, "to"),
            "cannot restrict the kernel's UDP sockets, whose packets have the owner of the packet in the tunnel; "
            f"name protocols in 'ports' ({', '.join(vocabulary.TUNNEL_PROTOCOLS)}, tcp/PORT), or remove it",
        )
    for index, port in enumerate(service.ports):
        if port.protocol not in (*vocabulary.TUNNEL_PROTOCOLS, "tcp"):
            yield (
                (*path, "ports", index),
                f"the kernel's packets to {port} look like those of other programs; name the port that the "
                "kernel sends from in 'sport' (UDP), or run the program with a group or user of its own",
            )
        elif port.protocol == "tcp" and port.low <= DNS_PORT <= port.high:
            yield (*path, "ports", index), "the kernel sends no DNS queries; name the ports of the server alone"
        elif port.protocol == "tcp" and port.high > _MAX_RULE_PORT:
            yield (*path, "ports", index), f"an ip rule takes no port above {_MAX_RULE_PORT}"
    if service.ports and service.sport:
        yield (*path, "sport"), "excludes 'ports'; make two services"
    if service.ports and not service.to:
        yield (
            path,
            f"'to' is missing: the kernel's {service.ports[0]} packets have no mark, and are known by their protocol "
            "and destination alone; name the other ends",
        )
    for index, net in enumerate(service.to if service.ports else ()):
        if not is_routed(net):
            yield (*path, "to", index), f"no packet to {net} can be routed by an uplink; name the other end"


def find_shared_tunnels(policy: Policy) -> Iterator[PolicyFault]:
    """Yield destinations of the kernel's packets that belong to two uplinks."""
    senders = [(name, service) for name, service in policy.service.items() if service.by_destination]
    for (first, a), (second, b) in combinations(senders, 2):
        # To the other end of IPsec, an ip rule leads packets of all protocols.
        is_whole = any(port.protocol == "esp" for port in (*a.ports, *b.ports)) and a.uplink != b.uplink
        shared = [port for port in b.ports if is_whole or any(map(port.overlaps, a.ports))]
        if a.uplink == b.uplink:  # tunnels have no overlapping elements of sets
            shared = [port for port in shared if port.protocol == "tcp"]
        if not shared:
            continue
        for index, net in enumerate(b.to):
            if any(net.version == other.version and net.overlaps(other) for other in a.to):
                yield (
                    ("service", second, "to", index),
                    f"service {first!r} sends {shared[0]} to {net} by uplink {a.uplink!r}; name a destination once",
                )
