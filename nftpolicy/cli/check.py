# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy check [FILE]"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from ..phrases import quantity
from .common import policy_file, read_policy, warn
from .findings_text import warning_lines
from .options import PolicyFile
from .plain_output import plain_line
from .proving import require_proof

if TYPE_CHECKING:
    from ..policy.objects import Policy


def command(file: PolicyFile = None) -> None:
    """Check a policy for errors and prove what it compiles to.

    Needs no root and changes nothing.
    """
    file = policy_file(file)
    policy, source = read_policy(file)
    from ..policy.known_marks import MARK_USER_FILES
    from ..policy.lint import find_warnings

    present = frozenset(sign for sign in MARK_USER_FILES if os.path.exists(sign))  # noqa: PTH110
    for line in warning_lines(source, find_warnings(policy, present)):
        warn(line)
    from ..runtime.published_ports import unpublished_notes
    from ..runtime.resolver.resolv_files import find_host_leaks
    from ..runtime.services.name_services import find_name_daemons
    from ..runtime.sysctl_files import find_sysctl_conflicts

    finders = (
        find_host_leaks,
        find_sysctl_conflicts,
        _foreign_rules,
        _vrf_warnings,
        find_name_daemons,
        unpublished_notes,
        _unconnected_lans,
        _stopped_traffic,
    )
    for finder in finders:
        for fault in finder(policy):
            warn(str(fault))
    require_proof(policy, source, f"type 'nftpolicy verify {file}' for the whole report")
    counts = f"{quantity(len(policy.uplink), 'uplink')}, {quantity(len(policy.service), 'service')}"
    for noun, entries in (("forward", policy.forward), ("published port", policy.publish), ("lan", policy.lan)):
        counts += f", {quantity(len(entries), noun)}" if entries else ""
    print(f"{file}: {policy.name}: good: {counts}, proved")


def _foreign_rules(policy: Policy) -> Iterator[str]:
    """Yield the conflicts with ip rules of this machine, if it has a device of the policy's uplinks."""
    from ..kernel.netlink.rtnetlink import Rtnetlink
    from ..runtime.foreign_rules import foreign_rules

    rules = []
    for family in (4, 6) if _has_uplink_device(policy) else ():
        with suppress(OSError):  # a kernel without this family
            rules += Rtnetlink().rules(family)
    yield from map(str, foreign_rules(rules, policy))


def _vrf_warnings(policy: Policy) -> list[str]:
    from ..kernel.netlink.rtnetlink import Rtnetlink
    from ..runtime.device_warnings import find_vrf_warnings

    try:
        return find_vrf_warnings(policy, list(Rtnetlink().devices()))
    except OSError:
        return []  # there is no netlink here


def _stopped_traffic(policy: Policy) -> Iterator[str]:
    """Yield the traffic of now that stops under the policy, if this machine has a device of its uplinks."""
    if _has_uplink_device(policy):
        from ..runtime.present_traffic import describe_traffic, find_stopped_traffic

        yield from map(plain_line, describe_traffic(find_stopped_traffic(policy)))


def _has_uplink_device(policy: Policy) -> bool:
    from ..kernel.netlink.rtnetlink import Rtnetlink

    try:
        return any(not Rtnetlink().device_names().isdisjoint(uplink.devices) for uplink in policy.uplink.values())
    except OSError:
        return False  # there is no netlink here


def _unconnected_lans(policy: Policy) -> Iterator[str]:
    """Yield the tables `lan` of which no network is one of the uplink's devices now, with the networks that are."""
    if not policy.lan:
        return
    from ipaddress import ip_interface

    from ..kernel.netlink.route_mover import RouteMover
    from ..policy.scalars import has_hosts

    routes = RouteMover()
    try:
        for name, lan in policy.lan.items():
            devices = policy.uplink[lan.uplink].devices
            by_device = routes.addresses(devices)
            connected = {ip_interface(text).network for texts in by_device.values() for text in texts}
            own = sorted(str(network) for network in connected if not network.is_link_local or network.version == 4)
            to = [network for network in lan.to if has_hosts(network)]  # a group is reached by any device
            is_connected = any(each.version == net.version and each.overlaps(net) for each in to for net in connected)
            if own and to and not is_connected:
                networks = f"{', '.join(by_device)} has {', '.join(own)}"
                yield f"lan.{name}.to: none of its networks is connected now; {networks}"
    except OSError:
        return  # there is no netlink here
    finally:
        routes.close()
