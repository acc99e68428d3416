# SPDX-License-Identifier: BSD-2-Clause
"""Paths of the boot guard's nft files: the guard, the link-layer guard and the block."""

from __future__ import annotations

from posixpath import splitext

GUARD_PATH = "/etc/nftpolicy/guard.nft"


def link_guard_path(guard: str) -> str:
    """Return the path of a guard's link-layer guard: guard.nft -> guard-link.nft."""
    stem, suffix = splitext(guard)
    return f"{stem}-link{suffix}"


def device_guard_path(guard: str, device: str) -> str:
    """Return the path of a device's part of the link-layer guard: guard.nft -> guard-link-DEVICE.nft."""
    stem, suffix = splitext(link_guard_path(guard))
    return f"{stem}-{device}{suffix}"


def is_device_guard_path(guard: str, path: str) -> bool:
    """Return True if `path` is that of a device's part of this guard."""
    before, after = splitext(device_guard_path(guard, ""))
    return len(path) > len(before + after) and path.startswith(before) and path.endswith(after)


def block_path(guard: str) -> str:
    """Return the path of a guard's block: guard.nft -> guard-block.nft."""
    stem, suffix = splitext(guard)
    return f"{stem}-block{suffix}"
