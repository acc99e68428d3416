# SPDX-License-Identifier: BSD-2-Clause
"""Paths of the boot guard's nft files: the guard, the link-layer guard and the block."""

from __future__ import annotations

from posixpath import splitext

GUARD_PATH = "/etc/nftpolicy/guard.nft"


def link_guard_path(guard: str) -> str:
    """Return the path of a guard's link-layer guard: guard.nft -> guard-link.nft."""
    stem, suffix = splitext(guard)
    return f"{stem}-link{suffix}"


def block_path(guard: str) -> str:
    """Return the path of a guard's block: guard.nft -> guard-block.nft."""
    stem, suffix = splitext(guard)
    return f"{stem}-block{suffix}"
