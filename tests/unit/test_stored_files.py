"""Atomic replacement of files, locks between processes, and files of earlier versions."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nftpolicy.runtime import atomic_file
from nftpolicy.runtime.apply import pending_confirm
from nftpolicy.runtime.apply.history import History
from nftpolicy.runtime.apply.journal import InterruptedChange, Journal
from nftpolicy.runtime.apply.state_dir import Locked, StateDir
from nftpolicy.runtime.atomic_file import write_file, write_named_file
from nftpolicy.runtime.file_lock import LockTimeout, exclusive_lock, is_locked

# --- atomic replacement ----------------------------------------------------------------------


def test_write_file_replaces_and_leaves_no_other_file(tmp_path: Path) -> None:
    file = tmp_path / "state"
    for content in (b"old", b"new"):
        write_file(file, content)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("options", "umask", "expected"), [({}, 0, 0o600), ({"mode": 0o644}, 0o077, 0o644), ({"mode": 0o600}, 0, 0o600)]
)
def test_umask_does_not_change_the_mode(tmp_path: Path, options: dict[str, int], umask: int, expected: int) -> None:
    previous = os.umask(umask)
    try:
        write_file(tmp_path / "state", b"", **options)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == expected


PLANTED: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("victim"),
    "link to nothing": lambda path: path.symlink_to("absent"),
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
}


@pytest.mark.parametrize("kind", PLANTED)
def test_named_file_that_is_not_regular_is_kept(tmp_path: Path, kind: str) -> None:
    """As another user may plant it in /tmp, where root writes a script."""
    victim, named = tmp_path / "victim", tmp_path / "named"
    victim.write_bytes(b"victim")
    PLANTED[kind](named)
    before = named.lstat()
    with pytest.raises(OSError, match="is not a regular file"):
        write_named_file(named, b"new", 0o755)
    assert (named.lstat().st_mode, named.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert (victim.read_bytes(), stat.S_IMODE(victim.stat().st_mode) & 0o111) == (b"victim", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["named", "victim"]


@pytest.mark.parametrize("words", [["snapshot", "--script"], ["init", "--force"]])
def test_command_writes_no_file_through_a_link(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "named").symlink_to("victim")
    command = [sys.executable, "-c", "from nftpolicy.cli.main import main; main()", *words, str(tmp_path / "named")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (2, 4, 5), done.stderr
    assert (tmp_path / "named").is_symlink() and not (tmp_path / "victim").exists()


def test_file_is_synced_before_and_directory_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace

    def record_sync(descriptor: int) -> None:
        calls.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def record_replace(path: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_file(tmp_path / "state", b"new")
    assert calls == ["file", "rename", "directory"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write_file(tmp_path / "state", b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "state", b"new")
    monkeypatch.undo()
    assert (tmp_path / "state").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_leftover_temporary_link_is_replaced_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"untouched")
    (tmp_path / ".state.new").symlink_to(elsewhere)
    write_file(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"new"
    assert not (tmp_path / "state").is_symlink()
    assert elsewhere.read_bytes() == b"untouched"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_directory_sync_ignores_only_einval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if number == errno.EINVAL:
        atomic_file.sync_directory(tmp_path)
    else:
        with pytest.raises(OSError, match="Input/output error"):
            atomic_file.sync_directory(tmp_path)


# --- locks -----------------------------------------------------------------------------------

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["lock", "."])
def test_exclusive_lock_times_out_while_held(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with exclusive_lock(path):
        with pytest.raises(LockTimeout), exclusive_lock(path, wait=0):
            pass
        begun = time.monotonic()
        with pytest.raises(LockTimeout), exclusive_lock(path, wait=0.2):
            pass
        assert time.monotonic() - begun >= 0.2
    with exclusive_lock(path, wait=0):
        pass


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_locked(path)
        process.kill()
        process.wait()
    assert not is_locked(path)
    assert path.exists()


def test_locked_state_directory_names_the_process(tmp_path: Path) -> None:
    memory = StateDir(tmp_path / "netns-1")
    with memory.lock():
        assert (memory.directory / "lock").read_text() == str(os.getpid())
        with pytest.raises(Locked, match=f"process {os.getpid()} holds the lock"), memory.lock():
            pass
    with memory.lock(), (memory.directory / "lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- files of version 0.1 ----------------------------------------------------------------------

ENTRY = """{
 "number": 12,
 "time": "2026-01-02T12:00:00Z",
 "policy": "p",
 "file": "/etc/p.toml",
 "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
 "verdict": "proved",
 "seconds": 0.123,
 "who": "lisa",
 "why": "rollback to 3",
 "of": 3,
 "text": "a"
}"""
PENDING = """{
 "token": "t",
 "state": "going back",
 "seconds": 60,
 "deadline": 100.5,
 "until": "2026-01-02T12:00:00Z",
 "back": {
  "number": 12,
  "file": "/etc/p.toml",
  "text": "a"
 },
 "applier": {
  "pid": 1,
  "started": 2
 },
 "deadman": {
  "pid": 3,
  "started": 4
 },
 "reason": ""
}"""
JOURNAL = """{"pid": 7, "begun": 1.5, "steps": 3, "before": ["/etc/old.toml", "a \\udcff"], "after": null}
done
done
"""


def test_history_of_version_0_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "000012.json").write_text(ENTRY)
    history = History(tmp_path)
    (entry,) = history.entries()
    assert (entry.number, entry.data, entry.of, entry.who, entry.why) == (12, b"a", 3, "lisa", "rollback to 3")
    assert history.add("p", "f", b"b", "proved", 1.0, "apply").number == 13
    history.path(13).unlink()
    again = history.add("p", "/etc/p.toml", b"b", "proved", 1.0, "apply")
    assert list(entry.as_json()) == list(again.as_json())


def test_journal_of_version_0_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text(JOURNAL)
    journal = Journal(tmp_path / "journal")
    assert journal.interrupted() == InterruptedChange(7, 1.5, 3, 2, ("/etc/old.toml", b"a \xff"), None)
    with journal.record(3, ("/etc/old.toml", b"a \xff"), None) as writer:
        writer.count_step()
        lines = (tmp_path / "journal").read_text().splitlines()
    assert [lines[0].partition('"before"')[2], *lines[1:]] == [JOURNAL.splitlines()[0].partition('"before"')[2], "done"]
    assert not (tmp_path / "journal").exists()


def test_pending_confirmation_of_version_0_1_round_trips(tmp_path: Path) -> None:
    (tmp_path / "pending.json").write_text(PENDING)
    memory = StateDir(tmp_path)
    found = pending_confirm.read_pending(memory)
    assert found is not None
    assert (found.state, found.target_text, found.deadman.pid) == (pending_confirm.ROLLING_BACK, "12 (/etc/p.toml)", 3)
    pending_confirm.update_pending(memory, "t")
    assert (tmp_path / "pending.json").read_text() == PENDING


def test_state_directory_of_version_0_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("/etc/p.toml")
    (tmp_path / "policy.toml").write_bytes(b"a")
    (tmp_path / "sysctls.json").write_text('{"net/ipv4/ip_forward": "0"}')
    memory = StateDir(tmp_path)
    assert memory.policy() == ("/etc/p.toml", b"a")
    memory.save_sysctls({"net/ipv4/ip_forward": "1", "net/ipv4/conf/a/rp_filter": "2"})
    assert memory.saved_sysctls() == {"net/ipv4/ip_forward": "0", "net/ipv4/conf/a/rp_filter": "2"}
    memory.clear()
    assert (memory.policy(), memory.saved_sysctls()) == (None, {})
