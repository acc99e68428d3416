# SPDX-License-Identifier: BSD-2-Clause
"""Readiness: what an uplink still lacks to be usable, and a service to have had an answer by it.

The decisions are pure functions; `Readiness` reads the state of this host.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from attrs import frozen

from ...compiler import tunnels
from ...kernel.errors import Unavailable
from ...kernel.live_sockets import LiveSockets
from ...kernel.netlink.conntrack import ConntrackEntry
from ...kernel.netlink.link_state import LinkState, link_states
from ...kernel.netlink.rtnetlink import Rtnetlink
from ...kernel.netlink.sock_diag import TCP, UDP, InetSocket
from ...netstate.routing import Route
from ...policy.objects import ROOT, Account, Listen, Policy, Service, Uplink
from ..regular_file import read_regular
from ..resolver.servers_file import servers_file_path
from .version_query import VERSION_QUERY, is_version_reply

POLL_SECONDS = 0.2  # seconds between two checks, where the kernel sends no notification
_SETTLE = 0.05  # seconds after a notification, so that a burst of them is one check
_REPLY_TIMEOUT = 0.5  # seconds for the resolver's reply
_MAX_REPLY = 512  # bytes
_MAX_SERVERS_SIZE = 1 << 16  # bytes

OwnerAccount = tuple[str, Account]  # ("group" or "user", account): owner of a socket


def link_problems(
    uplink: Uplink, links_by_name: Mapping[str, LinkState], routes: Iterable[Route], needs_route: bool = True
) -> list[str]:
    """Return the problems of devices, addresses and routes that keep packets from the uplink.

    [] if there are none.

    One device with everything it needs for one family is enough. `routes` are those of the uplink's
    table. `needs_route`: the uplink needs a default route.
    """
    default_routes = [route for route in routes if route.destination == "default" and route.kind == "unicast"]
    problems = []
    for device in uplink.devices:
        link = links_by_name.get(device)
        if link is None:
            problems.append(f"{device} does not exist")
        elif not link.has_carrier:
            problems.append(f"{device} has no carrier" if link.is_up else f"{device} is down")
        elif not link.addresses:
            problems.append(f"{device} has no address yet")
        else:
            families = {address.version for address in link.addresses}
            if not needs_route or any(
                route.family in families and any(hop.device == device for hop in route.all_nexthops)
                for route in default_routes
            ):
                return []
            family_names = " or ".join(f"IPv{family}" for family in sorted(families))
            problems.append(f"table {uplink.table} has no default route of {family_names} by {device}")
    return problems


def service_problem(
    service: Service,
    uplink: Uplink,
    sockets: Sequence[InetSocket],
    flows: Iterable[ConntrackEntry],
    own: frozenset[str],
) -> str | None:
    """Return the problem that keeps a service from traffic by its uplink.

    None if it has had an answer.

    `sockets` are those of the service, `own` the addresses of this host, `flows` all conntrack
    entries.
    """
    if service.by_destination:
        return (
            None
            if any(_is_answered_tunnel(service, flow) for flow in flows)
            else "no reply from its other ends has arrived yet"
        )
    if not sockets:
        return "it has no IP socket yet that can receive"
    marked = list(sockets)
    if not service.kernel:  # sockets of the kernel have no mark, only their packets
        marked = [
            inet_socket
            for inet_socket in sockets
            if inet_socket.mark is not None and uplink.mark.matches(inet_socket.mark)
        ]
    if not marked:
        return f"none of its {len(sockets)} sockets has the mark {uplink.mark}"
    remote_flows = [flow for flow in flows if flow.has_reply and not _is_local_flow(flow, own)]
    for inet_socket in marked:
        if _is_established(inet_socket, own) or any(_is_flow_of(inet_socket, flow) for flow in remote_flows):
            return None
    return "no reply has reached its sockets yet"


def _is_established(inet_socket: InetSocket, own: frozenset[str]) -> bool:
    if inet_socket.protocol != TCP or inet_socket.state != "established" or inet_socket.remote is None:
        return False
    return not _is_own(inet_socket.remote, own)


def _is_answered_tunnel(service: Service, flow: ConntrackEntry) -> bool:
    """Return True if both ends have sent in a tunnel of the kernel, whichever began it, or to a server of it."""
    if not flow.has_reply:
        return False
    is_tunnel = flow.protocol in {tunnels.PROTOCOLS.get(port.protocol) for port in service.ports}
    is_tcp = flow.protocol == TCP and any(
        port.protocol == "tcp" and port.low <= flow.original.dport <= port.high for port in service.ports
    )
    directions = [flow.original, flow.reply] if is_tunnel else [flow.original] if is_tcp else []
    return any(ip_address(each.destination) in network for each in directions for network in service.to)


def _is_flow_of(inet_socket: InetSocket, flow: ConntrackEntry) -> bool:
    """Return True if a flow belongs to a socket, as its originator or as its responder."""
    return (inet_socket.family, inet_socket.protocol) == (flow.family, flow.protocol) and any(
        inet_socket.sport == tuple_.sport and inet_socket.local in (None, tuple_.source)
        for tuple_ in (flow.original, flow.reply)
    )


def _is_local_flow(flow: ConntrackEntry, own: frozenset[str]) -> bool:
    """Return True if both ends are on this host, as for a query to the resolver."""
    return all(_is_own(tuple_.source, own) for tuple_ in (flow.original, flow.reply))


def _is_own(address: str, own: frozenset[str]) -> bool:
    return address in own or ip_address(address).is_loopback


def dns_client_of(policy: Policy, uplink: str) -> OwnerAccount | None:
    """Return a group or user that may query the uplink's resolver: the first one of a service.

    None without one.
    """
    for service in policy.service.values():
        if service.uplink == uplink:
            for kind, account in (("group", service.group), ("user", service.user)):
                if account is not None:
                    return kind, account
    return None


@frozen
class Readiness:
    """Readiness of the uplinks and services of a policy on this host.

    `is_guarded` returns True if guard and ip rules of the policy are in force. `state_directory` is
    the path of the state directory.
    """

    policy: Policy
    is_guarded: Callable[[], bool]
    state_directory: Path

    def uplink_problems(self, name: str) -> list[str]:
        """Return the problems of an uplink, each as a sentence; [] if it is ready."""
        uplink = self.policy.uplink[name]
        kernel = Rtnetlink()
        routes = [route for family in (4, 6) for route in kernel.routes(family) if route.table == uplink.table]
        problems = link_problems(uplink, link_states(uplink.devices), routes)
        if not self.is_guarded():
            problems.append(f"{self.policy.name} is not in force: 'nftpolicy status' shows what is missing")
        if not problems and uplink.resolver is not None:
            problems += self._resolver_problems(name, uplink)
        return [f"uplink {name}: {problem}" for problem in problems]

    def _resolver_problems(self, name: str, uplink: Uplink) -> Iterator[str]:
        resolver = uplink.resolver
        client = dns_client_of(self.policy, name)
        if resolver is None or client is None:  # without clients the resolver is not needed
            return
        mark = uplink.mark.value if client[1].number == ROOT else 0  # of root's sockets, only those with it may query
        if not any(_replies(listen, client, mark) for listen in resolver.listen):
            addresses = " and ".join(map(str, resolver.listen))
            yield f"its resolver does not answer on {addresses}: run 'nftpolicy resolver'"
        elif _has_no_servers(servers_file_path(self.state_directory, name)):
            yield "its resolver knows no server yet"

    def service_problems(self, name: str) -> list[str]:
        """Return the problem of a service; [] if it has had an answer."""
        service = self.policy.service[name]
        uplink = self.policy.uplink[service.uplink]
        with LiveSockets() as live_sockets:
            own = frozenset(address for addresses in live_sockets.addresses().values() for address in addresses)
            sockets = [
                inet_socket
                for inet_socket in live_sockets.sockets()
                if inet_socket.remote is None or not _is_own(inet_socket.remote, own)
            ]
            service_sockets = _sockets_of(service, sockets, live_sockets.owner_groups)
            problem = service_problem(service, uplink, service_sockets, live_sockets.flows(0, 0), own)
        return [] if problem is None else [f"service {name}: {problem}"]


def _sockets_of(
    service: Service,
    sockets: Iterable[InetSocket],
    groups: Callable[[Iterable[int]], Mapping[int, int]],
) -> list[InetSocket]:
    """Return the sockets of a service.

    `groups` returns the GIDs of the owning processes by inode.
    """
    with_inode = [inet_socket for inet_socket in sockets if inet_socket.inode]
    if service.kernel:
        # Sockets of the kernel have inodes too, but no process owns them.
        udp = [inet_socket for inet_socket in with_inode if inet_socket.protocol == UDP and not inet_socket.uid]
        group_by_inode = groups(inet_socket.inode for inet_socket in udp)
        return [inet_socket for inet_socket in udp if inet_socket.inode not in group_by_inode]
    if service.user is not None:
        return [inet_socket for inet_socket in with_inode if inet_socket.uid == service.user.number]
    assert service.group is not None
    gids = groups(inet_socket.inode for inet_socket in with_inode)
    return [inet_socket for inet_socket in with_inode if gids.get(inet_socket.inode) == service.group.number]


def _has_no_servers(file: Path) -> bool:
    """Return True if a running resolver has an empty list of servers."""
    try:
        return not read_regular(file, _MAX_SERVERS_SIZE).strip()
    except OSError:
        return False  # a resolver that nftpolicy does not run: its servers are unknown


def _replies(listen: Listen, client: OwnerAccount, mark: int) -> bool:
    """Return True if a resolver replies to a query of this group or user, with a mark if that is not 0."""
    family = socket.AF_INET6 if listen.address.version == 6 else socket.AF_INET
    try:
        with _acting_as(client), socket.socket(family, socket.SOCK_DGRAM) as sock:
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.settimeout(_REPLY_TIMEOUT)
            sock.connect((str(listen.address), listen.port))
            sock.send(VERSION_QUERY)
            return is_version_reply(sock.recv(_MAX_REPLY))
    except OSError:
        return False


@contextmanager
def _acting_as(owner: OwnerAccount) -> Iterator[None]:
    """Let the group or user own the new sockets of a `with` block."""
    kind, account = owner
    change, before = (os.setegid, os.getegid()) if kind == "group" else (os.seteuid, os.geteuid())
    try:
        change(account.number)
    except OSError as error:
        raise Unavailable(f"cannot switch to {kind} {account.name} ({error.strerror}): this needs root") from None
    try:
        yield
    finally:
        change(before)


def wait_until_ready(
    check: Callable[[], list[str]],
    seconds: float,
    descriptors: Sequence[int] = (),
    read: Callable[[], object] = int,
) -> list[str]:
    """Call `check` until there is no problem, or for so many seconds.

    Return the problems of the last call.

    The next check follows when a descriptor becomes readable (`read` empties them), otherwise after
    POLL_SECONDS, or after twice the duration of a check.
    """
    end = time.monotonic() + seconds
    while True:
        start = time.monotonic()
        problems = check()
        now = time.monotonic()
        left = end - now
        if not problems or left <= 0:
            return problems
        if select.select(descriptors, [], [], min(max(POLL_SECONDS, 2 * (now - start)), left))[0]:
            time.sleep(min(_SETTLE, left))
            with suppress(OSError):
                read()
