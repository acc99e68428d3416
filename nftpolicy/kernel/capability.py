# SPDX-License-Identifier: BSD-2-Clause
"""Keep one capability through a change of user, for the programs started afterwards (capabilities(7))."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from . import libc

_CAP_NET_ADMIN, _CAP_NET_RAW = 12, 13  # include/uapi/linux/capability.h
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2


def cap_for_so_mark() -> int:
    """Return the capability for SO_MARK: CAP_NET_RAW since Linux 5.17 (net/core/sock.c), CAP_NET_ADMIN before."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release and (int(release[1]), int(release[2])) >= (5, 17):
        return _CAP_NET_RAW
    return _CAP_NET_ADMIN


@contextmanager
def keep_capability(capability: int) -> Iterator[None]:
    """Keep only this capability when this process changes its user within the context.

    Programs that it starts afterwards have the capability too. It is an ambient one, so that ld.so
    does not treat the program as privileged and still honours LD_PRELOAD. Raises OSError.
    """
    libc.call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    yield
    bit = 1 << capability
    sets = struct.pack("=6I", bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable: low and high 32 bits
    libc.call("capset", struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0), sets)
    libc.call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
