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

from ...exceptions import NftpolicyError
from ..atomic_file import write_file
from ..file_lock import exclusive_lock
from ..private_files import read_private
from .state_dir import StateDir

PENDING_FILE = "pending.json"
_LOCK = "pending.lock"
# States: its policy is being applied; waits to be confirmed; is rolled back; the rollback failed.
APPLYING, WAITING, ROLLING_BACK, FAILED = "applying", "waiting", "going back", "failed"
# Field 22 of proc_pid_stat(5), counted from the field after the program's name (field 3).
_START_TIME_FIELD = 22 - 3


class ConfirmError(NftpolicyError):
    """The request does not fit the state of confirmation; the message has the command to type."""


class AlreadyResolved(NftpolicyError):
    """The policy was confirmed or rolled back already."""


class NotExpired(NftpolicyError):
    """The deadline has not passed."""


@frozen
class ProcessRef:
    """A process, identified by PID and start time (clock ticks since the machine started)."""

    pid: int
    started: int

    def is_alive(self) -> bool:
        """Return True if this process still runs."""
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None without such a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The program's name, in parentheses, may hold any character.
    return int(stat.rpartition(")")[2].split()[_START_TIME_FIELD])


def process_ref(pid: int) -> ProcessRef:
    """Return the identity of a running process."""
    return ProcessRef(pid, start_time(pid) or 0)


@frozen
class RollbackTarget:
    """The policy to roll back to: its number in the history or None, its file name, its text."""

    number: int | None
    file: str
    text: str

    def __str__(self) -> str:
        return self.file if self.number is None else f"{self.number} ({self.file})"


RELEASE_TEXT = "no policy (a release, which opens the uplinks)"


@frozen
class PendingConfirm:
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
    back: RollbackTarget | None
    applier: ProcessRef
    deadman: ProcessRef
    reason: str = ""

    def remaining(self) -> float:
        """Return the seconds until the deadline, negative after it."""
        return self.deadline - boottime()

    @property
    def target_text(self) -> str:
        """The rollback target as text."""
        return RELEASE_TEXT if self.back is None else str(self.back)

    def as_json(self) -> dict[str, Any]:
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


def boottime() -> float:
    """Return CLOCK_BOOTTIME in seconds: it runs during suspend, and cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def deadline_fields(seconds: float) -> dict[str, Any]:
    """Return the fields `deadline` and `until` for a deadline in this many seconds."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return {"deadline": boottime() + seconds, "until": until.strftime("%Y-%m-%dT%H:%M:%SZ")}


def read_pending(state_dir: StateDir) -> PendingConfirm | None:
    """Read the pending confirmation of this network namespace, or None.

    Raises ConfirmError if the file is damaged.
    """
    path = state_dir.directory / PENDING_FILE
    try:
        stored = json.loads(read_private(path))
        back = stored["back"]
        return PendingConfirm(
            **{
                **stored,
                "back": None if back is None else RollbackTarget(**back),
                "applier": ProcessRef(**stored["applier"]),
                "deadman": ProcessRef(**stored["deadman"]),
            }
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise ConfirmError(
            f"{path}: damaged, so the policy to be confirmed is unknown; remove the file, then run "
            "'nftpolicy apply FILE' or 'nftpolicy rollback N'"
        ) from None


def create_pending(state_dir: StateDir, new: PendingConfirm) -> None:
    """Create a pending confirmation. Raises ConfirmError if there is one already."""
    with _locked(state_dir):
        _require_none(read_pending(state_dir))
        _write(state_dir, new)


def require_none_pending(state_dir: StateDir) -> None:
    """Raise ConfirmError if a policy waits to be confirmed, unless its rollback failed."""
    _require_none(read_pending(state_dir))


def _require_none(current: PendingConfirm | None) -> None:
    if current is not None and current.state != FAILED:
        left = current.remaining()
        when = f"{left:.0f} s left" if left > 0 else "its time is over"
        raise ConfirmError(
            f"the policy in force waits to be confirmed ({when}): confirm or rollback first "
            "('nftpolicy confirm' keeps it, 'nftpolicy rollback' restores the previous policy)"
        )


def update_pending(state_dir: StateDir, token: str, **values: Any) -> PendingConfirm | None:
    """Change fields of the pending confirmation and return it; None if it has ended."""
    with _locked(state_dir):
        current = read_pending(state_dir)
        if current is None or current.token != token:
            return None
        changed = evolve(current, **values)
        _write(state_dir, changed)
        return changed


def remove_pending(state_dir: StateDir, token: str | None = None) -> PendingConfirm | None:
    """Remove the pending confirmation, with `token` only that one; return it, or None."""
    if not state_dir.directory.exists():
        return None
    with _locked(state_dir):
        try:
            current = read_pending(state_dir)
        except ConfirmError:
            current = None
        if token is not None and (current is None or current.token != token):
            return None
        (state_dir.directory / PENDING_FILE).unlink(missing_ok=True)
        return current


def confirm(state_dir: StateDir) -> PendingConfirm:
    """Keep the policy in force, and return the confirmation.

    Raises ConfirmError if no policy waits to be confirmed, or if it is too late.
    """
    if not state_dir.directory.exists():
        raise ConfirmError("no policy is waiting to be confirmed")
    with _locked(state_dir):
        current = read_pending(state_dir)
        if current is None:
            raise ConfirmError("no policy is waiting to be confirmed")
        if current.state == APPLYING:
            raise ConfirmError(
                "the policy is not completely applied, so it cannot be confirmed; "
                "'nftpolicy rollback' restores the previous policy"
            )
        if current.state != WAITING or current.remaining() <= 0:
            raise ConfirmError(
                f"too late: the policy had to be confirmed until {current.until}; rolling back to {current.target_text}"
            )
        (state_dir.directory / PENDING_FILE).unlink()
        return current


@contextmanager
def rolling_back(
    state_dir: StateDir,
    token: str,
    is_due: Callable[[PendingConfirm], bool] = lambda _: True,
) -> Iterator[None]:
    """Roll back in the block: `confirm` is too late from its beginning.

    At its end the confirmation is removed; if it fails, the previous state is restored. The caller
    holds the lock of the state directory.

    Raises:
        AlreadyResolved: the policy was confirmed, or ended otherwise.
        NotExpired: `is_due` returned False.
    """
    with _locked(state_dir):
        before = read_pending(state_dir)
        if before is None or before.token != token:
            raise AlreadyResolved
        if not is_due(before):
            raise NotExpired
        _write(state_dir, evolve(before, state=ROLLING_BACK))
    try:
        yield
    except BaseException:
        # ROLLING_BACK was left by a process that was killed in its rollback.
        update_pending(state_dir, token, state=WAITING if before.state == ROLLING_BACK else before.state)
        raise
    remove_pending(state_dir, token)


@contextmanager
def reject_if_pending(state_dir: StateDir) -> Iterator[None]:
    """Make a change in the block; raise ConfirmError if a policy waits to be confirmed."""
    require_none_pending(state_dir)
    yield
    remove_pending(state_dir)  # of an earlier policy with a failed rollback


def _write(state_dir: StateDir, new: PendingConfirm) -> None:
    write_file(state_dir.directory / PENDING_FILE, json.dumps(asdict(new), indent=1).encode())


@contextmanager
def _locked(state_dir: StateDir) -> Iterator[None]:
    """Hold the lock of the file. It is held for moments only, so this waits without limit."""
    state_dir.create()
    with exclusive_lock(state_dir.directory / _LOCK):
        yield
