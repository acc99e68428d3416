# SPDX-License-Identifier: BSD-2-Clause
"""What several commands share: exit codes, loading a policy, saying what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..policy.errors import PolicyError, Source, nearest, shown
from ..policy.load import load, numbers_only
from ..policy.objects import Account, Policy

if TYPE_CHECKING:
    from ..kernel.linux import Linux
    from ..runtime.changes.apply import Prospect

# The exit codes of every command, documented in nftpolicy(1).
REFUSED, BAD_INPUT, UNKNOWN, NOT_HERE = 1, 2, 3, 4


class Failure(Exception):
    """A command failed: its last words, and its exit status."""

    def __init__(self, message: str, status: int = REFUSED) -> None:
        self.status = status
        super().__init__(message)


# The help of an argument that is a policy.
FILE = "The policy, TOML; without it, the one in /etc/nftpolicy. - reads standard input."
FOLDER, INSTALLED = "/etc/nftpolicy", "policy.toml"  # where policies are, and how `install` calls one


def policy_file(file: Path | None, root: Path = Path("/")) -> Path:
    """The policy that is meant: `file`, or without it the only one in /etc/nftpolicy, or the installed one; or Failure.

    `root` is the folder that is the root of the machine that is meant.
    """
    if file is not None:
        return file
    found = policies(root)
    if len(found) == 1:
        return found[0]
    if not found:
        raise Failure(f"no policy is named, and there is none in {FOLDER}: write {FOLDER}/{INSTALLED}", BAD_INPUT)
    for one in found:
        if one.name == INSTALLED:
            return one
    raise Failure(f"which policy? {FOLDER} has {', '.join(one.name for one in found)}: name one", BAD_INPUT)


def policies(root: Path = Path("/")) -> list[Path]:
    """The policies in /etc/nftpolicy of a machine."""
    return sorted((root / FOLDER.lstrip("/")).glob("*.toml"))


def read_policy(file: Path | None) -> tuple[Policy, Source]:
    """The policy in `file`, or in that of `policy_file`; or Failure."""
    file = policy_file(file)
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise Failure(f"{file}: can't be read: {error.strerror}", BAD_INPUT) from None
    return parse_policy(data, "standard input" if str(file) == "-" else str(file))


def parse_policy(data: bytes, name: str) -> tuple[Policy, Source]:
    """The policy in `data`, or Failure."""
    try:
        return load(data, name, account)
    except PolicyError as error:
        raise Failure(str(error), BAD_INPUT) from None


def account(kind: str, item: object) -> Account:
    """A user or group of this machine, by name or number; ValueError says what to do."""
    if not isinstance(item, str):
        return numbers_only(kind, item)
    if item.isdigit():
        return numbers_only(kind, int(item))
    from ..kernel import accounts

    number = accounts.number(kind, item)
    if number is None:
        add = "groupadd" if kind == "group" else "useradd"
        raise ValueError(
            f"there is no {kind} {item!r} on this machine{nearest(item, accounts.names(kind))}; "
            f"create it with {add} --system, or write a number"
        )
    return Account(item, number)


def this_kernel() -> Linux:
    """The kernel of this machine, or Failure."""
    from ..kernel.interface import Unavailable
    from ..kernel.linux import ready

    try:
        return ready()
    except Unavailable as error:
        raise Failure(str(error), NOT_HERE) from None


def warn(message: str) -> None:
    """A line for a person that is no result."""
    print(f"nftpolicy: {message}", file=sys.stderr, flush=True)


def done(found: Prospect, verb: str, nothing: str) -> str:
    """What became of a plan, in words."""
    steps = len(found.plan.steps)
    return f"{verb} in {steps} step{'' if steps == 1 else 's'}" if steps else nothing


@contextmanager
def changing(source: Source | None) -> Iterator[None]:
    """Turn what can go wrong while the kernel is changed into Failures that name the policy's line."""
    from ..kernel.interface import Refused
    from ..runtime.changes.apply import NotHeld, StillChanged
    from ..runtime.changes.memory import Busy
    from ..runtime.changes.recover import NoWay
    from ..runtime.changes.unproved import NotProved, NotSafe
    from ..runtime.changes.wording import lines

    try:
        yield
    except (NotProved, NotSafe) as error:
        from .told import unsafe

        said, unknown = unsafe(error, source)
        raise Failure("\n".join([*said, "nftpolicy: nothing was changed"]), UNKNOWN if unknown else REFUSED) from None
    except StillChanged as error:
        differences = "\n  ".join(lines(error.missing)[:20])
        raise Failure(f"{error}; type 'nftpolicy recover'. It differs by:\n  {differences}") from None
    except Refused as error:
        raise Failure(f"{refused(error, source)}\nnftpolicy: the kernel is as it was before") from None
    except NotHeld as error:
        differences = "\n  ".join(lines(error.missing)[:20])
        raise Failure(f"{error}; everything was taken back. It differs by:\n  {differences}") from None
    except (Busy, NoWay) as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"{error.filename or 'the state folder'}: {error.strerror}", REFUSED) from None


def refused(error, source: Source | None) -> str:  # type: ignore[no-untyped-def]
    """Which object of which policy line the kernel refused, and why."""
    from ..netstate.changes import NftTransaction
    from ..planner.plan import Plan
    from ..runtime.changes.wording import describe, lines

    item = error.object or getattr(error.step, "rule", None) or getattr(error.step, "route", None)
    item = item or getattr(error.step, "new", None)
    what = describe(item) if item is not None else ""
    if not what and not isinstance(error.step, NftTransaction):
        what = lines(Plan((error.step,)))[0]
    origin = tuple(getattr(item, "origin", None) or getattr(getattr(item, "of", None), "origin", None) or ())
    where = ""
    if source is not None:
        line = source.line(origin) if origin else None
        where = f"{source.name}{f':{line}' if line else ''}: {f'{shown(origin)}: ' if origin else ''}"
    return f"{where}the kernel refused {what or 'the ruleset'}: {error.reason}"
