# SPDX-License-Identifier: BSD-2-Clause
"""Devices as `fib saddr . iif oif` reads them: a lookup of the way to an address of the packet.

IPv4: nft_fib4_eval (net/ipv4/netfilter/nft_fib_ipv4.c). IPv6: nft_fib6_eval
(net/ipv6/netfilter/nft_fib_ipv6.c). Users write it as a reverse path filter: with `iif`, the device
of arrival must be one by which the route leads.
"""

from __future__ import annotations

from ..packet_view import PacketView
from .lookup import UNKNOWN
from .router import Router
from .source_address import IPV4_BROADCAST, LOCAL_MULTICAST, is_link_local6, is_multicast4, is_multicast6

_ADDRESS_KEYS, _DEVICE_KEYS = frozenset({"saddr", "daddr"}), frozenset({"iif", "oif"})
_MISSING = ""


def route_device(router: Router, keys: tuple[str, ...], view: PacketView) -> str | None:
    """Return the device of the route, "" if there is none; None for a lookup that is not modelled."""
    selected = frozenset(keys)
    if len(selected & _ADDRESS_KEYS) != 1 or selected - _ADDRESS_KEYS - _DEVICE_KEYS - {"mark"}:
        return None
    if view.oif is not None or "oif" in selected:  # a forwarded packet's lookup may use the output device
        return None
    device = view.iif if "iif" in selected else None
    if "iif" in selected and device is None:
        return None
    address, other = view.source, view.destination
    if "daddr" in selected:
        address, other = other, address
    if view.family == 4 and view.source >> 24 == 0 and _is_for_the_link(view.destination):
        return view.iif
    if not address or _is_group(view.family, address):
        return None
    has_source = not _is_group(view.family, other) and not (view.family == 4 and other >> 24 == 0)
    routed = router.lookup(
        view.family,
        address,
        source=other if has_source else None,
        mark=view.mark if "mark" in selected else 0,
        oif=view.iif if view.family == 6 and is_link_local6(address) else None,
        protocol=view.protocol if view.family == 6 else 0,
        any_source=True,
        exact=True,
    )
    if routed.outcome == UNKNOWN:
        leads_elsewhere = bool(routed.devices) and device is not None and device not in routed.devices
        return _MISSING if leads_elsewhere else None
    if routed.leaves and device in (None, routed.device):
        return routed.device
    return _MISSING


def _is_for_the_link(destination: int) -> bool:
    return destination == IPV4_BROADCAST or destination >> 8 == LOCAL_MULTICAST


def _is_group(family: int, address: int) -> bool:
    if family == 6:
        return is_multicast6(address)
    return is_multicast4(address) or address == IPV4_BROADCAST
