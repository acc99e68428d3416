# SPDX-License-Identifier: BSD-2-Clause
"""Capabilities of this process (capabilities(7)): keep one through a change of user, or only some of them."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import libc

# include/uapi/linux/capability.h
CAP_DAC_READ_SEARCH, CAP_KILL, CAP_NET_ADMIN, CAP_NET_RAW = 2, 5, 12, 13
_COUNT = 64
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 24, 8, 47, 2


def cap_for_so_mark() -> int:
    """Return the capability for SO_MARK: CAP_NET_RAW since Linux 5.17 (net/core/sock.c), CAP_NET_ADMIN before."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release and (int(release[1]), int(release[2])) >= (5, 17):
        return CAP_NET_RAW
    return CAP_NET_ADMIN


@contextmanager
def keep_capability(capability: int) -> Iterator[None]:
    """Keep only this capability when this process changes its user within the context.

    Programs that it starts afterwards have the capability too. It is an ambient one, so that ld.so
    does not treat the program as privileged and still honours LD_PRELOAD. Raises OSError.
    """
    libc.call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    yield
    _set_capabilities(1 << capability, inheritable=1 << capability)
    libc.call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def limit_capabilities(numbers: Iterable[int]) -> None:
    """Give up all capabilities but these, for this process and, if it may, for its programs.

    Raises OSError.
    """
    mask = sum(1 << capability for capability in numbers)
    for capability in range(_COUNT):
        if not mask >> capability & 1:
            with suppress(OSError):  # no such capability, or no CAP_SETPCAP
                libc.call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
    _set_capabilities(mask & read_capabilities("CapPrm"), inheritable=0)


def read_capabilities(kind: str) -> int:
    """Return the capabilities of this thread as bits (proc_pid_status(5)): "CapEff" or "CapPrm"; 0: not known."""
    status = Path("/proc/thread-self/status").read_text(errors="replace")
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith(f"{kind}:")), 0)


def _set_capabilities(mask: int, inheritable: int) -> None:
    """Set the effective, permitted and inheritable capabilities (capset(2)). Raises OSError."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    sets = struct.pack("=6I", low, low, inheritable, high, high, 0)
    libc.call("capset", struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0), sets)
