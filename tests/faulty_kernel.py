"""Kernel that fails at a chosen step, or ends the process there."""

import os
import signal
from typing import Any

from nftpolicy.kernel.errors import StepRefused
from nftpolicy.netstate.operations import Step

ERRORS = ("EPERM", "ENOBUFS", "EEXIST", "ENOENT", "EINTR")
LOST = ("ENOBUFS", "EINTR")  # errors after which the step may have been done all the same
KILL = "SIGKILL"


class Faulty:
    """Proxy of `kernel` that ends step `at` (from 0) in `how`, before the step or `after` it."""

    def __init__(self, kernel: Any, at: int, how: str, after: bool = False) -> None:
        self._kernel, self._at, self._how, self._after = kernel, at, how, after
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def apply_step(self, step: Step) -> None:
        number, self.asked = self.asked, self.asked + 1
        if number != self._at:
            self._kernel.apply_step(step)
            return
        if self._after:
            self._kernel.apply_step(step)
        if self._how == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise StepRefused(step, self._how)
