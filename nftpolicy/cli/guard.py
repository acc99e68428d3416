# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy guard FILE"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from .common import BAD_INPUT, FILE, REFUSED, UNKNOWN, Failure, changing, done, read_policy, this_kernel, warn
from .told import told

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..policy.errors import Source
    from ..policy.objects import Policy
    from ..runtime.place.boot import Loaded, Tables

_DEFAULT = Path("/etc/nftpolicy/guard.nft")


def command(
    file: Optional[Path] = typer.Argument(None, help=FILE),  # noqa: UP045
    to: Path = typer.Option(_DEFAULT, help="The file to write; - prints it and loads nothing."),
    no_load: bool = typer.Option(False, "--no-load", help="Write the files and leave the kernel alone."),
) -> None:
    """Write the guard as files that nft alone loads when the machine starts, and load it now."""
    policy, source = read_policy(file)
    tables = proved(policy, source)
    if str(to) == "-":
        print(tables.shown(), end="")
        return
    if to.exists() and not to.is_file():
        raise Failure(f"--to takes the name of a file, and {to} is none", BAD_INPUT)
    kernel = None if no_load else this_kernel()
    from ..runtime.changes.memory import of_this_namespace
    from ..runtime.place.boot import load

    fresh = _fresh(tables, to.absolute())
    loaded = None
    with changing(source), _written(fresh):
        # On the disk, but not in their places yet: what the kernel refuses now it would refuse at boot.
        if kernel is not None:
            memory = of_this_namespace()
            with memory.alone():
                loaded = load(kernel, policy, memory)
    print("\n".join([f"{policy.name}: wrote {path}" for path in fresh] or [f"{policy.name}: {to} is as it should be"]))
    if loaded is not None:
        _tell(policy, loaded)


def proved(policy: Policy, source: Source) -> Tables:
    """The tables of the files, or Failure if they do not hold what the policy promises."""
    from ..runtime.changes.unproved import NotProved
    from ..runtime.place.boot import tables

    try:
        return tables(policy)
    except NotProved as error:
        said = "\n".join([*told(error.proof, source), "nftpolicy: the guard alone is not proved; nothing was written"])
        raise Failure(said, UNKNOWN if error.proof.verdict == "unknown" else REFUSED) from None


def _fresh(tables: Tables, to: Path) -> dict[Path, bytes]:
    """The files that are not there with this content yet."""
    from ..runtime.place.files import content_of

    with changing(None):
        return {path: content for path, content in tables.files(to).items() if content_of(path) != content}


def _written(fresh: dict[Path, bytes]) -> AbstractContextManager[None]:
    """Files, and the list of what was installed if they are in it."""
    from ..runtime.place.files import Damaged, Manifest, put

    if not fresh:
        return nullcontext()
    try:
        manifest = Manifest.of(Path("/"))
    except (Damaged, OSError):
        manifest = Manifest(Path("/"))  # install and uninstall will tell
    listed = {str(path): content for path, content in fresh.items() if str(path) in manifest.files}
    return put({**fresh, **(manifest.with_(listed).as_file() if listed else {})})


def _tell(policy: Policy, loaded: Loaded) -> None:
    print(f"{policy.name}: the guard is {done(loaded.found, 'loaded', 'in the kernel already')}")
    for device in sorted(loaded.found.unhooked):
        warn(f"no chain can be hooked at the egress of {device} now: AF_PACKET sockets are not guarded there")
    if loaded.others:
        warn("the ip rules, routes or sysctls in force are not this policy's: 'nftpolicy apply' makes them so")
