# SPDX-License-Identifier: BSD-2-Clause
"""A kernel in memory: it takes the same steps as Linux and refuses them with the same words.

What it does not know: routing itself, overlaps inside interval sets, and netlink's other users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..netstate.carried import MISSING, Impossible, after
from ..netstate.changes import NftTransaction, RouteChange, RouteReplacement, Step
from ..netstate.nft import Chain, NamedCounter, Table
from ..netstate.routing import Sysctl
from ..netstate.state import Counters, Counts, NetState
from .interface import Refused

INJECTED = "Operation not permitted"

Key = tuple[str, str]


class Fake:
    """See interface.Kernel. `state` is what it holds, `generation` grows with every change.

    `devices`: those that exist; None means all. `unhooked`: those at whose egress no chain can be
    hooked. `refuse_at`: the number of the step, counted from 0, that is refused whatever it is.
    """

    def __init__(
        self,
        state: NetState = NetState(),
        devices: Iterable[str] | None = None,
        refuse_at: int | None = None,
        families: tuple[int, ...] = (4, 6),
        ports: Mapping[str, Sequence[str]] | None = None,
        unhooked: Iterable[str] = (),
    ) -> None:
        self.tables: dict[Key, Table] = {table.key: table for table in state.tables}
        self.rules, self.routes = list(state.rules), list(state.routes)
        self.sysctls = {one.path: one.value for one in state.sysctls}
        self.counts: dict[tuple[str, str, str], Counts] = {}
        self.devices = None if devices is None else {"lo", *devices}
        self.refuse_at, self.asked, self.generation = refuse_at, 0, 0
        self._families, self._ports, self._unhooked = families, dict(ports or {}), frozenset(unhooked)

    @property
    def state(self) -> NetState:
        """All that is held, as a value: tables by key, rules and routes in the order of the kernel."""
        return NetState(
            tuple(self.tables[key] for key in sorted(self.tables)),
            tuple(sorted(self.rules, key=lambda one: (one.family, one.priority))),
            tuple(self.routes),
            tuple(Sysctl(path, value) for path, value in sorted(self.sysctls.items())),
        )

    def observe(self, table: str, families: Sequence[str], protocol: int, sysctls: Iterable[str]) -> NetState:
        held = self.state
        return NetState(
            tuple(self.tables[family, table] for family in families if (family, table) in self.tables),
            tuple(one for one in held.rules if one.protocol == protocol),
            tuple(one for one in held.routes if one.protocol == protocol),
            tuple(Sysctl(path, self.sysctls[path]) for path in sysctls if path in self.sysctls),
        )

    def table_names(self) -> set[Key]:
        return set(self.tables)

    def everything(self) -> NetState:
        return self.state

    def counters(self, table: str) -> Counters:
        return {
            (family, table, counter.name): self.counts.get((family, table, counter.name), Counts(0, 0))
            for (family, name), held in self.tables.items()
            if name == table
            for counter in held.counters
        }

    def ip_families(self) -> tuple[int, ...]:
        return self._families

    def bridge_ports(self, devices: Iterable[str]) -> Mapping[str, Sequence[str]]:
        return {device: self._ports[device] for device in devices if device in self._ports}

    def links(self) -> set[str]:
        return set(self._ports) | {port for ports in self._ports.values() for port in ports}

    def takes_link_guard(self, device: str) -> bool:
        return device not in self._unhooked

    def running(self) -> None:
        return None

    def carry_out(self, step: Step) -> None:
        number, self.asked = self.asked, self.asked + 1
        if number == self.refuse_at:
            raise Refused(step, INJECTED)
        try:
            self._refuse_absent(step)
            held = after(self.state, step)
        except Impossible as error:
            raise Refused(step, error.reason, error.item) from None
        self.tables = {table.key: table for table in held.tables}
        self.rules, self.routes = list(held.rules), list(held.routes)
        self.sysctls = {one.path: one.value for one in held.sysctls}
        if isinstance(step, NftTransaction):
            self._forget_counts(step)
        self.generation += 1

    def _refuse_absent(self, step: Step) -> None:
        """Raises Impossible for what needs a device that is not there."""
        match step:
            case NftTransaction(operations):
                for one in operations:
                    if isinstance(one.object, Chain) and one.object.hook and one.object.hook.device in self._unhooked:
                        raise Impossible(MISSING, one.object)
            case RouteChange(_, route) | RouteReplacement(_, route):
                known = self.devices is None or route.kind != "unicast" or route.device in {None, *self.devices}
                if not known:
                    raise Impossible(f"there is no device {route.device}", route)

    def _forget_counts(self, step: NftTransaction) -> None:
        """A counter that goes takes its numbers along, also when it comes back in the same transaction."""
        gone: set[tuple[str, str, str]] = set()
        for one in step.operations:
            if one.verb == "delete" and isinstance(one.object, NamedCounter):
                gone.add((one.family, one.table, one.object.name))
            elif one.verb == "delete" and isinstance(one.object, Table):
                gone |= {place for place in self.counts if place[:2] == (one.family, one.table)}
        self.counts = {place: found for place, found in self.counts.items() if place not in gone}
