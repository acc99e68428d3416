# SPDX-License-Identifier: BSD-2-Clause
"""Flows from before the rules of a policy: delete those with its marks, keep the answers.

Conntrack entries survive the ruleset that marked them. A flow with the mark of an uplink counts as
one that began there, so flows that other rules marked are deleted: before the transaction, and
once more after it for those that were marked meanwhile. Conntrack entries do not tell by which
device a flow began; of the connections that the policy answers, those whose replies leave by the
uplink without the policy get the mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from attrs import frozen, mutable

from ...compiler.object_names import TABLE, object_name
from ...kernel.errors import Unavailable
from ...kernel.live_sockets import LiveSockets
from ...kernel.netlink.conntrack import ConntrackEntry, FlowAddresses
from ...kernel.netlink.sock_diag import TCP, InetSocket
from ...netstate.nft import Ct, Mangle
from ...netstate.state import NetState
from ...policy.objects import Policy, Uplink
from ..ownership import is_answered
from .stale import uplink_addresses

_FLOW_MARK = Ct("mark")


@frozen
class AnsweredConnection:
    """A connection from outside that the policy answers, with the uplink of its replies."""

    socket: InetSocket
    uplink: Uplink

    @property
    def flow(self) -> FlowAddresses:
        """Return family, protocol, and source and destination of the packets from outside."""
        entry = self.socket
        return entry.family, entry.protocol, entry.remote or "", entry.dport, entry.local or "", entry.sport


@mutable
class FlowReport:
    """Numbers of deleted and of marked flows, and messages about operations that failed."""

    deleted: int = 0
    marked: int = 0
    error: str = ""

    def lines(self) -> list[str]:
        """Return the report for the user; no lines if nothing was done."""
        lines = []
        if self.deleted:
            noun = "conntrack entry" if self.deleted == 1 else "conntrack entries"
            lines.append(f"deleted {self.deleted} {noun}: marked before these rules were loaded")
        if self.error:
            lines.append(f"flows from before these rules may carry marks of uplinks: {self.error}")
        return lines


def uplinks_without_history(
    before: Policy | None, after: Policy, observed: NetState, desired: NetState
) -> dict[str, Uplink]:
    """Return the uplinks of `after` whose mark other rules may have given to flows.

    These are all uplinks but those with the same mark and a common device in `before`, if the rules
    in force mark flows under the same conditions as the desired rules.
    """
    return {
        name: uplink
        for name, uplink in after.uplink.items()
        if not any(
            earlier.mark == uplink.mark
            and set(earlier.devices) & set(uplink.devices)
            and _flow_conditions(observed, earlier_name) == _flow_conditions(desired, name)
            for earlier_name, earlier in (before.uplink.items() if before else ())
        )
    }


def _flow_conditions(state: NetState, name: str) -> list[tuple[object, ...]] | None:
    """Return the conditions under which arriving packets mark their flow; None without such a chain."""
    table = state.table("inet", TABLE)
    chain = table and next((each for each in table.chains if each.name == object_name(name, "arrival")), None)
    if not chain:
        return None
    return [
        tuple(item for item in rule.statements if not isinstance(item, Mangle))
        for rule in chain.rules
        if any(isinstance(item, Mangle) and item.key == _FLOW_MARK for item in rule.statements)
    ]


@contextmanager
def swept_flows(live_sockets: LiveSockets, uplinks: Mapping[str, Uplink], after: Policy) -> Iterator[FlowReport]:
    """Delete flows with the marks of `uplinks`, before and after the rules are loaded in the context.

    Mark the answered connections of these uplinks after it. Failures of the kernel are in the
    report, never raised.
    """
    report = FlowReport()
    try:
        connections = list(_answered_connections(live_sockets, uplinks, after))
        _delete_marked(live_sockets, uplinks.values(), connections, report)
    except (Unavailable, OSError) as error:
        connections, report.error = [], str(error)
    yield report
    try:
        _delete_marked(live_sockets, uplinks.values(), connections, report)
        for connection in connections:
            mark = connection.uplink.mark
            report.marked += live_sockets.mark_flow(connection.flow, mark.value, mark.mask)
    except (Unavailable, OSError) as error:
        report.error = str(error)


def _answered_connections(
    live_sockets: LiveSockets, uplinks: Mapping[str, Uplink], after: Policy
) -> Iterator[AnsweredConnection]:
    """Yield the TCP connections to answered ports whose packets leave by the uplink now."""
    if not any(uplink.answer for uplink in uplinks.values()):
        return
    names = uplink_addresses(live_sockets.addresses(), after)
    for entry in live_sockets.sockets():
        uplink = uplinks.get(names.get(entry.local or "", ""))
        if uplink is None or entry.protocol != TCP or not entry.is_connected or not is_answered(uplink, entry):
            continue
        if live_sockets.egress_device(entry) in uplink.devices:
            yield AnsweredConnection(entry, uplink)


def _delete_marked(
    live_sockets: LiveSockets,
    uplinks: Iterable[Uplink],
    connections: Sequence[AnsweredConnection],
    report: FlowReport,
) -> None:
    answered = {connection.flow for connection in connections}
    for uplink in uplinks:
        for flow in live_sockets.flows(uplink.mark.value, uplink.mark.mask):
            if _identity(flow) not in answered:
                report.deleted += live_sockets.delete_flow(flow)


def _identity(flow: ConntrackEntry) -> FlowAddresses:
    packets = flow.original
    return flow.family, flow.protocol, packets.source, packets.sport, packets.destination, packets.dport
