# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy status [FILE]"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from attrs import evolve

from ..policy.objects import Policy
from .common import REFUSED, change_errors_as_failure, last_policy, read_policy, this_kernel, warn
from .options import AppliedPolicyFile, PrintJson

if TYPE_CHECKING:
    from ..runtime.changes.memory import Memory


def command(file: AppliedPolicyFile = None, as_json: PrintJson = False) -> None:
    """Show if the policy is in force, with counters and sockets.

    Exits with 1 if guard, ip rules, routes or sysctls differ from the policy.
    """
    kernel = this_kernel()
    from ..runtime.changes.apply import prospect
    from ..runtime.changes.memory import of_this_namespace
    from ..runtime.resolver.leak_files import found as resolver_leaks
    from ..runtime.status import status

    memory = of_this_namespace()
    with change_errors_as_failure(None):
        policy, _ = read_policy(file) if file is not None else last_policy("nftpolicy status FILE", memory)
        state = evolve(
            status(kernel, policy, prospect(kernel, policy, memory)),
            strays=_misplaced_routes(policy),
        )
    leaks = [str(leak) for leak in resolver_leaks(policy)]
    if as_json:
        import json

        print(json.dumps({**state.as_json(), "resolver_leaks": leaks}, indent=1))
    else:
        from .tables import print_status

        print_status(state)
    for line in _pending_lines(memory):
        warn(line)
    for route in state.strays:
        warn(f"not in its uplink's table, so the guard drops packets that use it: {route}")
    for line in leaks:
        warn(line)
    if not state.as_expected:
        raise typer.Exit(REFUSED)


def _misplaced_routes(policy: Policy) -> tuple[str, ...]:
    from ..kernel.moving import Routes
    from ..runtime.watch.keeper import strays

    routes = Routes()
    try:
        return strays(routes, policy)
    finally:
        routes.close()


def _pending_lines(memory: Memory) -> Iterator[str]:
    """Yield a line for an interrupted change, and for a policy on trial."""
    from ..runtime.changes.deadman import overdue
    from ..runtime.changes.memory import Busy
    from ..runtime.changes.pending import pending

    if not memory.folder.exists():
        return
    try:
        with memory.alone():
            interrupted = memory.journal.interrupted()
        if interrupted is not None:
            yield f"{interrupted}; type 'nftpolicy recover'"
    except Busy as error:
        yield str(error)
    if problem := overdue(memory):
        yield problem
    elif (trial := pending(memory)) is not None:
        target = f"then rolled back to {trial.goal}"
        yield f"on trial until {trial.until}, {target}; 'nftpolicy confirm' keeps it"
