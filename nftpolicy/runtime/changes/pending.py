# SPDX-License-Identifier: BSD-2-Clause
"""A policy that is in force on trial: the file that says until when, and what it goes back to.

Whoever changes the file holds its lock, so that either `confirm` or the deadline wins. Whoever goes
back holds the memory's lock as well (`claimed`), and so works alone.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from .memory import Memory

FILE = "pending.json"
# What becomes of it: its policy is being applied; waits to be confirmed; is being taken back; could not be.
APPLYING, WAITING, GOING_BACK, FAILED = "applying", "waiting", "going back", "failed"


class Declined(Exception):
    """It can't be done with a policy on trial, or without one; the words say what to do."""


class Gone(Exception):
    """The trial that this is about has ended."""


class NotDue(Exception):
    """The trial goes on."""


@frozen
class Process:
    """A process, told from a later one of the same number by when it started (clock ticks since the machine did)."""

    pid: int
    started: int

    def alive(self) -> bool:
        """Whether it is still there."""
        return started(self.pid) == self.started


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22 of proc_pid_stat(5); the name may hold anything


def process(pid: int) -> Process:
    """A process that is there now."""
    return Process(pid, started(pid) or 0)


@frozen
class Back:
    """The policy to go back to: its number in the history if it has one, the name of its file, its text."""

    number: int | None
    file: str
    text: str

    def __str__(self) -> str:
        return self.file if self.number is None else f"{self.number} ({self.file})"


RELEASE = "nothing in force: a release, which opens the uplink"


@frozen
class Pending:
    """One trial.

    `token` is its own; `seconds` what was asked for; `deadline` in seconds of `clock`, and `until` the same
    by the calendar (UTC, ISO 8601); `back` None: release; `deadman` waits for the deadline; `reason` says
    why going back failed.
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
        """Seconds until the deadline; less than 0 after it."""
        return self.deadline - clock()

    @property
    def goal(self) -> str:
        """What it goes back to, in words."""
        return RELEASE if self.back is None else str(self.back)

    def facts(self) -> dict[str, Any]:
        """For JSON that is printed."""
        return {
            "state": self.state,
            "until": self.until,
            "remaining": round(max(self.remaining(), 0.0), 1),
            "back": "release" if self.back is None else {"number": self.back.number, "file": self.back.file},
            "pid": self.deadman.pid,
            "reason": self.reason,
        }


def clock() -> float:
    """Seconds that go on while the machine sleeps, and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def from_now(seconds: float) -> dict[str, Any]:
    """The fields of a deadline that many seconds ahead."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return {"deadline": clock() + seconds, "until": until.strftime("%Y-%m-%dT%H:%M:%SZ")}


def pending(memory: Memory) -> Pending | None:
    """The trial of this namespace, or None. Raises Declined if its file is damaged."""
    path = memory.folder / FILE
    try:
        found = json.loads(path.read_bytes())
        back = found["back"]
        return Pending(
            **{
                **found,
                "back": None if back is None else Back(**back),
                "applier": Process(**found["applier"]),
                "deadman": Process(**found["deadman"]),
            }
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise Declined(
            f"{path} is damaged, so nobody knows what was to be confirmed: remove it, and say what shall be "
            "in force by 'nftpolicy apply' or 'nftpolicy rollback N'"
        ) from None


def begin(memory: Memory, new: Pending) -> None:
    """Raises Declined if there is one already."""
    with _alone(memory):
        _refuse(pending(memory))
        _write(memory, new)


def refuse(memory: Memory) -> None:
    """Declined if a policy is on trial; one that could not be taken back is in nobody's way."""
    _refuse(pending(memory))


def _refuse(found: Pending | None) -> None:
    if found is not None and found.state != FAILED:
        left = found.remaining()
        when = f"has {left:.0f} s left" if left > 0 else "its time is over"
        raise Declined(
            f"the policy in force is on trial and {when}: confirm or rollback first "
            "('nftpolicy confirm' keeps it, 'nftpolicy rollback' goes back)"
        )


def update(memory: Memory, token: str, **values: Any) -> Pending | None:
    """The trial with other values; None if it has ended."""
    with _alone(memory):
        found = pending(memory)
        if found is None or found.token != token:
            return None
        changed = evolve(found, **values)
        _write(memory, changed)
        return changed


def end(memory: Memory, token: str | None = None) -> Pending | None:
    """No trial any more. `token`: only that one. Returns the one that was ended."""
    if not memory.folder.exists():
        return None
    with _alone(memory):
        try:
            found = pending(memory)
        except Declined:
            found = None
        if token is not None and (found is None or found.token != token):
            return None
        (memory.folder / FILE).unlink(missing_ok=True)
        return found


def confirm(memory: Memory) -> Pending:
    """The policy in force stays. Raises Declined if none is on trial, or if it is too late."""
    if not memory.folder.exists():
        raise Declined("no policy is waiting to be confirmed")
    with _alone(memory):
        found = pending(memory)
        if found is None:
            raise Declined("no policy is waiting to be confirmed")
        if found.state == APPLYING:
            raise Declined(
                "the policy is not applied in full, so it can't be confirmed; 'nftpolicy rollback' goes back"
            )
        if found.state != WAITING or found.remaining() <= 0:
            raise Declined(f"too late: it was to be confirmed until {found.until}; it goes back to {found.goal}")
        (memory.folder / FILE).unlink()
        return found


@contextmanager
def claimed(memory: Memory, token: str, due: Callable[[Pending], bool] = lambda _: True) -> Iterator[None]:
    """Within this it is too late to confirm, and at its end the trial is over; if that fails, it is as before.

    Only who holds the lock of the memory may enter.

    Raises:
        Gone: it was confirmed, or ended otherwise.
        NotDue: by `due`.
    """
    with _alone(memory):
        before = pending(memory)
        if before is None or before.token != token:
            raise Gone
        if not due(before):
            raise NotDue
        _write(memory, evolve(before, state=GOING_BACK))
    try:
        yield
    except BaseException:
        # A claim that a killed process left is no state to come back to.
        update(memory, token, state=WAITING if before.state == GOING_BACK else before.state)
        raise
    end(memory, token)


@contextmanager
def unless_pending(memory: Memory) -> Iterator[None]:
    """A change that is refused while a policy is on trial. Raises Declined."""
    refuse(memory)
    yield
    end(memory)  # a trial that failed to go back: what is in force now was not on it


def _write(memory: Memory, what: Pending) -> None:
    new = memory.folder / f".{FILE}.new"
    try:
        new.write_text(json.dumps(asdict(what), indent=1))
        new.replace(memory.folder / FILE)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


@contextmanager
def _alone(memory: Memory) -> Iterator[None]:
    """Held for moments only, so others wait."""
    memory.folder.mkdir(parents=True, exist_ok=True)
    with (memory.folder / "pending.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
