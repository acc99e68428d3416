# SPDX-License-Identifier: BSD-2-Clause
"""Start of the confirm timer's process, and its configuration, which it reads from standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from attrs import asdict, frozen

from .pending_confirm import ProcessRef, RollbackTarget

# Import this package from its directory, and nothing else from there.
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import nftpolicy; del sys.path[0]; "
    "from nftpolicy.cli.main import main; main()"
)
_PATH_VARIABLES = ("NFTPOLICY_STATE", "NFTPOLICY_LIB")


@frozen
class TimerConfig:
    """Configuration of the timer's process.

    `target` is the rollback target, None for a release; `applier` the process that applies. With
    `resumes` it takes the place of a process that has ended.
    """

    token: str
    seconds: float
    target: RollbackTarget | None
    applier: ProcessRef
    resumes: bool = False


def start_timer_process(config: TimerConfig, output: int) -> subprocess.Popen[bytes]:
    """Start the process, with its output to a file of subprocess.Popen. Never waits. Raises OSError."""
    package = str(Path(__file__).parents[3])
    flags = "-sP" if sys.flags.no_user_site else "-P"
    present = [name for name in _PATH_VARIABLES if name in os.environ]
    absolute = {name: str(Path(os.environ[name]).absolute()) for name in present}
    with os.fdopen(os.memfd_create("nftpolicy"), "w+") as file:  # a pipe might be too small
        json.dump(asdict(config), file)
        file.seek(0)
        return subprocess.Popen(
            [sys.executable, flags, "-c", _START, package, "rollback", "--at-deadline"],
            stdin=file,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={**os.environ, **absolute},
        )


def read_config() -> TimerConfig:
    """Read the configuration from standard input, and continue in an orphaned child process.

    Raises ValueError.
    """
    config = json.loads(sys.stdin.buffer.read())
    target = None if config["target"] is None else RollbackTarget(**config["target"])
    applier = ProcessRef(**config["applier"])
    order = TimerConfig(config["token"], config["seconds"], target, applier, bool(config["resumes"]))
    if os.fork():
        os._exit(0)
    return order
