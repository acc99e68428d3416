# SPDX-License-Identifier: BSD-2-Clause
"""Helpers of the commands that write system files: target root, paths in units, errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .common import (
    EXIT_BAD_INPUT,
    EXIT_UNAVAILABLE,
    INSTALLED_NAME,
    POLICY_DIRECTORY,
    Failure,
    installed_policies,
    warn,
)
from .parameters import option

if TYPE_CHECKING:
    from ..policy.objects import Policy
    from ..runtime.install.init_systems import InitSystem

StartedBy = StrEnum("StartedBy", ["systemd", "procd"])  # runtime/install/init_systems.py
InitOption = Annotated[
    StartedBy | None,
    option(help="Init system of the target system; default: the one found there."),
]

# ProtectHome= and PrivateTmp= of the units (systemd.exec(5)).
HIDDEN_DIRECTORIES = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
UP_TO_DATE = "all files are up to date already"


def select_init(init: StartedBy | None, root: Path) -> InitSystem:
    """Return the init system that was given, or the one of the target system."""
    from ..runtime.install.init_systems import INIT_SYSTEMS, detect_init

    return INIT_SYSTEMS[init.value] if init is not None else detect_init(root)


def target_root(destdir: Path | None) -> Path:
    """Return the root directory of the target system.

    Raises:
        Failure: `destdir` is not a directory.
    """
    if destdir is None or not destdir.parts:
        return Path("/")
    require_directory("--destdir", destdir)
    return destdir.absolute()


def require_directory(option: str, path: Path) -> None:
    """Check that `path` can be a directory: it is one, or does not exist yet.

    Raises:
        Failure: another file is there.
    """
    if path.exists() and not path.is_dir():
        raise Failure(f"{option}: {path} is not a directory", EXIT_BAD_INPUT)


def installed_path(file: Path | None, root: Path) -> str:
    """Return the path of this policy in /etc/nftpolicy of the target system."""
    name = file.name if file is not None and is_installed(file, root) else INSTALLED_NAME
    return f"{POLICY_DIRECTORY}/{name}"


def is_installed(file: Path, root: Path) -> bool:
    """Return True if the file is one of the policies in /etc/nftpolicy of the target system."""
    return file.resolve() in [path.resolve() for path in installed_policies(root)]


def program_path(root: Path, program: str | None) -> str:
    """Return the path of nftpolicy for the units of the target system.

    Raises:
        Failure: it is not given, and cannot be determined.
    """
    from ..runtime.install.installer import own_program

    path = program or (own_program() if root == Path("/") else "/usr/bin/nftpolicy")
    if path is None:
        raise Failure("cannot determine the absolute path of nftpolicy; use --program PATH", EXIT_BAD_INPUT)
    return path


def require_readable_by_units(program: str) -> None:
    """Check that units can start the program: it is in no directory that they may not see.

    Raises:
        Failure: it is in one, or its Python is.
    """
    import sys

    # Of a virtual environment: the program, its Python, and the package, which may be elsewhere (pip install -e).
    parts = [Path(program).resolve()]
    if Path(program).parent == Path(sys.executable).parent:
        parts += [Path(sys.prefix).resolve(), Path(__file__).resolve()]
    for part in parts:
        hidden = next((directory for directory in HIDDEN_DIRECTORIES if part.is_relative_to(directory)), None)
        if hidden is not None:
            raise Failure(
                f"{part}: units may not see {hidden} (ProtectHome=, PrivateTmp=), so they could not start nftpolicy; "
                "install its package, or make a virtual environment in /opt, and run install from there",
                EXIT_BAD_INPUT,
            )


def nft_path(root: Path, nft: str | None) -> str:
    """Return the path of nft for the units of the target system.

    Raises:
        Failure: it is not given, and nft is not installed here.
    """
    from ..runtime.install.installer import find_program

    path = nft or (find_program("nft") if root == Path("/") else "/usr/sbin/nft")
    if path is None:
        raise Failure("nft is not installed: apt-get install nftables, or use --nft PATH", EXIT_UNAVAILABLE)
    return path


def warn_of_numeric_ids(policy: Policy) -> None:
    """Warn that names of users and groups were resolved here, since the guard has numbers only."""
    services = policy.service.values()
    accounts = {account for service in services for account in (service.group, service.user) if account}
    accounts |= {uplink.resolver.user for uplink in policy.uplink.values() if uplink.resolver}
    resolved = sorted(
        f"{account.name} is {account.number}" for account in accounts if account.name != str(account.number)
    )
    if resolved:
        warn(f"numeric IDs in the guard were resolved on this host: {', '.join(resolved)}")


def print_written(lines: list[str]) -> None:
    """Print what was written or removed, or that nothing had to be."""
    print("\n".join(lines or [UP_TO_DATE]))


@contextmanager
def install_errors_as_failure() -> Iterator[None]:
    """Turn the errors of writing and removing files into Failures."""
    from ..runtime.install.installed_files import ManifestDamaged
    from ..runtime.install.installer import CommandFailed, FileConflict

    try:
        yield
    except FileConflict as error:
        raise Failure(
            f"{error}: not written by nftpolicy, or changed since; nothing was written. --force replaces it"
        ) from None
    except (ManifestDamaged, CommandFailed) as error:
        raise Failure(str(error)) from None
    except OSError as error:
        hint = "; try again with sudo" if isinstance(error, PermissionError) else ""
        raise Failure(f"{error.filename}: {error.strerror}{hint}") from None
