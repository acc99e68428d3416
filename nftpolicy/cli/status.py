# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy status [FILE]"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer
from attrs import evolve

from ..policy.objects import Policy
from .common import BAD_INPUT, REFUSED, Failure, changing, parse_policy, read_policy, this_kernel, warn

if TYPE_CHECKING:
    from ..runtime.changes.memory import Memory


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy; without it, the one that was applied last."),  # noqa: UP045
    json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show uplinks, counters, and whether guard, ladder, routes and sysctls are as wanted (else exit 1)."""
    kernel = this_kernel()
    from ..runtime.changes.apply import prospect
    from ..runtime.changes.memory import of_this_namespace
    from ..runtime.resolver.leak_files import found as places
    from ..runtime.status import status

    memory = of_this_namespace()
    with changing(None):
        policy = read_policy(file)[0] if file is not None else _last(memory)
        found = evolve(status(kernel, policy, prospect(kernel, policy, memory)), strays=_strays(policy))
    leaks = list(map(str, places(policy)))
    if json:
        import json as library

        print(library.dumps({**found.as_json(), "resolver_leaks": leaks}, indent=1))
    else:
        from .tables import show_status

        show_status(found)
    strays = [f"not in its uplink's table, so that the guard drops what it draws: {route}" for route in found.strays]
    for line in (*_notes(memory), *strays, *leaks):
        warn(line)
    if not found.as_expected:
        raise typer.Exit(REFUSED)


def _strays(policy: Policy) -> tuple[str, ...]:
    from ..kernel.moving import Routes
    from ..runtime.watch.keeper import strays

    routes = Routes()
    try:
        return strays(routes, policy)
    finally:
        routes.close()


def _notes(memory: "Memory") -> Iterator[str]:
    """What was begun and not ended."""
    from ..runtime.changes.deadman import overdue
    from ..runtime.changes.memory import Busy
    from ..runtime.changes.pending import pending

    if not memory.folder.exists():
        return
    try:
        with memory.alone():
            interrupted = memory.journal.interrupted()
        if interrupted is not None:
            yield f"{interrupted}: nftpolicy recover"
    except Busy as error:
        yield str(error)
    if said := overdue(memory):
        yield said
    elif (trial := pending(memory)) is not None:
        yield f"on trial until {trial.until}, then it goes back to {trial.goal}; 'nftpolicy confirm' keeps it"


def _last(memory: "Memory") -> Policy:
    last = memory.policy()
    if last is None:
        raise Failure("no policy was applied here; name one: nftpolicy status FILE", BAD_INPUT)
    return parse_policy(last[1], last[0])[0]
