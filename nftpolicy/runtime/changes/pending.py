# SPDX-License-Identifier: BSD-2-Clause
"""State of a policy that waits to be confirmed: deadline and rollback target, in a file.

A process that changes the file holds its lock, so that either `confirm` or the deadline wins. The
process that rolls back (`rolling_back`) holds the lock of the state directory as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from ..atomic_file import write_file
from ..file_lock import exclusive_lock
from .memory import Memory

FILE = "pending.json"
_LOCK = "pending.lock"
# States: its policy is being applied; waits to be confirmed; is rolled back; the rollback failed.
APPLYING, WAITING, GOING_BACK, FAILED = "applying", "waiting", "going back", "failed"
# Field 22 of proc_pid_stat(5), counted from the field after the program's name (field 3).
_START_TIME_FIELD = 22 - 3


class Declined(Exception):
    """The request does not fit the state of confirmation; the message has the command to type."""


class Gone(Exception):
    """The policy was confirmed or rolled back already."""


class NotDue(Exception):
    """The deadline has not passed."""


@frozen
class Process:
    """A process, identified by PID and start time (clock ticks since the machine started)."""

    pid: int
    started: int

    def alive(self) -> bool:
        """Return True if this process still runs."""
        return started(self.pid) == self.started


def started(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None without such a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The program's name, in parentheses, may hold any character.
    return int(stat.rpartition(")")[2].split()[_START_TIME_FIELD])


def process(pid: int) -> Process:
    """Return the identity of a running process."""
    return Process(pid, started(pid) or 0)


@frozen
class Back:
    """The policy to roll back to: its number in the history or None, its file name, its text."""

    number: int | None
    file: str
    text: str

    def __str__(self) -> str:
        return self.file if self.number is None else f"{self.number} ({self.file})"


RELEASE = "no policy (a release, which opens the uplinks)"


@frozen
class Pending:
    """A policy that waits to be confirmed. The field names are the keys of its file.

    `token` identifies it; `seconds` is the requested time; `deadline` is in seconds of `boottime`,
    and `until` the same as a date (UTC, ISO 8601); `back` is the rollback target, None for a
    release; `deadman` is the process that waits for the deadline; `reason` is the cause of a failed
    rollback.
    """

    token: str
    state: str
    seconds: float
    deadline: float
    until: str
    back: Back | None
    applier: Process
    deadman: Process
    reason: str = ""

    def remaining(self) -> float:
        """Return the seconds until the deadline, negative after it."""
        return self.deadline - clock()

    @property
    def goal(self) -> str:
        """The rollback target as text."""
        return RELEASE if self.back is None else str(self.back)

    def facts(self) -> dict[str, Any]:
        """Return the fields for JSON that is printed."""
        back: str | dict[str, Any] = "release"
        if self.back is not None:
            back = {"number": self.back.number, "file": self.back.file}
        return {
            "state": self.state,
            "until": self.until,
            "remaining": round(max(self.remaining(), 0.0), 1),
            "back": back,
            "pid": self.deadman.pid,
            "reason": self.reason,
        }


def clock() -> float:
    """Return CLOCK_BOOTTIME in seconds: it runs during suspend, and cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def from_now(seconds: float) -> dict[str, Any]:
    """Return the fields `deadline` and `until` for a deadline in this many seconds."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return {"deadline": clock() + seconds, "until": until.strftime("%Y-%m-%dT%H:%M:%SZ")}


def pending(memory: Memory) -> Pending | None:
    """Read the pending confirmation of this network namespace, or None.

    Raises ConfirmError if the file is damaged.
    """
    path = memory.folder / FILE
    try:
        stored = json.loads(path.read_bytes())
        back = stored["back"]
        return Pending(
            **{
                **stored,
                "back": None if back is None else Back(**back),
                "applier": Process(**stored["applier"]),
                "deadman": Process(**stored["deadman"]),
            }
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise Declined(
            f"{path}: damaged, so the policy to be confirmed is unknown; remove the file, then run "
            "'nftpolicy apply FILE' or 'nftpolicy rollback N'"
        ) from None


def begin(memory: Memory, new: Pending) -> None:
    """Create a pending confirmation. Raises ConfirmError if there is one already."""
    with _locked(memory):
        _require_none(pending(memory))
        _write(memory, new)


def refuse(memory: Memory) -> None:
    """Raise ConfirmError if a policy waits to be confirmed, unless its rollback failed."""
    _require_none(pending(memory))


def _require_none(current: Pending | None) -> None:
    if current is not None and current.state != FAILED:
        left = current.remaining()
        when = f"{left:.0f} s left" if left > 0 else "its time is over"
        raise Declined(
            f"the policy in force waits to be confirmed ({when}): confirm or rollback first "
            "('nftpolicy confirm' keeps it, 'nftpolicy rollback' restores the previous policy)"
        )


def update(memory: Memory, token: str, **values: Any) -> Pending | None:
    """Change fields of the pending confirmation and return it; None if it has ended."""
    with _locked(memory):
        current = pending(memory)
        if current is None or current.token != token:
            return None
        changed = evolve(current, **values)
        _write(memory, changed)
        return changed


def end(memory: Memory, token: str | None = None) -> Pending | None:
    """Remove the pending confirmation, with `token` only that one; return it, or None."""
    if not memory.folder.exists():
        return None
    with _locked(memory):
        try:
            current = pending(memory)
        except Declined:
            current = None
        if token is not None and (current is None or current.token != token):
            return None
        (memory.folder / FILE).unlink(missing_ok=True)
        return current


def confirm(memory: Memory) -> Pending:
    """Keep the policy in force, and return the confirmation.

    Raises ConfirmError if no policy waits to be confirmed, or if it is too late.
    """
    if not memory.folder.exists():
        raise Declined("no policy is waiting to be confirmed")
    with _locked(memory):
        current = pending(memory)
        if current is None:
            raise Declined("no policy is waiting to be confirmed")
        if current.state == APPLYING:
            raise Declined(
                "the policy is not completely applied, so it cannot be confirmed; "
                "'nftpolicy rollback' restores the previous policy"
            )
        if current.state != WAITING or current.remaining() <= 0:
            raise Declined(
                f"too late: the policy had to be confirmed until {current.until}; rolling back to {current.goal}"
            )
        (memory.folder / FILE).unlink()
        return current


@contextmanager
def claimed(
    memory: Memory,
    token: str,
    is_due: Callable[[Pending], bool] = lambda _: True,
) -> Iterator[None]:
    """Roll back in the block: `confirm` is too late from its beginning.

    At its end the confirmation is removed; if it fails, the previous state is restored. The caller
    holds the lock of the state directory.

    Raises:
        AlreadyResolved: the policy was confirmed, or ended otherwise.
        NotExpired: `is_due` returned False.
    """
    with _locked(memory):
        before = pending(memory)
        if before is None or before.token != token:
            raise Gone
        if not is_due(before):
            raise NotDue
        _write(memory, evolve(before, state=GOING_BACK))
    try:
        yield
    except BaseException:
        # ROLLING_BACK was left by a process that was killed in its rollback.
        update(memory, token, state=WAITING if before.state == GOING_BACK else before.state)
        raise
    end(memory, token)


@contextmanager
def unless_pending(memory: Memory) -> Iterator[None]:
    """Make a change in the block; raise ConfirmError if a policy waits to be confirmed."""
    refuse(memory)
    yield
    end(memory)  # of an earlier policy with a failed rollback


def _write(memory: Memory, new: Pending) -> None:
    write_file(memory.folder / FILE, json.dumps(asdict(new), indent=1).encode())


@contextmanager
def _locked(memory: Memory) -> Iterator[None]:
    """Hold the lock of the file. It is held for moments only, so this waits without limit."""
    memory.folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(memory.folder / _LOCK):
        yield
