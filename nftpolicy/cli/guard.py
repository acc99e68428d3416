# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy guard [FILE]"""

from __future__ import annotations

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
    from ..policy.objects import Policy
    from ..runtime.install.boot_guard import GuardLoadResult
    from ..runtime.install.installed_files import Manifest

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
    from ..runtime.install.boot_guard import load_boot_guard, obsolete_device_files
    from ..runtime.install.installed_files import read_if_exists, replace_files
    from ..runtime.install.obsolete_files import remove_files

    to = to.absolute()
    files = tables.files(to)
    loaded = None
    with change_errors_as_failure(source):
        changed = {path: content for path, content in files.items() if read_if_exists(path) != content}
        manifest = _manifest(to, changed)
        listing = manifest.as_files() if changed and str(to) in manifest.files else {}
        with replace_files({**changed, **listing}):
            # The new files are not renamed yet: a ruleset that the kernel refuses is not used at boot.
            if kernel is not None:
                state_dir = current_state_dir()
                with state_dir.lock():
                    loaded = load_boot_guard(kernel, policy, state_dir)
        removed = remove_files(manifest, obsolete_device_files(manifest.root, set(map(str, files)), str(to)))
    lines = [f"{policy.name}: wrote {path}" for path in changed]
    lines += [f"{policy.name}: removed {path}" for path in removed]
    print("\n".join(lines or [f"{policy.name}: {to} is up to date already"]))
    if loaded is not None:
        _print_loaded(policy, loaded)


def _manifest(to: Path, changed: dict[Path, bytes]) -> Manifest:
    """Return the manifest, with the changed files if it has the guard; an empty one if it cannot be read."""
    from ..runtime.install.installed_files import Manifest, ManifestDamaged

    try:
        manifest = Manifest.read(Path("/"))
    except (ManifestDamaged, OSError):
        return Manifest(Path("/"))  # install and uninstall report it
    return manifest.with_files({str(path): content for path, content in changed.items() if str(to) in manifest.files})


def _print_loaded(policy: Policy, loaded: GuardLoadResult) -> None:
    from ..runtime.apply.executor import link_guard_messages

    result = describe_result(loaded.planned, "loaded", "in the kernel already")
    print(f"{policy.name}: the guard is {result}")
    for line in link_guard_messages(loaded.planned.host):
        warn(line)
    if loaded.has_foreign_routing:
        warn("ip rules, routes or sysctls in force differ from this policy: type 'nftpolicy apply'")
