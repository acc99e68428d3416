# SPDX-License-Identifier: BSD-2-Clause
"""State directory of one network namespace: the policy in force, and the sysctls from before it.

Under /run, which a restart empties as it empties the kernel; $NFTPOLICY_STATE moves it. Only the
process that holds the lock writes here. Only root may enter it (private_files.py).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from attrs import frozen

from ...exceptions import NftpolicyError
from ...kernel.netns import netns_cookie
from ..atomic_file import write_file
from ..file_lock import LockTimeout, exclusive_lock, is_locked
from ..private_files import make_directory, modification_time, read_private
from .journal import Journal

DEFAULT_ROOT = "/run/nftpolicy"
# Seconds: how long a read waits for a pause in the changes, and until its next try.
_MAX_WAIT, _RETRY = 5.0, 0.05

Result = TypeVar("Result")


class Locked(NftpolicyError):
    """Another process holds the lock of this network namespace; the message has its PID."""


@frozen
class StateDir:
    """The state directory of one network namespace."""

    directory: Path

    def policy(self) -> tuple[str, bytes] | None:
        """Return file name and text of the policy that was applied last, or None."""
        try:
            name = read_private(self.directory / "name").decode(errors="replace")
            return name, read_private(self.directory / "policy.toml")
        except FileNotFoundError:
            return None

    def applied_at(self) -> str:
        """Return the time at which the policy in force was applied (UTC, ISO 8601), "" without one."""
        return modification_time(self.directory / "policy.toml")

    def saved_sysctls(self) -> dict[str, str]:
        """Return path -> value of the sysctls as they were before nftpolicy set them."""
        try:
            values = json.loads(read_private(self.directory / "sysctls.json"))
        except (FileNotFoundError, ValueError):
            return {}
        if not isinstance(values, dict):
            return {}
        return {str(path): str(value) for path, value in values.items()}

    def save_sysctls(self, values: dict[str, str]) -> None:
        """Save the values of sysctls; a value that is saved already stays."""
        saved = self.saved_sysctls()
        if not values.keys() <= saved.keys():
            self._write("sysctls.json", json.dumps({**values, **saved}, indent=1).encode())

    def save_policy(self, name: str, text: bytes) -> None:
        """Save the policy that is in force now. Raises OSError."""
        if self.policy() != (name, text):
            self._write("policy.toml", text)
            self._write("name", name.encode())

    def clear(self) -> None:
        """Remove the saved policy and sysctls, after a release."""
        for name in ("name", "policy.toml", "sysctls.json"):
            (self.directory / name).unlink(missing_ok=True)

    def create(self) -> None:
        """Create the directory, or make an existing one private. Raises OSError."""
        if str(self.directory.parent) == DEFAULT_ROOT:
            make_directory(self.directory.parent)
        make_directory(self.directory)

    def _write(self, name: str, content: bytes) -> None:
        write_file(self.directory / name, content)

    @property
    def journal(self) -> Journal:
        """The journal of the change that is being made in this namespace."""
        return Journal(self.directory / "journal")

    @contextmanager
    def lock(self, wait: float = 0) -> Iterator[None]:
        """Hold the lock of this network namespace in the block.

        `wait`: seconds to wait for another process. Raises Locked.
        """
        self.create()
        lock = self.directory / "lock"
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(exclusive_lock(lock, wait))
            except LockTimeout:
                holder = read_private(lock).decode().strip() or "unknown"
                message = f"process {holder} holds the lock; retry when it has ended, or use --wait"
                raise Locked(message) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            yield


def read_undisturbed(state_dir: StateDir, read: Callable[[], Result]) -> Result:
    """Return the result of `read`, which reads the policy in force and the kernel, from a time without a change.

    A change by nftpolicy saves its policy last: a read in the middle would compare the earlier policy with the later
    rules. When changes follow one another for longer than _MAX_WAIT, the read after that counts.
    """
    deadline = time.monotonic() + _MAX_WAIT
    while True:
        is_late = time.monotonic() > deadline
        before = _last_change(state_dir)
        if is_late or before is not None:
            result = read()
            if is_late or _last_change(state_dir) == before:
                return result
        time.sleep(_RETRY)


def _last_change(state_dir: StateDir) -> int | None:
    """Return a number that differs after each change of the kernel by nftpolicy; None during one."""
    lock = state_dir.directory / "lock"
    with suppress(OSError):
        # A process that takes the lock writes its process id.
        return None if is_locked(lock) else lock.stat().st_mtime_ns
    return 0


def current_state_dir() -> StateDir:
    """Return the state directory of the network namespace that this process is in."""
    root = Path(os.environ.get("NFTPOLICY_STATE", DEFAULT_ROOT))
    return StateDir(root / f"netns-{netns_cookie()}")
