# SPDX-License-Identifier: BSD-2-Clause
"""Privileges that a program gets by its file when it starts (execve(2))."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def changes_identity(path: Path) -> bool:
    """Return True if a program changes its user or group when it starts. Raises OSError."""
    mode = path.stat().st_mode
    setgid = stat.S_ISGID | stat.S_IXGRP
    return bool(mode & stat.S_ISUID) or mode & setgid == setgid


def has_capabilities(path: Path) -> bool:
    """Return True if a program has file capabilities (capabilities(7)). Raises OSError."""
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def gains_privileges(path: Path) -> bool:
    """Return True if the program gets more privileges than its caller; False if that cannot be read."""
    try:
        return changes_identity(path) or has_capabilities(path)
    except OSError:
        return False
