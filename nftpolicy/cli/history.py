# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy history [show NUMBER | diff NUMBER [OTHER]]"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import EXIT_BAD_INPUT, Failure, parse_policy, state_failure, warn
from .options import PrintJson
from .parameters import GroupedCommand, OrderedGroup, argument, option, readable_command
from .plain_output import print_json
from .render.terminal import make_console, make_table

if TYPE_CHECKING:
    from ..runtime.apply.history import HistoryEntry, HistorySnapshot
    from ..runtime.apply.history_events import HistoryEvent
    from ..runtime.apply.pending_confirm import PendingConfirm
    from ..runtime.apply.state_dir import StateDir

JSON_VERSION = 1  # of `history --json`; nftpolicy-apply(1) describes its keys
_EVENT_TEXTS = {
    "released": "released ({why})",
    "applied again": "number {number} applied again ({why})",
    "blocked": "watch blocked the uplinks: {why}",
    "unblocked": "the block ended: {why}",
    "confirmed": "confirmed {why}",
    "rollback failed": "the rollback failed, {why}",
}
EntryNumber = Annotated[int, argument(metavar="NUMBER", help="Number in the history.")]

group = typer.Typer(
    cls=OrderedGroup,
    help="List the policies that were applied on this machine.",
    invoke_without_command=True,
)


def list_history(context: typer.Context, as_json: PrintJson = False) -> None:
    """List the policies that were applied on this machine.

    Releases and blocks by watch are listed too, each with its time and reason.
    """
    if context.invoked_subcommand is None:
        print_history(as_json)


def show(number: EntryNumber, as_json: PrintJson = False) -> None:
    """Print a policy of the history, with its time and reason."""
    entry = _find_entry(_read_history()[1], number)
    if as_json:
        print_json({"version": JSON_VERSION, **entry.as_json(), "text": entry.text})
        return
    print(f"# {entry.number}: {entry.policy} ({entry.file}), {_readable_time(entry.time)} UTC, by {entry.who}")
    print(f"# {_reason(entry)}; {entry.verdict}; sha256 {entry.sha256}")
    print(entry.text, end="" if entry.text.endswith("\n") else "\n")


def diff(
    number: EntryNumber,
    other: Annotated[
        int | None, argument(metavar="[OTHER]", help="Number of the later policy; default: the policy in force.")
    ] = None,
    statements: Annotated[
        bool, option("--statements", help="Print the statements of nft and ip that differ, too.")
    ] = False,
) -> None:
    """Compare two policies of the history.

    Prints which traffic they permit differently, as 'nftpolicy diff', then the lines that differ.
    """
    state_dir, snapshot = _read_history()
    old = _find_entry(snapshot, number)
    if other is not None:
        new = _find_entry(snapshot, other)
        after = (f"number {other} ({new.file})", new.text)
    elif (last := _policy_in_force(state_dir)) is not None:
        after = (f"in force ({last[0]})", last[1].decode())
    else:
        raise Failure(f"no policy is in force; name two: nftpolicy history diff {number} OTHER")
    before = (f"number {number} ({old.file})", old.text)
    print("\n".join(policy_difference(before, after)))
    if statements:
        from .diff import changed_statements

        policies = (parse_policy(text.encode(), title)[0] for title, text in (before, after))
        print("\n".join(("", "statements:", *(f"  {line}" for line in changed_statements(*policies)))))


def policy_difference(before: tuple[str, str], after: tuple[str, str]) -> list[str]:
    """Return the difference of two policies, each a title and a text: the traffic, then the lines."""
    (old_title, old_text), (new_title, new_text) = before, after
    texts = old_text.splitlines(), new_text.splitlines()
    lines = list(difflib.unified_diff(*texts, old_title, new_title, lineterm=""))
    return [*_meaning(before, after), "", *lines] if lines else [f"{old_title} and {new_title} are the same policy"]


def _meaning(before: tuple[str, str], after: tuple[str, str]) -> list[str]:
    from ..policy.policy_diff import diff_policies

    try:
        old, new = (parse_policy(text.encode(), title)[0] for title, text in (before, after))
    except Failure as failure:  # for example, a group that it names was deleted
        return [f"a policy is not valid now, so only the lines are compared: {failure}"]
    return list(diff_policies(old, new).lines) or ["both policies mean the same"]


group.callback()(readable_command(list_history))
group.command("show", cls=GroupedCommand)(readable_command(show))
group.command("diff", cls=GroupedCommand)(readable_command(diff))


def print_history(as_json: bool) -> None:
    """Print the entries and events, the newest last, as a table or as JSON."""
    from ..runtime.apply import confirm_timer, pending_confirm

    state_dir, snapshot = _read_history()
    last = _policy_in_force(state_dir)
    trial = None
    with _errors_as_failure(), suppress(pending_confirm.ConfirmError):  # the warning below covers it
        trial = pending_confirm.read_pending(state_dir)
    entry = snapshot.find_by_text(last[1]) if last else None
    number = entry.number if entry else None
    if as_json:
        print_json(_history_json(state_dir, snapshot, number, trial))
    else:
        _print_table(snapshot, number, trial)
        for file in snapshot.damaged:
            warn(f"{file.path}: damaged, so it is not listed: {file.reason}")
        if last is not None and entry is None:
            warn(f"the policy in force ({last[0]}) is not in the history")
    if problem := confirm_timer.describe_problem(state_dir):
        warn(problem)


def _read_history() -> tuple[StateDir, HistorySnapshot]:
    """Return the state directory and the history of this network namespace. Raises Failure."""
    from ..runtime.apply import history
    from ..runtime.apply.state_dir import current_state_dir

    state_dir = current_state_dir()
    with _errors_as_failure():
        return state_dir, history.current_history(state_dir).read()


def _policy_in_force(state_dir: StateDir) -> tuple[str, bytes] | None:
    with _errors_as_failure():
        return state_dir.policy()


@contextmanager
def _errors_as_failure() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise state_failure(error) from None


def _find_entry(snapshot: HistorySnapshot, number: int) -> HistoryEntry:
    entry = snapshot.entry(number)
    if entry is not None:
        return entry
    damaged = next((file for file in snapshot.damaged if file.path.name == f"{number:06}.json"), None)
    if damaged:
        raise Failure(f"{damaged.path}: damaged, so it cannot be read: {damaged.reason}")
    raise Failure(f"there is no number {number} in the history: type 'nftpolicy history' to list it", EXIT_BAD_INPUT)


def _history_json(
    state_dir: StateDir, snapshot: HistorySnapshot, in_force: int | None, trial: PendingConfirm | None
) -> dict[str, Any]:
    from ..runtime.apply.history import current_history

    path = current_history(state_dir).path
    return {
        "version": JSON_VERSION,
        "in_force": in_force,
        "pending": trial and trial.as_json(),
        "entries": [{**entry.as_json(), "path": str(path(entry.number))} for entry in snapshot.entries],
        "events": [event.as_json() for event in snapshot.events],
        "damaged": [{"path": str(file.path), "reason": file.reason} for file in snapshot.damaged],
    }


def _print_table(snapshot: HistorySnapshot, in_force: int | None, trial: PendingConfirm | None) -> None:
    from ..runtime.apply.history_events import HistoryEvent

    records = snapshot.in_order()
    if not records:
        print("no policy was applied here yet")
        return
    columns = ("number", "time (UTC)", "policy", "why", "state")
    table = make_table(*columns, right=("number",), no_wrap=("time (UTC)",))
    for record in records:
        number = None if isinstance(record, HistoryEvent) else record.number
        state = _state_in_force(trial) if number is not None and number == in_force else ""
        table.add_row(str(number or ""), _readable_time(record.time), record.policy, _reason(record), state)
    make_console().print(table)


def _reason(record: HistoryEntry | HistoryEvent) -> str:
    """Return the reason of an entry, or an event with its reason."""
    from ..runtime.apply.history_events import HistoryEvent

    if not isinstance(record, HistoryEvent):
        return record.why
    return _EVENT_TEXTS.get(record.kind, "{kind}: {why}").format(**record.as_json())


def _readable_time(time: str) -> str:
    return time.replace("T", " ").rstrip("Z")


def _state_in_force(trial: PendingConfirm | None) -> str:
    """Return the state column of the policy in force."""
    from ..runtime.apply.pending_confirm import WAITING

    if trial is None:
        return "in force"
    if trial.state == WAITING and (left := trial.remaining()) > 0:
        return f"in force, to be confirmed within {left:.0f} s"
    return f"in force, not confirmed ({trial.state})"
