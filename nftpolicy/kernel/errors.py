# SPDX-License-Identifier: BSD-2-Clause
"""Exceptions of this package.

NftpolicyError
  StepRefused        the kernel refused one step of a plan
    SysctlMissing      the sysctl to set does not exist
  Unavailable        the kernel, a right or a library is missing
    RulesetChanging    the ruleset changed during each read
    RulesetUnreadable  libnftables cannot list the ruleset
    DumpInterrupted    changes interrupted each netlink dump (an OSError as well)
  NoSuchProcess      the process has ended
  ChildFailed        a forked process ended without a result
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..exceptions import NftpolicyError

if TYPE_CHECKING:
    from ..netstate.operations import Step


def error_reason(error: Exception) -> str:
    """Return strerror(3) of an exception that has it, else its own text."""
    return getattr(error, "strerror", None) or str(error)


class StepRefused(NftpolicyError):
    """The kernel refused a step; nothing of that step was done.

    `reason` is the message of the kernel or of libnftables; `object` the value it is about, if
    known.
    """

    def __init__(self, step: Step, reason: str, item: object = None) -> None:
        self.step, self.reason, self.object = step, reason, item
        super().__init__(reason)


class SysctlMissing(StepRefused):
    """The sysctl to set does not exist: its device is gone, at least for the moment."""


class Unavailable(NftpolicyError):
    """The kernel, or the library to reach it by, cannot be used. The message names the fix."""


class RulesetChanging(Unavailable):
    """The nftables ruleset changed during each of several reads."""


class RulesetUnreadable(Unavailable):
    """Ruleset of the kernel that this libnftables cannot list."""


class DumpInterrupted(Unavailable, OSError):
    """Changes interrupted each of several netlink dumps, so that there is no complete list.

    An OSError with EINTR, as libmnl reports NLM_F_DUMP_INTR.
    """

    def __init__(self, subject: str, tries: int) -> None:
        super().__init__(
            errno.EINTR,
            f"changes interrupted the netlink dump ({subject}) {tries} times in a row; "
            "try again when the system is quieter",
        )

    def __str__(self) -> str:
        return self.strerror or ""


class NoSuchProcess(NftpolicyError):
    """Process that does not exist, or that is a thread of another process."""


class ChildFailed(NftpolicyError):
    """A forked process ended without a result. The message has the cause.

    `signal` is the number of the signal that ended it, or None.
    """

    def __init__(self, reason: str, signal: int | None = None) -> None:
        self.signal = signal
        super().__init__(reason)
