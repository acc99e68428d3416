# SPDX-License-Identifier: BSD-2-Clause
"""Reason of a block: why `watch` stopped the uplinks, for `nftpolicy status`; and the way out.

The file lies in a directory of its own, since `watch` takes each new file in the state directory for a change of
policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from ..atomic_file import write_file
from ..private_files import make_directory, modification_time, read_private

WAY_OUT = (
    "'nftpolicy verify --live' names the rule that lets a packet leave; the block ends when that rule is gone; "
    "'nftpolicy release' opens the uplinks at once"
)


@frozen
class BlockReasonFile:
    """File with the reason of the block in one network namespace."""

    state_directory: Path

    @property
    def _path(self) -> Path:
        return self.state_directory / "block" / "reason"

    def read(self) -> tuple[str, ...]:
        """Return the reasons, a statement each; () if they are not known."""
        try:
            return tuple(read_private(self._path).decode(errors="replace").splitlines())
        except OSError:
            return ()

    def time(self) -> str:
        """Return the time of the block (UTC, ISO 8601); "" if it is not known."""
        return modification_time(self._path)

    def write(self, reasons: Sequence[str]) -> None:
        """Replace the reasons; without any, remove the file. Raises OSError."""
        if not reasons:
            self._path.unlink(missing_ok=True)
            return
        make_directory(self._path.parent)
        write_file(self._path, "".join(f"{' '.join(reason.split())}\n" for reason in reasons).encode())
