# SPDX-License-Identifier: BSD-2-Clause
"""What is remembered between two runs, for each network namespace: the policy that was applied,
and the sysctls as they were before it.

Kept under /run, which a restart empties as it empties the kernel. $NFTPOLICY_STATE moves it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from attrs import frozen

from ...kernel.namespace import namespace_cookie
from .journal import Journal

DEFAULT = "/run/nftpolicy"
_LOOK_AGAIN = 0.05  # seconds, for a lock that another process holds


class Busy(Exception):
    """Another process changes the same kernel; its pid is in the words."""


@frozen
class Memory:
    """The folder of one network namespace."""

    folder: Path

    def policy(self) -> tuple[str, bytes] | None:
        """Name and text of the policy that was applied last, or None."""
        try:
            name = (self.folder / "name").read_text()
            return name, (self.folder / "policy.toml").read_bytes()
        except FileNotFoundError:
            return None

    def sysctls(self) -> dict[str, str]:
        """The values before us, by path."""
        try:
            found = json.loads((self.folder / "sysctls.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return {str(path): str(value) for path, value in found.items()} if isinstance(found, dict) else {}

    def remember_sysctls(self, values: dict[str, str]) -> None:
        """Add values that are not known yet; the first ones stay."""
        known = self.sysctls()
        if not values.keys() <= known.keys():
            self._write("sysctls.json", json.dumps({**values, **known}, indent=1).encode())

    def remember_policy(self, name: str, text: bytes) -> None:
        """Keep the policy that is in force now."""
        if self.policy() != (name, text):
            self._write("policy.toml", text)
            self._write("name", name.encode())

    def forget(self) -> None:
        """Nothing of ours is in the kernel any more."""
        for name in ("name", "policy.toml", "sysctls.json"):
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        new = self.folder / f".{name}.new"
        new.write_bytes(content)
        new.replace(self.folder / name)

    @property
    def journal(self) -> Journal:
        """What is being done now, for this namespace."""
        return Journal(self.folder / "journal")

    @contextmanager
    def alone(self, wait: float = 0) -> Iterator[None]:
        """Hold off every other process that changes this namespace; wait up to `wait` seconds for one. Raises Busy."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as lock:
            end = time.monotonic() + wait
            while not _locked(lock):
                if time.monotonic() >= end:
                    lock.seek(0)
                    who = lock.read().strip() or "unknown"
                    raise Busy(f"process {who} is at it; try again when it is done, or wait for it (--wait)")
                time.sleep(_LOOK_AGAIN)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def of_this_namespace() -> Memory:
    """The memory of the network namespace that this process is in."""
    root = Path(os.environ.get("NFTPOLICY_STATE", DEFAULT))
    return Memory(root / f"netns-{namespace_cookie()}")
