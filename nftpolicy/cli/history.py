# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy history"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

from .common import NOT_HERE, Failure, warn

if TYPE_CHECKING:
    from ..runtime.changes.history import History, Shelf
    from ..runtime.changes.pending import Pending


def command(json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the policies that were applied here, and which one is in force."""
    from ..runtime.changes import deadman, history, pending
    from ..runtime.changes.memory import of_this_namespace

    memory = of_this_namespace()
    kept = history.of_this_namespace(memory)
    try:
        shelf, last = kept.read(), memory.policy()
    except PermissionError:
        raise Failure("this needs root: try again with sudo", NOT_HERE) from None
    except OSError as error:
        raise Failure(f"{error.filename or kept.folder}: {error.strerror}") from None
    trial = None
    with suppress(pending.Declined):  # overdue says it
        trial = pending.pending(memory)
    present = shelf.of_text(last[1]) if last else None
    number = present.number if present else None
    if json:
        import json as library

        print(library.dumps(_facts(kept, shelf, number, trial), indent=1))
    else:
        _show(shelf, number, trial)
        for one in shelf.damaged:
            warn(f"{one.path}: damaged, and left out: {one.reason}")
        if last is not None and present is None:
            warn(f"the policy in force ({last[0]}) is not in the history")
    if said := deadman.overdue(memory):
        warn(said)


def _facts(kept: History, shelf: Shelf, present: int | None, trial: Pending | None) -> dict[str, Any]:
    return {
        "in_force": present,
        "pending": trial and trial.facts(),
        "entries": [{**one.facts(), "path": str(kept.path(one.number))} for one in shelf.entries],
        "damaged": [{"path": str(one.path), "reason": one.reason} for one in shelf.damaged],
    }


def _show(shelf: Shelf, present: int | None, trial: Pending | None) -> None:
    if not shelf.entries:
        print("no policy was applied here yet")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("number", "time (UTC)", "policy", "why", "state"):
        justify: Any = "right" if column == "number" else "left"
        table.add_column(column, justify=justify, no_wrap=column == "time (UTC)", overflow="fold")
    for one in shelf.entries:
        state = _state(trial) if one.number == present else ""
        cells = (str(one.number), one.time.replace("T", " ").rstrip("Z"), one.policy, one.why, state)
        table.add_row(*map(Text, cells))
    Console(highlight=False).print(table)


def _state(trial: Pending | None) -> str:
    """What is said of the entry that is in force."""
    from ..runtime.changes.pending import WAITING

    if trial is None:
        return "in force"
    if trial.state == WAITING and (left := trial.remaining()) > 0:
        return f"in force, to be confirmed within {left:.0f} s"
    return f"in force, not confirmed ({trial.state})"
