# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy status [FILE]"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from attrs import evolve

from ..policy.objects import Policy
from .common import EXIT_REFUTED, change_errors_as_failure, last_policy, read_policy, this_kernel, warn
from .options import AppliedPolicyFile, PrintJson
from .plain_output import print_json

if TYPE_CHECKING:
    from ..runtime.apply.state_dir import StateDir


def command(file: AppliedPolicyFile = None, as_json: PrintJson = False) -> None:
    """Show if the policy is in force, with counters and sockets.

    Exits with 1 if guard, ip rules, routes or sysctls differ from the policy, if the uplinks are stopped, or if
    a foreign ip rule starves the services.
    """
    kernel = this_kernel()
    from ..runtime.apply.block_reason import WAY_OUT, BlockReasonFile
    from ..runtime.apply.executor import plan_change
    from ..runtime.apply.state_dir import current_state_dir
    from ..runtime.resolver.resolv_files import find_host_leaks as resolver_leaks
    from ..runtime.status import read_status
    from ..runtime.sysctl_files import find_sysctl_conflicts

    state_dir = current_state_dir()
    with change_errors_as_failure(None):
        policy, _ = read_policy(file) if file is not None else last_policy("nftpolicy status FILE", state_dir)
        state = evolve(
            read_status(kernel, policy, plan_change(kernel, policy, state_dir)),
            misplaced_routes=_misplaced_routes(policy),
        )
        if state.is_blocked:
            state = evolve(state, block_reasons=BlockReasonFile(state_dir.directory).read())
    leaks = [str(leak) for leak in resolver_leaks(policy)]
    conflicts = [str(conflict) for conflict in find_sysctl_conflicts(policy)]
    if as_json:
        print_json({**state.as_json(), "resolver_leaks": leaks, "sysctl_files": conflicts})
    else:
        from .render.tables import print_status

        print_status(state)
    if state.is_blocked:
        for reason in state.block_reasons:
            warn(f"the uplinks are stopped: {reason}")
        warn(WAY_OUT)
    for line in (*state.notes, *_pending_lines(state_dir)):
        warn(line)
    for route in state.misplaced_routes:
        warn(f"not in its uplink's table, so the guard drops packets that use it: {route}")
    for line in (*map(str, state.asked_addresses), *map(str, state.foreign_rules), *leaks, *conflicts):
        warn(line)
    if not state.as_expected:
        raise typer.Exit(EXIT_REFUTED)


def _misplaced_routes(policy: Policy) -> tuple[str, ...]:
    from ..kernel.netlink.route_mover import RouteMover
    from ..runtime.watch.route_keeper import misplaced_routes

    routes = RouteMover()
    try:
        return misplaced_routes(routes, policy)
    finally:
        routes.close()


def _pending_lines(state_dir: StateDir) -> Iterator[str]:
    """Yield a line for an interrupted change, and for a policy on trial."""
    from ..runtime.apply.confirm_timer import describe_problem
    from ..runtime.apply.pending_confirm import read_pending
    from ..runtime.apply.state_dir import Locked

    if not state_dir.directory.exists():
        return
    try:
        with state_dir.lock():
            interrupted = state_dir.journal.interrupted()
        if interrupted is not None:
            yield f"{interrupted}; type 'nftpolicy recover'"
    except Locked as error:
        yield str(error)
    if problem := describe_problem(state_dir):
        yield problem
    elif (trial := read_pending(state_dir)) is not None:
        target = f"then rolled back to {trial.target_text}"
        yield f"on trial until {trial.until}, {target}; 'nftpolicy confirm' keeps it"
