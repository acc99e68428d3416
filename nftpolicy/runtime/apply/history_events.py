# SPDX-License-Identifier: BSD-2-Clause
"""Events of the history that are no new policy: releases, blocks by `watch`, ends of trials, a policy applied again.

They are in one file beside the entries, a line of JSON each. An earlier version of nftpolicy reads and writes only
the entries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrs import asdict, field, fields, frozen, validators

from ..atomic_file import write_file
from ..private_files import read_private

RELEASED, APPLIED_AGAIN, BLOCKED, UNBLOCKED = "released", "applied again", "blocked", "unblocked"
CONFIRMED, ROLLBACK_FAILED = "confirmed", "rollback failed"  # ends of a trial; other ones are entries or releases
MAX_EVENTS = 200
_LONGEST_REASON = 500  # characters
_FILE_NAME = "events.jsonl"


@frozen
class HistoryEvent:
    """An event of the history. The field names are the keys of its JSON object.

    `after`: number of the newest entry at that time, 0 without one; `number`: the entry that is in force again, or
    None. The other fields are those of an entry.
    """

    time: str = field(validator=validators.instance_of(str))
    kind: str = field(validator=validators.instance_of(str))
    policy: str = field(validator=validators.instance_of(str))
    why: str = field(validator=validators.instance_of(str))
    user: str = field(validator=validators.instance_of(str))
    after: int = field(validator=validators.instance_of(int))
    number: int | None = field(default=None, validator=validators.optional(validators.instance_of(int)))

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


def event_file_path(directory: Path) -> Path:
    """Return the path of the events in the directory of a history."""
    return directory / _FILE_NAME


def read_events(directory: Path) -> tuple[tuple[HistoryEvent, ...], int]:
    """Return the events, the newest last, and the number of damaged lines. Raises OSError."""
    try:
        lines = read_private(event_file_path(directory)).splitlines()
    except FileNotFoundError:
        return (), 0
    events = [event for line in lines if (event := _parse(line)) is not None]
    return tuple(events), len(lines) - len(events)


def append_event(directory: Path, event: HistoryEvent) -> None:
    """Append an event, and drop the oldest ones. The caller holds the lock of the directory. Raises OSError."""
    events = (*read_events(directory)[0], event)[-MAX_EVENTS:]
    lines = [json.dumps({**asdict(each), "why": " ".join(each.why.split())[:_LONGEST_REASON]}) for each in events]
    write_file(event_file_path(directory), "".join(f"{line}\n" for line in lines).encode())


def _parse(line: bytes) -> HistoryEvent | None:
    """Return the event of a line; None if the line is damaged. Keys of later versions are ignored."""
    try:
        stored = json.loads(line)
        return HistoryEvent(**{key.name: stored[key.name] for key in fields(HistoryEvent)})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
