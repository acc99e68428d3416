# SPDX-License-Identifier: BSD-2-Clause
"""Resolvers of uplinks, by the sockets on their addresses."""

from __future__ import annotations

from ...kernel.errors import Unavailable
from ...kernel.interface import Kernel
from ...kernel.netlink.sock_diag import UDP
from ...policy.objects import Policy


def uplinks_without_resolver(kernel: Kernel, policy: Policy) -> list[str]:
    """Return the uplinks with a resolver on whose addresses no socket listens; [] if sockets cannot be listed."""
    live = kernel.live_sockets()
    if live is None or not any(uplink.resolver for uplink in policy.uplink.values()):
        return []
    try:
        with live:
            bound = {(each.local, each.sport) for each in live.sockets() if each.protocol == UDP}
    except (Unavailable, OSError):
        return []
    return [
        name
        for name, uplink in policy.uplink.items()
        if uplink.resolver and not any((str(each.address), each.port) in bound for each in uplink.resolver.listen)
    ]
