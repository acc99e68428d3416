# SPDX-License-Identifier: BSD-2-Clause
"""The look at sockets: once for `status`, and now and then for `watch`, in a child of its own.

Nobody tells of a socket that is opened or marked, so one has to look. The guard drops what a wrong socket sends
in any case; that is why this is slow.
"""

from __future__ import annotations

import select
from collections.abc import Mapping, Sequence
from typing import Any

from ...kernel.closing import Running
from ...kernel.interface import Kernel, Unavailable
from ...policy.objects import Policy, cgroup_of
from ..service.whose import Judged, judge, needed
from .errand import Errand
from .world import World

EVERY = 10.0  # seconds from the end of a look to the next one, at least
SHARE = 200.0  # and so many times as long as it took
MOST = 20  # lines at a time
_KEPT = 1000  # wrong sockets that are told apart; the oldest ones
_LONGEST = 60.0  # seconds


def look(running: Running, policy: Policy) -> list[Judged]:
    """The sockets of this network namespace that have to do with an uplink. Raises Unavailable."""
    sockets, addresses = running.sockets(), running.addresses()
    paths = {name: cgroup_of(name, one) for name, one in policy.service.items() if one.marks == "cgroup"}
    numbers = running.cgroups(paths.values())
    cgroups = {name: numbers[path] for name, path in paths.items() if path in numbers}
    return judge(sockets, policy, addresses, running.holders(needed(sockets, policy, addresses)), cgroups)


def facts(one: Judged) -> dict[str, Any]:
    """A wrong socket, for a line of the log."""
    known: dict[str, Any] = {
        "verdict": one.verdict,
        "socket": str(one.socket),
        "uplink": one.uplink,
        "service": one.who,
        "program": one.holder.name if one.holder else "",
        "pid": one.holder.pid if one.holder else "",
        "user": one.socket.uid,
        "counter": one.counter,
    }
    return {**{key: value for key, value in known.items() if value != ""}, "why": one.meaning}


def wrong(kernel: Kernel, policy: Policy) -> dict[str, dict[str, Any]]:
    """The wrong sockets, by what they are known by from look to look. For JSON."""
    running = kernel.running()
    if running is None:
        return {}
    with running:
        found = [one for one in look(running, policy) if one.wrong]
    found.sort(key=lambda one: one.socket.cookie)  # the kernel counts them up
    return {f"{one.verdict} {one.socket.cookie}": facts(one) for one in found[:_KEPT]}


def _gone(one: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("socket", "uplink", "service", "program", "pid")
    return {"verdict": "gone", "was": one["verdict"], **{key: one[key] for key in kept if key in one}}


class SocketWatch:
    """Says which sockets are wrong, each once when it is first seen and once when it has gone."""

    def __init__(self, kernel: Kernel, world: World, poll: select.poll) -> None:
        self._there = kernel.running() is not None
        self._fresh, self._say, self._now, self._poll = world.fresh, world.say, world.now, poll
        self._errand: Errand | None = None
        self._policy: Policy | None = None
        self._known: dict[str, dict[str, Any]] = {}
        self._next = 0.0
        self._failure = ""

    def due(self, policy: Policy | None) -> float | None:
        """When `turn` has something to do that nobody tells of; None: never."""
        if self._errand is not None:
            return self._errand.begun + _LONGEST
        return self._next if policy is not None and self._there else None

    def turn(self, policy: Policy | None) -> None:
        """Do what is due. Never waits."""
        now = self._now()
        if self._errand is not None and self._errand.ended():
            self._answered(now)
        elif self._errand is not None and now > self._errand.begun + _LONGEST:
            self.cancel()
            self._fail(f"a look at the sockets took more than {_LONGEST:.0f} s")
            self._next = now + SHARE * _LONGEST
        if policy is None or policy != self._policy:
            # What was said of another policy's sockets is not taken back: they are judged anew.
            self._policy, self._known, self._next = policy, {}, 0.0 if policy is not None else self._next
            self.cancel()
        if policy is None or self._errand is not None or now < self._next or not self._there:
            return
        self._errand = Errand(lambda: wrong(self._fresh(), policy))
        self._poll.register(self._errand.descriptor, select.POLLIN)

    def cancel(self) -> None:
        """End a look that is going on."""
        if self._errand is not None:
            self._ended().cancel()

    def _ended(self) -> Errand:
        assert self._errand is not None
        errand, self._errand = self._errand, None
        self._poll.unregister(errand.descriptor)
        return errand

    def _answered(self, now: float) -> None:
        errand = self._ended()
        self._next = now + max(EVERY, SHARE * (now - errand.begun))
        try:
            found = errand.answer()
        except ValueError as error:
            self._fail(str(error))
            return
        self._failure = ""
        self._tell([found[key] for key in found if key not in self._known])
        self._tell([_gone(self._known[key]) for key in self._known if key not in found])
        self._known = found

    def _tell(self, lines: Sequence[dict[str, Any]]) -> None:
        for one in lines[:MOST]:
            self._say("socket", one)
        if len(lines) > MOST:
            self._say("socket", {"verdict": lines[0]["verdict"], "more": len(lines) - MOST})

    def _fail(self, why: str) -> None:
        if why != self._failure:
            self._failure = why
            self._say("failed", {"what": "the look at sockets", "why": why})


def asked(kernel: Kernel, policy: Policy) -> tuple[list[Judged] | None, str]:
    """The look of `status`: the sockets, or None and why there are none to be had."""
    running = kernel.running()
    if running is None:
        return None, "this kernel lists no sockets"
    try:
        with running:
            return look(running, policy), ""
    except (Unavailable, OSError) as error:
        return None, str(error)
