# SPDX-License-Identifier: BSD-2-Clause
"""Whose socket is it, and does it wear what the policy says? Pure: it is told what is there.

This is for the one who runs a service whose program forgot the mark, or who wonders about a counter. The
guard does not depend on it: it asks each packet, and drops what is not as the policy says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import evolve, frozen

from ...compiler import names
from ...kernel.holders import Holder
from ...kernel.sock_diag import PROTOCOLS, TCP, UDP, Listed
from ...policy.checks import covered
from ...policy.objects import Policy, Service, Uplink
from ..ownership import Addresses, answers, asks_names, at_home, lets, wearer

RIGHT, UNMARKED, FORGED, ASTRAY, ELSEWHERE, OUTSIDE, BORROWED, UNANSWERED, UNKNOWN = (
    "right", "unmarked", "forged", "astray", "elsewhere", "outside", "borrowed", "unanswered", "unknown",
)  # fmt: skip

# What each verdict but "right" means for what the socket sends. nftpolicy(1) prints this table.
MEANINGS = {
    UNMARKED: "it lacks the mark {mark}, so what it sends does not go by uplink {uplink}; "
    "what would leave by that is dropped, and counted as {counter}",
    FORGED: "it wears the mark {mark} and is no socket of the services of uplink {uplink}; "
    "what it sends by that is dropped, and counted as {counter}",
    ASTRAY: "it is bound to {bound}, which is no device of uplink {uplink}; "
    "what it sends there is dropped, and counted as {counter}",
    ELSEWHERE: "service {who} may not send there; "
    "what it sends by uplink {uplink} is dropped, and counted as {counter}",
    OUTSIDE: "it wears the mark {mark} and was not opened in the cgroup of service {who}, whose group or user has it; "
    "the guard lets it use uplink {uplink}",
    BORROWED: "it wears the mark {mark} and sends from a port of service {who}, which is the kernel's; "
    "the guard lets it use uplink {uplink}",
    UNANSWERED: "it came in by uplink {uplink}, and the policy does not answer there; "
    "what it sends back is dropped, and counted as {counter}",
    UNKNOWN: "it wears the mark {mark} of uplink {uplink}, and no process that can be seen from here holds it",
}
_HALF_OPEN = "syn-recv"  # no program has it yet


@frozen
class Judged:
    """A socket that has to do with an uplink.

    `who` is the service, "resolver" or "answer" that it is by the policy, "" if it is nobody's. `counter` counts what
    the guard drops of it, "" if nothing is. `holder` is None where no process is known.
    """

    socket: Listed
    uplink: str
    mark: str
    who: str
    verdict: str = RIGHT
    counter: str = ""
    holder: Holder | None = None

    @property
    def wrong(self) -> bool:
        """Whether it is not as the policy says, or may not be."""
        return self.verdict != RIGHT

    @property
    def meaning(self) -> str:
        """The verdict as a sentence; "" for one that is right."""
        known = {name: getattr(self, name) for name in ("mark", "uplink", "counter", "who")}
        return MEANINGS[self.verdict].format(bound=self.socket.bound, **known) if self.wrong else ""

    @property
    def program(self) -> str:
        """The program and its process, for a person."""
        return f"{self.holder.name or '?'}/{self.holder.pid}" if self.holder else "?"

    def as_json(self) -> dict[str, Any]:
        """The same facts."""
        one, holder = self.socket, self.holder
        return {
            "verdict": self.verdict,
            "uplink": self.uplink,
            "who": self.who,
            "program": holder.name if holder else None,
            "pid": holder.pid if holder else None,
            "protocol": PROTOCOLS[one.protocol],
            "family": one.family,
            "state": one.state,
            "local": one.local,
            "sport": one.sport,
            "remote": one.remote,
            "dport": one.dport,
            "bound": one.bound,
            "mark": one.mark,
            "uid": one.uid,
            "gid": holder.gid if holder else None,
            "counter": self.counter,
            "cookie": one.cookie,
        }


def judge(
    sockets: Iterable[Listed],
    policy: Policy,
    addresses: Addresses,
    holders: Mapping[int, Holder],
    cgroups: Mapping[str, set[int]] | None = None,
) -> list[Judged]:
    """The sockets of services, and all that wear an uplink's mark, each with a verdict; the wrong ones first.

    `addresses` are those of all devices, `holders` who holds each socket, by inode, `cgroups` the
    numbers of the services' cgroups, by service. What stays on this machine is left
    out, and so is what no program has opened or a program has closed: the kernel ends that by itself.
    """
    found = list(sockets)
    eyes = _Eyes(found, policy, addresses, holders, cgroups or {})
    judged = [one for each in found if (one := eyes.see(each)) is not None]
    return sorted(judged, key=lambda one: (not one.wrong, one.uplink, one.who, one.socket.cookie))


def needed(sockets: Iterable[Listed], policy: Policy, addresses: Addresses) -> set[int]:
    """The inodes of the sockets whose holders decide, or are to be named."""
    own = _own(addresses)
    groups = any(service.group for service in policy.service.values())
    users = {service.user.number for service in policy.service.values() if service.user}
    return {
        one.inode
        for one in sockets
        if _speaks(one, own) and (groups or one.uid in users or wearer(policy, one.mark or 0) is not None)
    }


def _own(addresses: Addresses) -> set[str]:
    return {one for found in addresses.values() for one in found}


def _speaks(one: Listed, own: set[str]) -> bool:
    return bool(one.inode) and one.state != _HALF_OPEN and not at_home(one, own)


class _Eyes:
    """Judges one socket after the other, with what is the same for all worked out once."""

    def __init__(
        self,
        sockets: list[Listed],
        policy: Policy,
        addresses: Addresses,
        holders: Mapping[int, Holder],
        cgroups: Mapping[str, set[int]],
    ) -> None:
        self._cgroups = cgroups
        self._policy, self._holders, self._own = policy, holders, _own(addresses)
        self._listening = {one.sport for one in sockets if one.protocol == TCP and one.state == "listen"}

    def see(self, one: Listed) -> Judged | None:
        if not _speaks(one, self._own):
            return None
        holder = self._holders.get(one.inode)
        mine = {name: service for name, service in self._policy.service.items() if _is(service, one, holder)}
        worn = wearer(self._policy, one.mark or 0)
        if worn is not None:
            return self._marked(one, *worn, mine, holder)
        for name, service in mine.items():
            verdict, counter = self._unmarked(one, service, holder)
            mark = str(self._policy.uplink[service.uplink].mark)
            return Judged(one, service.uplink, mark, name, verdict, counter, holder)
        return None

    def _marked(
        self, one: Listed, name: str, uplink: Uplink, mine: Mapping[str, Service], holder: Holder | None
    ) -> Judged | None:
        """One that wears the mark of uplink `name`."""
        seen = Judged(one, name, str(uplink.mark), "", holder=holder)
        entitled = [who for who, service in mine.items() if service.uplink == name]
        who = next((who for who in entitled if self._may(mine[who], uplink, one, holder)), None)
        if who is None and uplink.resolver and one.uid == uplink.resolver.user.number:
            who = "resolver" if asks_names(one) or not one.connected else None
        if who is None and answers(uplink, one):
            who = "answer"
        if who is not None:
            return self._at_its_device(evolve(seen, who=who), uplink)
        if lender := self._kernel_port(one, name):
            return evolve(seen, who=lender, verdict=BORROWED if holder else RIGHT)
        if entitled:
            return evolve(seen, who=entitled[0], verdict=ELSEWHERE, counter=names.of(name, "unentitled"))
        return self._nobodys(seen)

    def _kernel_port(self, one: Listed, name: str) -> str | None:
        """The service of the kernel's sockets whose port this is: nobody asks for the owner there."""
        for who, service in self._policy.service.items():
            if service.uplink == name and service.sport and lets(service, one, None):
                return who
        return None

    @staticmethod
    def _may(service: Service, uplink: Uplink, one: Listed, holder: Holder | None) -> bool:
        """Whether a socket of the service may send to its other end; where it has none, it may send anywhere."""
        if not one.connected or (asks_names(one) and uplink.resolver is not None):
            return True
        return lets(service, one, holder.gid if holder else None)

    def _at_its_device(self, seen: Judged, uplink: Uplink) -> Judged:
        bound, cgroup = seen.socket.bound, seen.socket.cgroup
        if bound is None or bound in uplink.devices:
            outside = cgroup is not None and cgroup not in self._cgroups.get(seen.who, {cgroup})
            return evolve(seen, verdict=OUTSIDE) if outside else seen
        other = names.of(seen.uplink, "stray") if self._uplink_by(bound) else None
        return evolve(seen, verdict=ASTRAY, counter=other or self._inside_counter(bound, seen.uplink))

    def _nobodys(self, seen: Judged) -> Judged | None:
        one = seen.socket
        if seen.holder is None:
            for who, service in self._policy.service.items():
                if service.uplink == seen.uplink and service.kernel and one.protocol == UDP:
                    return evolve(seen, who=who)
            return evolve(seen, verdict=UNKNOWN)
        if one.state == "listen":
            return None  # it sends by what it accepts, and that wears the mark of who asks
        if one.protocol == TCP and one.sport in self._listening:
            return evolve(seen, verdict=UNANSWERED, counter=names.of(seen.uplink, "unanswered"))
        return evolve(seen, verdict=FORGED, counter=names.of(seen.uplink, "unentitled"))

    def _unmarked(self, one: Listed, service: Service, holder: Holder | None) -> tuple[str, str]:
        """Verdict and counter for a service's socket without a mark."""
        uplink = self._policy.uplink[service.uplink]
        names_go_home = asks_names(one) and uplink.resolver is not None
        came_in = one.protocol == TCP and one.sport in self._listening  # the listener itself, too
        if names_go_home or came_in:
            return RIGHT, ""
        if not service.unmarked:
            return UNMARKED, names.of(service.uplink, "dropped")
        if one.bound and one.bound not in uplink.devices:
            other = self._uplink_by(one.bound)  # for which it lacks the mark, whosever it is
            return ASTRAY, names.of(other, "dropped") if other else self._inside_counter(one.bound, service.uplink)
        if not self._may(service, uplink, one, holder):
            return ELSEWHERE, names.of(service.uplink, "unentitled")
        return RIGHT, ""

    def _uplink_by(self, device: str) -> str | None:
        return next((name for name, uplink in self._policy.uplink.items() if device in uplink.devices), None)

    def _inside_counter(self, device: str, name: str) -> str:
        """What counts the packets of uplink `name` on their way to a device that is no uplink's."""
        return names.of(name, "stray") if covered(device, self._policy.inside) else names.UNKNOWN_DEVICE


def _is(service: Service, one: Listed, holder: Holder | None) -> bool:
    """Whether it is a socket of the service, for sure."""
    if service.user is not None:
        return one.uid == service.user.number
    return service.group is not None and holder is not None and holder.gid == service.group.number
