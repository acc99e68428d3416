# SPDX-License-Identifier: BSD-2-Clause
"""Refuse a program to type into its terminal, where the shell of another user would execute the input.

TIOCSTI types into any terminal, TIOCLINUX pastes into a console (ioctl_tty(2), ioctl_console(2)).
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import termios

from .architecture import Architecture, this_architecture
from .bpf.classic import AND, JUMP_IF_EQUAL, LOAD_WORD, RETURN, ClassicFilter, Instruction, skip_if_any
from .seccomp_filter import (
    DATA_ARCH,
    DATA_ARGUMENT_2,
    DATA_NR,
    FLAG_SPEC_ALLOW,
    RET_ALLOW,
    RET_ERRNO,
    X32_BIT,
    install_filter,
)

_REFUSED = (termios.TIOCSTI, termios.TIOCLINUX)
_ALLOW: Instruction = (RETURN, 0, 0, RET_ALLOW)
_REFUSE: Instruction = (RETURN, 0, 0, RET_ERRNO | errno.EPERM)


def input_filter(architecture: Architecture) -> ClassicFilter:
    """Return a filter that refuses the requests of ioctl(2), of programs of 64 and of 32 bits.

    The kernel reads the low 32 bits of the request, and so does the filter. All calls of another
    architecture are refused.
    """
    request = ((LOAD_WORD, 0, 0, DATA_ARGUMENT_2), *skip_if_any(_REFUSED), _ALLOW, _REFUSE)
    native = (
        (LOAD_WORD, 0, 0, DATA_NR),
        (AND, 0, 0, ~X32_BIT & 0xFFFFFFFF),
        *skip_if_any(architecture.ioctl),
        _ALLOW,
        *request,
    )
    compat = ((LOAD_WORD, 0, 0, DATA_NR), (JUMP_IF_EQUAL, 1, 0, architecture.compat_ioctl), _ALLOW, *request)
    return ClassicFilter(
        (
            (LOAD_WORD, 0, 0, DATA_ARCH),
            (JUMP_IF_EQUAL, 0, len(native), architecture.audit),
            *native,
            (JUMP_IF_EQUAL, 1, 0, architecture.compat_audit),
            _REFUSE,
            *compat,
        )
    )


def refuse_terminal_input() -> None:
    """Refuse this process, and its children, to type into a terminal.

    On an architecture without a filter, or without the right to install one, it gives up its
    terminal: without one, TIOCSTI needs CAP_SYS_ADMIN. Raises OSError.
    """
    architecture = this_architecture()
    try:
        if architecture is not None:
            install_filter(architecture, input_filter(architecture), FLAG_SPEC_ALLOW)
            return
    except PermissionError:
        pass
    _give_up_terminal()


def _give_up_terminal() -> None:
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:  # ENXIO: there is none
        return
    # The leader of a session sends SIGHUP by that, to itself too.
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fcntl.ioctl(terminal, termios.TIOCNOTTY)
    finally:
        signal.signal(signal.SIGHUP, handler)
        os.close(terminal)
