"""Events of the history: releases, blocks, a policy that is applied again; histories of earlier versions."""

import json
from datetime import UTC, datetime

import pytest

from nftpolicy.cli import history as command
from nftpolicy.cli.common import EXIT_BAD_INPUT, EXIT_FAILED, Failure
from nftpolicy.runtime.apply import history_events
from nftpolicy.runtime.apply.history import History
from nftpolicy.runtime.apply.history_events import BLOCKED, MAX_EVENTS, RELEASED, HistoryEvent, event_file_path
from nftpolicy.runtime.apply.pending_confirm import WAITING, PendingConfirm, ProcessRef, boottime, create_pending
from nftpolicy.runtime.apply.state_dir import current_state_dir
from tests.unit.command_line import run_here
from tests.unit.test_policy_errors import GOOD

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
# An entry as version 0.1 wrote it.
OLD_ENTRY = {
    "number": 1, "time": "2025-06-01T10:00:00Z", "policy": "old", "file": "/etc/old.toml",
    "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb", "verdict": "proved", "seconds": 0.5,
    "who": "lisa", "why": "apply", "of": None, "text": "a",
}  # fmt: skip


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NFTPOLICY_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("NFTPOLICY_LIB", str(tmp_path / "lib"))
    return History(tmp_path / "lib", now=lambda: NOON)


def add(kept, text, why="apply"):
    return kept.add("p", "/etc/p.toml", text.encode(), "proved", 0.1, why)


def kinds(kept):
    return [each.kind if isinstance(each, HistoryEvent) else each.number for each in kept.read().in_order()]


def test_events_keep_their_place_if_the_clock_jumps(kept):
    add(kept, "a")
    kept.add_event(BLOCKED, "p", "P1 wan refuted")
    early = History(kept.directory, now=lambda: NOON.replace(year=1970))
    early.add("p", "/etc/p.toml", b"b", "proved", 0.1, "apply")
    early.add_event(RELEASED, "p", "release")
    assert kinds(kept) == [1, "blocked", 2, "released"]
    assert kept.read().release.time == "1970-01-02T12:00:00Z"


def test_policy_after_release_is_an_event(kept):
    add(kept, "a")
    add(kept, "a")
    assert kinds(kept) == [1]
    kept.add_event(RELEASED, "p", "release")
    assert add(kept, "a").number == 1
    add(kept, "a")
    assert kinds(kept) == [1, "released", "applied again"]
    assert kept.read().release is None
    kept.add_event(RELEASED, "p", "confirm timed out, release")
    add(kept, "b")
    assert kinds(kept)[-2:] == ["released", 2]
    assert kept.read().release is None


def test_events_are_bounded_and_damaged_lines_are_named(kept, monkeypatch):
    monkeypatch.setattr(history_events, "MAX_EVENTS", 3)
    for number in range(5):
        kept.add_event(BLOCKED, "p", f"reason\n{number}" + "x" * 900)
    assert [event.why[:8] for event in kept.read().events] == ["reason 2", "reason 3", "reason 4"]
    assert max(len(event.why) for event in kept.read().events) == 500
    file = event_file_path(kept.directory)
    file.write_bytes(b"[" * 90_000 + b'\n{"time": 1}\n\xff\n' + file.read_bytes())
    found = kept.read()
    assert [len(found.events), found.damaged[0].reason] == [3, "3 of its lines are no events"]
    assert MAX_EVENTS == 200


def test_key_of_a_later_version_is_ignored(kept):
    kept.add_event("paused", "p", "by lisa")
    file = event_file_path(kept.directory)
    file.write_text(json.dumps({**json.loads(file.read_text()), "colour": "red"}))
    assert [event.kind for event in kept.read().events] == ["paused"]
    assert "paused: by lisa" in run_here("history")[1]


def test_history_of_an_earlier_version_is_shown(kept):
    kept.directory.mkdir()
    kept.path(1).write_text(json.dumps(OLD_ENTRY))
    status, output, errors = run_here("history")
    assert (status, errors) == (0, "")
    assert output.splitlines()[1].split() == ["1", "2025-06-01", "10:00:00", "old", "apply"]
    assert add(kept, "b").number == 2
    assert kept.read().previous(b"b").number == 1


def test_history_shows_events_without_a_number(kept, monkeypatch):
    add(kept, "a")
    kept.add_event(BLOCKED, "p", "P1 wan refuted")
    kept.add_event(RELEASED, "p", "confirm timed out, release")
    monkeypatch.setenv("COLUMNS", "200")
    rows = run_here("history")[1].splitlines()
    assert [row[:6].strip() for row in rows[1:]] == ["1", "", ""]
    assert "watch blocked the uplinks: P1 wan refuted" in rows[2]
    assert "released (confirm timed out, release)" in rows[3]
    found = json.loads(run_here("history", "--json")[1])
    assert list(found) == ["version", "in_force", "pending", "entries", "events", "damaged"]
    assert found["version"] == command.JSON_VERSION == 1
    assert list(found["events"][0]) == ["time", "kind", "policy", "why", "user", "after", "number"]


def test_confirmation_is_an_event_of_the_newest_policy(kept):
    add(kept, "a")
    state_dir = current_state_dir()
    new = PendingConfirm(
        "x", WAITING, 60, boottime() + 60, "2026-01-02T13:00:00Z", None, ProcessRef(1, 1), ProcessRef(2, 2)
    )
    create_pending(state_dir, new)
    assert run_here("confirm")[0] == 0
    (event,) = kept.read().events
    assert (event.kind, event.policy, event.after) == ("confirmed", "p", 1)
    assert "confirmed 60 s before the rollback" in run_here("history")[1].replace("\n", " ")


def test_show_prints_the_policy_and_its_reason(kept):
    add(kept, "name = 'a'\n", "rollback to 3")
    status, output, _ = run_here("history", "show", 1)
    assert (status, output.splitlines()[-1]) == (0, "name = 'a'")
    assert output.startswith("# 1: p (/etc/p.toml), 2026-01-02 12:00:00 UTC, by ")
    assert "rollback to 3" in output
    assert json.loads(run_here("history", "show", 1, "--json")[1])["text"] == "name = 'a'\n"


def test_diff_compares_two_policies_or_with_the_one_in_force(kept):
    add(kept, "a = 1\nb = 2\n"), add(kept, "a = 1\nb = 3\n")
    _, output, _ = run_here("history", "diff", 1, 2)
    assert output.startswith("a policy is not valid now, so only the lines are compared: ")
    assert output.splitlines()[-3:] == [" a = 1", "-b = 2", "+b = 3"]
    assert "same policy" in run_here("history", "diff", 1, 1)[1]
    assert run_here("history", "diff", 1)[::2] == (
        EXIT_FAILED, "nftpolicy: no policy is in force; name two: nftpolicy history diff 1 OTHER\n"
    )  # fmt: skip
    state_dir = current_state_dir()
    state_dir.create()
    state_dir.save_policy("/etc/p.toml", GOOD.encode())
    add(kept, GOOD.replace("table = 7", "table = 9")), add(kept, f"{GOOD}# a comment\n")
    output = run_here("history", "diff", 3)[1]
    assert "+++ in force (/etc/p.toml)" in output.splitlines()
    assert "mean the same" not in output
    assert "statements:" not in output
    assert "\nstatements:\n  ip -4 " in run_here("history", "diff", 3, "--statements")[1]
    assert run_here("history", "diff", 4)[1].startswith("both policies mean the same\n")


def test_absent_and_damaged_numbers_fail(kept):
    add(kept, "a"), add(kept, "b")
    kept.path(1).write_text("{}")
    for number, status, words in ((1, EXIT_FAILED, "000001.json: damaged"), (7, EXIT_BAD_INPUT, "no number 7")):
        with pytest.raises(Failure, match=words) as said:
            command.show(number)
        assert said.value.status == status


def test_history_with_a_file_in_its_place_is_one_message(kept):
    kept.directory.write_text("")
    assert run_here("history") == (EXIT_FAILED, "", f"nftpolicy: {kept.directory}: Not a directory\n")
