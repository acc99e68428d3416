# SPDX-License-Identifier: BSD-2-Clause
"""What is being done right now, written down before it is begun: for whoever comes after a process that was killed.

It holds the policies, not the steps. Whoever finds it plans again, from what the kernel holds by then.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

APPLY, RELEASE = "apply", "release"

Text = tuple[str, bytes]  # a policy: the name of its file, and what is in it


class Unfinished(Exception):
    """The kernel is neither as it was nor as it should be."""


@frozen
class Interrupted:
    """A change that was begun and has no end: `done` of `steps` steps are known to be done.

    `before` was in force when it began; `after` was wanted, None for a release.
    """

    pid: int
    begun: float
    steps: int
    done: int
    before: Text | None
    after: Text | None

    @property
    def kind(self) -> str:
        """What it was: "apply" or "release"."""
        return RELEASE if self.after is None else APPLY

    def __str__(self) -> str:
        name = (self.after or self.before or ("", b""))[0]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.begun))
        far = f"after {self.done} of {self.steps} steps"
        return f"the {self.kind} of {name} by process {self.pid} at {when} was interrupted {far}"


@frozen
class Journal:
    """The file; there is none while nothing is being done."""

    file: Path

    @contextmanager
    def of(self, steps: int, before: Text | None, after: Text | None) -> Iterator[Writer]:
        """Write down what is begun. The file goes when the block ends, but for Unfinished: then it stays.

        Raises:
            OSError: it can't be written (a full disk), and nothing should be begun.
        """
        head = {"pid": os.getpid(), "begun": time.time(), "steps": steps, "before": _out(before), "after": _out(after)}
        new = self.file.with_name(f".{self.file.name}.new")
        try:
            with new.open("w") as out:
                out.write(json.dumps(head) + "\n")
                out.flush()
                os.fsync(out.fileno())
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise
        new.replace(self.file)
        with self.file.open("a", buffering=1) as out:
            try:
                yield Writer(out)
            except Unfinished:
                raise
            except BaseException:
                self.clear()
                raise
        self.clear()

    def interrupted(self) -> Interrupted | None:
        """What the last process did not end, or None. Only who holds the lock may ask: else it may still be at it."""
        try:
            lines = self.file.read_text().splitlines()
            head = json.loads(lines[0])
            return Interrupted(
                int(head["pid"]), float(head["begun"]), int(head["steps"]), len(lines) - 1,
                _in(head["before"]), _in(head["after"]),
            )  # fmt: skip
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, IndexError, TypeError):
            return Interrupted(0, 0.0, 0, 0, None, None)  # damaged: all that is known is that something was begun

    def clear(self) -> None:
        """It is ended."""
        self.file.unlink(missing_ok=True)


class Writer:
    """Counts steps in the journal."""

    def __init__(self, out: Any) -> None:
        self._out = out

    def done(self) -> None:
        """One more. A full disk does not keep the next step from being done: the count is for people."""
        with suppress(OSError):
            self._out.write("done\n")


def _out(text: Text | None) -> list[str] | None:
    return None if text is None else [text[0], text[1].decode("utf-8", "surrogateescape")]


def _in(found: list[str] | None) -> Text | None:
    return None if found is None else (found[0], found[1].encode("utf-8", "surrogateescape"))
