# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy recover"""

from __future__ import annotations

import typer

from . import changes
from .common import changing, done, this_kernel, warn


def command(
    undo: bool = typer.Option(False, "--undo", help="Go back to what was in force before, rather than on."),
    wait: float = typer.Option(0, "--wait", min=0, help="Seconds to wait for another process that changes things."),
) -> None:
    """End a change that was interrupted: go on with an apply, take a release back. Never opens the uplink."""
    kernel = this_kernel()
    from ..runtime.changes import deadman
    from ..runtime.changes.change import Options
    from ..runtime.changes.recover import recover

    with changing(None):
        changer = changes.changer(kernel, Options(wait))
        with changer.alone():
            found = recover(changer, undo, warn)
    if said := deadman.overdue(changer.memory):
        warn(said)
    if found is None:
        print("nothing was interrupted")
        return
    changes.afterwards(found.carried)
    print(f"{found.wanted.policy.name}: {done(found.outlook.found, 'recovered', 'the kernel holds it already')}")
