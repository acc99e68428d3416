# SPDX-License-Identifier: BSD-2-Clause
"""Execution of a plan: run the steps, undo them after a failure, read the result back.

If the kernel refuses a step, the inverses of the steps before it are run, so that the kernel is
left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from attrs import Factory, evolve, frozen

from ...compiler import object_names
from ...compiler.compile import HostFacts, compile_policy
from ...compiler.sysctls import required_sysctls
from ...exceptions import NftpolicyError
from ...kernel.errors import StepRefused, SysctlMissing
from ...kernel.interface import Kernel
from ...netstate.formats.nft_text_values import can_hook
from ...netstate.operations import Step, SysctlChange
from ...netstate.routing import RTPROT_NFTPOLICY, TABLE_MAIN, Sysctl
from ...netstate.state import NetState
from ...planner.plan import Plan, plan, writable_part
from ...policy.objects import Policy
from .journal import InconsistentState
from .state_dir import StateDir


class ReadBackMismatch(NftpolicyError):
    """The steps succeeded, but the kernel reads back another state; the steps were undone.

    `missing` is the plan from the state read back to the desired state.
    """

    def __init__(self, missing: Plan) -> None:
        self.missing = missing
        super().__init__("the kernel accepted every step, but reads back another state")


class RollbackFailed(InconsistentState):
    """A step failed, and the state before it could not be restored. The guard stays in force.

    `missing` is the plan that would restore that state.
    """

    def __init__(self, missing: Plan) -> None:
        self.missing = missing
        super().__init__("a step failed, and the previous state could not be restored completely")


OnStep = Callable[[], None]
_RESTORE_ATTEMPTS = 3
_SYSCTL_ATTEMPTS = 2


@frozen
class PlannedChange:
    """A planned change: the observed state, the desired state, and the plan between them.

    `host` has the facts that the desired state depends on. `unwritable_ports` are the ports of
    bridges that no guard can be hooked at, since nft text cannot carry their names.
    """

    observed: NetState
    desired: NetState
    plan: Plan
    host: HostFacts = Factory(HostFacts)
    unwritable_ports: frozenset[str] = frozenset()


def plan_change(kernel: Kernel, policy: Policy, state_dir: StateDir) -> PlannedChange:
    """Read the kernel and plan to apply `policy`. Changes nothing."""
    original = state_dir.saved_sysctls()
    observed = read_own_state(kernel, [sysctl.path for sysctl in required_sysctls(policy)] + list(original))
    facts, unwritable = read_host_facts(kernel, policy, observed)
    desired = compile_policy(policy, facts)
    desired = _of_families(desired, kernel.ip_families())
    # Sysctls that an earlier policy set, and this one does not set, get their original values.
    set_now = {sysctl.path for sysctl in desired.sysctls}
    restored = tuple(Sysctl(path, value) for path, value in original.items() if path not in set_now)
    desired = evolve(desired, sysctls=(*desired.sysctls, *restored))
    steps = plan(observed, desired)
    return PlannedChange(observed, desired, steps, facts, unwritable)


def read_host_facts(
    kernel: Kernel, policy: Policy, observed: NetState = NetState()
) -> tuple[HostFacts, frozenset[str]]:
    """Return the facts about the host for a policy, and the ports that they leave out (`unwritable_ports`).

    `observed`: nftpolicy's own objects, as far as known.
    """
    devices = [device for uplink in policy.uplink.values() for device in uplink.devices]
    has_table = observed.table("netdev", object_names.TABLE) is not None
    link_guard = has_table or kernel.supports_egress_hook("lo")
    unhooked = _unhooked(kernel, observed, devices) if link_guard else frozenset()
    ports = kernel.bridge_ports(devices)
    writable = {device: tuple(filter(can_hook, names)) for device, names in ports.items()}
    unwritable = frozenset(port for names in ports.values() for port in names if not can_hook(port))
    return HostFacts(writable, link_guard, unhooked, kernel.loopback_families()), unwritable


def unwritable_port_message(port: str) -> str:
    """Return a warning of one of PlannedChange.unwritable_ports."""
    return f"port {port}: no link guard against AF_PACKET sockets, since nft text cannot carry its name: rename it"


def link_guard_messages(host: HostFacts) -> Iterator[str]:
    """Yield a message about each device that has no link guard, and about a kernel that has none."""
    if not host.has_egress_hook:
        yield "this kernel has no netdev egress hook: frames of AF_PACKET sockets are not guarded"
    for device in sorted(host.unhookable_devices):
        yield f"device {device} is absent; its link guard is added when it appears (by watch, or by the next apply)"


def _unhooked(kernel: Kernel, observed: NetState, devices: list[str]) -> frozenset[str]:
    """Return the absent devices that this kernel cannot hook (before about Linux 6.18)."""
    hooked = {chain.hook.device for table in observed.tables for chain in table.chains if chain.hook}
    absent = set(devices) - hooked - kernel.device_names()
    return frozenset(device for device in absent if not kernel.supports_egress_hook(device))


def read_own_state(kernel: Kernel, paths: list[str]) -> NetState:
    """Read nftpolicy's own objects in the kernel, and the sysctls at `paths`.

    Its routes in table main belong to the route keeper of watch, and to no desired state.
    """
    state = _read_everything(kernel, paths)
    return evolve(state, routes=tuple(route for route in state.routes if route.table != TABLE_MAIN))


def _read_everything(kernel: Kernel, paths: list[str]) -> NetState:
    return kernel.read_own(object_names.TABLE, object_names.FAMILIES, RTPROT_NFTPOLICY, paths)


def _of_families(state: NetState, families: tuple[int, ...]) -> NetState:
    rules = tuple(rule for rule in state.rules if rule.family in families)
    routes = tuple(route for route in state.routes if route.family in families)
    return evolve(state, rules=rules, routes=routes)


def apply_change(kernel: Kernel, planned: PlannedChange, state_dir: StateDir, on_step: OnStep = lambda: None) -> None:
    """Execute a planned change; `on_step` is called after each step.

    Raises:
        StepRefused, ReadBackMismatch: the kernel is as it was before.
        RollbackFailed: the previous state could not be restored; the guard stays in force.
    """
    set_sysctls = [step for step in planned.plan.steps if isinstance(step, SysctlChange)]
    state_dir.save_sysctls({step.new.path: step.old for step in set_sysctls})
    run_plan(kernel, planned.plan, on_step, planned.observed)
    missing = _remaining_steps(kernel, planned.desired)
    if missing.steps and all(isinstance(step, SysctlChange) for step in missing.steps):
        # A device came again after its sysctls were set, or when they could not be.
        _run_ignoring_refusals(kernel, missing.steps)
        missing = _remaining_steps(kernel, planned.desired)
    if missing.steps:
        roll_back(kernel, list(planned.plan.steps), planned.observed)
        raise ReadBackMismatch(missing)


def _remaining_steps(kernel: Kernel, desired: NetState) -> Plan:
    return plan(read_own_state(kernel, [sysctl.path for sysctl in desired.sysctls]), desired)


def plan_release(kernel: Kernel, state_dir: StateDir) -> PlannedChange:
    """Read the kernel and plan to remove every object of nftpolicy. Changes nothing."""
    original = state_dir.saved_sysctls()
    observed = _read_everything(kernel, list(original))
    desired = NetState(sysctls=tuple(Sysctl(path, value) for path, value in original.items()))
    return PlannedChange(observed, desired, plan(observed, desired))


def run_plan(
    kernel: Kernel,
    planned: Plan,
    on_step: OnStep = lambda: None,
    observed: NetState | None = None,
) -> None:
    """Run the steps in order; after a refusal or an interrupt, undo the steps that were run.

    `observed` is the state before the first step; with it, the undone state is read back.

    Raises:
        StepRefused: the steps were undone.
        RollbackFailed: as `roll_back`.
    """
    completed: list[Step] = []
    for step in planned.steps:
        try:
            if not _apply_unless_gone(kernel, step):
                continue
        except StepRefused:
            roll_back(kernel, completed, observed)
            raise
        except BaseException:
            # Interrupted: this step may have been executed.
            roll_back(kernel, [*completed, step], observed)
            raise
        completed.append(step)
        on_step()


def run_release(kernel: Kernel, planned: Plan, state_dir: StateDir, on_step: OnStep = lambda: None) -> Plan:
    """Run the steps of a release; return the steps that remain, none if all of nftpolicy is gone.

    A release is not undone: if a step is refused, since another process changed the same objects, what is there then
    is removed.
    """
    with suppress(StepRefused, RollbackFailed):
        run_plan(kernel, planned, on_step)
    for _ in range(_RESTORE_ATTEMPTS):
        missing = plan_release(kernel, state_dir).plan
        if not missing.steps:
            break
        _run_ignoring_refusals(kernel, missing.steps)
    return plan_release(kernel, state_dir).plan


def _apply_unless_gone(kernel: Kernel, step: Step) -> bool:
    """Apply a step; return False if it sets a sysctl of a device that has gone. Raises StepRefused.

    A sysctl that does not exist is tried once more: the device may have come again.
    """
    for _ in range(_SYSCTL_ATTEMPTS):
        with suppress(SysctlMissing):
            kernel.apply_step(step)
            return True
    return False


def roll_back(kernel: Kernel, completed: Sequence[Step], observed: NetState | None = None) -> None:
    """Run the inverses of `completed`, last first; an inverse that is refused is skipped.

    `observed` is the state to restore: differences that remain are planned and repaired.

    Raises:
        RollbackFailed: differences remain after that.
    """
    _run_ignoring_refusals(kernel, [step.inverse() for step in reversed(completed)])
    if observed is None:
        return
    paths = [sysctl.path for sysctl in observed.sysctls]
    previous = evolve(observed, tables=tuple(writable_part(table) for table in observed.tables))
    for _ in range(_RESTORE_ATTEMPTS):
        missing = plan(read_own_state(kernel, paths), previous)
        if not missing.steps:
            return
        _run_ignoring_refusals(kernel, missing.steps)
    missing = plan(read_own_state(kernel, paths), previous)
    if missing.steps:
        raise RollbackFailed(missing)


def _run_ignoring_refusals(kernel: Kernel, steps: Sequence[Step]) -> None:
    for step in steps:
        with suppress(StepRefused):
            kernel.apply_step(step)
