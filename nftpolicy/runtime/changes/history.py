# SPDX-License-Identifier: BSD-2-Clause
"""The policies that were applied and proved, numbered, the newest last: what `rollback` goes back to.

Kept where a restart leaves them (place/files.py); $NFTPOLICY_LIB moves it. A network namespace that is not the
machine's own keeps its history beside its memory, since both end with it.
"""

from __future__ import annotations

import fcntl
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

from ..place.files import kept
from .memory import Memory

KEEP = 50  # entries
KEEP_BYTES = 64 << 20  # of all entries together; the newest two stay, however large
_LARGEST = 160 << 20  # bytes of an entry: a policy of 64 MiB, with its line feeds written as two characters
_NAME = re.compile(r"([0-9]{6,12})\.json\Z")
_BAD = (ValueError, TypeError, RecursionError, OSError)  # what reading a damaged file ends in


def _now() -> datetime:
    return datetime.now(UTC)


@frozen
class Entry:
    """One policy that was in force.

    `time` is UTC, ISO 8601; `file` the name that the policy was read from; `seconds` how long the change
    took; `who` a user's name or number; `why` "apply", "rollback to 3" or the like; `of` the number
    of the entry that this one repeats.
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
        """The policy's text, as it was read."""
        return self.text.encode()

    def facts(self) -> dict[str, Any]:
        """All but the text."""
        return {name: value for name, value in asdict(self).items() if name != "text"}


@frozen
class Damaged:
    """A file that should be an entry and can't be read as one."""

    path: Path
    reason: str


@frozen
class Shelf:
    """What was found in the folder: entries by number, and what is damaged."""

    entries: tuple[Entry, ...]
    damaged: tuple[Damaged, ...]

    def entry(self, number: int) -> Entry | None:
        """The entry of that number, or None."""
        return next((one for one in self.entries if one.number == number), None)

    def of_text(self, text: bytes) -> Entry | None:
        """The newest entry of a policy with this text, or None."""
        return next((one for one in reversed(self.entries) if one.data == text), None)

    def before(self, text: bytes) -> Entry | None:
        """What was in force before the policy with this text, or None.

        An entry that repeats an older one stands in the place of the older one, so that going back
        twice leads two steps back, and never forth to what was gone back from.
        """
        present = self.of_text(text)
        place = self._first(present) if present else None
        older = [one for one in self.entries if place is None or one.number < place]
        return next((one for one in reversed(older) if one.data != text), None)

    def _first(self, one: Entry) -> int:
        """The place in the order that an entry stands for."""
        while one.of is not None and one.of < one.number:
            older = self.entry(one.of)
            if older is None:
                return one.of
            one = older
        return one.number


@frozen
class History:
    """The folder of entries: one JSON file each, 000012.json, which holds all that is known of it."""

    folder: Path
    now: Callable[[], datetime] = _now

    def read(self) -> Shelf:
        """All entries. A damaged one is named and left out. Raises OSError if the folder can't be read."""
        entries, damaged = [], []
        for number, path in self._files():
            try:
                entries.append(_parsed(path, number))
            except FileNotFoundError:
                continue  # dropped as too old, meanwhile
            except _BAD as error:
                damaged.append(Damaged(path, " ".join(str(getattr(error, "strerror", None) or error).split())[:200]))
        return Shelf(tuple(entries), tuple(damaged))

    def entries(self) -> tuple[Entry, ...]:
        """The entries that can be read, the newest last."""
        return self.read().entries

    def entry(self, number: int) -> Entry | None:
        """The entry of that number, or None."""
        return self.read().entry(number)

    def last_good(self) -> Entry | None:
        """The newest entry that can be read, or None."""
        return next(reversed(self.entries()), None)

    def path(self, number: int) -> Path:
        """Where an entry is kept."""
        return self.folder / f"{number:06}.json"

    def add(
        self,
        policy: str,
        file: str,
        data: bytes,
        verdict: str,
        seconds: float,
        why: str,
        of: int | None = None,
    ) -> Entry:
        """Keep a policy that is in force now; the newest entry itself if that has the same text.

        Raises:
            OSError: it can't be kept (a full disk); what was kept before is as it was.
        """
        with self._alone():
            files = self._files()
            last = self._newest(files)
            if last is not None and last.data == data:
                return last
            entry = Entry(
                number=1 + max((number for number, _ in files), default=0),
                time=self.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
                policy=policy,
                file=file,
                sha256=hashlib.sha256(data).hexdigest(),
                verdict=verdict,
                seconds=round(seconds, 3),
                who=who(),
                why=why,
                of=of,
                text=data.decode(),
            )
            self._write(self.path(entry.number), json.dumps(asdict(entry), ensure_ascii=False, indent=1).encode())
            self._drop_old()
        return entry

    def _files(self) -> list[tuple[int, Path]]:
        """The files of entries, by number."""
        try:
            found = [(path, _NAME.match(path.name)) for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        return sorted((int(match[1]), path) for path, match in found if match)

    def _newest(self, files: list[tuple[int, Path]]) -> Entry | None:
        """The last entry, if it is good. The others need not be read for that."""
        with suppress(*_BAD):
            return _parsed(files[-1][1], files[-1][0]) if files else None
        return None

    def _write(self, path: Path, content: bytes) -> None:
        """The file is there in full or not at all, after a crash of the machine too."""
        new = path.with_name(f".{path.name}.new")
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise
        self._sync_folder()

    def _drop_old(self) -> None:
        """What is more than is kept goes, the oldest first. What can't be removed stays."""
        for unfinished in self.folder.glob(".*.json.new"):  # of a process that was killed
            with suppress(OSError):
                unfinished.unlink()
        newest_first, total = self._files()[::-1], 0
        for index, (_, path) in enumerate(newest_first):
            with suppress(OSError):
                total += path.stat().st_size
                if index >= KEEP or (index >= 2 and total > KEEP_BYTES):
                    path.unlink()

    def _sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, whatever kernel it is about. Waits."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def of_this_namespace(memory: Memory) -> History:
    """The history of the network namespace that this process is in.

    Whoever moves the memory by $NFTPOLICY_STATE moves the history with it, unless $NFTPOLICY_LIB says otherwise.
    """
    if moved := os.environ.get("NFTPOLICY_LIB"):
        return History(Path(moved))
    if "NFTPOLICY_STATE" in os.environ or not _of_first_process():
        return History(memory.folder / "history")
    return History(Path(kept()))


def who() -> str:
    """Whom this process works for: the user who called sudo, or the number of its own."""
    return os.environ.get("SUDO_USER") or str(os.getuid())


def _of_first_process() -> bool:
    """Whether this is the network namespace of process 1; if nobody can say, it is not."""
    try:
        return Path("/proc/1/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return False


def _parsed(path: Path, number: int) -> Entry:
    """The entry in a file. Raises ValueError, TypeError or OSError."""
    if path.stat().st_size > _LARGEST:
        raise ValueError("larger than any policy")
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    names = [one.name for one in fields(Entry)]
    if lacking := [name for name in names if name not in found]:
        raise ValueError(f"{lacking[0]!r} is missing")
    entry = Entry(**{name: found[name] for name in names})
    if entry.number != number:
        raise ValueError(f"it says that it is number {entry.number}")
    if hashlib.sha256(entry.data).hexdigest() != entry.sha256:
        raise ValueError("the text is not the one that was kept: its SHA-256 differs")
    return entry
