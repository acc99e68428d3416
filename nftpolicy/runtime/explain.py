# SPDX-License-Identifier: BSD-2-Clause
"""What Linux does with one packet: the model's walk, the policy keys behind it, and the kernel's own word."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Set
from typing import Any

from attrs import asdict, evolve, field, frozen

from ..compiler import names
from ..compiler.compile import Machine, compile_policy
from ..model.packet import FORWARD, ICMP, ICMPV6, TCP, UDP, Packet, shown
from ..model.routing import Routed
from ..model.walk import Model, Walk
from ..netstate.nft import Concat, Match, Meta, Origin, Rule, SetRef, Table
from ..netstate.routing import PROTOCOL, TABLE_LOCAL, TABLE_MAIN, IpRule, Route
from ..netstate.state import NetState
from ..policy.objects import Policy

_KERNELS = 2  # RTPROT_KERNEL
_ASKED = (TCP, UDP, ICMP, ICMPV6)  # protocols that RTM_GETROUTE takes; without one it is of any
# What a refusal of the kernel is called among routes.
_REFUSALS = {errno.EACCES: "prohibit", errno.EHOSTUNREACH: "unreachable", errno.EINVAL: "blackhole"}


@frozen
class Question:
    """What the kernel is asked for one route (RTM_GETROUTE), in the model's words."""

    family: int
    destination: int
    source: int | None
    mark: int
    iif: str | None
    oif: str | None
    uid: int
    protocol: int
    sport: int
    dport: int

    @property
    def by(self) -> dict[str, Any]:
        """What a route is chosen by beside the addresses, as the model's look-up and the kernel's both name it."""
        return asdict(self, filter=lambda key, _: key.name not in ("family", "destination", "source"))


@frozen
class Answer:
    """A route as the kernel or the model finds it; `kind` "none" is no route at all."""

    kind: str
    device: str | None = None
    gateway: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        words = [self.kind]
        words += [f"via {self.gateway}"] if self.gateway else []
        words += [f"dev {self.device}"] if self.device else []
        words += [f"src {self.source}"] if self.source else []
        return " ".join(words)


# Asks the kernel; None if it can't answer such a question.
Ask = Callable[[Question], Answer | None]


@frozen
class Agreement:
    """One route, asked of the model and of the kernel. `what` says which."""

    what: str
    model: Answer
    kernel: Answer
    agrees: bool


@frozen
class Explained:
    """One packet's walk, and what the kernel said of its routes."""

    walk: Walk
    agreements: tuple[Agreement, ...] = ()

    @property
    def faults(self) -> tuple[Agreement, ...]:
        """Where the kernel says something else than the model."""
        return tuple(one for one in self.agreements if not one.agrees)


@frozen
class Explainer:
    """Explains packets in one state. `policy` names the service behind an answer about a socket's owner."""

    state: NetState
    policy: Policy | None = None
    ask: Ask | None = None
    model: Model = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "model", Model(self.state))

    def explain(self, packet: Packet) -> Explained:
        """The walk of a packet. ValueError if the packet is none that can be."""
        walk = self.model.walk(packet)
        if self.policy is not None:
            walk = evolve(walk, decisions=tuple(self._named(one, packet) for one in walk.decisions))
        return Explained(walk, tuple(self._agreements(walk)) if self.ask else ())

    def _named(self, decision: Any, packet: Packet) -> Any:
        """The decision, with the service in the place of its uplink where a rule asks who sends."""
        assert self.policy is not None
        if not (isinstance(decision.thing, Rule) and len(decision.origin) == 2 and _asks_who(decision.thing)):
            return decision
        for name, service in self.policy.service.items():
            mine = service.group and service.group.number == packet.gid
            mine = mine or (service.user and service.user.number == packet.uid)
            if mine and service.uplink == decision.origin[1]:
                return evolve(decision, origin=("service", name))
        return decision

    # --- the kernel's own word ---

    def _agreements(self, walk: Walk) -> list[Agreement]:
        """The routes on the way of the packet, asked of both. The same question always, so any question will do."""
        found = []
        for what, question in _questions(walk):
            answer = self.ask(question) if self.ask else None
            if answer is not None:
                found.append(self._compared(what, question, answer))
        return [one for one in found if one is not None]

    def _compared(self, what: str, asked: Question, answer: Answer) -> Agreement | None:
        found = self.model.router.lookup(
            asked.family,
            asked.destination,
            source=asked.source,
            **asked.by,
            forwarded=asked.iif is not None,
            exact=True,
        )
        if found.outcome == "unknown":
            return None
        said = Answer(found.outcome, found.device, found.gateway, found.source)
        return Agreement(what, said, answer, _same(found, answer))


def _questions(walk: Walk) -> list[tuple[str, Question]]:
    """What to ask the kernel about this walk, and what it is called."""
    packet = walk.packet
    if not any(one.kind in ("ip-rule", "route") for one in walk.decisions):
        return []
    uid = packet.uid if packet.has_socket else 0
    arrives = packet.origin == FORWARD
    ports = packet.protocol in (TCP, UDP)
    first = Question(
        packet.family,
        packet.destination,
        packet.source,
        walk.mark if arrives else packet.mark,
        packet.iif if arrives else None,
        None if arrives else packet.bound,
        uid,
        packet.protocol if packet.protocol in _ASKED else 0,
        packet.sport if ports else 0,
        packet.dport if ports else 0,
    )
    found = [("the route", first)]
    if packet.source is None and walk.source is not None:
        found.append(("the route from its source address", evolve(first, source=walk.source)))
    if not arrives and any(one.kind == "reroute" for one in walk.decisions):
        # IPv4 asks as root here, whoever sends (ip_route_me_harder).
        again = evolve(
            first,
            destination=walk.destination,
            source=walk.source,
            dport=walk.dport if ports else 0,
            mark=walk.mark,
            uid=0 if packet.family == 4 else uid,
        )
        found.append(("the route after the output hook", again))
    return found


def _same(found: Routed, answer: Answer) -> bool:
    """Whether the kernel's answer is one that the model allows."""
    if answer.kind != found.outcome:
        return not _leads(answer.kind) and not _leads(found.outcome)
    if not found.leaves:
        return True  # of what stays here or goes nowhere, the device says nothing
    if found.route is not None and len(found.route.ways) > 1:
        return answer.device in found.devices  # by one of them, as the hash of the flow falls
    return (answer.device, answer.gateway) == (found.device, found.gateway)


def _leads(kind: str) -> bool:
    return kind not in ("none", "unreachable", "prohibit", "blackhole", "throw")


def asking(links: Set[str]) -> Ask:
    """Ask this kernel, which has these devices."""
    from ..kernel.rtnetlink import Lookups

    kernel = Lookups()

    def ask(asked: Question) -> Answer | None:
        if not {asked.iif, asked.oif} <= {None, *links}:
            return None
        found = kernel.getroute(
            asked.family,
            shown(asked.family, asked.destination),
            None if asked.source is None else shown(asked.family, asked.source),
            **asked.by,
        )
        if isinstance(found, int):
            return Answer(_REFUSALS.get(found, "none"))
        return Answer(found.kind, found.device, found.gateway, found.prefsrc)

    return ask


# --- the state that is judged -------------------------------------------------------------------


def with_origins(state: NetState, desired: NetState) -> NetState:
    """What the kernel lists, with the policy keys of the compiled objects that equal it.

    The kernel keeps no keys; an object of ours that differs from what was compiled stays without one.
    """
    keys = {table.key: table for table in desired.tables}
    tables = tuple(_table(table, keys[table.key]) if table.key in keys else table for table in state.tables)
    rules = {item: item.origin for item in desired.rules}
    routes = {item: item.origin for item in desired.routes}
    return evolve(
        state,
        tables=tables,
        rules=tuple(evolve(item, origin=rules.get(item, ())) for item in state.rules),
        routes=tuple(evolve(item, origin=routes[item]) if item in routes else item for item in state.routes),
    )


def _table(table: Table, desired: Table) -> Table:
    wanted = {chain.name: chain for chain in desired.chains}
    sets = {one.name: one.origin for one in desired.sets}
    chains = []
    for chain in table.chains:
        like = wanted.get(chain.name)
        if like is None:
            chains.append(chain)
            continue
        left: dict[Rule, list[Origin]] = {}
        for rule in like.rules:
            left.setdefault(rule, []).append(rule.origin)
        rules = tuple(evolve(rule, origin=left[rule].pop(0)) if left.get(rule) else rule for rule in chain.rules)
        chains.append(evolve(chain, rules=rules, origin=like.origin))
    named = tuple(evolve(one, origin=sets.get(one.name, ())) for one in table.sets)
    return evolve(table, chains=tuple(chains), sets=named)


def _asks_who(rule: Rule) -> bool:
    for one in rule.statements:
        if isinstance(one, Match) and isinstance(one.right, SetRef | int):
            parts = one.left.parts if isinstance(one.left, Concat) else (one.left,)
            if not {Meta("skgid"), Meta("skuid")}.isdisjoint(parts):
                return True
    return False


def compiled(policy: Policy, ports: Mapping[str, Any] | None = None) -> NetState:
    """What a policy compiles to, for a machine with these bridge ports."""
    return compile_policy(policy, Machine(ports or {}))


def assumed(policy: Policy) -> tuple[NetState, tuple[str, ...]]:
    """What a machine has beside a policy, where none is at hand to ask: as state, and in words.

    Its addresses are unknown; each table has the default route that it is there for.
    """
    standard = [IpRule(family, 0, table=TABLE_LOCAL, protocol=_KERNELS) for family in (4, 6)]
    standard += [IpRule(family, 32766, table=TABLE_MAIN, protocol=_KERNELS) for family in (4, 6)]
    routes = [
        Route(family, TABLE_LOCAL, to, "local", device="lo", protocol=_KERNELS)
        for family, to in ((4, "127.0.0.0/8"), (6, "::1/128"))
    ]
    said = ["the kernel's own ip rules", "127.0.0.0/8 and ::1 are this machine"]
    ways = [(uplink.table, uplink.devices[0]) for uplink in policy.uplink.values()]
    ways += [(TABLE_MAIN, device) for device in policy.inside[:1]]
    for table, device in ways:
        device = device.replace("*", "0")
        routes += [Route(family, table, device=device, protocol=0, metric=1) for family in (4, 6)]
        said.append(f"table {'main' if table == TABLE_MAIN else table} has a default route by {device}")
    return NetState(rules=tuple(standard), routes=tuple(routes)), tuple(said)


def joined(ours: NetState, others: NetState) -> NetState:
    """Both together. What `others` has of ours (an earlier policy) gives way."""
    foreign = tuple(table for table in others.tables if table.name != names.TABLE)
    rules = [one for one in others.rules if one.protocol != PROTOCOL]
    routes = [one for one in others.routes if one.protocol != PROTOCOL]
    return NetState(
        (*ours.tables, *foreign),
        tuple(sorted((*ours.rules, *rules), key=lambda one: (one.family, one.priority))),
        (*ours.routes, *routes),
        (*ours.sysctls, *others.sysctls),
        others.devices,
    )
