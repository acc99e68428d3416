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

from ...compiler import object_names
from ...kernel.netlink.sock_diag import PROTOCOLS, TCP, UDP, InetSocket
from ...kernel.socket_owners import SocketOwner
from ...policy.objects import ROOT, Policy, Service, Uplink
from ...policy.scalars import matching_pattern
from ..ownership import Addresses, is_answered, is_dns, is_local, is_upstream, service_allows, uplink_of_mark

RIGHT, UNMARKED, FORGED, UNKNOWN = "right", "unmarked", "forged", "unknown"
WRONG_DEVICE = "wrong-device"
WRONG_DESTINATION = "wrong-destination"
OUTSIDE_CGROUP = "outside-cgroup"
KERNEL_PORT = "kernel-port"
UNANSWERED_REPLY = "unanswered-reply"

# Meaning of each verdict but "right" for the packets of the socket. nftpolicy(1) prints this table.
MEANINGS = {
    UNMARKED: "it lacks the mark {mark}, so its packets are not routed by uplink {uplink}; "
    "packets to that uplink are dropped and counted as {counter}",
    FORGED: "it has the mark {mark}, but does not belong to a service of uplink {uplink}; "
    "its packets to that uplink are dropped and counted as {counter}",
    WRONG_DEVICE: "it is bound to {bound}, which is not a device of uplink {uplink}; "
    "its packets to that device are dropped and counted as {counter}",
    WRONG_DESTINATION: "service {owner} may not send to this destination; "
    "its packets to uplink {uplink} are dropped and counted as {counter}",
    OUTSIDE_CGROUP: "it has the mark {mark} and the group or user of service {owner}, but was not "
    "opened in the service's cgroup; the guard lets it use uplink {uplink}",
    KERNEL_PORT: "it has the mark {mark} and a source port of the kernel service {owner}; "
    "the guard lets it use uplink {uplink}",
    UNANSWERED_REPLY: "its connection came in by uplink {uplink}, and the policy does not allow "
    "replies to it; they are dropped and counted as {counter}",
    UNKNOWN: "it has the mark {mark} of uplink {uplink}, and no visible process owns it",
}
_HALF_OPEN = "syn-recv"  # no program owns it yet


@frozen
class SocketVerdict:
    """Verdict on a socket that concerns an uplink.

    `owner`: the service, "resolver" or "answer" by the policy; "" for none of them. `counter`: the
    counter of the packets of the socket that the guard drops; "" if it drops none. `process`: None
    if no process is known.
    """

    socket: InetSocket
    uplink: str
    mark: str
    owner: str
    verdict: str = RIGHT
    counter: str = ""
    process: SocketOwner | None = None

    @property
    def is_wrong(self) -> bool:
        """True for each verdict but "right"."""
        return self.verdict != RIGHT

    @property
    def description(self) -> str:
        """Verdict as a sentence; "" for "right"."""
        if not self.is_wrong:
            return ""
        template = MEANINGS[self.verdict]
        return template.format(
            mark=self.mark,
            uplink=self.uplink,
            counter=self.counter,
            owner=self.owner,
            bound=self.socket.bound,
        )

    @property
    def process_label(self) -> str:
        """Name and PID of the process, as NAME/PID; "?" if it is not known."""
        return f"{self.process.name or '?'}/{self.process.pid}" if self.process else "?"

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as a JSON object."""
        inet_socket, process = self.socket, self.process
        return {
            "verdict": self.verdict,
            "uplink": self.uplink,
            "who": self.owner,
            "program": process.name if process else None,
            "pid": process.pid if process else None,
            "protocol": PROTOCOLS[inet_socket.protocol],
            "family": inet_socket.family,
            "state": inet_socket.state,
            "local": inet_socket.local,
            "sport": inet_socket.sport,
            "remote": inet_socket.remote,
            "dport": inet_socket.dport,
            "bound": inet_socket.bound,
            "mark": inet_socket.mark,
            "uid": inet_socket.uid,
            "gid": process.gid if process else None,
            "counter": self.counter,
            "cookie": inet_socket.cookie,
        }


def classify_sockets(
    sockets: Iterable[InetSocket],
    policy: Policy,
    addresses: Addresses,
    processes: Mapping[int, SocketOwner],
    cgroups: Mapping[str, set[int]] | None = None,
) -> list[SocketVerdict]:
    """Return the verdicts on all sockets of services and all sockets with an uplink's mark.

    Wrong ones first.

    `addresses`: addresses of all devices. `processes`: owning process by socket inode. `cgroups`:
    cgroup IDs of each service. Left out are local connections, sockets that no program has accepted
    yet, and closed sockets: the kernel ends those by itself.
    """
    all_sockets = list(sockets)
    classifier = _SocketClassifier(all_sockets, policy, addresses, processes, cgroups or {})
    verdicts = [verdict for inet_socket in all_sockets if (verdict := classifier.classify(inet_socket)) is not None]
    return sorted(
        verdicts,
        key=lambda verdict: (not verdict.is_wrong, verdict.uplink, verdict.owner, verdict.socket.cookie),
    )


def inodes_to_resolve(sockets: Iterable[InetSocket], policy: Policy, addresses: Addresses) -> set[int]:
    """Return the inodes of the sockets with a process that the verdict, or its report, needs."""
    own = own_addresses(addresses)
    any_group = any(service.group for service in policy.service.values())
    uids = {service.user.number for service in policy.service.values() if service.user and not service.of_root}
    return {
        inet_socket.inode
        for inet_socket in sockets
        if is_relevant(inet_socket, own)
        and (any_group or inet_socket.uid in uids or uplink_of_mark(policy, inet_socket.mark or 0) is not None)
    }


def own_addresses(addresses: Addresses) -> set[str]:
    """Return the addresses of all devices."""
    return {address for of_device in addresses.values() for address in of_device}


def is_relevant(inet_socket: InetSocket, own: set[str]) -> bool:
    """Return True if a program owns the socket, and its packets may leave this host."""
    return bool(inet_socket.inode) and inet_socket.state != _HALF_OPEN and not is_local(inet_socket, own)


class _SocketClassifier:
    """Classifies single sockets, with the data that all of them share."""

    def __init__(
        self,
        sockets: list[InetSocket],
        policy: Policy,
        addresses: Addresses,
        processes: Mapping[int, SocketOwner],
        cgroups: Mapping[str, set[int]],
    ) -> None:
        self._policy, self._processes, self._cgroups = policy, processes, cgroups
        self._own = own_addresses(addresses)
        self._listening_ports = {
            inet_socket.sport
            for inet_socket in sockets
            if inet_socket.protocol == TCP and inet_socket.state == "listen"
        }

    def classify(self, inet_socket: InetSocket) -> SocketVerdict | None:
        """Return the verdict on a socket; None if it does not concern an uplink."""
        if not is_relevant(inet_socket, self._own):
            return None
        process = self._processes.get(inet_socket.inode)
        services = {
            name: service
            for name, service in self._policy.service.items()
            if (
                self._is_of_root(name, service, inet_socket)
                if service.of_root
                else _is_of_service(service, inet_socket, process)
            )
        }
        marked_for = uplink_of_mark(self._policy, inet_socket.mark or 0)
        if marked_for is not None:
            return self._marked(inet_socket, *marked_for, services, process)
        for name, service in services.items():
            verdict, counter = self._unmarked(inet_socket, service, process)
            mark = str(self._policy.uplink[service.uplink].mark)
            return SocketVerdict(inet_socket, service.uplink, mark, name, verdict, counter, process)
        return None

    def _is_of_root(self, name: str, service: Service, inet_socket: InetSocket) -> bool:
        """Return True if a socket of root belongs to the service: by its cgroup, else by its mark.

        Sockets that a server of root has accepted get the mark of the peer's packet.
        """
        if inet_socket.uid != ROOT:
            return False
        if inet_socket.cgroup in self._cgroups.get(name, ()):
            return True
        of_others = any(
            inet_socket.cgroup in self._cgroups.get(other, ())
            for other, each in self._policy.service.items()
            if each.of_root
        )
        uplink = self._policy.uplink[service.uplink]
        is_reply = self._is_accepted(inet_socket) or is_answered(uplink, inet_socket)
        return not of_others and not is_reply and uplink.mark.matches(inet_socket.mark or 0)

    def _is_accepted(self, inet_socket: InetSocket) -> bool:
        return inet_socket.protocol == TCP and inet_socket.sport in self._listening_ports

    def _marked(
        self,
        inet_socket: InetSocket,
        name: str,
        uplink: Uplink,
        services: Mapping[str, Service],
        process: SocketOwner | None,
    ) -> SocketVerdict | None:
        """Return the verdict on a socket of these services with the mark of uplink `name`."""
        verdict = SocketVerdict(inet_socket, name, str(uplink.mark), "", process=process)
        entitled = [owner for owner, service in services.items() if service.uplink == name]
        owner = next(
            (owner for owner in entitled if self._may_send(services[owner], uplink, inet_socket, process)),
            None,
        )
        resolver = uplink.resolver
        if owner is None and resolver is not None and inet_socket.uid == resolver.user.number:
            owner = "resolver" if is_upstream(inet_socket, resolver) or not inet_socket.is_connected else None
        if owner is None and is_answered(uplink, inet_socket):
            owner = "answer"
        if owner is not None:
            return self._check_device(evolve(verdict, owner=owner), uplink)
        if kernel_service := self._kernel_service(inet_socket, name):
            return evolve(verdict, owner=kernel_service, verdict=KERNEL_PORT if process else RIGHT)
        if entitled:
            return evolve(
                verdict,
                owner=entitled[0],
                verdict=WRONG_DESTINATION,
                counter=object_names.object_name(name, "unentitled"),
            )
        return self._without_owner(verdict)

    def _kernel_service(self, inet_socket: InetSocket, name: str) -> str | None:
        """Return the kernel service of uplink `name` with this source port: no owner check."""
        for owner, service in self._policy.service.items():
            if service.uplink == name and service.sport and service_allows(service, inet_socket, None):
                return owner
        return None

    @staticmethod
    def _may_send(service: Service, uplink: Uplink, inet_socket: InetSocket, process: SocketOwner | None) -> bool:
        """Return True if a socket of the service may send to its peer.

        Without a peer, to any destination.
        """
        if not inet_socket.is_connected or (is_dns(inet_socket) and uplink.resolver is not None):
            return True
        return service_allows(service, inet_socket, process.gid if process else None)

    def _check_device(self, verdict: SocketVerdict, uplink: Uplink) -> SocketVerdict:
        """Return the verdict on a socket with an owner, by its bound device and its cgroup."""
        bound, cgroup = verdict.socket.bound, verdict.socket.cgroup
        if bound is None or bound in uplink.devices:
            outside = cgroup is not None and cgroup not in self._cgroups.get(verdict.owner, {cgroup})
            return evolve(verdict, verdict=OUTSIDE_CGROUP) if outside else verdict
        if self._uplink_of_device(bound):
            counter = object_names.object_name(verdict.uplink, "stray")
        else:
            counter = self._inside_counter(bound, verdict.uplink)
        return evolve(verdict, verdict=WRONG_DEVICE, counter=counter)

    def _without_owner(self, verdict: SocketVerdict) -> SocketVerdict | None:
        """Return the verdict on a marked socket that belongs to no service of the uplink."""
        inet_socket = verdict.socket
        if verdict.process is None:
            for owner, service in self._policy.service.items():
                is_udp = service.kernel and not service.by_destination and inet_socket.protocol == UDP
                if service.uplink == verdict.uplink and is_udp:
                    return evolve(verdict, owner=owner)
            return evolve(verdict, verdict=UNKNOWN)
        if inet_socket.state == "listen":
            return None  # it sends by accepted sockets, and these get the mark of the peer's packet
        if self._is_accepted(inet_socket):
            return evolve(
                verdict, verdict=UNANSWERED_REPLY, counter=object_names.object_name(verdict.uplink, "unanswered")
            )
        return evolve(verdict, verdict=FORGED, counter=object_names.object_name(verdict.uplink, "unentitled"))

    def _unmarked(self, inet_socket: InetSocket, service: Service, process: SocketOwner | None) -> tuple[str, str]:
        """Return verdict and counter for a service's socket without a mark."""
        uplink = self._policy.uplink[service.uplink]
        is_redirected_dns = is_dns(inet_socket) and uplink.resolver is not None
        # A listener counts as inbound too.
        if is_redirected_dns or self._is_accepted(inet_socket):
            return RIGHT, ""
        needs_no_mark = any(
            other.unmarked and other.uplink == service.uplink and other.user and other.user.number == inet_socket.uid
            for other in self._policy.service.values()
        )
        if not needs_no_mark:
            return UNMARKED, object_names.object_name(service.uplink, "dropped")
        if inet_socket.bound and inet_socket.bound not in uplink.devices:
            other = self._uplink_of_device(inet_socket.bound)  # its guard drops packets without its mark
            if other:
                return WRONG_DEVICE, object_names.object_name(other, "dropped")
            return WRONG_DEVICE, self._inside_counter(inet_socket.bound, service.uplink)
        if not self._may_send(service, uplink, inet_socket, process):
            return WRONG_DESTINATION, object_names.object_name(service.uplink, "unentitled")
        return RIGHT, ""

    def _uplink_of_device(self, device: str) -> str | None:
        return next((name for name, uplink in self._policy.uplink.items() if device in uplink.devices), None)

    def _inside_counter(self, device: str, name: str) -> str:
        """Return the counter of packets of uplink `name` to a device that belongs to no uplink."""
        return (
            object_names.object_name(name, "stray")
            if matching_pattern(device, self._policy.inside)
            else object_names.UNNAMED_DEVICE
        )


def _is_of_service(service: Service, inet_socket: InetSocket, process: SocketOwner | None) -> bool:
    """Return True if the socket certainly belongs to the service."""
    if service.user is not None:
        return inet_socket.uid == service.user.number
    return service.group is not None and process is not None and process.gid == service.group.number
