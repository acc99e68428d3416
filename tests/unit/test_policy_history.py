"""History of applied policies: entries, damage, rollback."""

import errno
import hashlib
import json
import os
import stat
import threading
from datetime import UTC, datetime

import pytest

from nftpolicy.cli import apply_common, rollback
from nftpolicy.cli import history as listed
from nftpolicy.cli.common import EXIT_BAD_INPUT, EXIT_FAILED, Failure
from nftpolicy.kernel.errors import StepRefused
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.runtime.apply import history, pending_confirm
from nftpolicy.runtime.apply.history import History, HistorySnapshot
from nftpolicy.runtime.apply.state_dir import StateDir, current_state_dir
from nftpolicy.runtime.apply.transaction import ChangeOptions, TargetPolicy
from tests.unit.forked_namespace import normal
from tests.unit.test_policy_errors import GOOD

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def history_dir(tmp_path):
    return History(tmp_path / "lib", now=lambda: NOON)


def add(history_dir, text, why="apply", of=None):
    return history_dir.add("p", "/etc/p.toml", text.encode(), "proved", 0.12345, why, of)


def test_entry_has_all_fields(history_dir, monkeypatch):
    monkeypatch.setenv("SUDO_USER", "lisa")
    one = add(history_dir, "a = 'ü'\r\n")
    assert history_dir.entries() == (one,)
    assert one.as_json() == {
        "number": 1,
        "time": "2026-01-02T12:00:00Z",
        "policy": "p",
        "file": "/etc/p.toml",
        "sha256": hashlib.sha256("a = 'ü'\r\n".encode()).hexdigest(),
        "verdict": "proved",
        "seconds": 0.123,
        "who": "lisa",
        "why": "apply",
        "of": None,
    }
    assert one.data == "a = 'ü'\r\n".encode()
    monkeypatch.delenv("SUDO_USER")
    assert add(history_dir, "b").who == str(os.getuid())


def test_entry_numbers_grow_and_equal_text_adds_none(history_dir):
    first = add(history_dir, "a")
    assert add(history_dir, "a", "again") == first
    assert [add(history_dir, text).number for text in ("b", "a", "a", "c")] == [2, 3, 3, 4]
    assert [one.text for one in history_dir.entries()] == ["a", "b", "a", "c"]
    assert history_dir.entries()[-1].number == 4
    assert (history_dir.entry(2).text, history_dir.entry(5)) == ("b", None)


def test_history_without_entries_is_empty(history_dir):
    assert history_dir.read() == HistorySnapshot((), ())
    assert history_dir.entries() == ()


def test_history_files_are_private(history_dir):
    previous = os.umask(0)
    try:
        add(history_dir, "a")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(history_dir.directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in history_dir.directory.iterdir()] == [0o600]


def changed(**values):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def without(name):
    def change(path):
        found = json.loads(path.read_text())
        del found[name]
        path.write_text(json.dumps(found))

    return change


DAMAGE = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:50]), "line "),
    "empty": (lambda path: path.write_bytes(b""), "Expecting value"),
    "zeros": (lambda path: path.write_bytes(bytes(500)), ""),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff\xfe\xff"), "decode"),
    "no object": (lambda path: path.write_bytes(b"[1]"), "not a JSON object"),
    "deep": (lambda path: path.write_bytes(b"[" * 200_000), ""),
    "text": (changed(text="other"), "SHA-256"),
    "a surrogate": (changed(text="\ud800"), ""),
    "sum": (changed(sha256="0"), "SHA-256"),
    "number": (changed(number=7), "number 7"),
    "kind": (changed(time=5), "time"),
    "missing": (without("why"), "'why' is missing"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "directory"),
}


@pytest.mark.parametrize("which", DAMAGE)
def test_damaged_entry_is_reported_and_ignored(history_dir, which):
    for text in "abc":
        add(history_dir, text)
    damage, words = DAMAGE[which]
    damage(history_dir.path(2))
    found = history_dir.read()
    assert [one.number for one in found.entries] == [1, 3]
    assert [one.path for one in found.damaged] == [history_dir.path(2)]
    assert words in found.damaged[0].reason
    assert "\n" not in found.damaged[0].reason
    assert found.previous(b"c").number == 1
    assert add(history_dir, "d").number == 4


def test_damaged_newest_entry_is_not_overwritten(history_dir):
    add(history_dir, "a"), add(history_dir, "b")
    history_dir.path(2).write_bytes(b"")
    assert history_dir.entries()[-1].text == "a"
    assert add(history_dir, "a").number == 3
    assert history_dir.path(2).exists()


def test_history_is_bounded(history_dir, monkeypatch):
    monkeypatch.setattr(history, "MAX_ENTRIES", 5)
    for number in range(9):
        add(history_dir, f"text {number}")
    assert [one.number for one in history_dir.entries()] == [5, 6, 7, 8, 9]
    monkeypatch.setattr(history, "MAX_BYTES", 1000)
    add(history_dir, "x" * 5000)
    assert [one.number for one in history_dir.entries()] == [9, 10]
    add(history_dir, "y" * 5000)
    assert [one.number for one in history_dir.entries()] == [10, 11]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_history_on_full_disk_keeps_its_entries(history_dir, monkeypatch, call):
    add(history_dir, "a")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif call == "replace":
        monkeypatch.setattr("pathlib.Path.replace", full)
    else:
        opened = os.fdopen

        def failing(*arguments, **options):
            file = opened(*arguments, **options)
            file.close()
            full()

        monkeypatch.setattr(os, "fdopen", failing)
    with pytest.raises(OSError, match="No space"):
        add(history_dir, "b")
    monkeypatch.undo()
    assert [path.name for path in history_dir.directory.iterdir()] == ["000001.json"]
    assert add(history_dir, "b").number == 2


def test_temporary_files_of_killed_process_are_removed(history_dir):
    add(history_dir, "a")
    (history_dir.directory / ".000002.json.new").write_text("{")
    (history_dir.directory / ".000001.json.new").write_text("{")
    (history_dir.directory / "notes.txt").write_text("somebody's")
    add(history_dir, "b")
    assert sorted(path.name for path in history_dir.directory.iterdir()) == ["000001.json", "000002.json", "notes.txt"]


def test_concurrent_entries_get_distinct_numbers(history_dir):
    threads = [threading.Thread(target=add, args=(history_dir, f"text {number}")) for number in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [one.number for one in history_dir.entries()] == list(range(1, 13))
    assert len({one.text for one in history_dir.entries()}) == 12


# Going back


def back(history_dir, text):
    """Go back once from `text`, and return the policy that is in force then."""
    entry = history_dir.read().previous(text.encode())
    if entry is None:
        return None
    add(history_dir, entry.text, f"rollback to {entry.number}", entry.number)
    return entry.text


def test_two_rollbacks_go_two_entries_back(history_dir):
    for text in "abcd":
        add(history_dir, text)
    assert [back(history_dir, "d"), back(history_dir, "c"), back(history_dir, "b"), back(history_dir, "a")] == [
        "c",
        "b",
        "a",
        None,
    ]
    assert [one.of for one in history_dir.entries()] == [None, None, None, None, 3, 2, 1]


def test_policy_after_rollback_goes_back_to_rollback_target(history_dir):
    for text in "abc":
        add(history_dir, text)
    assert back(history_dir, "c") == "b"
    add(history_dir, "d")
    assert [back(history_dir, "d"), back(history_dir, "b"), back(history_dir, "a")] == ["b", "a", None]


def test_policy_without_entry_goes_back_to_the_newest(history_dir):
    add(history_dir, "a"), add(history_dir, "b")
    assert history_dir.read().previous(b"unknown").text == "b"


def test_rollback_without_older_entry_is_none(history_dir, monkeypatch):
    for text in "ab":
        add(history_dir, text)
    add(history_dir, "a", of=1)
    history_dir.path(1).unlink()
    assert history_dir.read().previous(b"a") is None


# Where it is kept


def test_history_directory_follows_the_environment(tmp_path, monkeypatch):
    memory = StateDir(tmp_path / "netns-1")
    monkeypatch.setenv("NFTPOLICY_LIB", str(tmp_path / "lib"))
    assert history.current_history(memory).directory == tmp_path / "lib"
    monkeypatch.delenv("NFTPOLICY_LIB")
    monkeypatch.setenv("NFTPOLICY_STATE", str(tmp_path))
    assert history.current_history(memory).directory == memory.directory / "history"
    monkeypatch.delenv("NFTPOLICY_STATE")
    for first, folder in ((True, history.persistent_dir()), (False, str(memory.directory / "history"))):
        monkeypatch.setattr(history, "_in_namespace_of_init", lambda first=first: first)
        assert str(history.current_history(memory).directory) == folder


# The commands, on a kernel in memory

OTHER = GOOD.replace("group = 800", "group = 801")
LAST = GOOD.replace("table = 7", "table = 9")


class Machine:
    """Kernel in memory, with the directories of a host."""

    def __init__(self):
        self.kernel = FakeKernel()
        self.memory = current_state_dir()
        self.kept = history.current_history(self.memory)

    def apply(self, text, why="apply"):
        policy, source = rollback.parse_policy(text.encode(), "/etc/p.toml")
        around = lambda: pending_confirm.reject_if_pending(self.memory)  # noqa: E731
        wanted = TargetPolicy(policy, ("/etc/p.toml", source.text.encode()))
        changer = apply_common.create_applier(self.kernel, ChangeOptions())
        rollback._apply_target(changer, wanted, None, why, around)

    def rollback(self, number=None, dry_run=False):
        rollback.command(number, dry_run, False)

    @property
    def in_force(self):
        found = self.memory.policy()
        return found and found[1].decode()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("NFTPOLICY_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("NFTPOLICY_LIB", str(tmp_path / "lib"))
    made = Machine()
    monkeypatch.setattr(rollback, "this_kernel", lambda: made.kernel)
    return made


def test_rollback_restores_the_previous_policy(machine, capsys):
    machine.apply(GOOD)
    first = normal(machine.kernel.state)
    machine.apply(OTHER), machine.apply(LAST)
    third = normal(machine.kernel.state)
    machine.rollback()
    assert machine.in_force == OTHER
    machine.rollback()
    assert (machine.in_force, normal(machine.kernel.state)) == (GOOD, first)
    machine.rollback(3)
    assert (machine.in_force, normal(machine.kernel.state)) == (LAST, third)
    assert [one.why for one in machine.kept.entries()][3:] == ["rollback to 2", "rollback to 1", "rollback to 3"]
    assert capsys.readouterr().out.splitlines()[0].startswith("p: rolled back to 2 (/etc/p.toml) in ")
    assert machine.memory.policy()[0] == "/etc/p.toml"


def test_dry_rollback_changes_nothing(machine, capsys):
    machine.apply(GOOD), machine.apply(LAST)
    before, generation = machine.kernel.state, machine.kernel.generation
    machine.rollback(dry_run=True)
    assert "ip -4 route add unreachable default table 7" in capsys.readouterr().out
    assert (machine.kernel.state, machine.kernel.generation) == (before, generation)
    assert (machine.in_force, len(machine.kept.entries())) == (LAST, 2)


def test_rollback_without_target_fails(machine):
    with pytest.raises(Failure, match="no policy is in force"):
        machine.rollback()
    machine.apply(GOOD)
    with pytest.raises(Failure, match="no policy before this one"):
        machine.rollback()
    with pytest.raises(Failure, match="no number 7") as said:
        machine.rollback(7)
    assert said.value.status == EXIT_BAD_INPUT


def test_rollback_to_absent_group_changes_nothing(machine, monkeypatch):
    monkeypatch.setattr("nftpolicy.kernel.accounts.account_number", lambda *_: 800)
    machine.apply(GOOD.replace("group = 800", 'group = "vpn"'))
    machine.apply(OTHER)
    before = machine.kernel.state
    monkeypatch.setattr("nftpolicy.kernel.accounts.account_number", lambda *_: None)
    monkeypatch.setattr("nftpolicy.kernel.accounts.account_names", lambda *_: ["lpn"])
    with pytest.raises(Failure) as said:
        machine.rollback()
    assert "/etc/p.toml (number 1):28:9: service.vpn.group: there is no group 'vpn'" in str(said.value)
    assert str(said.value).endswith("nothing was changed")
    assert said.value.status == EXIT_BAD_INPUT
    assert (machine.kernel.state, machine.in_force) == (before, OTHER)


def test_rollback_refused_by_the_kernel_changes_nothing(machine):
    machine.apply(GOOD), machine.apply(LAST)
    before = machine.kernel.state
    machine.kernel.refuse_at = machine.kernel.steps_taken + 2
    with pytest.raises(Failure, match="as it was before"):
        machine.rollback()
    assert (machine.kernel.state, machine.in_force, len(machine.kept.entries())) == (before, LAST, 2)


def test_rollback_skips_damaged_entries(machine):
    machine.apply(GOOD), machine.apply(OTHER), machine.apply(LAST)
    machine.kept.path(2).write_text("{}")
    with pytest.raises(Failure, match=r"000002\.json: damaged") as said:
        machine.rollback(2)
    assert said.value.status == EXIT_FAILED
    machine.rollback()
    assert machine.in_force == GOOD


def test_rollback_works_on_full_disk(machine, monkeypatch, capsys):
    machine.apply(GOOD), machine.apply(OTHER)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(History, "_write", full)
    machine.rollback()
    assert machine.in_force == GOOD
    assert "No space left" in capsys.readouterr().err


def test_history_command_prints_table_and_json(machine, capsys):
    listed.print_history(as_json=False)
    assert capsys.readouterr().out == "no policy was applied here yet\n"
    machine.apply(GOOD), machine.apply(OTHER), machine.apply(LAST)
    machine.kept.path(2).write_text("{}")
    capsys.readouterr()
    listed.print_history(as_json=False)
    said = capsys.readouterr()
    rows = said.out.splitlines()
    assert [row.split()[0] for row in rows] == ["number", "1", "3"]
    assert [row.rstrip().endswith("in force") for row in rows] == [False, False, True]
    assert "000002.json: damaged" in said.err
    listed.print_history(as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["in_force"], found["pending"]) == (3, None)
    assert [one["number"] for one in found["entries"]] == [1, 3]
    assert found["damaged"][0]["path"].endswith("000002.json")
    assert all("text" not in one for one in found["entries"])


def test_history_command_reports_policy_without_entry(machine, capsys):
    machine.apply(GOOD)
    machine.memory.save_policy("/etc/other.toml", b"else")
    listed.print_history(as_json=False)
    said = capsys.readouterr()
    assert "in force" not in said.out
    assert "(/etc/other.toml) is not in the history" in said.err


def test_fake_kernel_refuses_the_apply(machine):
    """Show the refusal that the tests above rely on."""
    machine.kernel.refuse_at = 0
    with pytest.raises(StepRefused):
        machine.apply(GOOD)
