# SPDX-License-Identifier: BSD-2-Clause
"""Validation of forwards and published ports. Each check yields (key path, what to do)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from itertools import combinations

from .objects import Forward, Network, Policy, Port
from .scalars import matching_pattern
from .toml_positions import KeyPath

PolicyFault = tuple[KeyPath, str]


def find_forward_faults(policy: Policy) -> Iterator[PolicyFault]:
    """Yield the faults of all forwards and published ports."""
    for name, forward in policy.forward.items():
        yield from _devices(("forward", name, "from"), forward, policy)
        yield from _networks(("forward", name), forward, policy)
    for (first, a), (second, b) in combinations(policy.forward.items(), 2):
        if a.uplink != b.uplink and _covers(a, b):
            yield (
                ("forward", second),
                f"has no packet: forward {first!r}, which comes first, sends all of them to uplink {a.uplink!r}; "
                "write this one before it, or restrict the other by 'source', 'to' or 'ports'",
            )
    yield from _published(policy)


def _devices(path: KeyPath, forward: Forward, policy: Policy) -> Iterator[PolicyFault]:
    if not forward.devices:
        yield path, "a forward needs at least one device by which the packets arrive"
    for index, device in enumerate(forward.devices):
        pattern = matching_pattern(device, tuple(other for other in forward.devices if other != device))
        if device in forward.devices[:index]:
            yield (*path, index), "is listed twice"
        elif pattern:
            yield (*path, index), f"{device!r} matches {pattern!r}, which is listed too"
        if not matching_pattern(device, policy.inside):
            yield (*path, index), f"{device!r} is not a device of 'inside'; add it there"


def _networks(path: KeyPath, forward: Forward, policy: Policy) -> Iterator[PolicyFault]:
    for key in ("source", "to"):
        for index, network in enumerate(getattr(forward, key)):
            first = network.network_address  # fe80::/9, say, is link-local for its greater part
            is_reserved = network.is_loopback or network.is_unspecified
            if is_reserved or first.is_multicast or first.is_link_local:
                yield (*path, key, index), f"packets of {network} are never forwarded; remove it"
    if not forward.families:
        yield (*path, "to"), "has no address of the families in 'source'"
    sources = [network for other in policy.forward.values() for network in other.source]
    if forward.to and all(any(_contains(source, network) for source in sources) for network in forward.to):
        yield (*path, "to"), "is within 'source' of the forwards, and packets to these networks stay inside"


def _contains(outer: Network, inner: Network) -> bool:
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return not isinstance(inner, IPv4Network) and inner.subnet_of(outer)


def _covers(first: Forward, second: Forward) -> bool:
    """Return True if each packet of `second` is one of `first`, by single entries of their lists."""
    return (
        all(matching_pattern(device, first.devices) for device in second.devices)
        and all(_covers_networks(first, second, key, family) for key in ("source", "to") for family in second.families)
        and set(second.families) <= set(first.families)
        and _covers_ports(first.ports, second.ports)
    )


def _covers_networks(first: Forward, second: Forward, key: str, family: int) -> bool:
    if not getattr(first, key):
        return True
    inner = second.networks(key, family)
    outer = first.networks(key, family)
    return bool(inner) and all(any(_contains(each, network) for each in outer) for network in inner)


def _covers_ports(outer: Sequence[Port], inner: Sequence[Port]) -> bool:
    if not outer:
        return True
    return bool(inner) and all(any(each.contains(port) for each in outer) for port in inner)


def _published(policy: Policy) -> Iterator[PolicyFault]:
    for name, publish in policy.publish.items():
        if not matching_pattern(publish.to, policy.inside):
            yield ("publish", name, "to"), f"{publish.to!r} is not a device of 'inside'; add it there"
        uplink = policy.uplink.get(publish.uplink)
        for answer in uplink.answer if uplink else ():
            if answer.port is not None and answer.port.overlaps(publish.port):
                yield (
                    ("publish", name, "port"),
                    f"uplink {publish.uplink!r} answers {answer.name!r} on this machine; remove it from 'answer'",
                )
    for (first, a), (second, b) in combinations(policy.publish.items(), 2):
        if a.uplink == b.uplink and a.port.overlaps(b.port):
            yield ("publish", second, "port"), f"is published by {first!r} already"
