# SPDX-License-Identifier: BSD-2-Clause
"""Numbers of system calls that the C library does not offer, or that a filter judges, by architecture."""

from __future__ import annotations

import platform

from attrs import frozen

from .errors import Unavailable


@frozen
class Architecture:
    """AUDIT_ARCH_* and the numbers of system calls.

    `ioctl` has more than one number on x86, where programs of the x32 ABI have their own. `compat_audit`
    and `compat_ioctl` are those of 32-bit programs.
    """

    audit: int
    seccomp: int
    socket: int
    io_uring_setup: int
    keyctl: int
    ioctl: tuple[int, ...]
    compat_audit: int
    compat_ioctl: int


_ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 317, 41, 425, 250, (16, 514), 0x40000003, 54),
    "aarch64": Architecture(0xC00000B7, 277, 198, 425, 219, (29,), 0x40000028, 54),
    "riscv64": Architecture(0xC00000F3, 277, 198, 425, 219, (29,), 0x400000F3, 29),
}


def this_architecture() -> Architecture | None:
    """Return the architecture of this machine; None if it is not among the supported ones."""
    return _ARCHITECTURES.get(platform.machine())


def require_architecture(purpose: str) -> Architecture:
    """Return the architecture of this machine. Raises Unavailable."""
    architecture = this_architecture()
    if architecture is None:
        raise Unavailable(f"{purpose} by seccomp is not supported on {platform.machine()}")
    return architecture
