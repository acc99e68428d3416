# SPDX-License-Identifier: BSD-2-Clause
"""Record of a running `watch`: its last proof, repairs and wrong socket, for `nftpolicy status`.

`watch` holds the lock of a file, so the record of a daemon that was killed is not taken for that of a running one. Both
files lie in a directory of their own, since `watch` takes each new file in the state directory for a change of policy.
Blocks go into the history as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from ..atomic_file import write_file
from ..file_lock import LockTimeout, exclusive_lock, is_locked
from ..private_files import make_directory, read_private
from .history import History
from .history_events import BLOCKED, UNBLOCKED
from .state_dir import StateDir

_HISTORY_WAIT = 1.0  # seconds for the lock of the history; `watch` must not wait long
_HISTORY_EVENTS = {"blocked": BLOCKED, "unblocked": UNBLOCKED}
_CLOSED = "gone"  # verdict of a socket that was wrong
_SOCKET_KEYS = ("program", "pid", "user", "verdict", "counter")
_REPAIR_TYPES: dict[str, Any] = {"time": str, "what": list, "by": str}
_SOCKET_TYPES: dict[str, Any] = {"time": str, "program": str, "pid": int | str, "verdict": str}


@frozen
class WatchRecord:
    """Work of a running `watch` since it began. The field names are the keys of its file; times are UTC, ISO 8601.

    `verdict` and `failures` are those of the last proof, "" and () before it; `proved` is the time since when the
    proofs have had this result. `last_repair` has the keys time, what and by; `last_socket` is the last wrong socket.
    `policy` is the SHA-256 of the text of the policy that it watches.
    """

    pid: int
    started: str
    verdict: str = ""
    failures: tuple[str, ...] = ()
    proved: str = ""
    repairs: int = 0
    last_repair: dict[str, Any] | None = None
    last_socket: dict[str, Any] | None = None
    policy: str = ""

    def about(self, text: bytes) -> WatchRecord:
        """Return the record, without a verdict if that is about another policy than the one with this text."""
        return self if self.policy == _digest(text) else evolve(self, verdict="", failures=(), proved="")

    def after(self, event: str, fields: dict[str, Any], time: str) -> WatchRecord:
        """Return the record after an event of the log."""
        match event:
            case "proof":
                return evolve(self, verdict=fields["verdict"], failures=tuple(fields.get("why", ())), proved=time)
            case "enforcing" | "released":
                return evolve(self, verdict="", failures=(), proved="")
            case "restored" | "conflict":
                last = {"time": time, "what": fields.get("what", []), "by": fields.get("by", "")}
                return evolve(self, repairs=self.repairs + fields.get("times", 1), last_repair=last)
            case "socket" if "program" in fields and fields["verdict"] != _CLOSED:
                wrong = {key: fields[key] for key in _SOCKET_KEYS if key in fields}
                return evolve(self, last_socket={"time": time, **wrong})
            case _:
                return self


def read_watch_record(state_dir: StateDir) -> WatchRecord | None:
    """Return the record of the `watch` that runs in a network namespace.

    None if none runs, or if its record is damaged.
    """
    directory = _directory(state_dir)
    try:
        if not is_locked(directory / "lock"):
            return None
        stored = json.loads(read_private(directory / "record"))
        record = WatchRecord(**{**stored, "failures": tuple(stored["failures"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return record if _is_valid(record) else None


def _is_valid(record: WatchRecord) -> bool:
    """Return True if all values have their types: a disk, or another program, may have damaged the file."""
    entries = ((record.last_repair, _REPAIR_TYPES), (record.last_socket, _SOCKET_TYPES))
    return (
        all(
            isinstance(text, str)
            for text in (record.started, record.verdict, record.proved, record.policy, *record.failures)
        )
        and all(type(number) is int for number in (record.pid, record.repairs))
        and all(entry is None or _has_types(entry, types) for entry, types in entries)
    )


def _has_types(entry: object, types: Mapping[str, Any]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in types.items())


class WatchRecorder:
    """Log of `watch` that also keeps the record. A disk that is full, or a second `watch`, stops no event."""

    def __init__(self, state_dir: StateDir, history: History, log: Callable[[str, dict[str, Any]], None]) -> None:
        self._state_dir, self._history, self._log = state_dir, history, log
        self._record = WatchRecord(os.getpid(), _now())
        self._policy = ""
        self._is_recording = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the lock in the block, so that `nftpolicy status` sees that this process runs."""
        with ExitStack() as stack:
            with suppress(OSError, LockTimeout):
                self._state_dir.create()
                make_directory(_directory(self._state_dir))
                stack.enter_context(exclusive_lock(_directory(self._state_dir) / "lock", wait=0))
                self._is_recording = True
                self._write()
            yield
            self._is_recording = False

    def write(self, event: str, fields: dict[str, Any]) -> None:
        """Log an event, and take it over into the record and the history."""
        self._log(event, fields)
        if not self._is_recording:
            return
        self._policy = fields.get("policy", self._policy)
        record = self._record.after(event, fields, _now())
        if event == "enforcing":
            with suppress(OSError):  # without the hash no verdict counts
                source = self._state_dir.policy()
                record = evolve(record, policy=_digest(source[1]) if source else "")
        if record != self._record:
            self._record = record
            self._write()
        if event in _HISTORY_EVENTS:
            why = fields.get("why", "")
            with suppress(OSError, LockTimeout):
                text = why if isinstance(why, str) else "; ".join(why)
                self._history.add_event(_HISTORY_EVENTS[event], self._policy, text, _HISTORY_WAIT)

    def _write(self) -> None:
        with suppress(OSError):
            write_file(_directory(self._state_dir) / "record", json.dumps(asdict(self._record)).encode())


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _directory(state_dir: StateDir) -> Path:
    return state_dir.directory / "watch"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
