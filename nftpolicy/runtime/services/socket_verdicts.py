# SPDX-License-Identifier: BSD-2-Clause
"""Verdicts on the live sockets of this network namespace."""

from __future__ import annotations

from ...kernel.errors import Unavailable
from ...kernel.interface import Kernel
from ...kernel.live_sockets import LiveSockets
from ...policy.objects import Policy, service_cgroup
from .socket_classifier import SocketVerdict, classify_sockets, inodes_to_resolve


def read_verdicts(live_sockets: LiveSockets, policy: Policy) -> list[SocketVerdict]:
    """Return the verdicts on the sockets of this network namespace that concern an uplink.

    Raises Unavailable.
    """
    sockets, addresses = live_sockets.sockets(), live_sockets.addresses()
    paths = {
        name: service_cgroup(name, service) for name, service in policy.service.items() if service.marks == "cgroup"
    }
    ids = live_sockets.cgroup_numbers(paths.values())
    cgroups = {name: ids[path] for name, path in paths.items() if path in ids}
    return classify_sockets(
        sockets,
        policy,
        addresses,
        live_sockets.socket_owners(inodes_to_resolve(sockets, policy, addresses)),
        cgroups,
    )


def read_verdicts_or_reason(kernel: Kernel, policy: Policy) -> tuple[list[SocketVerdict] | None, str]:
    """Return the verdicts and "", or None and the reason why sockets cannot be listed."""
    live_sockets = kernel.live_sockets()
    if live_sockets is None:
        return None, "this kernel lists no sockets"
    try:
        with live_sockets:
            return read_verdicts(live_sockets, policy), ""
    except (Unavailable, OSError) as error:
        return None, str(error)
