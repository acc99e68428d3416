# SPDX-License-Identifier: BSD-2-Clause
"""The dead-man: a process of its own that goes back to the policy before, unless somebody confirms in time.

It is no child of the process that applies, nor in its session, and holds nothing of it: neither the end
of that process, nor that of its terminal, ends it. It is ready before the first step is taken.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

from attrs import asdict, frozen

from ...kernel.interface import Kernel
from . import pending
from .apply import observe
from .history import History
from .journal import Unfinished
from .memory import Busy, Memory
from .pending import APPLYING, FAILED, WAITING, Back, Declined, Gone, NotDue, Pending, Process, process

SHORTEST, LONGEST = 1, 86_400  # seconds to confirm in
_TICK = 0.2  # seconds between two looks at the deadline
_READY_WITHIN = 30.0  # seconds
_GRACE = 60.0  # seconds after the deadline that a process may still be applying
_AGAIN_AFTER = (1, 2, 4, 8, 15, 30)  # seconds, if going back fails: a link may come up meanwhile
_LOG_SIZE = 64 << 10  # bytes
_READY = b"ready\n"
# The package that this process runs, from where it has it, and nothing else from there.
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import nftpolicy; del sys.path[0]; "
    "from nftpolicy.cli.main import main; main()"
)

Around = Callable[[], AbstractContextManager[None]]  # what is entered once the memory's lock is held
GoBack = Callable[[Around], None]


@frozen
class Order:
    """What a dead-man is told by who starts it."""

    token: str
    seconds: float
    back: Back | None
    applier: Process


# --- the process that applies --------------------------------------------------------------


@contextmanager
def confirmed_within(
    kernel: Kernel, memory: Memory, history: History, seconds: float, say: Callable[[str], None]
) -> Iterator[None]:
    """A change that is taken back unless it is confirmed within so many seconds after its end.

    Entered with the memory's lock held and before the first step. A change that fails is no longer on trial,
    unless it left the kernel in the middle. `say` gets a line about what will happen.

    Raises:
        Declined: one is on trial already, or nobody would watch this one; nothing was changed.
    """
    pending.refuse(memory)
    back = _where_back(kernel, memory, history)
    token = _start(memory, seconds, back)
    goal = pending.RELEASE if back is None else str(back)
    say(f"without 'nftpolicy confirm' within {seconds:g} s this goes back to {goal}")
    try:
        yield
    except Unfinished:
        raise
    except BaseException:
        pending.end(memory, token)
        raise
    on = pending.update(memory, token, state=WAITING, **pending.from_now(seconds))
    if on is None or not watched(memory):
        raise Declined(
            "it is applied, but the process that was to go back has ended: "
            "'nftpolicy confirm' keeps the policy, 'nftpolicy rollback' goes back"
        )


def _where_back(kernel: Kernel, memory: Memory, history: History) -> Back | None:
    """What is in force now. Raises Declined if that is something and nobody knows what."""
    last = memory.policy()
    if last is None:
        held = observe(kernel, [])
        if held.tables or held.rules or held.routes:
            raise Declined(
                "something of nftpolicy's is in force, but which policy it was is not known, so there is nothing "
                "to go back to: apply the old policy again, then this one"
            )
        return None
    file, text = last
    number = None
    with suppress(OSError):
        entry = history.read().of_text(text)
        number = entry.number if entry else None
    return Back(number, file, text.decode())


def _start(memory: Memory, seconds: float, back: Back | None) -> str:
    """Start a dead-man, and wait until it is ready; its token. Raises Declined."""
    order = Order(uuid4().hex, seconds, back, process(os.getpid()))
    package = str(Path(__file__).parents[3])
    moved = {name: str(Path(os.environ[name]).absolute()) for name in _PLACES if name in os.environ}
    try:
        started = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, package, "rollback", "--at-deadline"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={**os.environ, **moved},
        )
    except OSError as error:
        raise Declined(f"{_UNWATCHED}: it can't be started: {error.strerror}") from None
    with started:
        try:
            said = _conversation(started, json.dumps(asdict(order)).encode())
            if not said.endswith(_READY):
                words = said.decode(errors="replace").strip().removeprefix("nftpolicy: ")
                raise Declined(f"{_UNWATCHED}: {words or 'it ended without a word'}")
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            pending.end(memory, order.token)
            raise
    return order.token


_PLACES = ("NFTPOLICY_STATE", "NFTPOLICY_LIB")
_UNWATCHED = "nothing was changed, since the process that would go back is not ready"


def _conversation(started: subprocess.Popen[bytes], order: bytes) -> bytes:
    """Give the order; what is said to it: "ready", or all until the end."""
    assert started.stdin is not None and started.stdout is not None
    with suppress(BrokenPipeError):
        started.stdin.write(order)
        started.stdin.close()
    said, last = b"", time.monotonic() + _READY_WITHIN
    while not said.endswith(_READY):
        if not select.select([started.stdout], [], [], max(0.0, last - time.monotonic()))[0]:
            return f"it did not say so within {_READY_WITHIN:g} seconds".encode()
        part = os.read(started.stdout.fileno(), 4096)
        if not part:
            break
        said += part
    return said


# --- the dead-man --------------------------------------------------------------------------


def take_order() -> Order:
    """The order from standard input. What returns is a process that nobody waits for. Raises ValueError."""
    found = json.loads(sys.stdin.buffer.read())
    back = found["back"]
    order = Order(found["token"], found["seconds"], None if back is None else Back(**back), Process(**found["applier"]))
    if os.fork():
        os._exit(0)
    return order


class _Told:
    """Whether this process was told to end: then it goes back at once, as it could not do so later."""

    now = False


def stand(memory: Memory, order: Order, go_back: GoBack, ready: Callable[[], None]) -> None:
    """Wait for the deadline of `order`, and go back then; until somebody confirms.

    Raises:
        Declined: one is on trial already.
        OSError: the state folder can't be written.
    """
    told = _Told()
    for one in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(one, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: setattr(told, "now", True))
    memory.folder.mkdir(parents=True, exist_ok=True)
    with (memory.folder / _LOCK).open("a") as mine:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Declined("another process waits for a confirmation") from None
        new = Pending(
            order.token,
            APPLYING,
            order.seconds,
            back=order.back,
            applier=order.applier,
            deadman=process(os.getpid()),
            **pending.from_now(order.seconds),
        )
        pending.begin(memory, new)
        try:
            ready()
        except OSError:
            pending.end(memory, order.token)  # who started it is gone, before the first step
            return
        _log(memory, f"without a confirmation within {order.seconds:g} s, back to {new.goal}")
        try:
            _watch(memory, order.token, go_back, told)
        except Exception as error:
            _log(memory, f"ended by {type(error).__name__}: {error}")
            raise


_LOCK = "deadman.lock"


def say_ready() -> None:
    """To who started it; then nothing of that process is held any more. Raises OSError if it is gone."""
    os.write(1, _READY)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _watch(memory: Memory, token: str, go_back: GoBack, told: _Told) -> None:
    failures = 0
    while (now := _mine(memory, token)) is not None:
        if not told.now and now.remaining() > 0:
            time.sleep(_TICK)
            continue
        try:
            go_back(partial(pending.claimed, memory, token, lambda found: told.now or found.remaining() <= 0))
        except Gone:
            continue
        except NotDue:
            continue
        except Busy:
            _end_stuck(memory, now)
            time.sleep(_TICK)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            _log(memory, f"going back to {now.goal} failed: {reason}")
            if failures == len(_AGAIN_AFTER):
                pending.update(memory, token, state=FAILED, reason=reason)
                _log(memory, "it is not tried again; what was on trial stays in force, with its guard")
                return
            time.sleep(_AGAIN_AFTER[failures])
            failures += 1
        else:
            _log(memory, f"{'told to end' if told.now else 'not confirmed'}: went back to {now.goal}")
            return
    _log(memory, "confirmed, or taken back already")


def _mine(memory: Memory, token: str) -> Pending | None:
    """The trial, if it goes on."""
    found = pending.pending(memory)
    return found if found is not None and found.token == token else None


def _end_stuck(memory: Memory, now: Pending) -> None:
    """End the process that applies, if it stands still long after the deadline (stopped, as by ^Z)."""
    if now.state != APPLYING or now.remaining() > -_GRACE:
        return
    with suppress(OSError):
        handle = os.pidfd_open(now.applier.pid)
        try:
            if now.applier.alive():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                _log(memory, f"ended process {now.applier.pid}, which was still applying")
        finally:
            os.close(handle)


def _log(memory: Memory, words: str) -> None:
    """A line more; of old ones as many stay as the size allows. A full disk ends nothing."""
    path = memory.folder / "deadman.log"
    with suppress(OSError):
        line = f"{datetime.now().astimezone().isoformat(timespec='seconds')} [{os.getpid()}] {words[:2000]}\n"
        old = path.read_bytes() if path.exists() else b""
        if len(old) > _LOG_SIZE:
            new = path.with_name(".deadman.log.new")
            new.write_bytes(old[-_LOG_SIZE // 2 :].partition(b"\n")[2])
            new.replace(path)
        with path.open("a") as log:
            log.write(line)


# --- everybody else ------------------------------------------------------------------------


def watched(memory: Memory) -> bool:
    """Whether a dead-man waits in this namespace: it holds a lock as long as it lives."""
    try:
        with (memory.folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def overdue(memory: Memory) -> str | None:
    """What is wrong with a trial: nobody watches it, or it could not be taken back. None if nothing is."""
    try:
        found = pending.pending(memory)
    except Declined as damaged:
        return str(damaged)
    if found is None:
        return None
    if found.state == FAILED:
        return (
            f"the policy in force was not confirmed until {found.until}, and going back to {found.goal} failed: "
            f"{found.reason}; 'nftpolicy rollback' tries again"
        )
    if watched(memory):
        return None
    late = found.remaining() <= 0
    keep = "" if late or found.state != WAITING else "'nftpolicy confirm' keeps it, "
    return (
        f"the policy in force {'was' if late else 'is'} to be confirmed until {found.until}, and the process that "
        f"was to go back to {found.goal} has ended: {keep}'nftpolicy rollback' goes back"
    )
