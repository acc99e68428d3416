# SPDX-License-Identifier: BSD-2-Clause
"""A leak test of this machine: packets that may not leave by an uplink are sent, and the uplink is watched.

Nothing is concluded from silence alone: for each device and family a packet that may leave has to be seen to leave.
What was changed afterwards is nothing; the kernel may remember for a while a flow or a neighbour that a leak made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from ...kernel.emit import BARE, FRAMES, Outcome, Shot, fire
from ...kernel.tap import Card, card, unresolved
from ...netstate.state import Device as Link
from ...policy.objects import Policy, Service
from ..verify import Asked
from .kinds import DISCARD, DNS, Kind, Known, Maker, Places, Probe, Where, Who, nobody
from .report import (
    BLOCKED,
    ELSEWHERE,
    LEAKED,
    STOPPED,
    TESTED,
    UNTESTED,
    Control,
    Identity,
    OnDevice,
    Report,
    Result,
    Target,
)
from .taps import Watch

if TYPE_CHECKING:
    from ...kernel.interface import Kernel
    from ...kernel.rtnetlink import Lookups

_LARGEST_MTU = 9000
_ENTITLED = "entitled"  # the sender of a control

_BY_ROUTE = Kind("control", "UDP", way="bound")
_TO_GROUP = Kind("control-group", "UDP multicast", way="bound", to="group")
_BY_FRAME = Kind("control-frame", "AF_PACKET frame", form="frame", foreign=True)


# --- the whole run ------------------------------------------------------------------------------------


def probe(kernel: Kernel, links: Sequence[Link], wanted: Policy | Sequence[Asked]) -> Report:
    """Send, watch and judge. `links` are the devices of this machine with their addresses.

    Raises PermissionError without CAP_NET_RAW.
    """
    from ...kernel.rtnetlink import Lookups

    begun = time.monotonic()
    policy = wanted if isinstance(wanted, Policy) else None
    stranger = nobody(_taken(policy))
    found = list(targets(wanted, links, stranger))
    own = tuple(ip_interface(one).network for link in links for one in link.addresses)
    maker = Maker(Places(os.urandom, own), os.urandom(8), kernel.ip_families())
    with Lookups() as lookups:
        mtu = max((one.card.mtu for one in found if one.card), default=1500)
        routed = list(maker.routed(Who(stranger), min(mtu, _LARGEST_MTU)))
        by = {
            one.device: list(maker.by(_where(one), Who(stranger, one.mark if policy else 0)))
            for one in found
            if not one.why_not
        }
        controls = [one for target in found if not target.why_not for one in _controls(maker, target, lookups)]
        with Watch([one for target in found for one in target.watched]) as watch:
            sent = [*routed, *(one for some in by.values() for one in some)]
            watch.known = Known([*sent, *(one.probe for one in controls)])
            outcomes = dict(zip((one.token for one in sent), fire(_shots(sent), watch.until), strict=True))
            fire(_shots(one.probe for one in controls), watch.until)
            watch.for_controls(controls)
            faults = watch.faults()
        judge = _Judge(outcomes, watch, _unnamed(policy, found), _waiting(lookups, maker.families, watch.devices))
    controls = [evolve(one, seen=one.key[0] in watch.left.get(one.probe.token, {})) for one in controls]
    results = {device: tuple(map(judge.result, some)) for device, some in by.items()}
    of_routes = tuple(map(judge.result, routed))
    every = [*of_routes, *(one for some in results.values() for one in some)]
    devices = tuple(
        _on_device(target, results.get(target.device, ()), of_routes, every, controls, faults, maker.families)
        for target in found
    )
    return Report(devices, of_routes, round(time.monotonic() - begun, 2))


def _shots(probes: Iterable[Probe]) -> list[Shot]:
    return [one.shot for one in probes]


def _where(target: Target) -> Where:
    assert target.card is not None
    return Where(target.device, target.ports, target.source, min(target.card.mtu, _LARGEST_MTU))


def _taken(policy: Policy | None) -> frozenset[int]:
    """Users and groups that somebody in the policy is known by."""
    if policy is None:
        return frozenset()
    services = (account for one in policy.service.values() for account in (one.group, one.user))
    resolvers = (one.resolver.user for one in policy.uplink.values() if one.resolver)
    return frozenset(one.number for one in (*services, *resolvers) if one is not None)


def targets(wanted: Policy | Sequence[Asked], links: Sequence[Link], stranger: int) -> Iterator[Target]:
    """The devices of all uplinks, as they are now."""
    policy = wanted if isinstance(wanted, Policy) else None
    uplinks = [Asked(name, one.devices, one.mark) for name, one in policy.uplink.items()] if policy else wanted
    known = {one.name: one for one in links}
    for uplink in uplinks:  # type: ignore[union-attr]
        identity = identity_of(policy, uplink.name, stranger) if policy else Identity("root", 0, 0)
        for device in uplink.devices:
            link = known.get(device)
            ports = tuple(sorted(one.name for one in links if one.master == device and _runs(one.name)))
            yield Target(
                uplink.name,
                uplink.mark.value,
                device,
                card(device) if link else None,
                ports if link and link.kind == "bridge" else (),
                _sources(link.addresses if link else ()),
                identity,
            )


def _runs(device: str) -> bool:
    found = card(device)
    return found is not None and found.up and found.running


def _sources(addresses: Iterable[str]) -> dict[int, str]:
    """By family, the first address that needs no zone."""
    found: dict[int, str] = {}
    for one in addresses:
        address = ip_address(one.partition("/")[0])
        if not address.is_link_local:
            found.setdefault(address.version, str(address))
    return found


def identity_of(policy: Policy, uplink: str, stranger: int) -> Identity | None:
    """Somebody who may send UDP by the uplink to an address of nobody, or None if the policy has none."""
    for name, service in policy.service.items():
        port = _udp_port(service) if service.uplink == uplink and not service.to else None
        if port is not None and service.group is not None:
            return Identity(f"service {name}, group {service.group.number}", stranger, service.group.number, port)
        if port is not None and service.user is not None:
            return Identity(f"service {name}, user {service.user.number}", service.user.number, stranger, port)
    resolver = policy.uplink[uplink].resolver
    if resolver is not None:
        return Identity(f"the resolver's user {resolver.user.number}", resolver.user.number, stranger, DNS)
    return None


def _udp_port(service: Service) -> int | None:
    """A UDP port that the service may send to; not DNS, which goes another way."""
    if not service.ports:
        return DISCARD
    numbers = (one for port in service.ports if port.protocol == "udp" for one in (port.low, port.high))
    return next((one for one in numbers if one != DNS), None)


def _controls(maker: Maker, target: Target, lookups: Lookups) -> Iterator[Control]:
    """What may leave by a device, the best first: what a service sends, and last what only the link guard allows."""
    assert target.card is not None
    for family in maker.families:
        who = target.identity
        if who is not None:
            sender = {"uid": who.uid, "gid": who.gid, "lent": True, "mark": target.mark}
            for kind in (_BY_ROUTE, _TO_GROUP):
                made = maker.one(evolve(kind, dport=who.dport), family, _ENTITLED, sender, target.device)
                if kind is _TO_GROUP or _has_way(lookups, made.shot, target.card):
                    yield Control(made, who.name)
        for device in (target.device, *target.ports):
            yield Control(maker.one(_BY_FRAME, family, _ENTITLED, {"mark": target.mark}, device), "root")


def _has_way(lookups: Lookups, shot: Shot, by: Card) -> bool:
    """Whether a packet by this device has a next hop that can be there: its destination is nobody."""
    found = lookups.getroute(shot.family, shot.destination, mark=shot.mark, oif=shot.device, uid=shot.uid)
    return not isinstance(found, int) and (found.gateway is not None or by.kind in BARE)


# --- judging ------------------------------------------------------------------------------------------


def _unnamed(policy: Policy | None, found: Sequence[Target]) -> frozenset[str] | None:
    """What `_Judge.named` asks: names and patterns of devices that the policy knows; None if there is no policy."""
    if policy is None:
        return None
    return frozenset(("lo", *policy.inside, *(one for target in found for one in (target.device, *target.ports))))


# next hop of a shot: (device, address) if it waits for its neighbour, else None
_Waits = frozenset[tuple[str, str]]


def _waiting(lookups: Lookups, families: Iterable[int], watched: Sequence[str]):  # type: ignore[no-untyped-def]
    """Tells whether a shot waits for a neighbour on a watched device, so that it would not be seen though it leaked."""
    silent = frozenset().union(*(unresolved(family) for family in families))

    def waits(shot: Shot) -> bool:
        if shot.form in FRAMES or not silent or ip_address(shot.destination).is_multicast:
            return False
        named = shot.device if shot.way in ("bound", "unicast-if", "pktinfo") else None
        found = lookups.getroute(
            shot.family, shot.destination, mark=shot.mark, oif=named, uid=shot.uid,
            source=shot.source if shot.way == "source" else None,
        )  # fmt: skip
        if isinstance(found, int) or found.device not in watched:
            return False
        return (found.device, found.gateway or shot.destination) in silent

    return waits


@frozen
class _Judge:
    outcomes: Mapping[bytes, Outcome]
    watch: Watch
    named: frozenset[str] | None
    waits: object = field(repr=False)

    def result(self, one: Probe) -> Result:
        """What became of a probe."""
        left = self.watch.left.get(one.token, {})
        if left:
            first = next(iter(left.values()))
            return Result(one, LEAKED, seen=tuple(left), packet=first)
        for device, packet in self.watch.order.get(one.token, ())[:1]:
            known = self.named is None or any(_is(device, name) for name in self.named)
            word = ELSEWHERE if known else LEAKED
            return Result(one, word, device if known else "by a device that no one named", (device,), packet)
        outcome = self.outcomes[one.token]
        if outcome.refused:
            return Result(one, UNTESTED if outcome.at == "open" else BLOCKED, outcome.refused)
        if self.waits(one.shot):  # type: ignore[operator]
            return Result(one, UNTESTED, "waits for a neighbour")
        return Result(one, STOPPED)


def _is(device: str, pattern: str) -> bool:
    return device.startswith(pattern[:-1]) if pattern.endswith("*") else device == pattern


def _on_device(
    target: Target,
    own: tuple[Result, ...],
    routed: tuple[Result, ...],
    every: Iterable[Result],
    controls: Iterable[Control],
    faults: Mapping[str, str],
    families: Iterable[int],
) -> OnDevice:
    leaked = sum(not set(target.watched).isdisjoint(one.seen) for one in every if one.verdict == LEAKED)
    mine = tuple(one for one in controls if one.key[0] in target.watched)
    found = OnDevice(target, own, mine, leaked=leaked)
    return evolve(found, faults=tuple(_faults(found, routed, faults, families)))


def _faults(
    found: OnDevice, routed: Iterable[Result], faults: Mapping[str, str], families: Iterable[int]
) -> Iterator[str]:
    if found.target.why_not:
        yield found.target.why_not
        return
    yield from (faults[device] for device in found.target.watched if device in faults)
    for family in families:
        for device in found.target.watched:
            if found.control(family, device) is None:
                yield f"{device}: no IPv{family} packet was seen to leave that may leave, so silence says nothing"
        results = (one for one in (*found.results, *routed) if one.probe.shot.family == family)
        if not any(one.verdict in TESTED for one in results):
            yield f"{found.target.device}: no kind of IPv{family} packet could be tested"
