# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy watch [FILE]"""

from __future__ import annotations

import gc
import json as library
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Optional

import typer

from . import changes
from .common import changing, read_policy, this_kernel


def command(
    file: Optional[Path] = typer.Argument(  # noqa: UP045
        None, help="A policy to apply first; without it, what was applied last is held."
    ),
    json: bool = typer.Option(False, "--json", help="Log JSON, an object a line."),
    block_unknown: bool = typer.Option(
        False, "--block-unknown", help="Block the uplinks too when the proof can't be led, not only when it fails."
    ),
    leave_routes: bool = typer.Option(False, "--leave-routes", help="Leave routes over uplinks where they are."),
    wait: float = typer.Option(30, "--wait", min=0, help="Seconds to wait for another process before FILE is applied."),
) -> None:
    """Hold the policy: put back what goes missing, prove again what others change, block where that fails."""
    gc.enable()
    named = read_policy(file) if file is not None else None
    kernel = this_kernel()
    from ..compiler import names
    from ..kernel import monitor
    from ..kernel.libnft import Nft
    from ..kernel.linux import Linux
    from ..kernel.moving import Routes
    from ..kernel.notify import Manager
    from ..netstate.routing import PROTOCOL
    from ..runtime.changes.change import Options, Wanted
    from ..runtime.resolver.leak_files import Watcher
    from ..runtime.watch.loop import Watch
    from ..runtime.watch.world import World

    changer = changes.changer(kernel, Options(wait))
    with monitor.Monitor(names.TABLE, names.BLOCK_TABLE, PROTOCOL) as ears:
        if named is not None:
            policy, source = named
            wanted = Wanted(policy, (source.name, source.text.encode()))
            with changing(source), changer.alone():
                outlook = changer.outlook(wanted)
                changes.foretell(outlook)
                changes.afterwards(changer.carry_out(outlook, wanted, why="watch"))
        log, nft = Log(json), Nft()
        nft.load(f"add table inet {names.BLOCK_TABLE}\n", check=True)  # its socket has an address from now on
        world = World(
            changer, Linux, ears, nft.load, log.say, monitor.sent, monitor.counted, monitor.own_ports, Manager(),
            block_unknown, nft.load(f"table inet {names.SECOND_TABLE} {{\n\tflags owner\n}}\n", check=True) is None,
            None if leave_routes else Routes(), leaks=Watcher().look,
        )  # fmt: skip
        Watch(world).run()


class Log:
    """Lines on standard error, one an event: key=value, or JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def say(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write a line. A reader that has gone does not end the watch."""
        from ..runtime.watch.decisions import line

        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        try:
            print(library.dumps(told) if self._as_json else line(told), file=sys.stderr, flush=True)
        except OSError:
            return
