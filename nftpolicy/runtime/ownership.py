# SPDX-License-Identifier: BSD-2-Clause
"""Predicates that relate a socket to the uplinks and services of a policy.

Shared by the cleanup after a change of policy and by the socket classifier. Pure: sockets are
values (inet_diag, kernel/sock_diag.py).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from ipaddress import ip_address

from ..kernel.netlink.sock_diag import PROTOCOLS, RAW, TCP, UDP, InetSocket
from ..policy.objects import DNS_PORT, Lan, Policy, Port, Resolver, Service, Uplink

Addresses = Mapping[str, Sequence[str]]  # device -> its addresses
_ECHO_PROTOCOLS = (1, 58)  # ICMP and ICMPv6; the port of a raw socket is its protocol


def is_dns(socket: InetSocket) -> bool:
    """Return True if the socket is connected to a DNS server."""
    return socket.is_connected and socket.dport == DNS_PORT and socket.protocol in (TCP, UDP)


def is_upstream(socket: InetSocket, resolver: Resolver) -> bool:
    """Return True if the socket is connected to a server that the resolver may query."""
    if resolver.learns_servers and is_dns(socket):
        return True
    servers = {
        (each, str(server.address), server.port) for server in resolver.named_servers for each in server.protocols
    }
    return (PROTOCOLS.get(socket.protocol), socket.remote, socket.dport) in servers


def uplink_of_mark(policy: Policy | None, fwmark: int) -> tuple[str, Uplink] | None:
    """Return name and uplink of the mark that this fwmark has, or None."""
    for name, uplink in (policy.uplink if policy else {}).items():
        if uplink.mark.matches(fwmark):
            return name, uplink
    return None


def is_local(socket: InetSocket, own: Container[str]) -> bool:
    """Return True if the socket's packets stay on this host; `own` are its addresses."""
    far = socket.remote if socket.is_connected else socket.local
    if socket.bound == "lo" or far is None:
        return socket.bound == "lo"
    return far == "::1" or far.startswith("127.") or (socket.is_connected and far in own)


def service_allows(service: Service, socket: InetSocket, group: int | None) -> bool:
    """Return True if the socket may belong to the service and the service may send there.

    `group` is the group of the process that opened it; None, if unknown, matches any group.
    """
    if service.kernel and service.sport:
        in_range = any(port.low <= socket.sport <= port.high for port in service.sport)
        return socket.protocol == UDP and in_range
    if service.by_destination:
        return False  # the kernel's tunnels have no socket
    if service.kernel:  # no process holds a socket of the kernel
        return socket.protocol == UDP and group is None
    return _selects(service, socket, group)


def lan_allows(policy: Policy, uplink: str, socket: InetSocket, group: int | None) -> bool:
    """Return True if the socket may send to its peer as one of the uplink's own network; `group` as above.

    One without a peer may if its port is that of such answers (`sport`).
    """
    return any(
        lan.uplink == uplink
        and (not lan.sport or any(port.contains(own_port(socket)) for port in lan.sport))
        and (_selects(lan, socket, group) if socket.is_connected else bool(lan.sport))
        for lan in policy.lan.values()
    )


def own_port(socket: InetSocket) -> Port:
    """Return the port that a socket has itself."""
    return Port(PROTOCOLS[socket.protocol], socket.sport, socket.sport)


def _selects(entry: Service | Lan, socket: InetSocket, group: int | None) -> bool:
    """Return True if owner, peer and port of the socket are those of the entry."""
    if entry.group and group not in (None, entry.group.number):
        return False
    if entry.user and socket.uid != entry.user.number:
        return False
    far = ip_address(socket.remote or "::")
    if entry.to and not any(far in network for network in entry.to):
        return False
    if not entry.ports:
        return True
    if socket.protocol == RAW and socket.sport in _ECHO_PROTOCOLS:
        return any(port.protocol == "ping" for port in entry.ports)
    protocol = PROTOCOLS[socket.protocol]
    return any(port.protocol == protocol and port.low <= socket.dport <= port.high for port in entry.ports)


def is_answered(uplink: Uplink, socket: InetSocket, exclusive: bool = False) -> bool:
    """Return True if the socket's packets may be replies that the policy allows (`answer`); of `exclusive` ones."""
    protocol = PROTOCOLS[socket.protocol]
    peer = ip_address(socket.remote) if socket.remote else None
    return any(
        port.protocol == protocol
        and port.low <= socket.sport <= port.high
        and (not answer.source or peer is None or any(peer in network for network in answer.source))
        for answer in uplink.answer
        if (port := answer.port) is not None and (answer.exclusive or not exclusive)
    )
