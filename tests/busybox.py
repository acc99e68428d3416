"""Busybox of the tests that emulate a router: its shell takes programs from PATH, as OpenWrt's does.

The shell of Debian's busybox-static runs its own applets first, `ip` among them. script/setup then puts Debian's
busybox into .venv; NFTPOLICY_TEST_BUSYBOX names another one.
"""

import functools
import os
import subprocess
import tempfile
from pathlib import Path

from tests.lab.daemons import tool

_FETCHED = Path(__file__).parents[1] / ".venv" / "busybox"


@functools.cache
def path() -> str | None:
    """Return the path of a suitable busybox, or None."""
    named = os.environ.get("NFTPOLICY_TEST_BUSYBOX")
    candidates = [named] if named else [tool("busybox"), str(_FETCHED)]
    return next((one for one in candidates if one and searches_path([one, "sh"])), None)


def missing() -> str:
    """Return what is missing for a suitable busybox, as a reason to skip a test; "" if nothing is."""
    if path():
        return ""
    return "a busybox whose shell takes programs from PATH (Debian: busybox, not busybox-static)"


def searches_path(shell: list[str]) -> bool:
    """Return True if a shell runs `ip` from PATH; False if it has its own, or does not run."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "ip")
        program.write_text("#!/bin/sh\necho from PATH\n")
        program.chmod(0o755)
        try:
            done = subprocess.run(
                [*shell, "-c", "ip"], env={"PATH": directory}, capture_output=True, text=True, check=False
            )
        except OSError:
            return False
    return done.stdout == "from PATH\n"


@functools.cache
def applets() -> frozenset[str]:
    """Return the names of the programs that the suitable busybox has; empty without one."""
    found = path()
    if found is None:
        return frozenset()
    return frozenset(subprocess.run([found, "--list"], capture_output=True, text=True, check=True).stdout.split())
