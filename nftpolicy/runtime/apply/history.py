# SPDX-License-Identifier: BSD-2-Clause
"""History of applied and proved policies, numbered, the newest last, for `nftpolicy rollback`.

It outlasts a restart (runtime/paths.py); $NFTPOLICY_LIB moves it. A network namespace other than
that of process 1 has its history in its state directory, since both end with the namespace.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, field, fields, frozen, validators

from ..atomic_file import write_file
from ..file_lock import LockTimeout, exclusive_lock
from ..paths import persistent_dir
from ..private_files import make_directory, read_private
from .history_events import APPLIED_AGAIN, RELEASED, HistoryEvent, append_event, event_file_path, read_events
from .state_dir import StateDir

MAX_ENTRIES = 50  # entries
MAX_BYTES = 64 << 20  # of all entries together; the newest two are kept, however large
_LARGEST_ENTRY = 160 << 20  # bytes: a policy of 64 MiB, with each line feed as two characters
_ALWAYS_KEPT = 2  # entries, whatever their size
_EVENT_WAIT = 1.0  # seconds for the lock of another process
_LONGEST_REASON = 200  # characters
_NAME = re.compile(r"([0-9]{6,12})\.json\Z")
_CHANGES = (RELEASED, APPLIED_AGAIN)  # events that change which policy is in force
_READ_ERRORS = (ValueError, TypeError, RecursionError, OSError)  # of a damaged file


def _now() -> datetime:
    return datetime.now(UTC)


@frozen
class HistoryEntry:
    """A policy that was in force. The field names are the keys of its JSON file.

    `time` is UTC, ISO 8601; `file` the name that the policy was read from; `seconds` the duration
    of the change; `who` a user name or number; `why` the reason, as "apply" or "rollback to 3";
    `of` the number of the entry that this one repeats.
    """

    number: int = field(validator=[validators.instance_of(int), validators.gt(0)])
    time: str = field(validator=validators.instance_of(str))
    policy: str = field(validator=validators.instance_of(str))
    file: str = field(validator=validators.instance_of(str))
    sha256: str = field(validator=validators.instance_of(str))
    verdict: str = field(validator=validators.instance_of(str))
    seconds: float = field(validator=validators.instance_of((int, float)))
    who: str = field(validator=validators.instance_of(str))
    why: str = field(validator=validators.instance_of(str))
    of: int | None = field(validator=validators.optional(validators.instance_of(int)))
    text: str = field(repr=False, validator=validators.instance_of(str))

    @property
    def data(self) -> bytes:
        """The text of the policy in bytes, as it was read."""
        return self.text.encode()

    def as_json(self) -> dict[str, Any]:
        """Return all fields but the text, for JSON that is printed."""
        return {name: value for name, value in asdict(self).items() if name != "text"}


@frozen
class DamagedEntry:
    """A file of an entry that cannot be read, and the reason."""

    path: Path
    reason: str


@frozen
class HistorySnapshot:
    """Content of the history directory: the entries by number, the damaged files, and the events by time."""

    entries: tuple[HistoryEntry, ...]
    damaged: tuple[DamagedEntry, ...]
    events: tuple[HistoryEvent, ...] = ()

    def entry(self, number: int) -> HistoryEntry | None:
        """Return the entry of this number, or None."""
        return next((entry for entry in self.entries if entry.number == number), None)

    def find_by_text(self, text: bytes) -> HistoryEntry | None:
        """Return the newest entry of a policy with this text, or None."""
        return next((entry for entry in reversed(self.entries) if entry.data == text), None)

    def in_order(self) -> list[HistoryEntry | HistoryEvent]:
        """Return entries and events as they happened; each event is after its entry, whatever the clock said."""
        records: list[HistoryEntry | HistoryEvent] = [*self.entries, *self.events]
        return sorted(records, key=lambda each: each.after if isinstance(each, HistoryEvent) else each.number)

    @property
    def release(self) -> HistoryEvent | None:
        """Return the release after which no policy was applied, or None."""
        changes = [each for each in self.in_order() if isinstance(each, HistoryEntry) or each.kind in _CHANGES]
        last = changes[-1] if changes else None
        return last if isinstance(last, HistoryEvent) and last.kind == RELEASED else None

    def previous(self, text: bytes) -> HistoryEntry | None:
        """Return the entry that was in force before the policy with this text, or None.

        An entry that repeats an older one has the position of the older one. So two rollbacks in a
        row go two policies back, and never forward again.
        """
        present = self.find_by_text(text)
        position = self._position(present) if present else None
        older = [entry for entry in self.entries if position is None or entry.number < position]
        return next((entry for entry in reversed(older) if entry.data != text), None)

    def _position(self, entry: HistoryEntry) -> int:
        """Return the number of the oldest entry that an entry repeats, or its own."""
        while entry.of is not None and entry.of < entry.number:
            repeated = self.entry(entry.of)
            if repeated is None:
                return entry.of
            entry = repeated
        return entry.number


@frozen
class History:
    """The history directory: one JSON file for each entry, as 000012.json."""

    directory: Path
    now: Callable[[], datetime] = _now

    def read(self) -> HistorySnapshot:
        """Return all entries and the damaged files.

        Raises OSError if the directory cannot be read.
        """
        entries: list[HistoryEntry] = []
        damaged: list[DamagedEntry] = []
        for number, path in self._files():
            try:
                entries.append(_read_entry(path, number))
            except FileNotFoundError:
                continue  # another process dropped it as too old
            except _READ_ERRORS as error:
                damaged.append(DamagedEntry(path, _reason(error)))
        events, damaged_lines = read_events(self.directory)
        if damaged_lines:
            damaged.append(DamagedEntry(event_file_path(self.directory), f"{damaged_lines} of its lines are no events"))
        return HistorySnapshot(tuple(entries), tuple(damaged), events)

    def entries(self) -> tuple[HistoryEntry, ...]:
        """Return the readable entries, the newest last."""
        return self.read().entries

    def entry(self, number: int) -> HistoryEntry | None:
        """Return the entry of this number, or None."""
        return self.read().entry(number)

    def path(self, number: int) -> Path:
        """Return the path of an entry's file."""
        return self.directory / f"{number:06}.json"

    def add(
        self,
        policy: str,
        file: str,
        data: bytes,
        verdict: str,
        seconds: float,
        why: str,
        repeats: int | None = None,
    ) -> HistoryEntry:
        """Add the policy that is in force now, and return its entry.

        If the newest entry has the same text, no entry is added and that entry is returned; after a release,
        an event is.

        Raises:
            OSError: the entry cannot be written (a full disk); the other entries are unchanged.
        """
        with self._locked():
            files = self._files()
            last = self._newest(files)
            if last is not None and last.data == data:
                self._add_return(last, why)
                return last
            entry = HistoryEntry(
                number=1 + max((number for number, _ in files), default=0),
                time=self._time(),
                policy=policy,
                file=file,
                sha256=hashlib.sha256(data).hexdigest(),
                verdict=verdict,
                seconds=round(seconds, 3),
                who=invoking_user(),
                why=why,
                of=repeats,
                text=data.decode(),
            )
            content = json.dumps(asdict(entry), ensure_ascii=False, indent=1).encode()
            self._write(self.path(entry.number), content)
            self._drop_old()
        return entry

    def add_event(self, kind: str, policy: str, why: str, wait: float | None = None) -> None:
        """Add an event of now.

        `policy`: name, "" for that of the newest entry.
        `wait`: seconds to wait for another process, None without limit. Raises OSError and LockTimeout.
        """
        with self._locked(wait):
            self._append(kind, policy, why)

    def _append(self, kind: str, policy: str, why: str, number: int | None = None) -> None:
        files = self._files()
        newest = max((entry_number for entry_number, _ in files), default=0)
        if not policy and (entry := self._newest(files)) is not None:
            policy = entry.policy
        event = HistoryEvent(self._time(), kind, policy, why, invoking_user(), newest, number)
        append_event(self.directory, event)

    def _add_return(self, entry: HistoryEntry, why: str) -> None:
        """Add the event that the newest entry is in force again, if it was released."""
        changes = [event for event in read_events(self.directory)[0] if event.kind in _CHANGES]
        if changes and changes[-1].kind == RELEASED and changes[-1].after == entry.number:
            self._append(APPLIED_AGAIN, entry.policy, why, entry.number)

    def _time(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    def _files(self) -> list[tuple[int, Path]]:
        """Return number and path of the entries' files, by number."""
        try:
            candidates = [(path, _NAME.match(path.name)) for path in self.directory.iterdir()]
        except FileNotFoundError:
            return []
        return sorted((int(match[1]), path) for path, match in candidates if match)

    def _newest(self, files: list[tuple[int, Path]]) -> HistoryEntry | None:
        """Return the entry of the last file, or None if there is no file or it is damaged."""
        if not files:
            return None
        number, path = files[-1]
        with suppress(*_READ_ERRORS):
            return _read_entry(path, number)
        return None

    def _write(self, path: Path, content: bytes) -> None:
        write_file(path, content)

    def _drop_old(self) -> None:
        """Remove the oldest entries beyond the limits. A file that cannot be removed stays."""
        for unfinished in self.directory.glob(".*.json.new"):  # of a process that was killed
            with suppress(OSError):
                unfinished.unlink()
        newest_first, total = self._files()[::-1], 0
        for index, (_, path) in enumerate(newest_first):
            with suppress(OSError):
                total += path.stat().st_size
                if index >= MAX_ENTRIES or (index >= _ALWAYS_KEPT and total > MAX_BYTES):
                    path.unlink()

    @contextmanager
    def _locked(self, wait: float | None = None) -> Iterator[None]:
        """Hold the lock on the directory, which all network namespaces share. `wait` as for `exclusive_lock`."""
        make_directory(self.directory)
        with exclusive_lock(self.directory, wait):
            yield


def current_history(state_dir: StateDir) -> History:
    """Return the history of the network namespace that this process is in.

    $NFTPOLICY_STATE moves the history together with the state directory, unless $NFTPOLICY_LIB is
    set.
    """
    if moved := os.environ.get("NFTPOLICY_LIB"):
        return History(Path(moved))
    if "NFTPOLICY_STATE" in os.environ or not _in_namespace_of_init():
        return History(state_dir.directory / "history")
    return History(Path(persistent_dir()))


def record_event(state_dir: StateDir, kind: str, why: str) -> None:
    """Add an event about the newest entry; errors are ignored."""
    with suppress(OSError, LockTimeout):
        current_history(state_dir).add_event(kind, "", why, _EVENT_WAIT)


def invoking_user() -> str:
    """Return the name of the user who ran sudo, or the number of this process's user."""
    return os.environ.get("SUDO_USER") or str(os.getuid())


def _in_namespace_of_init() -> bool:
    """Return True if this is the network namespace of process 1; False also if that is unknown."""
    try:
        return Path("/proc/1/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return False


def _read_entry(path: Path, number: int) -> HistoryEntry:
    """Read the entry in a file. Raises ValueError, TypeError or OSError."""
    if path.stat().st_size > _LARGEST_ENTRY:
        raise ValueError("larger than any policy")
    stored = json.loads(read_private(path))
    if not isinstance(stored, dict):
        raise ValueError("not a JSON object")
    names = [attribute.name for attribute in fields(HistoryEntry)]
    if missing := [name for name in names if name not in stored]:
        raise ValueError(f"{missing[0]!r} is missing")
    entry = HistoryEntry(**{name: stored[name] for name in names})
    if entry.number != number:
        raise ValueError(f"its content is of entry number {entry.number}")
    if hashlib.sha256(entry.data).hexdigest() != entry.sha256:
        raise ValueError("the text was changed: its SHA-256 differs")
    return entry


def _reason(error: Exception) -> str:
    """Return the text of an error in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:_LONGEST_REASON]
