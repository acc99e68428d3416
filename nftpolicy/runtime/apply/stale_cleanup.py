# SPDX-License-Identifier: BSD-2-Clause
"""Cleanup after a change of policy: close stale sockets, delete stale conntrack entries, report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from attrs import evolve, frozen

from ...kernel.errors import Unavailable
from ...kernel.live_sockets import LiveSockets
from ...kernel.netlink.conntrack import ConntrackEntry
from ...kernel.netlink.sock_diag import CLOSED, NOT_SUPPORTED, TCP, InetSocket
from ...phrases import first_few, quantity
from ...policy.objects import Policy
from ..ownership import Addresses
from .stale import (
    StaleFlow,
    StaleSocket,
    changed_marks,
    inodes_needing_group,
    stale_flows,
    stale_sockets,
    uplink_addresses,
)

_MOST_SHOWN = 5  # sockets or flows with the same reason
_NO_DESTROY = "this kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY is missing)"
_LISTENS = "listening socket: accepted connections inherit its mark; restart its program"
# The kernel disconnects, and so unbinds, a UDP socket that it destroys (net/ipv4/udp.c, udp_abort).
_BOUND = (
    "bound to a device: destroying it would unbind it, and its packets would leave by another "
    "device; restart its program"
)
_UDP = "a UDP socket cannot be closed from outside: its program got an error, and may still use it"


@frozen
class CleanupReport:
    """Report of a cleanup.

    `closed`: destroyed sockets; `udp_aborted`: UDP sockets; their programs got an error;
    `deleted_flows`: deleted conntrack entries; `left_open`: stale sockets that stay, each with the
    reason; `errors`: messages about operations that failed.
    """

    closed: tuple[StaleSocket, ...] = ()
    udp_aborted: tuple[StaleSocket, ...] = ()
    deleted_flows: tuple[StaleFlow, ...] = ()
    left_open: tuple[tuple[StaleSocket, str], ...] = ()
    errors: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the report for the user; no lines if nothing was stale."""
        lines = [
            *_group_lines("closed", "connection", [(item.why, item.socket) for item in self.closed]),
            *_group_lines("aborted", "UDP socket", [(item.why, item.socket) for item in self.udp_aborted]),
        ]
        if self.udp_aborted:
            lines.append(f"  {_UDP}")
        deleted = [(item.why, item.flow) for item in self.deleted_flows]
        lines += _group_lines("deleted", "conntrack entry", deleted)
        for reason in dict.fromkeys(reason for _, reason in self.left_open):
            sockets = [(item.why, item.socket) for item, other in self.left_open if other == reason]
            lines += [*_group_lines("left open", "socket", sockets), f"  {reason}"]
        return [*lines, *self.errors]


def _group_lines(
    action: str,
    noun: str,
    items: Sequence[tuple[str, InetSocket | ConntrackEntry]],
) -> Iterator[str]:
    """Yield a headline for each reason, then its sockets or flows."""
    for why in dict.fromkeys(why for why, _ in items):
        group = [item for other, item in items if other == why]
        yield f"{action} {quantity(len(group), noun)}: {why}"
        lines = (f"{item}, user {item.uid}" if isinstance(item, InetSocket) else str(item) for item in group)
        yield from (f"  {line}" for line in first_few(lines, _MOST_SHOWN))


def close_stale(live_sockets: LiveSockets, before: Policy | None, after: Policy | None) -> CleanupReport:
    """Close the sockets and flows that follow `before`, now that `after` is in force.

    None is no policy. Failures of the kernel are in the report's `errors`, never raised.
    """
    if before == after:
        return CleanupReport()
    report = CleanupReport()
    try:
        report = _close_sockets(live_sockets, before, after)
    except (Unavailable, OSError) as error:
        fault = f"the sockets that follow the old policy were not closed: {error}"
        report = evolve(report, errors=(*report.errors, fault))
    try:
        return evolve(report, deleted_flows=_delete_flows(live_sockets, before, after))
    except (Unavailable, OSError) as error:
        fault = f"the conntrack entries that follow the old policy were not deleted: {error}"
        return evolve(report, errors=(*report.errors, fault))


def _close_sockets(live_sockets: LiveSockets, before: Policy | None, after: Policy | None) -> CleanupReport:
    sockets, addresses = live_sockets.sockets(), live_sockets.addresses()
    groups = live_sockets.owner_groups(inodes_needing_group(sockets, before, after))
    closable: list[StaleSocket] = []
    left: list[tuple[StaleSocket, str]] = []
    for item in stale_sockets(sockets, before, after, addresses, groups, live_sockets.egress_device):
        reason = _reason_to_stay(item.socket)
        if reason:
            left.append((item, reason))
        else:
            closable.append(item)
    closed: list[StaleSocket] = []
    aborted: list[StaleSocket] = []
    faults: list[str] = []
    with _suppress_resets(live_sockets, closable, before, after, addresses) as fault:
        if fault:
            faults.append(f"resets of closed connections may have left by other devices: {fault}")
        for item in closable:
            try:
                result = live_sockets.destroy(item.socket)
            except OSError as error:
                left.append((item, str(error)))
                continue
            if result == CLOSED:
                (closed if item.socket.protocol == TCP else aborted).append(item)
            elif result == NOT_SUPPORTED:
                left.append((item, _NO_DESTROY))
    return CleanupReport(tuple(closed), tuple(aborted), left_open=tuple(left), errors=tuple(faults))


def _reason_to_stay(socket: InetSocket) -> str | None:
    """Return the reason why a socket must not be closed, or None."""
    if socket.state == "listen":
        return _LISTENS
    return _BOUND if socket.bound and socket.protocol != TCP else None


def _suppress_resets(
    live_sockets: LiveSockets,
    closable: list[StaleSocket],
    before: Policy | None,
    after: Policy | None,
    addresses: Addresses,
) -> AbstractContextManager[str | None]:
    """Keep TCP resets of the closed sockets from leaving by another device.

    Yields the reason if that is not possible (LiveSockets.suppress_resets).
    """
    if not any(item.socket.protocol == TCP for item in closable):
        return nullcontext()
    marks = [(mark.value, mark.mask) for mark in changed_marks(before, after)]
    sources = uplink_addresses(addresses, after) if before is None else {}
    uplinks = after.uplink if after else {}
    devices = [device for uplink in uplinks.values() for device in uplink.devices]
    return live_sockets.suppress_resets(marks, sources, devices)


def _delete_flows(
    live_sockets: LiveSockets,
    before: Policy | None,
    after: Policy | None,
) -> tuple[StaleFlow, ...]:
    if before is None or after is None:
        return ()
    marks = changed_marks(before, after)
    flows = [flow for mark in marks for flow in live_sockets.flows(mark.value, mark.mask)]
    return tuple(item for item in stale_flows(flows, before, after) if live_sockets.delete_flow(item.flow))
