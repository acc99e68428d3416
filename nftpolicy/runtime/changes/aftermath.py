# SPDX-License-Identifier: BSD-2-Clause
"""After a change of policy: what still runs on the old decision is closed, and told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from attrs import evolve, frozen

from ...kernel.closing import Running
from ...kernel.conntrack import Flow
from ...kernel.interface import Unavailable
from ...kernel.sock_diag import CLOSED, NOT_SUPPORTED, TCP, Listed
from ...policy.objects import Policy
from .stale import Addresses, Stale, StaleFlow, changed_marks, stale_flows, stale_sockets, uplink_addresses, whose_group

_SHOWN = 5  # of the sockets and flows with one reason
_NO_DESTROY = "this kernel closes no sockets (CONFIG_INET_DIAG_DESTROY is missing)"
_LISTENS = "it listens, and what it accepts wears the mark too: restart its program"
# The kernel disconnects a UDP socket that it destroys, and the device goes with that (net/ipv4/udp.c, udp_abort).
_BOUND = "it is bound to a device, which it would lose, and then send by another one: restart its program"
_UDP = "UDP can't be closed from outside: the program got an error, and may go on with the same socket"


@frozen
class Aftermath:
    """What was done. `told`: UDP sockets, whose programs got an error. `left`: what is stale and stays, each
    with the reason. `faults`: what could not be looked at or done, as sentences."""

    closed: tuple[Stale, ...] = ()
    told: tuple[Stale, ...] = ()
    flows: tuple[StaleFlow, ...] = ()
    left: tuple[tuple[Stale, str], ...] = ()
    faults: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For a person; no lines if nothing was stale."""
        found = [
            *_told("closed", "connection", [(one.why, one.socket) for one in self.closed]),
            *_told("gave an error to", "UDP socket", [(one.why, one.socket) for one in self.told]),
            *([f"  {_UDP}"] if self.told else []),
            *_told("forgot", "flow", [(one.why, one.flow) for one in self.flows]),
        ]
        for reason in dict.fromkeys(reason for _, reason in self.left):
            mine = [(one.why, one.socket) for one, other in self.left if other == reason]
            found += [*_told("left open", "socket", mine), f"  {reason}"]
        return [*found, *self.faults]


def _told(done: str, what: str, items: list[tuple[str, Listed | Flow]]) -> Iterator[str]:
    for why in dict.fromkeys(why for why, _ in items):
        mine = [one for other, one in items if other == why]
        yield f"{done} {len(mine)} {what}{'' if len(mine) == 1 else 's'}: {why}"
        for one in mine[:_SHOWN]:
            yield f"  {one}" + (f", user {one.uid}" if isinstance(one, Listed) else "")
        if len(mine) > _SHOWN:
            yield f"  and {len(mine) - _SHOWN} more"


def close_stale(running: Running, before: Policy | None, after: Policy | None) -> Aftermath:
    """Close what runs on the decision of `before`, now that the kernel holds `after`; None is no policy.

    Never raises for what the kernel can't do: that is among the faults.
    """
    if before == after:
        return Aftermath()
    found = Aftermath()
    try:
        found = _close_sockets(running, before, after)
    except (Unavailable, OSError) as error:
        found = evolve(found, faults=(*found.faults, f"sockets of before the change were not closed: {error}"))
    try:
        return evolve(found, flows=_forget_flows(running, before, after))
    except (Unavailable, OSError) as error:
        return evolve(found, faults=(*found.faults, f"flows of before the change were not forgotten: {error}"))


def _close_sockets(running: Running, before: Policy | None, after: Policy | None) -> Aftermath:
    sockets, addresses = running.sockets(), running.addresses()
    groups = running.groups(whose_group(sockets, before, after))
    stale = stale_sockets(sockets, before, after, addresses, groups, running.leads)
    left = [(one, reason) for one in stale if (reason := _stays(one.socket))]
    todo = [one for one in stale if not _stays(one.socket)]
    closed, told, faults = [], [], []
    with _muffled(running, todo, before, after, addresses) as loud:
        if loud:
            faults.append(f"resets of closed connections may have left by other devices: {loud}")
        for one in todo:
            try:
                result = running.destroy(one.socket)
            except OSError as error:
                left.append((one, str(error)))
                continue
            if result == CLOSED:
                (closed if one.socket.protocol == TCP else told).append(one)
            elif result == NOT_SUPPORTED:
                left.append((one, _NO_DESTROY))
    return Aftermath(tuple(closed), tuple(told), left=tuple(left), faults=tuple(faults))


def _stays(one: Listed) -> str | None:
    """Why a socket is better left open."""
    if one.state == "listen":
        return _LISTENS
    return _BOUND if one.bound and one.protocol != TCP else None


def _muffled(
    running: Running, todo: list[Stale], before: Policy | None, after: Policy | None, addresses: Addresses
) -> AbstractContextManager[str | None]:
    """No reset of what is closed may go another way: for the time, see Running.muffled."""
    if not any(one.socket.protocol == TCP for one in todo):
        return nullcontext()
    marks = [(mark.value, mark.mask) for mark in changed_marks(before, after)]
    mine = uplink_addresses(addresses, after) if before is None else {}
    devices = [device for uplink in (after.uplink if after else {}).values() for device in uplink.devices]
    return running.muffled(marks, mine, devices)


def _forget_flows(running: Running, before: Policy | None, after: Policy | None) -> tuple[StaleFlow, ...]:
    if before is None or after is None:
        return ()
    found = [one for mark in changed_marks(before, after) for one in running.flows(mark.value, mark.mask)]
    return tuple(one for one in stale_flows(found, before, after) if running.forget(one.flow))
