# SPDX-License-Identifier: BSD-2-Clause
"""Directories of nftpolicy on a system, below "/" or below the root of an image."""

from __future__ import annotations

from pathlib import Path

PERSISTENT_DIR, PERSISTENT_DIR_OPENWRT = "/var/lib/nftpolicy", "/etc/nftpolicy/kept"
MANIFEST = "installed.json"  # the list of installed files, in the persistent directory
# A file of OpenWrt's own; and the list of installed files, for an image that has no base files yet.
_SIGNS_OF_OPENWRT = ("/etc/openwrt_release", f"{PERSISTENT_DIR_OPENWRT}/{MANIFEST}")


def persistent_dir(root: Path = Path("/")) -> str:
    """Return the directory of a system for files that outlast a restart.

    OpenWrt's /var is a link to /tmp (base-files), so it has another one there.
    """
    return (
        PERSISTENT_DIR_OPENWRT if any(under_root(root, sign).exists() for sign in _SIGNS_OF_OPENWRT) else PERSISTENT_DIR
    )


def under_root(root: Path, path: str) -> Path:
    """Return the file that is `path` on the system with the root directory `root`."""
    return root / path.lstrip("/")
