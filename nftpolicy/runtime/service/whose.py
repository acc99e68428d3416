# SPDX-License-Identifier: BSD-2-Clause
"""Socket classifier: owner of each socket, and its mark compared with the policy. Pure.

It serves administrators: to find a program that does not set its mark, or to explain a counter. The
guard does not depend on it. The guard checks each packet, and drops those that the policy does not
allow.
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

RIGHT, UNMARKED, FORGED, UNKNOWN = "right", "unmarked", "forged", "unknown"
ASTRAY = "wrong-device"
ELSEWHERE = "wrong-destination"
OUTSIDE = "outside-cgroup"
BORROWED = "kernel-port"
UNANSWERED = "unanswered-reply"

# Meaning of each verdict but "right" for the packets of the socket. nftpolicy(1) prints this table.
MEANINGS = {
    UNMARKED: "it lacks the mark {mark}, so its packets are not routed by uplink {uplink}; "
    "packets to that uplink are dropped and counted as {counter}",
    FORGED: "it has the mark {mark}, but does not belong to a service of uplink {uplink}; "
    "its packets to that uplink are dropped and counted as {counter}",
    ASTRAY: "it is bound to {bound}, which is not a device of uplink {uplink}; "
    "its packets to that device are dropped and counted as {counter}",
    ELSEWHERE: "service {owner} may not send to this destination; "
    "its packets to uplink {uplink} are dropped and counted as {counter}",
    OUTSIDE: "it has the mark {mark} and the group or user of service {owner}, but was not "
    "opened in the service's cgroup; the guard lets it use uplink {uplink}",
    BORROWED: "it has the mark {mark} and a source port of the kernel service {owner}; "
    "the guard lets it use uplink {uplink}",
    UNANSWERED: "its connection came in by uplink {uplink}, and the policy does not allow "
    "replies to it; they are dropped and counted as {counter}",
    UNKNOWN: "it has the mark {mark} of uplink {uplink}, and no visible process owns it",
}
_HALF_OPEN = "syn-recv"  # no program owns it yet


@frozen
class Judged:
    """Verdict on a socket that concerns an uplink.

    `owner`: the service, "resolver" or "answer" by the policy; "" for none of them. `counter`: the
    counter of the packets of the socket that the guard drops; "" if it drops none. `process`: None
    if no process is known.
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
        """True for each verdict but "right"."""
        return self.verdict != RIGHT

    @property
    def meaning(self) -> str:
        """Verdict as a sentence; "" for "right"."""
        if not self.wrong:
            return ""
        template = MEANINGS[self.verdict]
        return template.format(
            mark=self.mark,
            uplink=self.uplink,
            counter=self.counter,
            owner=self.who,
            bound=self.socket.bound,
        )

    @property
    def program(self) -> str:
        """Name and PID of the process, as NAME/PID; "?" if it is not known."""
        return f"{self.holder.name or '?'}/{self.holder.pid}" if self.holder else "?"

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as a JSON object."""
        listed, process = self.socket, self.holder
        return {
            "verdict": self.verdict,
            "uplink": self.uplink,
            "who": self.who,
            "program": process.name if process else None,
            "pid": process.pid if process else None,
            "protocol": PROTOCOLS[listed.protocol],
            "family": listed.family,
            "state": listed.state,
            "local": listed.local,
            "sport": listed.sport,
            "remote": listed.remote,
            "dport": listed.dport,
            "bound": listed.bound,
            "mark": listed.mark,
            "uid": listed.uid,
            "gid": process.gid if process else None,
            "counter": self.counter,
            "cookie": listed.cookie,
        }


def judge(
    sockets: Iterable[Listed],
    policy: Policy,
    addresses: Addresses,
    processes: Mapping[int, Holder],
    cgroups: Mapping[str, set[int]] | None = None,
) -> list[Judged]:
    """Return the verdicts on all sockets of services and all sockets with an uplink's mark.

    Wrong ones first.

    `addresses`: addresses of all devices. `processes`: owning process by socket inode. `cgroups`:
    cgroup IDs of each service. Left out are local connections, sockets that no program has accepted
    yet, and closed sockets: the kernel ends those by itself.
    """
    all_sockets = list(sockets)
    classifier = _SocketClassifier(all_sockets, policy, addresses, processes, cgroups or {})
    verdicts = [verdict for listed in all_sockets if (verdict := classifier.classify(listed)) is not None]
    return sorted(
        verdicts,
        key=lambda verdict: (not verdict.wrong, verdict.uplink, verdict.who, verdict.socket.cookie),
    )


def needed(sockets: Iterable[Listed], policy: Policy, addresses: Addresses) -> set[int]:
    """Return the inodes of the sockets with a process that the verdict, or its report, needs."""
    own = _own_addresses(addresses)
    any_group = any(service.group for service in policy.service.values())
    uids = {service.user.number for service in policy.service.values() if service.user}
    return {
        listed.inode
        for listed in sockets
        if _is_relevant(listed, own)
        and (any_group or listed.uid in uids or wearer(policy, listed.mark or 0) is not None)
    }


def _own_addresses(addresses: Addresses) -> set[str]:
    return {address for of_device in addresses.values() for address in of_device}


def _is_relevant(listed: Listed, own: set[str]) -> bool:
    """Return True if a program owns the socket, and its packets may leave this host."""
    return bool(listed.inode) and listed.state != _HALF_OPEN and not at_home(listed, own)


class _SocketClassifier:
    """Classifies single sockets, with the data that all of them share."""

    def __init__(
        self,
        sockets: list[Listed],
        policy: Policy,
        addresses: Addresses,
        processes: Mapping[int, Holder],
        cgroups: Mapping[str, set[int]],
    ) -> None:
        self._policy, self._processes, self._cgroups = policy, processes, cgroups
        self._own = _own_addresses(addresses)
        self._listening_ports = {
            listed.sport for listed in sockets if listed.protocol == TCP and listed.state == "listen"
        }

    def classify(self, listed: Listed) -> Judged | None:
        """Return the verdict on a socket; None if it does not concern an uplink."""
        if not _is_relevant(listed, self._own):
            return None
        process = self._processes.get(listed.inode)
        services = {
            name: service for name, service in self._policy.service.items() if _is_of_service(service, listed, process)
        }
        marked_for = wearer(self._policy, listed.mark or 0)
        if marked_for is not None:
            return self._marked(listed, *marked_for, services, process)
        for name, service in services.items():
            verdict, counter = self._unmarked(listed, service, process)
            mark = str(self._policy.uplink[service.uplink].mark)
            return Judged(listed, service.uplink, mark, name, verdict, counter, process)
        return None

    def _marked(
        self,
        listed: Listed,
        name: str,
        uplink: Uplink,
        services: Mapping[str, Service],
        process: Holder | None,
    ) -> Judged | None:
        """Return the verdict on a socket of these services with the mark of uplink `name`."""
        verdict = Judged(listed, name, str(uplink.mark), "", holder=process)
        entitled = [owner for owner, service in services.items() if service.uplink == name]
        owner = next(
            (owner for owner in entitled if self._may_send(services[owner], uplink, listed, process)),
            None,
        )
        is_resolver_user = uplink.resolver is not None and listed.uid == uplink.resolver.user.number
        if owner is None and is_resolver_user and (asks_names(listed) or not listed.connected):
            owner = "resolver"
        if owner is None and answers(uplink, listed):
            owner = "answer"
        if owner is not None:
            return self._check_device(evolve(verdict, who=owner), uplink)
        if kernel_service := self._kernel_service(listed, name):
            return evolve(verdict, who=kernel_service, verdict=BORROWED if process else RIGHT)
        if entitled:
            return evolve(verdict, who=entitled[0], verdict=ELSEWHERE, counter=names.of(name, "unentitled"))
        return self._without_owner(verdict)

    def _kernel_service(self, listed: Listed, name: str) -> str | None:
        """Return the kernel service of uplink `name` with this source port: no owner check."""
        for owner, service in self._policy.service.items():
            if service.uplink == name and service.sport and lets(service, listed, None):
                return owner
        return None

    @staticmethod
    def _may_send(service: Service, uplink: Uplink, listed: Listed, process: Holder | None) -> bool:
        """Return True if a socket of the service may send to its peer.

        Without a peer, to any destination.
        """
        if not listed.connected or (asks_names(listed) and uplink.resolver is not None):
            return True
        return lets(service, listed, process.gid if process else None)

    def _check_device(self, verdict: Judged, uplink: Uplink) -> Judged:
        """Return the verdict on a socket with an owner, by its bound device and its cgroup."""
        bound, cgroup = verdict.socket.bound, verdict.socket.cgroup
        if bound is None or bound in uplink.devices:
            outside = cgroup is not None and cgroup not in self._cgroups.get(verdict.who, {cgroup})
            return evolve(verdict, verdict=OUTSIDE) if outside else verdict
        if self._uplink_of_device(bound):
            counter = names.of(verdict.uplink, "stray")
        else:
            counter = self._inside_counter(bound, verdict.uplink)
        return evolve(verdict, verdict=ASTRAY, counter=counter)

    def _without_owner(self, verdict: Judged) -> Judged | None:
        """Return the verdict on a marked socket that belongs to no service of the uplink."""
        listed = verdict.socket
        if verdict.holder is None:
            for owner, service in self._policy.service.items():
                if service.uplink == verdict.uplink and service.kernel and listed.protocol == UDP:
                    return evolve(verdict, who=owner)
            return evolve(verdict, verdict=UNKNOWN)
        if listed.state == "listen":
            return None  # it sends by accepted sockets, and these get the mark of the peer's packet
        if listed.protocol == TCP and listed.sport in self._listening_ports:
            return evolve(verdict, verdict=UNANSWERED, counter=names.of(verdict.uplink, "unanswered"))
        return evolve(verdict, verdict=FORGED, counter=names.of(verdict.uplink, "unentitled"))

    def _unmarked(self, listed: Listed, service: Service, process: Holder | None) -> tuple[str, str]:
        """Return verdict and counter for a service's socket without a mark."""
        uplink = self._policy.uplink[service.uplink]
        is_redirected_dns = asks_names(listed) and uplink.resolver is not None
        # A listener counts as inbound too.
        is_inbound = listed.protocol == TCP and listed.sport in self._listening_ports
        if is_redirected_dns or is_inbound:
            return RIGHT, ""
        if not service.unmarked:
            return UNMARKED, names.of(service.uplink, "dropped")
        if listed.bound and listed.bound not in uplink.devices:
            other = self._uplink_of_device(listed.bound)  # its guard drops packets without its mark
            if other:
                return ASTRAY, names.of(other, "dropped")
            return ASTRAY, self._inside_counter(listed.bound, service.uplink)
        if not self._may_send(service, uplink, listed, process):
            return ELSEWHERE, names.of(service.uplink, "unentitled")
        return RIGHT, ""

    def _uplink_of_device(self, device: str) -> str | None:
        return next((name for name, uplink in self._policy.uplink.items() if device in uplink.devices), None)

    def _inside_counter(self, device: str, name: str) -> str:
        """Return the counter of packets of uplink `name` to a device that belongs to no uplink."""
        return names.of(name, "stray") if covered(device, self._policy.inside) else names.UNKNOWN_DEVICE


def _is_of_service(service: Service, listed: Listed, process: Holder | None) -> bool:
    """Return True if the socket certainly belongs to the service."""
    if service.user is not None:
        return listed.uid == service.user.number
    return service.group is not None and process is not None and process.gid == service.group.number
