# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy guard FILE"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .common import (
    EXIT_BAD_INPUT,
    Failure,
    change_errors_as_failure,
    describe_result,
    read_policy,
    this_kernel,
    warn,
)
from .options import PolicyFile
from .parameters import option
from .proving import proved_boot_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..policy.objects import Policy
    from ..runtime.install.boot_guard import BootGuard, GuardLoadResult

_DEFAULT = Path("/etc/nftpolicy/guard.nft")


def command(
    file: PolicyFile = None,
    to: Annotated[Path, option(help="File to write; - prints it and loads nothing.")] = _DEFAULT,
    no_load: Annotated[bool, option("--no-load", help="Write the files, and do not load them now.")] = False,
) -> None:
    """Write the guard as nft files for boot, and load it now.

    At boot nft alone loads these files, before the network is up.
    """
    policy, source = read_policy(file)
    tables = proved_boot_tables(policy, source)
    if str(to) == "-":
        print(tables.guard_text(), end="")
        return
    if to.exists() and not to.is_file():
        raise Failure(f"--to: {to} is not a regular file", EXIT_BAD_INPUT)
    kernel = None if no_load else this_kernel()
    from ..runtime.apply.state_dir import current_state_dir
    from ..runtime.install.boot_guard import load_boot_guard

    to = to.absolute()
    changed, obsolete = _changed_files(tables, to)
    loaded = None
    with change_errors_as_failure(source), _replace_files(to, changed, obsolete):
        # The new files are not renamed yet: a ruleset that the kernel refuses is not used at boot.
        if kernel is not None:
            state_dir = current_state_dir()
            with state_dir.lock():
                loaded = load_boot_guard(kernel, policy, state_dir)
    lines = [f"{policy.name}: wrote {path}" for path in changed]
    lines += [f"{policy.name}: removed {path}" for path in obsolete]
    print("\n".join(lines or [f"{policy.name}: {to} is up to date already"]))
    if loaded is not None:
        _print_loaded(policy, loaded)


def _changed_files(tables: BootGuard, to: Path) -> tuple[dict[Path, bytes], list[Path]]:
    """Return the files that differ from those on the disk, and those of devices that are no uplink's any more."""
    from ..runtime.install.boot_guard import obsolete_device_files
    from ..runtime.install.installed_files import read_if_exists

    with change_errors_as_failure(None):
        files = tables.files(to)
        changed = {path: content for path, content in files.items() if read_if_exists(path) != content}
        return changed, obsolete_device_files(files, to)


@contextmanager
def _replace_files(to: Path, changed: dict[Path, bytes], obsolete: list[Path]) -> Iterator[None]:
    """Replace and remove files at the end of the block, with their entries in the manifest if the guard has one."""
    from ..runtime.install.installed_files import Manifest, ManifestDamaged, replace_files

    try:
        manifest = Manifest.read(Path("/"))
    except (ManifestDamaged, OSError):
        manifest = Manifest(Path("/"))  # install and uninstall report it
    files = changed
    if str(to) in manifest.files and (changed or obsolete):
        listed = manifest.with_files({str(path): content for path, content in changed.items()})
        files = {**changed, **listed.without_files(map(str, obsolete)).as_files()}
    with replace_files(files):
        yield
    for path in obsolete:
        path.unlink(missing_ok=True)


def _print_loaded(policy: Policy, loaded: GuardLoadResult) -> None:
    from ..runtime.apply.executor import link_guard_messages

    result = describe_result(loaded.planned, "loaded", "in the kernel already")
    print(f"{policy.name}: the guard is {result}")
    for line in link_guard_messages(loaded.planned.host):
        warn(line)
    if loaded.has_foreign_routing:
        warn("ip rules, routes or sysctls in force differ from this policy: type 'nftpolicy apply'")
