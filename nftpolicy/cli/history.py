# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy history"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .common import EXIT_UNAVAILABLE, Failure, warn
from .options import PrintJson
from .plain_output import print_json
from .render.terminal import make_console, make_table

if TYPE_CHECKING:
    from ..runtime.apply.history import History, HistorySnapshot
    from ..runtime.apply.pending_confirm import PendingConfirm


def command(as_json: PrintJson = False) -> None:
    """List the policies that were applied on this machine."""
    from ..runtime.apply import confirm_timer, history, pending_confirm
    from ..runtime.apply.state_dir import current_state_dir

    state_dir = current_state_dir()
    stored = history.current_history(state_dir)
    try:
        snapshot, last = stored.read(), state_dir.policy()
    except PermissionError:
        raise Failure("this needs root: try again with sudo", EXIT_UNAVAILABLE) from None
    except OSError as error:
        raise Failure(f"{error.filename or stored.directory}: {error.strerror}") from None
    trial = None
    with suppress(pending_confirm.ConfirmError):  # the warning of the confirm timer below covers it
        trial = pending_confirm.read_pending(state_dir)
    entry = snapshot.find_by_text(last[1]) if last else None
    number = entry.number if entry else None
    if as_json:
        print_json(_history_json(stored, snapshot, number, trial))
    else:
        _print_history(snapshot, number, trial)
        for file in snapshot.damaged:
            warn(f"{file.path}: damaged, so it is not listed: {file.reason}")
        if last is not None and entry is None:
            warn(f"the policy in force ({last[0]}) is not in the history")
    if problem := confirm_timer.describe_problem(state_dir):
        warn(problem)


def _history_json(
    stored: History, snapshot: HistorySnapshot, in_force: int | None, trial: PendingConfirm | None
) -> dict[str, Any]:
    return {
        "in_force": in_force,
        "pending": trial and trial.as_json(),
        "entries": [{**entry.as_json(), "path": str(stored.path(entry.number))} for entry in snapshot.entries],
        "damaged": [{"path": str(file.path), "reason": file.reason} for file in snapshot.damaged],
    }


def _print_history(snapshot: HistorySnapshot, in_force: int | None, trial: PendingConfirm | None) -> None:
    if not snapshot.entries:
        print("no policy was applied here yet")
        return
    columns = ("number", "time (UTC)", "policy", "why", "state")
    table = make_table(*columns, right=("number",), no_wrap=("time (UTC)",))
    for entry in snapshot.entries:
        state = _state_in_force(trial) if entry.number == in_force else ""
        time = entry.time.replace("T", " ").rstrip("Z")
        table.add_row(str(entry.number), time, entry.policy, entry.why, state)
    make_console().print(table)


def _state_in_force(trial: PendingConfirm | None) -> str:
    """Return the state column of the policy in force."""
    from ..runtime.apply.pending_confirm import WAITING

    if trial is None:
        return "in force"
    if trial.state == WAITING and (left := trial.remaining()) > 0:
        return f"in force, to be confirmed within {left:.0f} s"
    return f"in force, not confirmed ({trial.state})"
