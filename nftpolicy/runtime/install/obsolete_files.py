# SPDX-License-Identifier: BSD-2-Clause
"""Files of `netconfig` and `units` for uplinks and services that a policy no longer has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ...integration.netconfig.registry import netconfig_files
from ...integration.systemd_dropins import DROPIN_NAME
from ...policy.objects import Policy
from ..paths import under_root
from .installed_files import Manifest, read_if_exists, replace_files

# Where the administrator, and programs such as netplan, configure networkd.
_NETWORK_DIRECTORIES = ("/run/systemd/network", "/etc/systemd/network")
# Program of `netconfig` -> its files for one device.
_DEVICE_FILES = {
    "networkd": re.compile(r"/etc/systemd/network/(05-nftpolicy-.*\.network|.*\.network\.d/nftpolicy\.conf)\Z"),
    "networkmanager": re.compile(r"/etc/NetworkManager/system-connections/nftpolicy-.*\.nmconnection\Z"),
}
_SERVICE = re.compile(r"# Service (\S+) of policy ")


def network_files(root: Path) -> dict[str, str]:
    """Return path -> text of the .network files of a system, without the vendor's. Raises OSError."""
    texts = {}
    for directory in _NETWORK_DIRECTORIES:
        for path in sorted(under_root(root, directory).glob("*.network")):
            if (content := read_if_exists(path)) is not None:
                texts[path.name] = (f"{directory}/{path.name}", content.decode(errors="replace"))
    return dict(texts.values())


def obsolete_netconfig_files(root: Path, policy: Policy, program: str) -> list[str]:
    """Return the paths of the installed files for devices that this program has no settings for any more.

    Raises:
        SharedNetworkFile, Unwritable: as networkd.files.
        ManifestDamaged, OSError: the manifest or a file cannot be read.
    """
    pattern = _DEVICE_FILES.get(program)
    installed = [path for path in Manifest.read(root).files if pattern and pattern.match(path)]
    if not installed:
        return []
    wanted = {file.path for file in netconfig_files(policy, program, network_files(root))}
    return [path for path in installed if path not in wanted]


def obsolete_files(root: Path, policy: Policy) -> list[str]:
    """Return the paths of all installed files for devices and services that are not in the policy. Raises as above."""
    paths = [path for program in _DEVICE_FILES for path in obsolete_netconfig_files(root, policy, program)]
    return paths + list(_dropins_of_lost_services(root, policy))


def obsolete_dropins(root: Path, wanted: Collection[str], directory: Path) -> list[str]:
    """Return the paths of the installed drop-ins below `directory` that are not in `wanted`. Raises as above."""
    return [path for path in _dropins(root) if path not in wanted and Path(path).parents[1] == directory]


def _dropins_of_lost_services(root: Path, policy: Policy) -> Iterator[str]:
    for path in _dropins(root):
        header = _SERVICE.match((read_if_exists(under_root(root, path)) or b"").decode(errors="replace"))
        if header and header[1] not in policy.service:
            yield path


def _dropins(root: Path) -> list[str]:
    return [path for path in Manifest.read(root).files if path.endswith(f".service.d/{DROPIN_NAME}")]


def remove_files(manifest: Manifest, paths: Iterable[str]) -> list[Path]:
    """Remove files, and return them, but for those that were changed since they were installed.

    Directories that are empty then are removed, too. Raises OSError.
    """
    targets = {path: under_root(manifest.root, path) for path in paths}
    removed: Mapping[str, Path] = {
        path: target
        for path, target in targets.items()
        if path not in manifest.files or manifest.matches(path, read_if_exists(target) or b"")
    }
    for target in removed.values():
        target.unlink()
        if target.parent.name.endswith(".d"):
            with suppress(OSError):
                target.parent.rmdir()  # if it is empty
    if not manifest.files.keys().isdisjoint(removed):
        with replace_files(manifest.without_files(removed).as_files()):
            pass
    return list(removed.values())
