# SPDX-License-Identifier: BSD-2-Clause
"""Stale sockets and conntrack entries: those that still follow the old policy after a change.

Guard and routes judge single packets. A connection from before the change would wait in the guard
until its timers expire, or would leave by another device with its old source address. A socket that
the new policy allows as the old one did is never stale. Pure: sockets and flows are given as
values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network

from attrs import frozen

from ...compiler.exemptions import EXEMPTION_MATCHES
from ...kernel.netlink.conntrack import ConntrackEntry
from ...kernel.netlink.sock_diag import PROTOCOLS, TCP, UDP, UDPLITE, InetSocket
from ...netstate.nft import AnonymousSet, Match, MatchRight, Payload
from ...policy.mark import Mark
from ...policy.objects import Policy, Service, Uplink
from ..ownership import (
    Addresses,
    is_answered,
    is_dns,
    is_local,
    is_upstream,
    lan_allows,
    service_allows,
    uplink_of_mark,
)

_EgressDevice = Callable[[InetSocket], str | None]


@frozen
class StaleSocket:
    """A socket that follows the old policy, and the reason."""

    socket: InetSocket
    why: str


@frozen
class StaleFlow:
    """A conntrack entry that follows the old policy, and the reason."""

    flow: ConntrackEntry
    why: str


def stale_sockets(
    sockets: Iterable[InetSocket],
    before: Policy | None,
    after: Policy | None,
    addresses: Addresses,
    groups: Mapping[int, int] | None = None,
    egress_device: _EgressDevice | None = None,
) -> list[StaleSocket]:
    """Return the sockets that follow `before`, now that `after` is in force; None is no policy.

    `addresses` are those of all devices. `groups` maps the inode of a socket to the group of its
    process; a socket without one may have any group. `egress_device` returns the device by which a
    socket's packets leave now; it is called on a release.
    """
    if before == after:
        return []
    classifier = _Classifier(before, after, addresses, groups or {}, egress_device)
    return [StaleSocket(socket, why) for socket in sockets if (why := classifier.why(socket))]


def stale_flows(
    flows: Iterable[ConntrackEntry],
    before: Policy | None,
    after: Policy | None,
) -> list[StaleFlow]:
    """Return the flows that carry the mark of an uplink that was removed or has another mark now.

    Empty on a release: without a policy no rule of ours reads marks of flows, and other rulesets
    may need the flows.
    """
    if before is None or after is None:
        return []
    stale = []
    for flow in flows:
        owner = uplink_of_mark(before, flow.mark)
        if owner and (why := _mark_change(*owner, uplink_of_mark(after, flow.mark))):
            stale.append(StaleFlow(flow, why))
    return stale


def changed_marks(before: Policy | None, after: Policy | None) -> list[Mark]:
    """Return the marks of `before` that no uplink of `after` has with one of the same devices."""
    devices_now = {uplink.mark: set(uplink.devices) for uplink in _uplinks(after)}
    return [uplink.mark for uplink in _uplinks(before) if not devices_now.get(uplink.mark, set()) & set(uplink.devices)]


def inodes_needing_group(
    sockets: Iterable[InetSocket],
    before: Policy | None,
    after: Policy | None,
) -> set[int]:
    """Return the inodes of sockets that are classified by the group of their process."""
    has_group = any(entry.group for entry in (*_services(before, after), *(after.lan.values() if after else ())))
    if after is None or before == after or not has_group:
        return set()
    if before is None:
        if any(lan.group for lan in after.lan.values()):
            return {socket.inode for socket in sockets if socket.is_connected}
        if not any(map(_has_resolver, _uplinks(after))):
            return set()
        return {socket.inode for socket in sockets if is_dns(socket)}
    marks_before = {uplink.mark for uplink in _uplinks(before)}
    kept_marks = marks_before & {uplink.mark for uplink in _uplinks(after)}
    return {
        socket.inode
        for socket in sockets
        if socket.is_connected and socket.mark and any(mark.matches(socket.mark) for mark in kept_marks)
    }


def _services(*policies: Policy | None) -> Iterator[Service]:
    for policy in policies:
        yield from policy.service.values() if policy else ()


def _uplinks(policy: Policy | None) -> Iterable[Uplink]:
    return policy.uplink.values() if policy else ()


def _has_resolver(uplink: Uplink) -> bool:
    return uplink.resolver is not None


def _mark_change(name: str, uplink: Uplink, now: tuple[str, Uplink] | None) -> str | None:
    """Return what became of the mark of an uplink, or None if it still leads to its devices."""
    if now is None:
        return f"the mark {uplink.mark} of uplink {name} is not used any more"
    if not set(uplink.devices) & set(now[1].devices):
        return f"the mark {uplink.mark} of uplink {name} belongs to other devices now"
    return None


class _Classifier:
    """Test of sockets for the reason why they are stale, if they are."""

    def __init__(
        self,
        before: Policy | None,
        after: Policy | None,
        addresses: Addresses,
        groups: Mapping[int, int],
        egress_device: _EgressDevice | None,
    ) -> None:
        self._before, self._after, self._groups = before, after, groups
        self._egress_device = egress_device
        self._own_addresses = {address for device_addresses in addresses.values() for address in device_addresses}
        self._uplink_of_device = {
            device: name for name, uplink in (after.uplink if after else {}).items() for device in uplink.devices
        }
        self._uplink_of_address = uplink_addresses(addresses, after)

    def why(self, socket: InetSocket) -> str | None:
        """Return the reason why a socket is stale, or None."""
        if is_local(socket, self._own_addresses):
            return None
        if reason := self._user_route(socket):
            return reason
        if self._before is None:
            return self._pre_policy(socket)
        owner = uplink_of_mark(self._before, socket.mark or 0)
        if owner is None:
            return None
        name, uplink = owner
        now = uplink_of_mark(self._after, socket.mark or 0)
        if reason := _mark_change(name, uplink, now):
            if self._after is None and self._keeps_device(socket, uplink):
                return None
            return reason
        assert self._after is not None
        assert now is not None
        if not _has_process(socket):
            return None  # it ends by itself, and the guard allows that
        return self._forbidden(socket, name, now[0])

    def _user_route(self, socket: InetSocket) -> str | None:
        """Return a reason for a connection of a user without mark: the policy alone routes it."""
        if not _has_process(socket):
            return None
        before, after = _unmarked_user(self._before, socket), _unmarked_user(self._after, socket)
        if after and self._uplink_of_address.get(socket.local or "") != after[0]:
            if before and before[0] == after[0]:
                return None
            return f"user {socket.uid} is routed to uplink {after[0]} now"
        if before is None:
            return None
        name, service = before
        if after and (service_allows(after[1], socket, None) or not service_allows(service, socket, None)):
            return None  # it may send now, or might not before either
        assert self._before is not None
        if self._after is None and self._keeps_device(socket, self._before.uplink[name]):
            return None
        return f"user {socket.uid} is not routed to uplink {name} any more, or may not send there"

    def _keeps_device(self, socket: InetSocket, uplink: Uplink) -> bool:
        """Return True if the socket's packets leave by the uplink also without a policy.

        Packets of an unconnected socket are routed one by one, so it need not be closed.
        """
        if not socket.is_connected:
            return True
        return self._egress_device is not None and self._egress_device(socket) in uplink.devices

    def _forbidden(self, socket: InetSocket, before: str, after: str) -> str | None:
        """Return a reason for a connection that the old policy allows and the new one does not."""
        assert self._before is not None
        assert self._after is not None
        group = self._groups.get(socket.inode)
        if not _may_use(self._before, before, socket, group):
            return None
        if _may_use(self._after, after, socket, group):
            return None
        return f"no service of uplink {after} may send there any more"

    def _pre_policy(self, socket: InetSocket) -> str | None:
        """Return a reason for an earlier connection that the first policy does not allow."""
        assert self._after is not None
        if not socket.is_connected or socket.state == "listen":
            return None
        if socket.protocol not in (TCP, UDP, UDPLITE):
            return None
        if is_dns(socket) and (name := self._resolver_client(socket)):
            return f"its DNS queries go to the resolver of uplink {name} now"
        if uplink_of_mark(self._after, socket.mark or 0):
            return None
        if socket.bound:
            name = self._uplink_of_device.get(socket.bound)
        else:
            name = self._uplink_of_address.get(socket.local or "")
        if name is None:
            return None
        if may_leave_unmarked(self._after, name, socket, self._groups.get(socket.inode)):
            return None
        return f"it is older than the policy, and has no mark of uplink {name}"

    def _resolver_client(self, socket: InetSocket) -> str | None:
        """Return the uplink with a resolver if one of its services certainly opened the socket."""
        assert self._after is not None
        group = self._groups.get(socket.inode)
        for service in self._after.service.values():
            if service.of_root and not self._after.uplink[service.uplink].mark.matches(socket.mark or 0):
                continue  # of another program of root
            same_user = service.user is not None and service.user.number == socket.uid
            same_group = service.group is not None and service.group.number == group
            if (same_user or same_group) and self._after.uplink[service.uplink].resolver:
                return service.uplink
        return None


def may_leave_unmarked(policy: Policy, name: str, socket: InetSocket, group: int | None) -> bool:
    """Return True if packets of a socket without a mark may leave by an uplink; True also if unknown."""
    uplink = policy.uplink[name]
    if is_answered(uplink, socket) or _exempt(uplink, socket) or lan_allows(policy, name, socket, group):
        return True
    user = _unmarked_user(policy, socket)
    return user is not None and user[0] == name and service_allows(user[1], socket, None)


def _has_process(socket: InetSocket) -> bool:
    """Return True for a connection that a process has open."""
    return bool(socket.is_connected and socket.state != "listen" and socket.inode)


def _unmarked_user(policy: Policy | None, socket: InetSocket) -> tuple[str, Service] | None:
    """Return uplink and service of an unmarked socket if its user needs no mark, or None."""
    if policy is None or uplink_of_mark(policy, socket.mark or 0):
        return None
    for service in policy.service.values():
        if service.unmarked and service.user and service.user.number == socket.uid:
            return service.uplink, service
    return None


def uplink_addresses(addresses: Addresses, policy: Policy | None) -> dict[str, str]:
    """Return address -> uplink, for the addresses that only devices of uplinks have."""
    uplinks = {device: name for name, uplink in (policy.uplink if policy else {}).items() for device in uplink.devices}
    foreign = {
        address
        for device, device_addresses in addresses.items()
        if device not in uplinks
        for address in device_addresses
    }
    return {
        address: uplinks[device]
        for device, device_addresses in addresses.items()
        if device in uplinks
        for address in device_addresses
        if address not in foreign
    }


def _may_use(policy: Policy, name: str, socket: InetSocket, group: int | None) -> bool:
    """Return True if the policy may allow this connection on the uplink; True also if unknown."""
    uplink = policy.uplink[name]
    if is_answered(uplink, socket):
        return True
    resolver = uplink.resolver
    if resolver and socket.uid == resolver.user.number and is_upstream(socket, resolver):
        return True
    services = (service for service in policy.service.values() if service.uplink == name)
    return any(service_allows(service, socket, group) for service in services)


def _exempt(uplink: Uplink, socket: InetSocket) -> bool:
    """Return True if an exemption of the uplink may let the socket's packets leave."""
    for word in uplink.exempt:
        packets = EXEMPTION_MATCHES[word].packets
        if any(all(_may_match(match, socket) for match in matches) for matches in packets):
            return True
    return False


def _may_match(match: Match, socket: InetSocket) -> bool:
    """Return True if packets of the socket may match; a field that it does not fix may be any."""
    if not isinstance(match.left, Payload) or match.op != "==":
        return True
    protocol, field = match.left.protocol, match.left.name
    if protocol in ("ip", "ip6") and (protocol == "ip") != (socket.family == 4):
        return False
    transports = ("icmp", "icmpv6", "igmp", "tcp", "udp")
    if protocol in transports and protocol != PROTOCOLS[socket.protocol]:
        return False
    fixed = {
        "sport": socket.sport,
        "dport": socket.dport,
        "saddr": socket.local,
        "daddr": socket.remote,
        "protocol": PROTOCOLS[socket.protocol],
    }
    value = fixed.get(field)
    return value is None or _equals(value, match.right)


def _is_between(address: str, low: str, high: str) -> bool:
    """Return True if an address is in a range. Raises ValueError for text that is not an address."""
    number, first, last = (ip_address(text) for text in (address, low, high))
    return number.version == first.version and int(first) <= int(number) <= int(last)


def _equals(value: int | str, right: MatchRight) -> bool:
    if isinstance(right, AnonymousSet):
        return any(_equals(value, item) for item in right.elements if isinstance(item, int | str))
    if isinstance(value, str) and isinstance(right, str):
        with suppress(ValueError):
            low, _, high = right.partition("-")
            return _is_between(value, low, high) if high else ip_address(value) in ip_network(right)
    return value == right
