# SPDX-License-Identifier: BSD-2-Clause
"""Write-ahead journal of the change that is being made, for recovery after the process was killed.

It holds the policies, not the steps: recovery plans again, from what the kernel holds then.

Format: a line of JSON (pid, begun, steps, before, after), then a line "done" for each completed
step.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from attrs import frozen

from ...exceptions import NftpolicyError
from ..atomic_file import write_file
from ..private_files import read_private

APPLY, RELEASE = "apply", "release"

PolicySource = tuple[str, bytes]  # a policy: file name and content


class InconsistentState(NftpolicyError):
    """The kernel holds neither the old nor the new state."""


@frozen
class InterruptedChange:
    """A change that was begun and not completed: at least `done_steps` of `steps` steps were run.

    `begun` is in seconds since the epoch; `before` was in force then; `after` is the new policy,
    None for a release.
    """

    pid: int
    begun: float
    steps: int
    done_steps: int
    before: PolicySource | None
    after: PolicySource | None

    @property
    def kind(self) -> str:
        """The kind of change: "apply" or "release"."""
        return RELEASE if self.after is None else APPLY

    def __str__(self) -> str:
        name = (self.after or self.before or ("", b""))[0]
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.begun))
        progress = f"after {self.done_steps} of {self.steps} steps"
        return f"the {self.kind} of {name} by process {self.pid} at {begun} was interrupted {progress}"


@frozen
class Journal:
    """The journal file; it exists only during a change, or after an interrupted one."""

    file: Path

    @contextmanager
    def record(self, steps: int, before: PolicySource | None, after: PolicySource | None) -> Iterator[StepCounter]:
        """Record a change before it is begun, and remove the record at the end of the block.

        After InconsistentState the record stays.

        Raises:
            OSError: the file cannot be written (a full disk); the change must not be begun.
        """
        head = {
            "pid": os.getpid(),
            "begun": time.time(),
            "steps": steps,
            "before": _encode(before),
            "after": _encode(after),
        }
        write_file(self.file, f"{json.dumps(head)}\n".encode())
        with self.file.open("a", buffering=1) as out:
            try:
                yield StepCounter(out)
            except InconsistentState:
                raise
            except BaseException:
                self.clear()
                raise
        self.clear()

    def interrupted(self) -> InterruptedChange | None:
        """Return the interrupted change, or None.

        The caller holds the lock: otherwise the change may still be running.
        """
        try:
            lines = read_private(self.file).decode().splitlines()
            head = json.loads(lines[0])
            return InterruptedChange(
                pid=int(head["pid"]),
                begun=float(head["begun"]),
                steps=int(head["steps"]),
                done_steps=len(lines) - 1,
                before=_decode(head["before"]),
                after=_decode(head["after"]),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, IndexError, TypeError):
            return InterruptedChange(0, 0.0, 0, 0, None, None)  # damaged: only the fact remains

    def clear(self) -> None:
        """Remove the journal."""
        self.file.unlink(missing_ok=True)


class StepCounter:
    """Counts completed steps in the journal."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def count_step(self) -> None:
        """Record a completed step.

        A full disk does not stop the change: recovery does not need the count.
        """
        with suppress(OSError):
            self._out.write("done\n")


def _encode(source: PolicySource | None) -> list[str] | None:
    return None if source is None else [source[0], source[1].decode("utf-8", "surrogateescape")]


def _decode(stored: list[str] | None) -> PolicySource | None:
    return None if stored is None else (stored[0], stored[1].encode("utf-8", "surrogateescape"))
