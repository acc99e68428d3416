# SPDX-License-Identifier: BSD-2-Clause
"""Present traffic of this machine that stops under a policy, for a note before the policy is applied.

It proves nothing: a socket tells neither all its destinations nor the packets of the next minute. The judge of a
connection is that of the cleanup after a change (stale.py); that of a marked socket is the socket classifier.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

from attrs import field, frozen

from ..compiler.exemptions import EXEMPTION_MATCHES
from ..compiler.object_names import SHADOW_TABLE
from ..kernel.errors import DumpInterrupted, Unavailable
from ..kernel.live_sockets import LiveSockets
from ..kernel.netlink.conntrack import ConntrackEntry
from ..kernel.netlink.sock_diag import PROTOCOLS, TCP, UDP, UDPLITE, InetSocket
from ..kernel.packet_sockets import FrameUser, frame_users
from ..kernel.process_sockets import asks_for_destination
from ..kernel.socket_owners import SocketOwner
from ..phrases import and_more
from ..policy.objects import Network, Policy, Port, Uplink
from ..policy.scalars import matching_pattern
from ..policy.vocabulary import NAMED_ANSWERS
from .apply.reply_routes import has_route, routed_networks
from .apply.stale import may_leave_unmarked, uplink_addresses
from .own_session import session_test
from .ownership import Addresses, is_answered, own_port, uplink_of_mark
from .services.socket_classifier import UNMARKED, SocketVerdict, classify_sockets, is_relevant, own_addresses

_MOST_LINES = 20
_MOST_FLOWS = 50_000  # conntrack entries; a dump of more takes seconds
_FLOW_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_FIRST_CLIENT_PORT = 32768  # of sockets that chose no port (net.ipv4.ip_local_port_range)
# Addresses that only a default route, or a half of one, leads to: reserved (RFC 1112), documentation (RFC 9637).
_FAR = {4: "240.0.0.1", 6: "3fff::1"}
_ANSWER_WORDS = {text: name for name, text in NAMED_ANSWERS.items()}
_EXEMPTION_OF_FRAME = {ethertype: word for word, each in EXEMPTION_MATCHES.items() for ethertype in each.frames}
# Programs whose sockets get frames of all types, and that send those of one.
_EXEMPTION_OF_PROGRAM = {"lldpd": "lldp"}
# Ports of clients whose packets an exemption of this name covers.
_CLIENT_PORTS = {68: "dhcpv4", 546: "dhcpv6"}
_ALL_FRAMES, _IP_FRAMES = 3, frozenset({0x0800, 0x86DD, 0x0806})  # include/uapi/linux/if_ether.h

EgressDevice = Callable[[InetSocket], str | None]
RouteDevice = Callable[[int, str], str | None]  # family, destination -> output device


@frozen
class StoppedTraffic:
    """Present traffic that stops: its owner, the socket or flow, the reason, and what to write into the policy.

    `is_live`: packets go to and fro now; else a program waits for some. `is_own`: it is a connection of this session.
    """

    owner: str
    subject: str
    reason: str
    is_live: bool = True
    is_own: bool = False

    def __str__(self) -> str:
        return f"{self.owner} {self.subject}: {self.reason}"


@frozen
class TrafficJudge:
    """Judge of sockets under a policy, from the state of this machine.

    `processes`: owner by inode of a socket. `egress_device`: the output device of a connected socket by the routes
    of now. `route_device`: that of a packet of no socket. `selects_source`: the program of an unconnected socket
    learns the address that was asked, so that it can send from there. `is_own`: the socket is one of this session.
    `has_reply_route`: the table of an uplink will have a route to an address.
    """

    policy: Policy
    addresses: Addresses
    processes: Mapping[int, SocketOwner]
    egress_device: EgressDevice
    route_device: RouteDevice
    selects_source: Callable[[InetSocket], bool]
    is_own: Callable[[InetSocket], bool] = lambda _: False
    has_reply_route: Callable[[str, str], bool] = lambda _, __: True
    _uplink_of_device: Mapping[str, str] = field(init=False)

    @_uplink_of_device.default
    def _by_device(self) -> Mapping[str, str]:
        present = self.addresses.keys()
        return {each: name for name, uplink in self.policy.uplink.items() for each in uplink.devices if each in present}

    def stopped_sockets(self, sockets: Iterable[InetSocket]) -> Iterator[StoppedTraffic]:
        """Yield the sockets whose packets the guard drops, and the servers that cannot answer by an uplink."""
        own = own_addresses(self.addresses)
        relevant = [each for each in sockets if is_relevant(each, own) and each.protocol in (TCP, UDP, UDPLITE)]
        listening = {each.sport for each in relevant if each.protocol == TCP and each.state == "listen"}
        verdicts = {
            each.socket.cookie: each for each in classify_sockets(relevant, self.policy, self.addresses, self.processes)
        }
        for each in relevant:
            verdict = verdicts.get(each.cookie)
            if each.is_connected:
                reason = self._reason(each, verdict, listening)
                if reason is not None:
                    yield StoppedTraffic(self._owner(each), str(each), reason, is_own=self.is_own(each))
            elif uplink_of_mark(self.policy, each.mark or 0) is not None:
                if verdict is not None and verdict.counter:
                    yield StoppedTraffic(self._owner(each), str(each), verdict.description)
            elif each.sport:
                yield from self._server(each)

    def _reason(self, each: InetSocket, verdict: SocketVerdict | None, listening: set[int]) -> str | None:
        """Return why a connection stops; None if it goes on."""
        marked = uplink_of_mark(self.policy, each.mark or 0)
        name = marked[0] if marked is not None else self._uplink_of(each)
        is_accepted = each.protocol == TCP and each.sport in listening
        process = self.processes.get(each.inode)
        if marked is not None and verdict is not None and verdict.counter:
            return verdict.description
        if name is None:
            return self._unnamed_device(each)
        if marked is not None or may_leave_unmarked(self.policy, name, each, process.gid if process else None):
            is_answer = is_accepted and is_answered(self.policy.uplink[name], each)
            if is_answer and not self.has_reply_route(name, str(each.remote)):
                return _unrouted(self.policy.uplink[name], name)
            return None
        if is_accepted:
            return _unanswered(self.policy.uplink[name], name, each)
        if verdict is not None and verdict.verdict == UNMARKED:
            return f"it is of service {verdict.owner}, and has no mark: start its program anew under the policy"
        return f"no service of uplink {name} has its user or group; add [service.NAME] if it should use the uplink"

    def _unnamed_device(self, each: InetSocket) -> str | None:
        """Return why a connection stops that leaves by a device of no uplink; None if the device is inside."""
        device = each.bound or self.egress_device(each)
        if device in (None, "lo") or matching_pattern(str(device), self.policy.inside) is not None:
            return None
        return f"device {device} is in no part of the policy; add it to 'inside', or to 'devices' of an uplink"

    def _server(self, each: InetSocket) -> Iterator[StoppedTraffic]:
        """Yield what becomes of the requests that arrive by uplinks at a listening or unconnected socket."""
        if each.protocol != TCP and each.sport >= _FIRST_CLIENT_PORT:
            return
        client = _CLIENT_PORTS.get(each.sport) if each.protocol == UDP else None
        names = [name for name in self._served_uplinks(each) if client not in self.policy.uplink[name].exempt]
        answering = [name for name in names if is_answered(self.policy.uplink[name], each)]
        if names and not any(
            may_leave_unmarked(self.policy, name, each, None) or _is_published(self.policy, name, own_port(each))
            for name in names
        ):
            reason = _unanswered(self.policy.uplink[names[0]], names[0], each)
            yield StoppedTraffic(self._owner(each), str(each), f"requests by an uplink: {reason}", is_live=False)
        is_unbound = each.protocol == UDP and each.local is None and each.bound is None
        if answering and is_unbound and not self.selects_source(each):
            first = self.policy.uplink[answering[0]].devices[0]  # its table is looked up first
            for name in answering:
                if is_answered(self.policy.uplink[name], each, exclusive=True):
                    continue
                device = self._default_elsewhere(each, name) or (first if name != answering[0] else None)
                if device is not None:
                    yield StoppedTraffic(self._owner(each), str(each), _misrouted(name, device), is_live=False)

    def _served_uplinks(self, each: InetSocket) -> list[str]:
        """Return the uplinks whose requests an unconnected socket gets."""
        if each.bound is not None:
            names = [self._uplink_of_device.get(each.bound)]
        elif each.local is not None:
            names = [uplink_addresses(self.addresses, self.policy).get(each.local)]
        else:
            names = list(self._uplink_of_device.values())
        return list(dict.fromkeys(name for name in names if name is not None))

    def _default_elsewhere(self, each: InetSocket, name: str) -> str | None:
        """Return the device to which the default route leads packets without a source, unless it is the uplink's."""
        for family in (4, 6) if each.family == 6 else (4,):
            device = self.route_device(family, _FAR[family])
            if device is not None and device != "lo" and device not in self.policy.uplink[name].devices:
                return device
        return None

    def _uplink_of(self, each: InetSocket) -> str | None:
        """Return the uplink by which a connected socket without a mark sends."""
        if each.bound is not None:
            return self._uplink_of_device.get(each.bound)
        by_address = uplink_addresses(self.addresses, self.policy).get(each.local or "")
        return by_address or self._uplink_of_device.get(self.egress_device(each) or "")

    def _owner(self, each: InetSocket) -> str:
        return owner_text(self.processes.get(each.inode), each.uid)

    def stopped_flows(self, flows: Iterable[ConntrackEntry]) -> Iterator[StoppedTraffic]:
        """Yield the flows of other machines by an uplink that no forward and no published port is for."""
        own = own_addresses(self.addresses)
        for flow in flows:
            source, destination = flow.original.source, flow.reply.source  # the destination after NAT
            is_of_others = source and destination and own.isdisjoint((source, destination))
            if not is_of_others or ip_address(source).is_unspecified or ip_address(destination).is_multicast:
                continue
            arrives, leaves = (self.route_device(flow.family, each) for each in (source, destination))
            if arrives is None or leaves is None:
                continue
            origin, target = self._uplink_of_device.get(arrives), self._uplink_of_device.get(leaves)
            port = Port(PROTOCOLS.get(flow.protocol, ""), flow.original.dport, flow.original.dport)
            if (
                target is not None
                and origin != target
                and not _is_forwarded(self.policy, target, arrives, source, destination, port)
            ):
                reason = f'no forward of uplink {target} is for it; add [forward.NAME] with from = ["{arrives}"]'
            elif origin is not None and target is None and not _is_published(self.policy, origin, port):
                reason = f'uplink {origin} publishes no such port; add [publish.NAME] with port = "{port}"'
            else:
                continue
            yield StoppedTraffic(f"flow from {arrives} to {leaves},", str(flow), reason)

    def stopped_frames(self, users: Iterable[FrameUser]) -> Iterator[StoppedTraffic]:
        """Yield the receivers of frames that are not IP, at an uplink's device, whose answers no exemption names."""
        for user in users:
            process = self.processes.get(user.inode)
            word = _EXEMPTION_OF_FRAME.get(user.ethertype)
            if user.ethertype == _ALL_FRAMES and process is not None:
                word = _EXEMPTION_OF_PROGRAM.get(process.name)
            if user.ethertype in _IP_FRAMES or (user.ethertype < 0x600 and word is None):
                continue
            devices = [user.device] if user.device is not None else list(self._uplink_of_device)
            names = {name: None for each in devices if (name := self._uplink_of_device.get(each)) is not None}
            for name in names:
                if word in self.policy.uplink[name].exempt:
                    continue
                advice = f'add "{word}" to exempt of [uplink.{name}]' if word else "no exemption is for them"
                owner = owner_text(process, user.uid) if user.inode else f"the kernel ({user.handler})"
                kind = f"frames of type {user.ethertype:#06x}" if user.ethertype != _ALL_FRAMES else f"frames of {word}"
                yield StoppedTraffic(owner, f"{kind} by {user.device or 'all devices'}", advice)


def owner_text(process: SocketOwner | None, uid: int) -> str:
    """Return a process with its user, for a message."""
    return f"{process.name or '?'} (PID {process.pid}, user {uid})" if process else f"a process of user {uid}"


def _unanswered(uplink: Uplink, name: str, each: InetSocket) -> str:
    word = _ANSWER_WORDS.get(str(own_port(each)), str(own_port(each)))
    if any(answer.port is not None and answer.port.contains(own_port(each)) for answer in uplink.answer):
        return f"answer {word} of uplink {name} is not for {each.remote}"
    return f'answer {word} is not in the policy; add "{word}" to answer of [uplink.{name}]'


def _unrouted(uplink: Uplink, name: str) -> str:
    return (
        f"its replies have no route in table {uplink.table}; write 'gateways' into [uplink.{name}], let the network "
        "manager use that table ('nftpolicy netconfig'), or start 'nftpolicy watch', which moves the routes there"
    )


def _misrouted(name: str, device: str) -> str:
    return (
        f"the default route gives its replies beyond the gateway of uplink {name} an address of {device}, so they are "
        "dropped; bind it to the uplink's address, let it send from the address that was asked (IP_PKTINFO), or make "
        "the answer 'exclusive'"
    )


def _is_published(policy: Policy, uplink: str, port: Port) -> bool:
    return any(each.uplink == uplink and each.port.contains(port) for each in policy.publish.values())


def _is_forwarded(policy: Policy, uplink: str, device: str, source: str, destination: str, port: Port) -> bool:
    def holds(networks: Sequence[Network], address: str) -> bool:
        return not networks or any(ip_address(address) in network for network in networks)

    return any(
        each.uplink == uplink
        and matching_pattern(device, each.devices) is not None
        and holds(each.source, source)
        and holds(each.to, destination)
        # A port of a protocol without ports, such as ping, is not compared.
        and (not each.ports or not port.protocol or any(other.contains(port) for other in each.ports))
        for each in policy.forward.values()
    )


def describe_traffic(traffic: Iterable[StoppedTraffic], most: int = _MOST_LINES) -> list[str]:
    """Return lines, live traffic first: one for all of an owner with the same reason; the number beyond `most`."""
    groups: dict[tuple[str, str], list[StoppedTraffic]] = {}
    for each in sorted(traffic, key=lambda each: (not each.is_own, not each.is_live)):
        groups.setdefault((each.owner, each.reason), []).append(each)
    lines = []
    for first, *more in groups.values():
        prefix = "stops under this policy: " + ("this session: " if first.is_own else "")
        count = len({each.subject for each in more} - {first.subject})
        extra = f" {and_more(count)}" if count else ""
        lines.append(f"{prefix}{first.owner} {first.subject}{extra}: {first.reason}")
    left = len(lines) - most
    return lines if left <= 0 else [*lines[:most], f"stops under this policy: {and_more(left)}"]


def find_stopped_traffic(policy: Policy, starts_watch: bool = False) -> list[StoppedTraffic]:
    """Return the traffic of this machine that stops under a policy; none without root.

    `starts_watch`: the watch daemon will run.
    """
    from ..kernel.netlink.rtnetlink import RouteLookups

    try:
        if os.geteuid():
            return []
        with LiveSockets() as live, RouteLookups() as lookups:

            def route_device(family: int, destination: str) -> str | None:
                route = lookups.get_route(family, destination)
                return None if isinstance(route, int) or route.kind != "unicast" else route.device

            sockets, users = live.sockets(), frame_users()
            inodes = {each.inode for each in sockets} | {user.inode for user in users}
            owners = live.socket_owners(inodes - {0})

            def selects_source(each: InetSocket) -> bool:
                owner = owners.get(each.inode)
                return owner is not None and asks_for_destination(owner.pid, each.inode)

            addresses = live.addresses()
            judge = TrafficJudge(
                policy,
                addresses,
                owners,
                live.egress_device,
                route_device,
                selects_source,
                session_test(owners),
                _reply_routes(policy, starts_watch),
            )
            return [
                *judge.stopped_sockets(sockets),
                *judge.stopped_flows(_flows(live)),
                *judge.stopped_frames(users),
            ]
    except (Unavailable, DumpInterrupted, OSError):
        return []  # this kernel does not tell


def _reply_routes(policy: Policy, starts_watch: bool) -> Callable[[str, str], bool]:
    """Return a test if the table of an uplink will have a route to an address."""
    from ..kernel.netlink.nft_counters import read_table_names
    from ..kernel.netlink.route_mover import RouteMover

    is_watched = starts_watch or any(name == SHADOW_TABLE for _, name in read_table_names())
    with closing(RouteMover()) as access:
        networks = routed_networks(access, policy, is_watched)
    return lambda uplink, address: has_route(networks[uplink], address)


def _flows(live: LiveSockets) -> list[ConntrackEntry]:
    """Return all conntrack entries; [] if there are too many, or the kernel lists none."""
    try:
        if int(_FLOW_COUNT.read_text()) > _MOST_FLOWS:
            return []
        return live.flows(0, 0)
    except (Unavailable, DumpInterrupted, OSError, ValueError):
        return []
