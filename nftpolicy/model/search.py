# SPDX-License-Identifier: BSD-2-Clause
"""What ip rules and routing tables answer, whichever the family, and what comes of a lookup."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from attrs import evolve, frozen

from ..netstate import iproute
from ..netstate.routing import TABLE_MAIN, IpRule, Nexthop, Route
from ..netstate.state import NetState
from .addresses import Addresses
from .decision import Decision, Untold
from .fib import ERRORS, Hit, Search, Table4, Table6
from .rules import LOOPBACK, Asked, Rules
from .unknown import Doubts

UNKNOWN = "unknown"
# What an ip rule itself can answer, with the error that a sender gets.
REFUSALS = {"unreachable": "ENETUNREACH", "prohibit": "EACCES", "blackhole": "EINVAL"}
NO_ROUTE = "ENETUNREACH"
LEAVING = ("unicast", "broadcast", "multicast")

Log = list[Decision]


@frozen
class Routed:
    """What came of a lookup.

    `outcome` is "unicast", "broadcast" or "multicast" (it leaves by `device`), "local" (it stays
    here), "unreachable", "prohibit", "blackhole", "none" (no route, or the packet is refused; `error`
    says with which errno) or "unknown". `devices` are all by which it may leave: more than one if the
    ways of a route differ in it, none at all for "unknown" if it may be any. `gateway` is None if
    the destination is on the link, or if the ways differ in it. `source` is the address that the
    kernel gives a packet without one, as far as it is known.
    """

    outcome: str
    device: str | None = None
    gateway: str | None = None
    source: str | None = None
    table: int | None = None
    rule: IpRule | None = None
    route: Route | None = None
    devices: tuple[str, ...] = ()
    error: str | None = None
    doubts: tuple[str, ...] = ()

    @property
    def leaves(self) -> bool:
        """Whether it is sure that it leaves."""
        return self.outcome in LEAVING


@frozen
class Found:
    """What the rules lead to: a rule that refuses, or a rule, its table and a route in it."""

    rule: IpRule | None
    table: int | None = None
    hit: Hit | None = None


class Searcher:
    """The rules and tables of one family, the addresses and the settings, indexed once."""

    def __init__(self, state: NetState, family: int, addresses: Addresses) -> None:
        self.addresses = addresses
        self._devices = {one.name: one for one in state.devices}
        self._values = {one.path: one.value for one in state.sysctls}
        self.rules = Rules(family, state.rules, state.devices)
        tables: dict[int, list[Route]] = defaultdict(list)
        for route in state.routes:
            if route.family == family:
                tables[route.table].append(route)
        self.routes = tables
        self.tables = {key: (Table4 if family == 4 else Table6)(routes) for key, routes in tables.items()}

    def value(self, path: str) -> str | None:
        """A sysctl, None if it is not told."""
        return self._values.get(path)

    def search(self, asked: Asked, what: Search, doubts: Doubts, said: Log) -> Found:
        """The first rule that has an answer, and the answer. No rule: no route."""
        for rule in self.rules.matching(asked, doubts):
            say = speaker(rule, said)
            if rule.action == "goto":
                say(f"goes to {rule.goto}")
                continue
            if rule.action == "nop":
                say("goes on")
                continue
            if rule.action in REFUSALS:
                say(rule.action)
                return Found(rule)
            if rule.action != "lookup" or (rule.l3mdev and self.rules.has_vrf is not False):
                # An action that nobody here knows may do anything.
                say(UNKNOWN)
                return Found(rule, None, Hit(Route(asked.family, 0), (), 0, is_known=False))
            # "not l3mdev" matches what is in no VRF, and has no table then; the kernel takes that for main.
            number = TABLE_MAIN if rule.l3mdev else rule.table
            table = self.tables.get(number)
            hit = table.find(what, doubts) if table else None
            if hit is None or hit.route.kind == "throw":
                say(f"no route in table {number}, goes on" if hit is None else "throw, goes on")
                continue
            left = self._unsuppressed(rule, hit, doubts)
            if left is None:
                say(f"suppresses {iproute.shown(hit.route)}, goes on")
                continue
            say(f"found in table {number}")
            return Found(rule, number, left)
        return Found(None)

    def _unsuppressed(self, rule: IpRule, hit: Hit, doubts: Doubts) -> Hit | None:
        """What the rule lets through of a route. IPv4 goes by the first way of a list, IPv6 by the one it took."""
        if hit.route.kind in ERRORS:
            return hit
        if rule.suppress_prefix is not None and hit.length <= rule.suppress_prefix:
            return None
        if rule.suppress_group is None or not hit.hops:
            return hit
        if hit.route.family == 4:
            return None if self._is_in(hit.route.ways[0], rule.suppress_group, doubts) else hit
        left = tuple(hop for hop in hit.hops if not self._is_in(hop, rule.suppress_group, doubts))
        if len(left) == len(hit.hops):
            return hit
        if not left or doubts.ask(f"which way {iproute.shown(hit.route)} takes"):
            return None
        return evolve(hit, hops=left)

    def _is_in(self, hop: Nexthop, group: int, doubts: Doubts) -> bool:
        device = self._devices.get(hop.device or "")
        return doubts.ask(f"the group of {hop.device}") if device is None else device.group == group


def _nothing(_: str) -> None:
    pass


def speaker(rule: IpRule, said: Log) -> Callable[[str], None]:
    """Says what comes of a rule."""

    if isinstance(said, Untold):
        return _nothing

    def say(effect: str) -> None:
        said.append(Decision("ip-rule", iproute.shown(rule), rule, rule.origin, effect))

    return say


def kind_of(route: Route) -> str:
    """What a packet by this route is."""
    return route.kind if route.kind in LEAVING else "unicast"


def local(found: Found, source: str | None) -> Routed:
    """It stays here."""
    assert found.hit is not None
    return Routed("local", LOOPBACK, None, source, found.table, found.rule, found.hit.route)


def refusal(found: Found) -> Routed | None:
    """No route, a rule or a route that refuses, or one that nobody here understands."""
    hit, rule = found.hit, found.rule
    if rule is None:
        return Routed("none", error=NO_ROUTE)
    if hit is None:
        return Routed(rule.action, rule=rule, error=REFUSALS[rule.action])
    if not hit.is_known:
        what = iproute.shown(hit.route) if found.table is not None else iproute.shown(rule)
        return Routed(UNKNOWN, None, None, None, found.table, rule, hit.route, doubts=(what,))
    if hit.route.kind in ERRORS:
        kind = hit.route.kind if hit.route.kind != "nat" else "blackhole"
        return Routed(kind, None, None, None, found.table, rule, hit.route, error=ERRORS[hit.route.kind])
    return None


def by(found: Found, kind: str, source: Callable[[Nexthop], str | None]) -> Routed:
    """It leaves by a way of the route; it is not known by which if their devices differ."""
    hit = found.hit
    assert hit is not None
    devices = tuple(dict.fromkeys(hop.device for hop in hit.hops if hop.device))
    gateways = {hop.gateway for hop in hit.hops}
    gateway = hit.hops[0].gateway if len(gateways) == 1 else None
    sources = {source(hop) for hop in hit.hops}
    own = sources.pop() if len(sources) == 1 else None
    if len(devices) > 1:
        return Routed(UNKNOWN, None, gateway, own, found.table, found.rule, hit.route, devices)
    return Routed(kind, devices[0] if devices else None, gateway, own, found.table, found.rule, hit.route, devices)


def agreed(results: Iterable[Routed], doubts: tuple[str, ...], complete: bool) -> Routed:
    """What all forks have in common."""
    found = list(results)
    if not complete or any(one.outcome == UNKNOWN and not one.devices for one in found):
        return Routed(UNKNOWN, doubts=doubts)
    devices = tuple(dict.fromkeys(device for one in found for device in one.devices))
    differing = {one for one in ("outcome", "device", "error") if len({getattr(each, one) for each in found}) > 1}
    if devices and differing:
        return Routed(UNKNOWN, devices=devices, doubts=doubts)
    # It does not leave, in whichever way; or it leaves by this device, whatever else differs.
    others = ("gateway", "source", "table", "rule", "route")
    nothing = {one: None for one in others if len({getattr(each, one) for each in found}) > 1}
    return evolve(found[0], devices=devices, doubts=(*found[0].doubts, *doubts), **nothing)
