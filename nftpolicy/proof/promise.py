# SPDX-License-Identifier: BSD-2-Clause
"""What a policy promises, as a claim on packets.

Written from the manual page and the standards alone, not from the compiler: where both are wrong in
the same way no proof would show it. Nothing here knows a chain, a set or a priority.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..model.box import Ranges, only, ranges
from ..model.packet import ICMP, ICMPV6, IGMP, TCP, UDP, interval, number
from ..policy import objects
from ..policy.objects import Answer, Policy, Port, Uplink
from .claim import BOTH, Claim, Hole, Names, Owner, Region, Reply, Service, UplinkClaim

_PROTOCOLS = {"tcp": TCP, "udp": UDP}
_LINK_LOCAL, _ALL_GROUPS4, _ALL_GROUPS6 = "fe80::/10", "224.0.0.0/4", "ff02::/16"


def _udp(family: int, **fields: Ranges) -> Region:
    return Region({"protocol": only(UDP), "fragment": only(0), **fields})


def _net(prefix: str) -> Ranges:
    return (interval(prefix, 6 if ":" in prefix else 4),)


def _near(**fields: Ranges) -> tuple[Region, ...]:
    """UDP between link-local neighbours."""
    here: dict[str, Ranges] = {"saddr": _net(_LINK_LOCAL), "daddr": ranges([*_net(_LINK_LOCAL), *_net(_ALL_GROUPS6)])}
    return (_udp(6, **here, **fields),)


def _icmpv6(types: Sequence[int], **fields: Ranges) -> tuple[Region, ...]:
    return (Region({"protocol": only(ICMPV6), "fragment": only(0), "icmpv6.type": only(*types), **fields}),)


# The headers of each exemption, with the standard that says so.
HOLES: dict[str, tuple[Mapping[int, tuple[Region, ...]], tuple[int, ...]]] = {
    "arp": ({}, (0x0806,)),
    # RFC 2131 4.1: from port 68 to port 67.
    "dhcpv4": ({4: (_udp(4, sport=only(68), dport=only(67)),)}, ()),
    # RFC 8415 7.2 and 13: a client's port 546, a server's 547, from a link-local address.
    "dhcpv6": ({6: (_udp(6, saddr=_net(_LINK_LOCAL), sport=only(546), dport=only(547)),)}, ()),
    # RFC 4861 4.1, 4.3, 4.4 and 6.1.1: solicitations and neighbour advertisements, hop limit 255.
    "ndp": ({6: _icmpv6((133, 135, 136), ttl=only(255))}, ()),
    # RFC 2710 3, RFC 3810 5: reports and done, hop limit 1, to a link-local group.
    "mld": ({6: _icmpv6((131, 132, 143), ttl=only(1), daddr=_net(_ALL_GROUPS6))}, ()),
    # RFC 3376 4: protocol 2, TTL 1, to a group.
    "igmp": (
        {4: (Region({"protocol": only(IGMP), "ttl": only(1), "daddr": _net(_ALL_GROUPS4)}),)},
        (),
    ),
    "vxlan-mesh": ({6: _near(dport=only(4789))}, ()),
    "respondd": ({6: (*_near(sport=only(1001)), *_near(dport=only(1001)))}, ()),
    "eapol": ({}, (0x888E,)),  # IEEE 802.1X 11.1.4
    "pppoe": ({}, (0x8863, 0x8864)),  # RFC 2516 4
}
REPORTS = ("mld", "igmp")


def hole(word: str, uplink: str = "") -> Hole:
    """What an exemption lets through. KeyError if there is no such word."""
    headers, frames = HOLES[word]
    return Hole(word, ("uplink", uplink, "exempt"), headers, frames, word in REPORTS)


def _owners(service: objects.Service) -> tuple[Owner, ...]:
    found = (("gid", service.group), ("uid", service.user))
    return tuple(Owner(key, account.number) for key, account in found if account is not None)


def _service(name: str, service: objects.Service) -> Service:
    ports = _ports(service.ports) or _ports(service.sport, "sport") or (Region(),)
    regions = {}
    for family in BOTH:
        nets = [net for net in service.to if net.version == family]
        if service.to and not nets:
            continue
        where: Region | None = None
        if nets:
            first_last = ((int(net.network_address), int(net.broadcast_address)) for net in nets)
            where = Region({"daddr": ranges(first_last)})
        regions[family] = tuple(Region({**one.fields, **(where.fields if where else {})}) for one in ports)
    return Service(name, ("service", name), _owners(service), service.kernel, regions, service.unmarked)


def _ports(ports: Iterable[Port], field: str = "dport") -> tuple[Region, ...]:
    found: dict[str, list[tuple[int, int]]] = {}
    for port in ports:
        found.setdefault(port.protocol, []).append((port.low, port.high))
    return tuple(
        Region({"protocol": only(_PROTOCOLS[protocol]), "fragment": only(0), field: ranges(pairs)})
        for protocol, pairs in sorted(found.items())
    )


def _reply(uplink: str, answer: Answer) -> Reply:
    origin = ("uplink", uplink, "answer")
    if answer.port is None:  # RFC 792, RFC 4443 4.2: echo replies
        four = Region({"protocol": only(ICMP), "fragment": only(0), "icmp.type": only(0)})
        return Reply(answer.name, origin, {4: (four,), 6: _icmpv6((129,))})
    headers = _ports((answer.port,), "sport")
    return Reply(answer.name, origin, {4: headers, 6: headers})


def _uplink(name: str, uplink: Uplink, policy: Policy, ports: Sequence[str]) -> UplinkClaim:
    resolver = uplink.resolver
    names = None
    if resolver is not None:
        listen = tuple((one.address.version, number(str(one.address)), one.port) for one in resolver.listen)
        names = Names(listen, resolver.user.number, ("uplink", name, "resolver"))
    return UplinkClaim(
        name,
        uplink.devices,
        uplink.mark.value,
        uplink.mark.mask,
        uplink.table,
        tuple(ports),
        tuple(hole(word, name) for word in uplink.exempt),
        tuple(_service(key, one) for key, one in policy.service.items() if one.uplink == name),
        tuple(_reply(name, answer) for answer in uplink.answer),
        any(answer.port is not None and answer.port.protocol == "tcp" for answer in uplink.answer),
        names,
        ("uplink", name),
    )


def claim(policy: Policy, ports: Mapping[str, Sequence[str]] | None = None) -> Claim:
    """All that a policy promises. `ports`: bridge -> its ports, of the uplinks' devices."""
    found = ports or {}
    uplinks = tuple(
        _uplink(name, uplink, policy, [port for device in uplink.devices for port in found.get(device, ())])
        for name, uplink in policy.uplink.items()
    )
    return Claim(uplinks, tuple(policy.inside))
