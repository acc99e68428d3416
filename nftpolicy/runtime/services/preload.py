# SPDX-License-Identifier: BSD-2-Clause
"""Marking of a program's sockets by a preloaded library (ld.so(8), LD_PRELOAD).

The library is nftpolicy/preload/packetmark.c. It marks each socket that socket() of the C library
creates. A program that does not load it, or does not call that function, creates sockets without
the mark, which the guard drops; `refusal_reason` reports that before the program starts, as far as
the program's file shows it.

Never marked: sockets that a program inherits, sockets of io_uring, and sockets that the C library
opens for name resolution. DNS queries are redirected to the uplink's resolver by group or user, not
by mark.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from ...kernel.errors import Unavailable
from ...policy.mark import Mark
from ..regular_file import read_regular
from . import elf
from .program_privileges import changes_identity, has_capabilities

LIBRARY = Path(__file__).parents[2] / "preload" / "libpacketmark.so"
# ld.so(8) separates the names in LD_PRELOAD by either of them, and has no escape character.
_SEPARATORS = frozenset(" :")
_MAX_INTERPRETERS = 5  # limit of execve(2) for scripts that run scripts
_SHEBANG_SIZE = 256  # bytes of a script's first line that Linux reads (BINPRM_BUF_SIZE)
_ENV_OPTIONS_WITH_VALUE = frozenset({"-u", "-C", "-a"})


def preload_environment(mark: Mark, present: Mapping[str, str] | None = None, user: int = 0) -> dict[str, str]:
    """Return the environment variables with which the sockets of a program get the mark.

    `present` is the environment that they are added to, os.environ by default: other preloaded
    libraries stay, after this one. `user` is the UID of the program.

    Raises:
        Unavailable: the library was not built, or the program or its user cannot load it.
    """
    if user and not _is_world_readable(library_path()):
        raise Unavailable(_unreadable_reason(user))
    preloaded = (os.environ if present is None else present).get("LD_PRELOAD", "")
    ours = str(library_path())
    paths = [ours, *(path for path in preloaded.replace(":", " ").split() if path != ours)]
    # LIBPACKETMARK_OPTIONAL of the inherited environment would allow sockets without the mark.
    return {
        "LD_PRELOAD": ":".join(paths),
        "LIBPACKETMARK_MARK": str(mark),
        "LIBPACKETMARK_OPTIONAL": "0",
    }


def library_path() -> Path:
    """Return the path of the library. Raises Unavailable."""
    if not LIBRARY.exists():
        raise Unavailable(
            "this nftpolicy has no libpacketmark.so, since there was no C compiler when it was "
            'built: install gcc and libc6-dev and build it again, or write marks = "cgroup"'
        )
    if _SEPARATORS & set(str(LIBRARY)):
        raise Unavailable(f"{LIBRARY} has a space or a colon in its path, which LD_PRELOAD cannot contain")
    return LIBRARY


def refusal_reason(program: Path, user: int = 0) -> str | None:
    """Return the reason why the library would not mark the sockets of a program.

    None if there is none.

    `program` is the file, as the user with that UID starts it; for a script, its interpreter is
    examined. Raises Unavailable as `library_path` does.
    """
    if user and not _is_world_readable(library_path()):
        return _unreadable_reason(user)
    file = program
    for _ in range(_MAX_INTERPRETERS):
        try:
            shebang = _shebang_words(file)
            if shebang is None:
                return _with_path(program, file, _binary_refusal(file))
        except OSError as error:
            return _with_path(program, file, f"cannot be read: {error.strerror}")
        interpreter = _interpreter(shebang)
        if interpreter is None:
            return _with_path(program, file, "is not a program that Linux can start")
        file = interpreter
    return _with_path(program, file, "is a script that a script runs, too many times")


def _unreadable_reason(user: int) -> str:
    return f"user {user} may not read {library_path()}, so ld.so would ignore it"


def _is_world_readable(path: Path) -> bool:
    """Return True if all users may read a file, by its mode and those of its parent directories."""
    searchable = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)
    return searchable and bool(path.stat().st_mode & stat.S_IROTH)


def _with_path(program: Path, file: Path, reason: str | None) -> str | None:
    if reason is None:
        return None
    return f"{file} {reason}" if file == program else f"{program} is run by {file}, which {reason}"


def _binary_refusal(path: Path) -> str | None:
    if not stat.S_ISREG(path.stat().st_mode):
        return "is not a regular file"
    if changes_identity(path):
        return "changes its user or group when it starts (setuid, setgid), so ld.so ignores LD_PRELOAD"
    if has_capabilities(path):
        return "has file capabilities (getcap), so ld.so ignores LD_PRELOAD"
    header = elf.read_elf(path)
    if header is None:
        return "is not a program that Linux can start"
    if header.is_go:
        return "is compiled by the Go compiler, and makes system calls without the C library"
    if header.interpreter is None:
        return "is linked statically, and loads no library"
    ours = elf.read_elf(library_path())
    if ours is not None and header.abi != ours.abi:
        return "is for another machine or word size than libpacketmark.so, so ld.so would ignore it"
    return None


def _shebang_words(path: Path) -> list[str] | None:
    """Return the words after "#!" of a script; None if the file is not a script. Raises OSError."""
    head = read_regular(path, _SHEBANG_SIZE)
    if not head.startswith(b"#!"):
        return None
    return head[2:].partition(b"\n")[0].decode(errors="replace").split()


def _interpreter(words: list[str]) -> Path | None:
    """Return the program that runs a script. For env(1) it is the program that env starts."""
    if not words:
        return None
    if Path(words[0]).name != "env":
        return Path(words[0])
    arguments = iter(words[1:])
    for word in arguments:
        if word in _ENV_OPTIONS_WITH_VALUE:
            next(arguments, None)
        elif not word.startswith("-") and "=" not in word:
            program = shutil.which(word)
            return Path(program) if program else None
    return Path(words[0])
