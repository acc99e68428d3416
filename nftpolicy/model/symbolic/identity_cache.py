# SPDX-License-Identifier: BSD-2-Clause
"""Cache by object identity, for immutable values with a slow hash."""

from __future__ import annotations

from typing import Generic, TypeVar

Key = TypeVar("Key")
Content = TypeVar("Content")


class IdentityCache(Generic[Key, Content]):
    """Contents by the identity of their key.

    The cache keeps its keys alive, so no other object can get the id of a key.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Key, Content]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Content | None:
        """Return the content of exactly this object, or None."""
        entry = self._entries.get(id(key))
        return None if entry is None else entry[1]

    def set(self, key: Key, content: Content) -> None:
        """Store the content of this object."""
        self._entries[id(key)] = (key, content)
