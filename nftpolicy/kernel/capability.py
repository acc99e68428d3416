# SPDX-License-Identifier: BSD-2-Clause
"""Keeping one capability through a change of user, for the programs that are started then (capabilities(7))."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_NET_ADMIN, _NET_RAW = 12, 13  # include/uapi/linux/capability.h
_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _RAISE = 8, 47, 2

_libc = ctypes.CDLL(None, use_errno=True)


def to_mark() -> int:
    """The capability that SO_MARK takes: CAP_NET_RAW since Linux 5.17 (net/core/sock.c), CAP_NET_ADMIN before."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return _NET_RAW if found and (int(found[1]), int(found[2])) >= (5, 17) else _NET_ADMIN


@contextmanager
def kept(capability: int) -> Iterator[None]:
    """What becomes another user within this keeps this capability and no other one, and so do programs that it starts.

    An ambient capability does not make a program a privileged one for ld.so, which goes on to take LD_PRELOAD.
    Raises OSError.
    """
    _checked(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    yield
    bit = 1 << capability
    sets = struct.pack("=6I", bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable; 32 bits and 32 more
    _checked(_libc.capset(struct.pack("=Ii", _VERSION, 0), sets))
    _checked(_libc.prctl(_PR_CAP_AMBIENT, _RAISE, capability, 0, 0))


def _checked(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
