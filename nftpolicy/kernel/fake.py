# SPDX-License-Identifier: BSD-2-Clause
"""A kernel in memory for tests: it takes and refuses the same steps as Linux.

It does not model route lookups, overlaps inside interval sets, and changes by other netlink users.

    kernel = FakeKernel(NetState(), devices=("wan",), refuse_at=2)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve

from ..netstate.nft import Chain, NamedCounter, Table
from ..netstate.operations import NftTransaction, RouteChange, RouteReplacement, Step, SysctlChange
from ..netstate.routing import IpRule, Sysctl
from ..netstate.state import CounterValue, CounterValues, NetState
from ..netstate.transition import ENOENT_TEXT, StepRejected, state_after
from .errors import StepRefused, SysctlMissing

INJECTED_REASON = "Operation not permitted"

TableKey = tuple[str, str]


class FakeKernel:
    """Kernel in memory: see interface.Kernel.

    `state` is its present state; `generation` grows with every change.

    `devices` are the existing devices; None means all names. `ports` are the ports of each bridge.
    `without_egress_hook` are the devices without an egress hook. `refuse_at` is the number of the
    step, counted from 0, that is refused in any case.
    """

    def __init__(
        self,
        state: NetState = NetState(),
        devices: Iterable[str] | None = None,
        refuse_at: int | None = None,
        families: tuple[int, ...] = (4, 6),
        ports: Mapping[str, Sequence[str]] | None = None,
        without_egress_hook: Iterable[str] = (),
    ) -> None:
        self.tables: dict[TableKey, Table] = {table.key: table for table in state.tables}
        self.rules, self.routes = list(state.rules), list(state.routes)
        self.sysctls = {sysctl.path: sysctl.value for sysctl in state.sysctls}
        self.counts: dict[tuple[str, str, str], CounterValue] = {}
        self.devices = None if devices is None else {"lo", *devices}
        self.refuse_at, self.steps_taken, self.generation = refuse_at, 0, 0
        self._families, self._ports, self._unhooked = families, dict(ports or {}), frozenset(without_egress_hook)

    def attach_device(self, name: str) -> None:
        """Let a device appear."""
        self.devices = {*(self.devices or ()), name}
        self._unhooked -= {name}

    def detach_device(self, name: str) -> None:
        """Let a device disappear, and its chains with it, as kernels before 6.18 do."""
        self.devices = (self.devices or set()) - {name}
        self._unhooked |= {name}
        for key, table in self.tables.items():
            chains = tuple(chain for chain in table.chains if not (chain.hook and chain.hook.device == name))
            self.tables[key] = evolve(table, chains=chains)

    @property
    def state(self) -> NetState:
        """Return the present state: tables by key, rules and routes in the order of the kernel."""
        return NetState(
            tuple(self.tables[key] for key in sorted(self.tables)),
            tuple(sorted(self.rules, key=lambda rule: (rule.family, rule.priority))),
            tuple(self.routes),
            tuple(Sysctl(path, value) for path, value in sorted(self.sysctls.items())),
        )

    def read_own(self, table: str, families: Sequence[str], protocol: int, sysctls: Iterable[str]) -> NetState:
        state = self.state
        return NetState(
            tuple(self.tables[family, table] for family in families if (family, table) in self.tables),
            tuple(rule for rule in state.rules if rule.protocol == protocol),
            tuple(route for route in state.routes if route.protocol == protocol),
            tuple(Sysctl(path, self.sysctls[path]) for path in sysctls if path in self.sysctls),
        )

    def table_names(self) -> set[TableKey]:
        return set(self.tables)

    def read_all(self) -> NetState:
        return self.state

    def has_more_routes(self, number: int) -> bool:
        return len(self.state.routes) > number

    def counters(self, table: str) -> CounterValues:
        return {
            (family, table, counter.name): self.counts.get((family, table, counter.name), CounterValue(0, 0))
            for (family, name), content in self.tables.items()
            if name == table
            for counter in content.counters
        }

    def ip_families(self) -> tuple[int, ...]:
        return self._families

    def loopback_families(self) -> tuple[int, ...]:
        return self._families

    def bridge_ports(self, devices: Iterable[str]) -> Mapping[str, Sequence[str]]:
        return {device: self._ports[device] for device in devices if device in self._ports}

    def ip_rules(self) -> tuple[IpRule, ...]:
        return tuple(rule for rule in self.state.rules if rule.family in self._families)

    def device_names(self) -> set[str]:
        return set(self._ports) | {port for ports in self._ports.values() for port in ports} | (self.devices or set())

    def supports_egress_hook(self, device: str) -> bool:
        return device not in self._unhooked

    def route_mover(self) -> None:
        return None

    def live_sockets(self) -> None:
        return None

    def apply_step(self, step: Step) -> None:
        number, self.steps_taken = self.steps_taken, self.steps_taken + 1
        if number == self.refuse_at:
            raise StepRefused(step, INJECTED_REASON)
        try:
            self._refuse_absent(step)
            state = state_after(self.state, step)
        except StepRejected as error:
            is_gone = isinstance(step, SysctlChange) and error.reason == ENOENT_TEXT
            raise (SysctlMissing if is_gone else StepRefused)(step, error.reason, error.item) from None
        self.tables = {table.key: table for table in state.tables}
        self.rules, self.routes = list(state.rules), list(state.routes)
        self.sysctls = {sysctl.path: sysctl.value for sysctl in state.sysctls}
        if isinstance(step, NftTransaction):
            self._drop_counts(step)
        self.generation += 1

    def _refuse_absent(self, step: Step) -> None:
        """Raise Impossible if the step needs a device, or an egress hook, that does not exist."""
        match step:
            case NftTransaction(operations):
                for operation in operations:
                    chain = operation.object
                    if isinstance(chain, Chain) and chain.hook and chain.hook.device in self._unhooked:
                        raise StepRejected(ENOENT_TEXT, chain)
            case RouteChange(_, route) | RouteReplacement(_, route):
                if self.devices is None or route.kind != "unicast":
                    return
                if route.device is not None and route.device not in self.devices:
                    raise StepRejected(f"there is no device {route.device}", route)

    def _drop_counts(self, step: NftTransaction) -> None:
        """Drop the values of each deleted counter, also if the same transaction adds it again."""
        deleted: set[tuple[str, str, str]] = set()
        for operation in step.operations:
            if operation.verb == "delete" and isinstance(operation.object, NamedCounter):
                deleted.add((operation.family, operation.table, operation.object.name))
            elif operation.verb == "delete" and isinstance(operation.object, Table):
                deleted |= {key for key in self.counts if key[:2] == (operation.family, operation.table)}
        self.counts = {key: counts for key, counts in self.counts.items() if key not in deleted}
