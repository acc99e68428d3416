# SPDX-License-Identifier: BSD-2-Clause
"""Marking the sockets of a program by a library that is loaded with it (ld.so(8), LD_PRELOAD).

The library is nftpolicy/preload/packetmark.c. It answers for each socket that is made by socket() of the C
library. Who does not load it, or does not call that, makes sockets without a mark, which the guard drops;
`refusal` says so before the program starts, as far as it can be known from its file.

Not marked, whatever the program: sockets that it is given, those of io_uring, and those that the C library opens
for itself to look up a name. Names go to the uplink's resolver by group or user, not by mark.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from ...kernel.interface import Unavailable
from ...policy.mark import Mark
from . import elf

LIBRARY = Path(__file__).parents[2] / "preload" / "libpacketmark.so"
# ld.so takes both as the end of a name, and has no way to write them.
_SEPARATORS = frozenset(" :")
_MOST_SCRIPTS = 5  # as many interpreters in a row as execve(2) takes
_ENV_WITH_VALUE = frozenset({"-u", "-C", "-a"})


def environment(mark: Mark, present: Mapping[str, str] | None = None, user: int = 0) -> dict[str, str]:
    """What to set in the environment of a program so that its sockets wear the mark.

    `present` is the environment that this is added to, os.environ by default: libraries that it has preloaded
    stay, behind ours. `user` is the number of the one who runs the program.

    Raises:
        Unavailable: this nftpolicy has no such library, or it is where no program, or not this user, can have it.
    """
    if user and not _readable(library()):
        raise Unavailable(_unreadable(user))
    others = (os.environ if present is None else present).get("LD_PRELOAD", "")
    ours = str(library())
    words = [ours, *(word for word in others.replace(":", " ").split() if word != ours)]
    # An environment that asks for sockets without the mark is not believed.
    return {"LD_PRELOAD": ":".join(words), "LIBPACKETMARK_MARK": str(mark), "LIBPACKETMARK_OPTIONAL": "0"}


def library() -> Path:
    """Where the library is. Raises Unavailable."""
    if not LIBRARY.exists():
        raise Unavailable(
            "this nftpolicy has no libpacketmark.so, since there was no C compiler when it was built: install "
            'gcc and libc6-dev and build it again, or write marks = "cgroup"'
        )
    if _SEPARATORS & set(str(LIBRARY)):
        raise Unavailable(f"{LIBRARY} has a space or a colon in its path, which LD_PRELOAD can't write")
    return LIBRARY


def refusal(program: Path, user: int = 0) -> str | None:
    """Why the sockets of this program would not be marked by a library, or None if nothing speaks against it.

    `program` is a file, as it would be started by the user of that number; for a script, its interpreter is
    looked at. Raises Unavailable as `library` does.
    """
    if user and not _readable(library()):
        return _unreadable(user)
    at = program
    for _ in range(_MOST_SCRIPTS):
        try:
            head = _first_line(at)
            if head is None:
                return _told(program, at, _binary(at))
        except OSError as error:
            return _told(program, at, f"can't be looked at: {error.strerror}")
        found = _interpreter(head)
        if found is None:
            return _told(program, at, "is no program that Linux starts")
        at = found
    return _told(program, at, "is a script of a script, too many times")


def _unreadable(user: int) -> str:
    return f"user {user} may not read {library()}, and ld.so would leave it out"


def _readable(path: Path) -> bool:
    """Whether everybody may read a file, as far as its modes and those of the folders above it say."""
    folders = all(one.stat().st_mode & stat.S_IXOTH for one in path.resolve().parents)
    return folders and bool(path.stat().st_mode & stat.S_IROTH)


def _told(program: Path, at: Path, why: str | None) -> str | None:
    if why is None:
        return None
    return f"{at} {why}" if at == program else f"{program} is run by {at}, which {why}"


def _binary(path: Path) -> str | None:
    known = path.stat()
    if not stat.S_ISREG(known.st_mode):
        return "is no file"
    if known.st_mode & stat.S_ISUID or known.st_mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP:
        return "changes its user or group when it starts (setuid, setgid), and ld.so leaves LD_PRELOAD out then"
    if _has_capabilities(path):
        return "has capabilities of its own (getcap), and ld.so leaves LD_PRELOAD out then"
    found = elf.read(path)
    if found is None:
        return "is no program that Linux starts"
    if found.go:
        return "is made by the Go compiler, which calls the kernel without the C library"
    if found.interpreter is None:
        return "is linked statically, and loads no library"
    ours = elf.read(library())
    if ours is not None and found.kind != ours.kind:
        return "is for another machine or word size than libpacketmark.so, and ld.so would leave it out"
    return None


def _has_capabilities(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def _first_line(path: Path) -> list[str] | None:
    """The words behind "#!" of a script, or None if it is none. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(256)
    if not head.startswith(b"#!"):
        return None
    return head[2:].partition(b"\n")[0].decode(errors="replace").split()


def _interpreter(words: list[str]) -> Path | None:
    """The program that runs a script. Behind env(1) it is the one that env starts."""
    if not words:
        return None
    if Path(words[0]).name != "env":
        return Path(words[0])
    rest = iter(words[1:])
    for word in rest:
        if word in _ENV_WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-") and "=" not in word:
            found = shutil.which(word)
            return Path(found) if found else None
    return Path(words[0])
