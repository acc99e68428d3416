# SPDX-License-Identifier: BSD-2-Clause
"""Confirm timer: a separate process that restores the previous policy unless a change is confirmed.

It is started, and ready, before the first step of the change. It is not a child of the process that
applies, has a session of its own and shares no file with it, so neither the end of that process nor
the end of its terminal stops it. (Compare `commit confirmed` of Junos, and `netplan try`.)
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from types import FrameType
from typing import Any
from uuid import uuid4

from ...exceptions import NftpolicyError
from ...kernel.interface import Kernel
from ..atomic_file import write_file
from ..file_lock import LockTimeout, exclusive_lock, is_locked
from ..private_files import open_private, read_private
from . import pending_confirm
from .confirm_process import TimerConfig, start_timer_process
from .executor import read_own_state
from .history import History, record_event
from .history_events import ROLLBACK_FAILED
from .journal import InconsistentState
from .pending_confirm import (
    APPLYING,
    FAILED,
    WAITING,
    AlreadyResolved,
    ConfirmError,
    NotExpired,
    PendingConfirm,
    RollbackTarget,
    process_ref,
)
from .state_dir import Locked, StateDir

_POLL_INTERVAL = 0.2  # seconds
_START_TIMEOUT = 30.0  # seconds until the process must be ready
_APPLIER_TIMEOUT = 60.0  # seconds after the deadline until a process that still applies is killed
_RETRY_DELAYS = (1, 2, 4, 8, 15, 30)  # seconds after a failed rollback: a link may come up
_LOG_SIZE = 64 << 10  # bytes
_LONGEST_MESSAGE = 2000  # characters of a line in the log
_LOCK, _LOG = "deadman.lock", "deadman.log"
_READY = b"ready\n"
_PIPE_READ_SIZE = 4096  # bytes
_NOT_READY = "nothing was changed, since the process that would roll back is not ready"

# A context that is entered while the lock of the state directory is held.
ConfirmContext = Callable[[], AbstractContextManager[None]]
RollBack = Callable[[ConfirmContext], None]


# --- the process that applies --------------------------------------------------------------


@contextmanager
def roll_back_unless_confirmed(
    kernel: Kernel,
    state_dir: StateDir,
    history: History,
    seconds: float,
    notify: Callable[[str], None],
) -> Iterator[None]:
    """Make a change in the block that is rolled back unless it is confirmed in `seconds` after it.

    Entered with the lock of the state directory held, before the first step. After a change that
    failed there is nothing to confirm, unless it left the kernel in neither state. `notify` gets a
    line about the timer.

    Raises:
        ConfirmError: another policy waits to be confirmed, or the timer cannot be started; nothing
            was changed.
    """
    pending_confirm.require_none_pending(state_dir)
    target = _rollback_target(kernel, state_dir, history)
    token = _start(state_dir, seconds, target)
    target_text = pending_confirm.RELEASE_TEXT if target is None else str(target)
    notify(f"without 'nftpolicy confirm' within {seconds:g} s, nftpolicy rolls back to {target_text}")
    try:
        yield
    except InconsistentState:
        raise
    except BaseException:
        pending_confirm.remove_pending(state_dir, token)
        raise
    waiting = pending_confirm.update_pending(
        state_dir, token, state=WAITING, **pending_confirm.deadline_fields(seconds)
    )
    if waiting is None or not is_running(state_dir):
        raise ConfirmError(
            "the policy is applied, but the process that would roll back has ended: "
            "'nftpolicy confirm' keeps the policy, 'nftpolicy rollback' restores the previous one"
        )


def _rollback_target(kernel: Kernel, state_dir: StateDir, history: History) -> RollbackTarget | None:
    """Return the policy in force, or None without one. Raises ConfirmError if it is not known."""
    source = state_dir.policy()
    if source is None:
        own = read_own_state(kernel, [])
        if own.tables or own.rules or own.routes:
            raise ConfirmError(
                "objects of nftpolicy are in the kernel, but their policy is not known, so there is "
                "no policy to roll back to: apply the old policy again, then this one"
            )
        return None
    file, text = source
    number = None
    with suppress(OSError):
        entry = history.read().find_by_text(text)
        number = entry.number if entry else None
    return RollbackTarget(number, file, text.decode())


def _start(state_dir: StateDir, seconds: float, target: RollbackTarget | None) -> str:
    """Start the timer's process, wait until it is ready, and return its token.

    Raises ConfirmError.
    """
    order = TimerConfig(uuid4().hex, seconds, target, process_ref(os.getpid()))
    try:
        worker = start_timer_process(order, subprocess.PIPE)
    except OSError as error:
        raise ConfirmError(f"{_NOT_READY}: it cannot be started: {error.strerror}") from None
    with worker:
        try:
            output = _read_until_ready(worker)
            if not output.endswith(_READY):
                message = output.decode(errors="replace").strip().removeprefix("nftpolicy: ")
                raise ConfirmError(f"{_NOT_READY}: {message or 'exited without output'}")
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            pending_confirm.remove_pending(state_dir, order.token)
            raise
    return order.token


def _read_until_ready(worker: subprocess.Popen[bytes]) -> bytes:
    """Return the output of the process, up to "ready" or up to its end."""
    assert worker.stdout is not None
    output, deadline = b"", time.monotonic() + _START_TIMEOUT
    while not output.endswith(_READY):
        left = max(0.0, deadline - time.monotonic())
        if not select.select([worker.stdout], [], [], left)[0]:
            return f"did not report readiness within {_START_TIMEOUT:g} s".encode()
        part = os.read(worker.stdout.fileno(), _PIPE_READ_SIZE)
        if not part:
            break
        output += part
    return output


# --- the timer's process -------------------------------------------------------------------


class _StopFlag:
    """Set when this process gets SIGTERM: it rolls back at once, since it cannot do so later."""

    def __init__(self) -> None:
        self.is_set = False

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True


def run_timer(state_dir: StateDir, config: TimerConfig, roll_back: RollBack, ready: Callable[[], None]) -> None:
    """Wait for the deadline and then roll back; return as soon as the policy is confirmed.

    `ready` reports to the process that applies.

    Raises:
        ConfirmError: another policy waits to be confirmed.
        OSError: the state directory cannot be written.
    """
    stop = _StopFlag()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop.handle_signal)
    state_dir.create()
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(state_dir.directory / _LOCK, wait=0))
        except LockTimeout:
            raise ConfirmError("another process waits for a confirmation") from None
        new = _take_over(state_dir, config) if config.resumes else _create(state_dir, config)
        if new is None:
            return  # confirmed or rolled back meanwhile
        try:
            ready()
        except OSError:
            pending_confirm.remove_pending(state_dir, config.token)  # the applying process ended before its first step
            return
        verb = "started again" if config.resumes else "started"
        _log(state_dir, f"{verb}: rolls back to {new.target_text} unless confirmed within {config.seconds:g} s")
        try:
            _wait_and_roll_back(state_dir, config.token, roll_back, stop)
        except Exception as error:
            _log(state_dir, f"ended by {type(error).__name__}: {error}")
            raise


def _create(state_dir: StateDir, config: TimerConfig) -> PendingConfirm:
    """Create the pending confirmation. Raises ConfirmError if there is another one."""
    new = PendingConfirm(
        config.token,
        APPLYING,
        config.seconds,
        back=config.target,
        applier=config.applier,
        deadman=process_ref(os.getpid()),
        **pending_confirm.deadline_fields(config.seconds),
    )
    pending_confirm.create_pending(state_dir, new)
    return new


@contextmanager
def failure_recorded(state_dir: StateDir, config: TimerConfig) -> Iterator[None]:
    """Record a failure in the pending confirmation that this process would take over, so that no other tries."""
    try:
        yield
    except NftpolicyError as error:
        if config.resumes:
            pending_confirm.update_pending(state_dir, config.token, state=FAILED, reason=" ".join(str(error).split()))
        raise


def _take_over(state_dir: StateDir, config: TimerConfig) -> PendingConfirm | None:
    """Write this process into the pending confirmation, with its old deadline; None if that has ended."""
    return pending_confirm.update_pending(state_dir, config.token, deadman=process_ref(os.getpid()))


def report_ready() -> None:
    """Report readiness to the process that applies, and close every file shared with it.

    Raises OSError if that process has ended.
    """
    os.write(1, _READY)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _wait_and_roll_back(state_dir: StateDir, token: str, roll_back: RollBack, stop: _StopFlag) -> None:
    failures = 0
    while (current := _read_own(state_dir, token)) is not None:
        if not stop.is_set and current.remaining() > 0:
            time.sleep(_POLL_INTERVAL)
            continue
        try:
            roll_back(partial(pending_confirm.rolling_back, state_dir, token, partial(_is_due, stop)))
        except (AlreadyResolved, NotExpired):
            continue
        except Locked:
            _kill_stuck_applier(state_dir, current)
            time.sleep(_POLL_INTERVAL)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            _log(state_dir, f"rollback to {current.target_text} failed: {reason}")
            if failures == len(_RETRY_DELAYS):
                pending_confirm.update_pending(state_dir, token, state=FAILED, reason=reason)
                record_event(state_dir, ROLLBACK_FAILED, f"back to {current.target_text}: {reason}")
                _log(state_dir, "giving up; the unconfirmed policy stays in force, with its guard")
                return
            time.sleep(_RETRY_DELAYS[failures])
            failures += 1
        else:
            cause = "terminated" if stop.is_set else "not confirmed"
            _log(state_dir, f"{cause}: rolled back to {current.target_text}")
            return
    _log(state_dir, "ended: the policy was confirmed, or rolled back by another process")


def _is_due(stop: _StopFlag, current: PendingConfirm) -> bool:
    return stop.is_set or current.remaining() <= 0


def _read_own(state_dir: StateDir, token: str) -> PendingConfirm | None:
    """Return the pending confirmation with this token, or None if it has ended."""
    current = pending_confirm.read_pending(state_dir)
    return current if current is not None and current.token == token else None


def _kill_stuck_applier(state_dir: StateDir, current: PendingConfirm) -> None:
    """Kill a process that still applies long after the deadline (stopped by ^Z, for example)."""
    if current.state != APPLYING or current.remaining() > -_APPLIER_TIMEOUT:
        return
    with suppress(OSError):
        handle = os.pidfd_open(current.applier.pid)
        try:
            if current.applier.is_alive():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                _log(state_dir, f"killed process {current.applier.pid}, which was still applying")
        finally:
            os.close(handle)


def _log(state_dir: StateDir, message: str) -> None:
    """Append a line to the log, and drop old lines beyond its size. Write errors are ignored."""
    path = state_dir.directory / _LOG
    with suppress(OSError):
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        line = f"{now} [{os.getpid()}] {message[:_LONGEST_MESSAGE]}\n"
        old = read_private(path) if path.exists() else b""
        if len(old) > _LOG_SIZE:
            write_file(path, old[-_LOG_SIZE // 2 :].partition(b"\n")[2])
        with os.fdopen(open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as log:
            log.write(line)


# --- other processes -----------------------------------------------------------------------


def is_running(state_dir: StateDir) -> bool:
    """Return True if a timer's process runs in this network namespace: it holds a lock."""
    return is_locked(state_dir.directory / _LOCK)


def restart_if_ended(state_dir: StateDir, log_event: Callable[[str, dict[str, Any]], None]) -> None:
    """Start the timer's process again if it was killed before its deadline was handled. Never waits.

    `log_event` gets an event about it. At worst the new process finds that it is not needed, and ends.
    """
    try:
        current = pending_confirm.read_pending(state_dir)
        if current is None or current.state == FAILED or is_running(state_dir):
            return
        config = TimerConfig(current.token, current.seconds, current.back, current.applier, resumes=True)
        start_timer_process(config, subprocess.DEVNULL)
    except (ConfirmError, OSError) as error:
        log_event("failed", {"what": "confirm timer", "why": str(error)})
    else:
        fields = {"what": "confirm timer", "why": "its process has ended", "then": "started again"}
        log_event("failed", fields)


def describe_problem(state_dir: StateDir) -> str | None:
    """Return what is wrong with a pending confirmation, or None if nothing is.

    Its timer's process has ended, its rollback failed, or its file is damaged.
    """
    try:
        current = pending_confirm.read_pending(state_dir)
    except ConfirmError as damaged:
        return str(damaged)
    if current is None:
        return None
    if current.state == FAILED:
        return (
            f"the policy in force was not confirmed until {current.until}, and the rollback to "
            f"{current.target_text} failed: {current.reason}; 'nftpolicy rollback' tries again"
        )
    if is_running(state_dir):
        return None
    late = current.remaining() <= 0
    verb = "had" if late else "has"
    keep = ""
    if not late and current.state == WAITING:
        keep = "'nftpolicy confirm' keeps it, "
    return (
        f"the policy in force {verb} to be confirmed until {current.until}, and the process that "
        f"would roll back to {current.target_text} has ended: {keep}'nftpolicy rollback' restores the "
        "previous policy"
    )
