"""`apply --confirm` rolls back by itself, even if the applying process or its terminal ends."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    ENVIRONMENT,
    POLICY,
    PROGRAM,
    STATE,
    Guarded,
    gluon,
    guarded_lab,
    wan_routes_in_main,
)
from tests.lab.limits import brief, limit
from tests.lab.netns import wait_until
from tests.leaks.test_race_windows import FLOOD, flooding

pytestmark = pytest.mark.slow

OTHER = "/run/lab/other.toml"
SECONDS = "2"
LONGER = f"{brief(4):.0f}"  # for tests that read the kernel meanwhile, on a slow machine


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab() as found:
        wan_routes_in_main(found.lab)
        found.lab.node.outside(OTHER).write_text(gluon(found.lab).replace("table   = 1", "table   = 9"))
        yield found


@pytest.fixture(autouse=True)
def _first_in_force(made: Guarded) -> Iterator[None]:
    made.apply()
    yield
    wait_until(lambda: not pending(made), 20, "the end of the trial")


def pending(made: Guarded) -> list[object]:
    return list(made.lab.node.outside(STATE).glob("*/pending.json"))


def holds(made: Guarded, file: str) -> bool:
    return "nothing to change" in made.nftpolicy("apply", "--dry-run", file).stdout


def in_force(made: Guarded) -> str:
    """Return the policy in force, from two readings; call it while no policy is on trial."""
    first, other = holds(made, POLICY), holds(made, OTHER)
    assert first != other
    return POLICY if first else OTHER


def leaked(made: Guarded) -> int:
    return sum(FLOOD in frame.payload for frame in made.lab.wan.frames())


def test_confirm_timeout_rolls_back_without_leak(made: Guarded) -> None:
    with flooding(made.lab):
        made.lab.wan.drain()
        said = made.nftpolicy("apply", "--confirm", LONGER, OTHER)
        assert "rolls back to" in said.stderr
        assert holds(made, OTHER)
        wait_until(lambda: not pending(made), 20, "the way back")
        assert in_force(made) == POLICY
        assert leaked(made) == 0
    assert "confirm timed out" in made.nftpolicy("history").stdout


def test_control_flood_without_guard_leaks(made: Guarded) -> None:
    """The control of the test above."""
    with made.off(), flooding(made.lab):
        made.lab.wan.drain()
        wait_until(lambda: leaked(made), 5, "the flood")


def test_confirm_keeps_policy(made: Guarded) -> None:
    made.nftpolicy("apply", "--confirm", "60", OTHER)
    refused = made.nftpolicy("apply", POLICY, check=False)
    assert (refused.returncode, "waits to be confirmed" in refused.stderr) == (5, True)
    made.nftpolicy("confirm")
    assert not pending(made)
    assert in_force(made) == OTHER
    again = made.nftpolicy("confirm", check=False)
    assert (again.returncode, "no policy is waiting" in again.stderr) == (5, True)


@pytest.mark.parametrize("pause", [0.25, 0.4, 0.6])
def test_confirm_killed_apply_rolls_back(made: Guarded, pause: float) -> None:
    with flooding(made.lab):
        made.lab.wan.drain()
        process = made.lab.node.popen(
            [PROGRAM, "apply", "--confirm", SECONDS, OTHER], env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        time.sleep(pause)
        process.kill()
        process.wait()
        wait_until(lambda: not pending(made), 20, "the way back")
        made.nftpolicy("recover", "--undo")
        assert in_force(made) == POLICY
        assert leaked(made) == 0


def test_confirm_after_hangup_rolls_back_at_timeout(made: Guarded) -> None:
    ours, theirs = pty.openpty()
    process = made.lab.node.popen(
        [PROGRAM, "apply", "--confirm", LONGER, OTHER],
        env=ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    assert process.wait(limit(20)) == 0
    os.close(ours)  # hangs up
    assert holds(made, OTHER)
    wait_until(lambda: not pending(made), 20, "the way back")
    assert in_force(made) == POLICY


def test_confirm_killed_timer_is_reported(made: Guarded) -> None:
    made.nftpolicy("apply", "--confirm", "60", OTHER)
    (note,) = pending(made)
    pid = json.loads(note.read_text())["deadman"]["pid"]  # type: ignore[attr-defined]
    made.lab.node.call(os.kill, pid, signal.SIGKILL)
    wait_until(lambda: "has ended" in made.nftpolicy("status", check=False).stderr, 5, "a word of it")
    made.nftpolicy("rollback")
    assert in_force(made) == POLICY
    assert not pending(made)


def timer(made: Guarded) -> int:
    """Return the process id of the confirm timer, inside the node."""
    (note,) = pending(made)
    return int(json.loads(note.read_text())["deadman"]["pid"])  # type: ignore[attr-defined]


def handles_sigterm(made: Guarded, pid: int) -> bool:
    """Return True if a process has a handler; before it starts Python, the signal would kill it."""
    status = made.lab.node.run(["cat", f"/proc/{pid}/status"]).stdout
    caught = re.search(r"^SigCgt:\s+(\w+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_watch_restarts_killed_timer(made: Guarded) -> None:
    """Killed twice, the second time in the place of the first: the policy on trial is taken back in the end."""
    watch = made.lab.node.popen([PROGRAM, "watch"], env=ENVIRONMENT, stderr=subprocess.PIPE)
    try:
        made.nftpolicy("apply", "--confirm", "60", OTHER)
        for _ in range(2):
            killed = timer(made)
            made.lab.node.call(os.kill, killed, signal.SIGKILL)
            wait_until(lambda killed=killed: timer(made) != killed, 10, "the next timer")  # type: ignore[misc]
            assert "has ended" not in made.nftpolicy("status", check=False).stderr
        wait_until(lambda: handles_sigterm(made, timer(made)), 10, "the timer's start")
        made.lab.node.call(os.kill, timer(made), signal.SIGTERM)  # as at the deadline
        wait_until(lambda: not pending(made), 20, "the way back")
        assert in_force(made) == POLICY
    finally:
        watch.terminate()
        _, log = watch.communicate(timeout=limit(20))
    assert log.count(b"confirm timer") >= 2  # more on a slow machine, before the new one holds its lock
    assert b"started again" in log


def test_control_without_watch_killed_timer_stays_away(made: Guarded) -> None:
    made.nftpolicy("apply", "--confirm", "3", OTHER)
    made.lab.node.call(os.kill, timer(made), signal.SIGKILL)
    time.sleep(5)
    assert pending(made)
    made.nftpolicy("rollback")
