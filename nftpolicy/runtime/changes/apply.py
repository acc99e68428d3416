# SPDX-License-Identifier: BSD-2-Clause
"""Apply and release: observe, plan, carry out step by step, read back.

A step that the kernel refuses is followed by the inverses of the steps before it, so that the
kernel is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from attrs import Factory, evolve, frozen

from ...compiler import names
from ...compiler.compile import Machine, compile_policy
from ...compiler.sysctls import sysctls
from ...kernel.interface import Kernel, Refused
from ...netstate.changes import Step, SysctlChange
from ...netstate.routing import PROTOCOL, Sysctl
from ...netstate.state import NetState
from ...planner.plan import Plan, plan, writable
from ...policy.objects import Policy
from .journal import Unfinished
from .memory import Memory


class NotHeld(Exception):
    """The kernel took every step and yet does not hold what was wanted; everything was undone."""

    def __init__(self, missing: Plan) -> None:
        self.missing = missing
        super().__init__("the kernel took every step, but reads back something else")


class StillChanged(Unfinished):
    """A step failed, and what was before could not be brought back. The guard stands: it is never taken apart."""

    def __init__(self, missing: Plan) -> None:
        self.missing = missing
        super().__init__("a step failed, and what was there before could not be brought back whole")


Done = Callable[[], None]
_TRIES = 3  # to bring back what was there before


@frozen
class Prospect:
    """What is in the kernel, what should be, and the way there.

    `unhooked` are uplink devices without a link guard, since this kernel can't hook one there now;
    `ports` the bridges among the uplinks' devices with their ports.
    """

    observed: NetState
    desired: NetState
    plan: Plan
    unhooked: frozenset[str] = frozenset()
    ports: Mapping[str, Sequence[str]] = Factory(dict)


def prospect(kernel: Kernel, policy: Policy, memory: Memory) -> Prospect:
    """Look, and plan to apply `policy`. Changes nothing."""
    before = memory.sysctls()
    observed = observe(kernel, [one.path for one in sysctls(policy)] + list(before))
    devices = [device for uplink in policy.uplink.values() for device in uplink.devices]
    link_guard = observed.table("netdev", names.TABLE) is not None or kernel.takes_link_guard("lo")
    unhooked = _unhooked(kernel, observed, devices) if link_guard else frozenset(devices)
    ports = kernel.bridge_ports(devices)
    desired = compile_policy(policy, Machine(ports, link_guard, unhooked))
    desired = _of_families(desired, kernel.ip_families())
    # Sysctls that an earlier policy set and this one does not care for go back to what they were.
    mine = {one.path for one in desired.sysctls}
    back = tuple(Sysctl(path, value) for path, value in before.items() if path not in mine)
    desired = evolve(desired, sysctls=(*desired.sysctls, *back))
    return Prospect(observed, desired, plan(observed, desired), unhooked, ports)


def _unhooked(kernel: Kernel, observed: NetState, devices: list[str]) -> frozenset[str]:
    """Devices that are not there, on a kernel that wants them first (before Linux 6.18 or so)."""
    hooked = {chain.hook.device for table in observed.tables for chain in table.chains if chain.hook}
    absent = set(devices) - hooked - kernel.links()
    return frozenset(device for device in absent if not kernel.takes_link_guard(device))


def observe(kernel: Kernel, paths: list[str]) -> NetState:
    """Our own objects in the kernel, and the sysctls at `paths`."""
    return kernel.observe(names.TABLE, names.FAMILIES, PROTOCOL, paths)


def _of_families(state: NetState, families: tuple[int, ...]) -> NetState:
    rules = tuple(one for one in state.rules if one.family in families)
    routes = tuple(one for one in state.routes if one.family in families)
    return evolve(state, rules=rules, routes=routes)


def apply(kernel: Kernel, found: Prospect, memory: Memory, done: Done = lambda: None) -> None:
    """Carry out a prospect; `done` is called after each step.

    Raises:
        Refused, NotHeld: with the kernel as it was before.
        StillChanged: it could not be brought back; the guard stands.
    """
    memory.remember_sysctls({step.new.path: step.old for step in found.plan.steps if isinstance(step, SysctlChange)})
    carry_out(kernel, found.plan, done, found.observed)
    missing = plan(observe(kernel, [one.path for one in found.desired.sysctls]), found.desired)
    if missing.steps:
        undo(kernel, list(found.plan.steps), found.observed)
        raise NotHeld(missing)


def release_prospect(kernel: Kernel, memory: Memory) -> Prospect:
    """Look, and plan to take away every object of ours. Changes nothing."""
    before = memory.sysctls()
    observed = observe(kernel, list(before))
    desired = NetState(sysctls=tuple(Sysctl(path, value) for path, value in before.items()))
    return Prospect(observed, desired, plan(observed, desired))


def carry_out(kernel: Kernel, todo: Plan, done: Done = lambda: None, observed: NetState | None = None) -> None:
    """Every step in order; on a refusal or an interrupt, the steps done are taken back.

    `observed` is what the kernel held before; with it, whether that is so again is looked at.
    """
    carried: list[Step] = []
    for step in todo.steps:
        try:
            kernel.carry_out(step)
        except Refused:
            undo(kernel, carried, observed)
            raise
        except BaseException:
            undo(kernel, [*carried, step], observed)  # interrupted: the kernel may have done it or not
            raise
        carried.append(step)
        done()


def undo(kernel: Kernel, carried: Sequence[Step], observed: NetState | None = None) -> None:
    """The inverses of `carried`, last first. One that fails does not keep the others from being tried.

    Then, where `observed` says what should be there again, whatever else is missing, by a plan of its own.

    Raises:
        StillChanged: that did not help either.
    """
    _try(kernel, [step.inverse() for step in reversed(carried)])
    if observed is None:
        return
    paths = [one.path for one in observed.sysctls]
    observed = evolve(observed, tables=tuple(writable(table) for table in observed.tables))
    for _ in range(_TRIES):
        rest = plan(observe(kernel, paths), observed)
        if not rest.steps:
            return
        _try(kernel, rest.steps)
    rest = plan(observe(kernel, paths), observed)
    if rest.steps:
        raise StillChanged(rest)


def _try(kernel: Kernel, steps: Sequence[Step]) -> None:
    for step in steps:
        with suppress(Refused):
            kernel.carry_out(step)
