# SPDX-License-Identifier: BSD-2-Clause
"""What still runs on the old decision after a change of policy. Pure: it is told what runs.

Guard and routes decide on packets; a connection that began before the change would hang in the guard
until its timers end, or go another way with the addresses of the old one. What the new policy allows
as the old one did is never stale.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network

from attrs import frozen

from ...compiler.exemptions import EXEMPTIONS
from ...kernel.conntrack import Flow
from ...kernel.sock_diag import PROTOCOLS, TCP, UDP, UDPLITE, Listed
from ...netstate.nft import AnonymousSet, Match, Payload, Right
from ...policy.mark import Mark
from ...policy.objects import Policy, Service, Uplink

Addresses = Mapping[str, Sequence[str]]
_DNS = 53


@frozen
class Stale:
    """A socket that runs on the old decision, and why."""

    socket: Listed
    why: str


@frozen
class StaleFlow:
    """A flow that runs on the old decision, and why."""

    flow: Flow
    why: str


def stale_sockets(
    sockets: Iterable[Listed],
    before: Policy | None,
    after: Policy | None,
    addresses: Addresses,
    groups: Mapping[int, int] | None = None,
    leads: Callable[[Listed], str | None] | None = None,
) -> list[Stale]:
    """The sockets that run on the decision of `before`, now that `after` holds; None is no policy.

    `addresses` are those of all devices. `groups` are the groups of sockets, by inode; one that is not there
    may be any. `leads` is asked on a release: the device by which a socket's packets leave then.
    """
    if before == after:
        return []
    judge = _Judge(before, after, addresses, groups or {}, leads)
    return [Stale(one, why) for one in sockets if (why := judge.why(one))]


def stale_flows(flows: Iterable[Flow], before: Policy | None, after: Policy | None) -> list[StaleFlow]:
    """The flows that wear the mark of an uplink which is gone or has another mark.

    None on a release: without the policy nobody reads the marks of flows, and other rulesets may need the flows.
    """
    if before is None or after is None:
        return []
    found = []
    for one in flows:
        worn = wearer(before, one.mark)
        if worn and (why := _fate(*worn, wearer(after, one.mark))):
            found.append(StaleFlow(one, why))
    return found


def changed_marks(before: Policy | None, after: Policy | None) -> list[Mark]:
    """The marks of `before` that are not, as they were, marks of the same devices in `after`."""
    now = {uplink.mark: set(uplink.devices) for uplink in _uplinks(after)}
    return [one.mark for one in _uplinks(before) if not now.get(one.mark, set()) & set(one.devices)]


def whose_group(sockets: Iterable[Listed], before: Policy | None, after: Policy | None) -> set[int]:
    """The inodes of sockets about which the group of who opened them decides."""
    if after is None or before == after or not any(one.group for one in _services(before, after)):
        return set()
    if before is None:
        return {one.inode for one in sockets if asks_names(one)} if any(map(_has_resolver, _uplinks(after))) else set()
    pairs = {one.mark for one in _uplinks(before)} & {one.mark for one in _uplinks(after)}
    return {one.inode for one in sockets if one.connected and one.mark and any(m.worn_by(one.mark) for m in pairs)}


def _services(*policies: Policy | None) -> Iterator[Service]:
    for policy in policies:
        yield from policy.service.values() if policy else ()


def _uplinks(policy: Policy | None) -> Iterable[Uplink]:
    return policy.uplink.values() if policy else ()


def _has_resolver(uplink: Uplink) -> bool:
    return uplink.resolver is not None


def asks_names(one: Listed) -> bool:
    """Whether it asks a DNS server."""
    return one.connected and one.dport == _DNS and one.protocol in (TCP, UDP)


def wearer(policy: Policy | None, fwmark: int) -> tuple[str, Uplink] | None:
    """The uplink whose mark a packet with this fwmark wears."""
    found = ((name, uplink) for name, uplink in (policy.uplink if policy else {}).items())
    return next(((name, uplink) for name, uplink in found if uplink.mark.worn_by(fwmark)), None)


def _fate(name: str, uplink: Uplink, now: tuple[str, Uplink] | None) -> str | None:
    if now is None:
        return f"the mark {uplink.mark} of uplink {name} means nothing any more"
    if not set(uplink.devices) & set(now[1].devices):
        return f"the mark {uplink.mark} of uplink {name} is that of other devices now"
    return None


class _Judge:
    """Why a socket is stale, with everything that it needs to know worked out once."""

    def __init__(
        self,
        before: Policy | None,
        after: Policy | None,
        addresses: Addresses,
        groups: Mapping[int, int],
        leads: Callable[[Listed], str | None] | None,
    ) -> None:
        self._before, self._after, self._groups, self._leads = before, after, groups, leads
        self._own = {one for found in addresses.values() for one in found}
        self._device = {device: name for name, up in (after.uplink if after else {}).items() for device in up.devices}
        self._address = uplink_addresses(addresses, after)

    def why(self, one: Listed) -> str | None:
        if self._at_home(one):
            return None
        if users := self._led(one):
            return users
        if self._before is None:
            return self._first(one)
        worn = wearer(self._before, one.mark or 0)
        if worn is None:
            return None
        name, uplink = worn
        now = wearer(self._after, one.mark or 0)
        if fate := _fate(name, uplink, now):
            return None if self._after is None and self._goes_on(one, uplink) else fate
        assert self._after is not None
        assert now is not None
        if not one.connected or one.state == "listen" or not one.inode:
            return None  # what no process holds any more ends by itself, and the guard knows that
        return self._dropped(one, name, now[0])

    def _at_home(self, one: Listed) -> bool:
        return at_home(one, self._own)

    def _led(self, one: Listed) -> str | None:
        """Connections of users who need no mark: where they lead is a matter of the policy alone."""
        if not one.connected or one.state == "listen" or not one.inode:
            return None
        was, now = _user_of(self._before, one), _user_of(self._after, one)
        if now and self._address.get(one.local or "") != now[0]:
            return None if was and was[0] == now[0] else f"user {one.uid} is led to uplink {now[0]} now"
        if was is None or (now and (lets(now[1], one, None) or not lets(was[1], one, None))):
            return None  # it may send, or might not before either
        assert self._before is not None
        if self._after is None and self._goes_on(one, self._before.uplink[was[0]]):
            return None
        return f"user {one.uid} is led to uplink {was[0]} no more, or may not send there"

    def _goes_on(self, one: Listed, uplink: Uplink) -> bool:
        """Without a policy: whether its packets go by the uplink as before. What has no other end is routed anew
        for each packet, and its program would have to begin again for nothing."""
        return not one.connected or (self._leads is not None and self._leads(one) in uplink.devices)

    def _dropped(self, one: Listed, before: str, after: str) -> str | None:
        """(b) A connection that the old policy allowed and the new one does not."""
        assert self._before is not None
        assert self._after is not None
        group = self._groups.get(one.inode)
        if not _may(self._before, before, one, group) or _may(self._after, after, one, group):
            return None
        return f"no service of uplink {after} may send there any more"

    def _first(self, one: Listed) -> str | None:
        """(c) What ran before there was a policy, and can't go on under it."""
        assert self._after is not None
        if not one.connected or one.state == "listen" or one.protocol not in (TCP, UDP, UDPLITE):
            return None
        if asks_names(one) and (name := self._client(one)):
            return f"names are asked by the resolver of uplink {name} now"
        if wearer(self._after, one.mark or 0):
            return None
        name = self._device.get(one.bound) if one.bound else self._address.get(one.local or "")
        if name is None:
            return None
        uplink = self._after.uplink[name]
        user = _user_of(self._after, one)
        if answers(uplink, one) or _exempt(uplink, one) or (user and user[0] == name and lets(user[1], one, None)):
            return None
        return f"it is older than the policy, and has no mark of uplink {name}"

    def _client(self, one: Listed) -> str | None:
        """The uplink with a resolver of which this is a service's socket, for sure."""
        assert self._after is not None
        group = self._groups.get(one.inode)
        for service in self._after.service.values():
            mine = (service.user and service.user.number == one.uid) or (
                service.group and service.group.number == group and group is not None
            )
            if mine and self._after.uplink[service.uplink].resolver:
                return service.uplink
        return None


def _user_of(policy: Policy | None, one: Listed) -> tuple[str, Service] | None:
    """Uplink and service of a socket without a mark, if its user needs none."""
    if policy is None or wearer(policy, one.mark or 0):
        return None
    users = ((each.uplink, each) for each in policy.service.values() if each.unmarked and each.user)
    return next(((name, each) for name, each in users if each.user and each.user.number == one.uid), None)


def at_home(one: Listed, own: Container[str]) -> bool:
    """Whether a socket's packets stay on this machine, whose addresses are `own`."""
    far = one.remote if one.connected else one.local
    if one.bound == "lo" or far is None:
        return one.bound == "lo"
    return far == "::1" or far.startswith("127.") or (one.connected and far in own)


def uplink_addresses(addresses: Addresses, policy: Policy | None) -> dict[str, str]:
    """The uplink of each address that no other device has."""
    devices = {device: name for name, uplink in (policy.uplink if policy else {}).items() for device in uplink.devices}
    others = {one for device, found in addresses.items() if device not in devices for one in found}
    return {
        one: devices[device]
        for device, found in addresses.items()
        if device in devices
        for one in found
        if one not in others
    }


def _may(policy: Policy, name: str, one: Listed, group: int | None) -> bool:
    """Whether the policy may let this connection use the uplink; where something is not known, it may."""
    uplink = policy.uplink[name]
    if answers(uplink, one):
        return True
    resolver = uplink.resolver
    if resolver and one.uid == resolver.user.number and asks_names(one):
        return True
    return any(lets(service, one, group) for service in policy.service.values() if service.uplink == name)


def lets(service: Service, one: Listed, group: int | None) -> bool:
    """Whether it may be a socket of the service, for where that may send; a group that is not known may be any."""
    if service.kernel and service.sport:
        return one.protocol == UDP and any(port.low <= one.sport <= port.high for port in service.sport)
    if service.kernel:  # whose sockets no process holds
        return one.protocol == UDP and group is None
    if service.group and group not in (None, service.group.number):
        return False
    if service.user and one.uid != service.user.number:
        return False
    far = ip_address(one.remote or "::")
    if service.to and not any(far in network for network in service.to):
        return False
    protocol = PROTOCOLS[one.protocol]
    return not service.ports or any(p.protocol == protocol and p.low <= one.dport <= p.high for p in service.ports)


def answers(uplink: Uplink, one: Listed) -> bool:
    """Whether it may be a reply that the policy answers."""
    protocol = PROTOCOLS[one.protocol]
    ports = (answer.port for answer in uplink.answer if answer.port)
    return any(port.protocol == protocol and port.low <= one.sport <= port.high for port in ports)


def _exempt(uplink: Uplink, one: Listed) -> bool:
    """Whether an exemption may let its packets out."""
    return any(
        EXEMPTIONS[word].family != "ip" or one.family == 4
        for word in uplink.exempt
        for matches in EXEMPTIONS[word].packets
        if all(_may_match(match, one) for match in matches)
    )


def _may_match(match: Match, one: Listed) -> bool:
    """Whether packets of the socket may match; a field that a socket does not fix may hold anything."""
    if not isinstance(match.left, Payload) or match.op != "==":
        return True
    protocol, field = match.left.protocol, match.left.name
    if protocol in ("ip", "ip6") and (protocol == "ip") != (one.family == 4):
        return False
    if protocol in ("icmp", "icmpv6", "igmp", "tcp", "udp") and protocol != PROTOCOLS[one.protocol]:
        return False
    fixed = {"sport": one.sport, "dport": one.dport, "saddr": one.local, "daddr": one.remote}
    value = PROTOCOLS[one.protocol] if field == "protocol" else fixed.get(field)
    return value is None or _equals(value, match.right)


def _equals(value: int | str, right: Right) -> bool:
    if isinstance(right, AnonymousSet):
        return any(_equals(value, each) for each in right.elements if isinstance(each, int | str))
    if isinstance(value, str) and isinstance(right, str):
        with suppress(ValueError):
            return ip_address(value) in ip_network(right)
    return value == right
