# SPDX-License-Identifier: BSD-2-Clause
"""Keys that a process possesses by its session (session-keyring(7))."""

from __future__ import annotations

from contextlib import suppress

from . import libc
from .architecture import this_architecture

_JOIN_SESSION_KEYRING = 1  # include/uapi/linux/keyctl.h


def leave_session_keyring() -> None:
    """Give this process, and its children, an empty session keyring, where the kernel has keyrings."""
    architecture = this_architecture()
    if architecture is not None:
        with suppress(OSError):
            libc.system_call(architecture.keyctl, _JOIN_SESSION_KEYRING, None)
