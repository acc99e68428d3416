"""Reads of the policy in force and the kernel that no change by nftpolicy falls into."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from nftpolicy.runtime.apply import state_dir as module
from nftpolicy.runtime.apply.state_dir import StateDir, read_undisturbed


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    monkeypatch.setattr(module, "_RETRY", 0)
    made = StateDir(tmp_path / "state")
    made.create()
    made.save_policy("p.toml", b"earlier")
    return made


def change(state_dir: StateDir, number: int) -> None:
    with state_dir.lock():
        lock = state_dir.directory / "lock"
        os.utime(lock, ns=(number, number))  # the clock of the file system may stand still during a test


def test_read_without_a_change_is_made_once(state_dir: StateDir) -> None:
    reads: list[int] = []
    assert read_undisturbed(state_dir, lambda: reads.append(1) or state_dir.policy()) == ("p.toml", b"earlier")  # type: ignore[func-returns-value]
    assert len(reads) == 1


def test_read_before_the_first_change_needs_no_directory(tmp_path: Path) -> None:
    assert read_undisturbed(StateDir(tmp_path / "none"), lambda: 7) == 7


def test_read_is_repeated_after_a_change_in_the_middle(state_dir: StateDir) -> None:
    change(state_dir, 1)
    reads: list[object] = []

    def read() -> object:
        reads.append(state_dir.policy())
        if len(reads) == 1:
            change(state_dir, 2)
            state_dir.save_policy("p.toml", b"later")
        return reads[-1]

    assert read_undisturbed(state_dir, read) == ("p.toml", b"later")
    assert len(reads) == 2


def test_read_waits_for_the_end_of_a_change(state_dir: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as running:
        running.enter_context(state_dir.lock())
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            state_dir.save_policy("p.toml", b"later")
            running.close()

        monkeypatch.setattr(module.time, "sleep", sleep)
        assert read_undisturbed(state_dir, state_dir.policy) == ("p.toml", b"later")
    assert len(waits) == 1


def test_read_of_a_lock_that_is_never_free_counts(state_dir: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_WAIT", 0.05)
    with state_dir.lock():
        assert read_undisturbed(state_dir, state_dir.policy) == ("p.toml", b"earlier")
