# SPDX-License-Identifier: BSD-2-Clause
"""Devices of a machine by their part in a policy: uplinks, inside, or not named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_interface

from attrs import frozen

from ...exceptions import NftpolicyError
from ...netstate.routing import Route
from ...netstate.state import Device
from ...policy import scalars
from ...policy.errors import quote_excerpt
from .facts import MachineFacts

_TUNNEL_KINDS = frozenset(
    ("wireguard", "tun", "ipip", "ip6tnl", "sit", "gre", "gretap", "ip6gre", "ip6gretap", "vti", "vti6", "xfrm",
     "vxlan", "geneve", "l2tp", "batadv", "dummy", "ifb", "vrf"))  # fmt: skip
_ABOVE_ANOTHER = frozenset(("vlan", "macvlan", "ipvlan", "macvtap", "ipvtap"))
# Names that programs give to the devices that they make, one for each tunnel, container or virtual machine.
_SERIES = re.compile(
    r"(wg|tun|tap|docker|veth|virbr|vnet|lxdbr|lxcbr|podman|cni|cali|vxlan|tailscale|wt|zt|br-(?=[0-9a-f]{12}\Z))"
    r"[0-9a-zA-Z]*\Z"
)
_ETHERNET = 1  # ARPHRD_ETHER, include/uapi/linux/if_arp.h


class NoUplink(NftpolicyError):
    """No policy can be drafted: the message says why, and what to give."""


@frozen
class InsideDevice:
    """Entry of the key inside: a device or a pattern, and the reason in words."""

    pattern: str
    reason: str


def default_routes(facts: MachineFacts) -> list[Route]:
    """Return the default routes that do not lead into a tunnel, as routes with one nexthop each."""
    tunnels = {device.name for device in facts.devices if is_tunnel(device)}
    return [
        route
        for route in facts.routes
        if route.destination == "default"
        and route.kind == "unicast"
        and any(hop.device is not None and hop.device not in tunnels | {"lo"} for hop in route.all_nexthops)
    ]


def is_tunnel(device: Device) -> bool:
    """Return True if the packets of a device leave by another one."""
    return device.kind in _TUNNEL_KINDS


def uplink_devices(facts: MachineFacts, requested: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the devices of the uplinks, and the reason in words.

    Raises:
        NoUplink: there is none, or it has a name that a policy cannot have.
    """
    by_name = {device.name: device for device in facts.devices}
    names, reason = tuple(dict.fromkeys(requested)), "named by --uplink"
    for name in names:
        if name not in by_name or name == "lo":
            raise NoUplink(f"--uplink {name[:40]!r} is not a network device of this machine; it has {_listed(by_name)}")
    if not names:
        hops = [hop.device for route in default_routes(facts) for hop in route.all_nexthops]
        tunnels = {each.name for each in facts.devices if is_tunnel(each)} | {"lo"}
        names = tuple(dict.fromkeys(name for name in hops if name is not None and name not in tunnels))
        reason = "by the default route"
    if not names:
        usable = {each.name for each in facts.devices if not is_tunnel(each) and each.name != "lo"}
        names = tuple(dict.fromkeys(each.device for each in facts.sessions if each.device in usable))
        reason = "there is no default route; an SSH session arrives by it"
    if not names:
        names = tuple(
            each.name
            for each in facts.devices
            if each.name != "lo" and not is_tunnel(each) and not _SERIES.match(each.name) and has_network(each)
        )
        reason = "there is no default route; it has an address"
    if not names:
        raise NoUplink(
            f"no device leads to another network: {_listed(by_name)} has neither a default route nor an address; "
            "name one with --uplink DEVICE"
        )
    for name in names:
        if not _is_nameable(name):
            raise NoUplink(f"{quote_excerpt(name)} is not a valid device name in a policy")
    return names, reason


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(quote_excerpt(name) for name in names if name != "lo")) or "only lo"


def unplugged_devices(facts: MachineFacts, uplinks: Sequence[str]) -> tuple[str, ...]:
    """Return the Ethernet devices that no network is connected to: a laptop may use them tomorrow."""
    above = {device.link for device in facts.devices if device.link is not None}
    return tuple(
        device.name
        for device in facts.devices
        if device.link_type == _ETHERNET
        and not device.kind
        and device.name not in uplinks
        and device.name not in above
        and not (device.addresses or device.master)
        and _is_nameable(device.name)
    )


def inside_devices(facts: MachineFacts, uplinks: Sequence[str]) -> tuple[list[InsideDevice], list[str]]:
    """Return the entries of inside, and warnings about devices that have none."""
    inside: dict[str, str] = {}
    warnings = []
    below = {device.link for device in facts.devices if device.name in uplinks and device.kind in _ABOVE_ANOTHER}
    for tunnel in facts.wireguard:
        if _is_nameable(tunnel.name) and tunnel.name not in uplinks:
            inside.setdefault(_pattern(tunnel.name, uplinks), "WireGuard")
    for device in facts.devices:
        name = device.name
        if name == "lo" or name in uplinks or device.master in uplinks:
            continue
        if device.link in uplinks and device.kind in _ABOVE_ANOTHER:
            warnings.append(f"{name} sends by {device.link}, an uplink: the guard drops its packets")
        elif name in below and not device.addresses:
            continue  # it sends the frames of the uplink above it
        elif not _is_nameable(name):
            warnings.append(f"{name!r} cannot be named in a policy: it counts as an uplink, and is closed")
        elif is_tunnel(device) or device.addresses or device.master or device.kind:
            inside.setdefault(_pattern(name, uplinks), _describe(device))
        else:
            warnings.append(f"{name} has no address: the policy does not name it, so it counts as an uplink")
    patterns = [pattern for pattern in inside if pattern.endswith("*")]
    entries = [
        InsideDevice(name, reason)
        for name, reason in inside.items()
        if name in patterns or scalars.matching_pattern(name, patterns) is None
    ]
    return entries, warnings


def _pattern(name: str, uplinks: Sequence[str]) -> str:
    """Return the pattern of a series of devices, else the name."""
    series = _SERIES.match(name)
    if series is None or any(uplink.startswith(series[1]) for uplink in uplinks):
        return name
    return f"{series[1]}*"


def _describe(device: Device) -> str:
    parts = [device.kind or "a device", *map(str, _networks(device))]
    return ", ".join(parts)


def _networks(device: Device) -> Iterator[str]:
    for text in device.addresses:
        address = ip_interface(text)
        if not address.is_link_local:
            yield str(address)


def has_network(device: Device) -> bool:
    """Return True if a device has an address that is not link-local."""
    return any(True for _ in _networks(device))


def _is_nameable(name: str) -> bool:
    try:
        scalars.parse_device(name)
    except ValueError:
        return False
    return name not in ("all", "default")
