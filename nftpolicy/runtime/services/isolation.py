# SPDX-License-Identifier: BSD-2-Clause
"""Separation of a program from the process that starts it: environment, descriptors, terminal, keys, privileges.

The program may be hostile: a service of another user must not get at the files, secrets or shell of
root. nftpolicy-run(1) has the list.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from ...kernel.keyring import leave_session_keyring
from ...kernel.seccomp_filter import set_no_new_privs
from ...kernel.terminal_input import refuse_terminal_input

# Variables that a program gets from its caller without being asked for.
PASSED_VARIABLES = ("PATH", "TERM", "COLORTERM", "NO_COLOR", "LANG", "LANGUAGE", "LC_*", "TZ")
ACCOUNT_VARIABLES = ("HOME", "SHELL", "USER", "LOGNAME")  # of the caller, if the program has its user
_STANDARD_STREAMS = (0, 1, 2)


def passed_environment(environment: Mapping[str, str], named: Collection[str]) -> dict[str, str]:
    """Return the variables that a program gets: those of the lists above, and the `named` ones."""
    patterns = (*PASSED_VARIABLES, *ACCOUNT_VARIABLES, *named)
    prefixes = tuple(pattern[:-1] for pattern in PASSED_VARIABLES if pattern.endswith("*"))
    return {name: value for name, value in environment.items() if name in patterns or name.startswith(prefixes)}


def close_inherited(named: Collection[int]) -> set[int]:
    """Close all inherited descriptors but the standard streams and the `named` ones; return those.

    To be called before this process opens any file for a child.
    """
    inherited = open_descriptors()
    passed = inherited & {*_STANDARD_STREAMS, *named}
    for descriptor in inherited - passed:
        with suppress(OSError):
            if os.get_inheritable(descriptor):
                os.close(descriptor)
    return passed


def open_descriptors() -> set[int]:
    """Return the file descriptors of this process; when it starts, those that it inherited."""
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    # The descriptor of the directory itself is closed by now.
    return {number for number in numbers if Path(f"/proc/self/fd/{number}").is_symlink()}


def isolate_process(no_new_privs: bool, other_user: bool) -> None:
    """Separate this process from the terminal's input and, with another user, from the keys of its session.

    To be called with the privileges of root, which may be dropped afterwards. Raises OSError.
    """
    if no_new_privs:
        set_no_new_privs()
    refuse_terminal_input()
    if other_user:
        leave_session_keyring()
