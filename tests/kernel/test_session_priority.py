"""Autogroups of the scheduler: a session takes over the nice value of its leader, and no other process changes it."""

import os
from pathlib import Path

import pytest

from nftpolicy.kernel.child_process import ChildProcess, run_in_child
from nftpolicy.kernel.session_priority import apply_nice_to_session, change_session_nice

pytestmark = pytest.mark.kernel
AUTOGROUP = Path("/proc/self/autogroup")
has_autogroups = pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroups")


def group_nice() -> int:
    return int(AUTOGROUP.read_text().split()[2])


@has_autogroups
def test_leader_gives_its_nice_value_to_the_session() -> None:
    def work() -> bytes:
        os.setsid()
        before = group_nice()
        os.nice(-10)
        assert group_nice() == before
        return str((before, apply_nice_to_session(), group_nice())).encode()

    assert run_in_child(work) == b"(0, True, -10)"


@has_autogroups
def test_change_of_nice_begins_a_session() -> None:
    def work() -> bytes:
        change_session_nice(5)
        assert os.getsid(0) == os.getpid()
        return str(group_nice() - os.nice(0)).encode()

    def begin_session() -> bytes:
        os.setsid()  # the file of a process whose ancestors began no session is empty
        before = group_nice()
        assert run_in_child(work) == b"0"
        return str(group_nice() - before).encode()

    assert run_in_child(begin_session) == b"0"


def test_other_members_cannot_change_their_session() -> None:
    def work() -> bytes:
        os.nice(5)
        return str(apply_nice_to_session()).encode()

    assert run_in_child(work) == b"False"


@pytest.mark.parametrize(("parent", "child"), [(-10, b"5"), (0, b"5"), (10, b"10")])
def test_worker_has_its_nice_value_whatever_the_parent_has(parent: int, child: bytes) -> None:
    def work() -> bytes:
        os.setpriority(os.PRIO_PROCESS, 0, parent)
        with ChildProcess(lambda: str(os.nice(0)).encode(), nice=5) as worker:
            return worker.result()

    assert run_in_child(work) == child
