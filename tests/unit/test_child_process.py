"""Functions that run in a forked process: results, errors, timeouts, signals."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nftpolicy.kernel.child_process import ChildProcess, run_in_child
from nftpolicy.kernel.errors import ChildFailed
from tests.lab.limits import limit
from tests.lab.netns import wait_until


def test_run_in_child_returns_the_whole_result() -> None:
    assert run_in_child(lambda: b"") == b""
    assert run_in_child(lambda: b"x" * 300_000) == b"x" * 300_000


def test_run_in_child_works_in_a_child_process() -> None:
    assert int(run_in_child(lambda: str(os.getppid()).encode())) == os.getpid()


def test_exception_in_child_raises_child_failed() -> None:
    def work() -> bytes:
        raise ValueError("seven")

    with pytest.raises(ChildFailed, match=r"^ValueError: seven$") as raised:
        run_in_child(work)
    assert raised.value.signal is None


def test_child_killed_by_signal_raises_child_failed() -> None:
    def work() -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b"never"

    with pytest.raises(ChildFailed, match=r"^ended by signal 9$") as raised:
        run_in_child(work)
    assert raised.value.signal == signal.SIGKILL


def test_child_killed_by_signal_prints_nothing() -> None:
    text = "import os; from nftpolicy.kernel.child_process import run_in_child; run_in_child(os.abort)"
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", text], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("ChildFailed: ended by signal 6")
    assert "Fatal Python error" not in done.stderr


def test_child_that_exits_early_raises_child_failed() -> None:
    def work() -> bytes:
        os._exit(3)

    with pytest.raises(ChildFailed, match=r"^exited with status 3$"):
        run_in_child(work)


def test_child_over_its_time_limit_is_killed() -> None:
    def work() -> bytes:
        time.sleep(60)
        return b""

    started = time.monotonic()
    with pytest.raises(ChildFailed, match=r"^no result within 1 s$"):
        run_in_child(work, seconds=1)
    assert time.monotonic() - started < 10


def test_child_process_descriptor_can_be_polled() -> None:
    reader, writer = os.pipe()

    def work() -> bytes:
        return os.read(reader, 1)

    with ChildProcess(work, nice=1) as child:
        assert not child.has_ended()
        os.write(writer, b"!")
        assert select.select([child.descriptor], [], [], limit(60))[0]
        assert child.has_ended()
        assert child.result() == b"!"
    os.close(reader)
    os.close(writer)


def children() -> set[str]:
    """Return the process IDs of the children of this thread, zombies too."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def test_cancelled_child_is_killed_and_reaped() -> None:
    others = children()  # another test of this process may have left one
    with ChildProcess(lambda: bytes(time.sleep(60) is None)) as child:
        assert len(children() - others) == 1
        child.cancel()
    assert children() <= others


def test_child_has_default_signal_handlers() -> None:
    def work() -> bytes:
        return str([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]).encode()

    assert run_in_child(work).count(b"SIG_DFL") == 2


def test_child_is_killed_with_its_parent() -> None:
    parent = os.fork()
    if parent == 0:
        child = ChildProcess(lambda: time.sleep(limit(60)) or b"")  # type: ignore[func-returns-value]
        Path(f"/proc/{child._pid}/comm").read_text()
        os.write(_PIPE[1], f"{child._pid}\n".encode())
        time.sleep(limit(60))
        os._exit(0)
    child_pid = int(os.read(_PIPE[0], 100))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_until(lambda: not Path(f"/proc/{child_pid}").exists(), 5, "the end of the child")


_PIPE = os.pipe()
