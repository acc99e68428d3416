# SPDX-License-Identifier: BSD-2-Clause
"""State directory of one network namespace: the policy in force, and the sysctls from before it.

Under /run, which a restart empties as it empties the kernel; $NFTPOLICY_STATE moves it. Only the
process that holds the lock writes here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import frozen

from ...kernel.namespace import namespace_cookie
from ..atomic_file import write_file
from ..file_lock import LockTimeout, exclusive_lock
from .journal import Journal

DEFAULT = "/run/nftpolicy"


class Busy(Exception):
    """Another process holds the lock of this network namespace; the message has its PID."""


@frozen
class Memory:
    """The state directory of one network namespace."""

    folder: Path

    def policy(self) -> tuple[str, bytes] | None:
        """Return file name and text of the policy that was applied last, or None."""
        try:
            name = (self.folder / "name").read_text()
            return name, (self.folder / "policy.toml").read_bytes()
        except FileNotFoundError:
            return None

    def sysctls(self) -> dict[str, str]:
        """Return path -> value of the sysctls as they were before nftpolicy set them."""
        try:
            values = json.loads((self.folder / "sysctls.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        if not isinstance(values, dict):
            return {}
        return {str(path): str(value) for path, value in values.items()}

    def remember_sysctls(self, values: dict[str, str]) -> None:
        """Save the values of sysctls; a value that is saved already stays."""
        saved = self.sysctls()
        if not values.keys() <= saved.keys():
            self._write("sysctls.json", json.dumps({**values, **saved}, indent=1).encode())

    def remember_policy(self, name: str, text: bytes) -> None:
        """Save the policy that is in force now. Raises OSError."""
        if self.policy() != (name, text):
            self._write("policy.toml", text)
            self._write("name", name.encode())

    def forget(self) -> None:
        """Remove the saved policy and sysctls, after a release."""
        for name in ("name", "policy.toml", "sysctls.json"):
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        write_file(self.folder / name, content)

    @property
    def journal(self) -> Journal:
        """The journal of the change that is being made in this namespace."""
        return Journal(self.folder / "journal")

    @contextmanager
    def alone(self, wait: float = 0) -> Iterator[None]:
        """Hold the lock of this network namespace in the block.

        `wait`: seconds to wait for another process. Raises Locked.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / "lock"
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(exclusive_lock(lock, wait))
            except LockTimeout:
                holder = lock.read_text().strip() or "unknown"
                message = f"process {holder} holds the lock; retry when it has ended, or use --wait"
                raise Busy(message) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            yield


def of_this_namespace() -> Memory:
    """Return the state directory of the network namespace that this process is in."""
    root = Path(os.environ.get("NFTPOLICY_STATE", DEFAULT))
    return Memory(root / f"netns-{namespace_cookie()}")
