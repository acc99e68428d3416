# SPDX-License-Identifier: BSD-2-Clause
"""Filters of system calls (seccomp(2))."""

from __future__ import annotations

from . import libc
from .architecture import Architecture
from .bpf.classic import ClassicFilter

# Offsets in struct seccomp_data: number, architecture, low word of the second argument (little-endian).
DATA_NR, DATA_ARCH, DATA_ARGUMENT_2 = 0, 4, 24
RET_ALLOW, RET_ERRNO, RET_USER_NOTIF = 0x7FFF0000, 0x00050000, 0x7FC00000
FLAG_SPEC_ALLOW, FLAG_NEW_LISTENER = 4, 8  # the first keeps the speed of the program (before Linux 5.16)
X32_BIT = 0x40000000  # of the number of a call by the x32 ABI
_SET_MODE_FILTER = 1
_PR_SET_NO_NEW_PRIVS = 38


def set_no_new_privs() -> None:
    """Refuse privileges of files (setuid, capabilities) to this process and its children. Raises OSError."""
    libc.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def install_filter(architecture: Architecture, code: ClassicFilter, flags: int) -> int:
    """Install a filter for this process and its children; return a descriptor with FLAG_NEW_LISTENER.

    Raises OSError; EACCES without CAP_SYS_ADMIN and without `set_no_new_privs`.
    """
    return libc.system_call(architecture.seccomp, _SET_MODE_FILTER, flags, code.program)
