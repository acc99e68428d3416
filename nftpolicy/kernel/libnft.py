# SPDX-License-Identifier: BSD-2-Clause
"""libnftables, by the distribution's bindings: text in, JSON out."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from .interface import Unavailable

_PLACE = re.compile(r"^(?:[^:\n]*:(\d+):\d+-\d+: )?Error: (?:Could not process rule: )?(.*)$", re.MULTILINE)


class Nft:
    """One libnftables context. Every command is one transaction."""

    def __init__(self) -> None:
        try:
            import nftables
        except ImportError:
            raise Unavailable(
                "the nftables bindings are missing: apt-get install python3-nftables, "
                "and make the virtual environment with --system-site-packages"
            ) from None
        try:
            self._context = nftables.Nftables()
        except OSError as error:
            raise Unavailable(f"libnftables can't be loaded: {error}") from None

    def load(self, text: str, check: bool = False) -> str | None:
        """Carry out `text`; None if the kernel took it, else what it said. `check` only asks."""
        self._context.set_json_output(False)
        self._context.set_dry_run(check)
        # From a file, since only then an error names its line. The file is in memory.
        with os.fdopen(os.memfd_create("nftpolicy"), "w") as file:
            file.write(text)
            file.flush()
            try:
                status, _, error = self._context.cmd_from_file(f"/proc/self/fd/{file.fileno()}")
            finally:
                self._context.set_dry_run(False)
        return None if status == 0 else (error or "refused without a reason")

    def listing(self, command: str) -> str | None:
        """What a list command prints as text; None if there is no such object."""
        self._context.set_json_output(False)
        status, output, _ = self._context.cmd(command)
        return output if status == 0 else None

    def json(self, command: str, terse: bool = False) -> Any:
        """What a list command prints, parsed; None if there is no such object. `terse`: no elements."""
        self._context.set_json_output(True)
        self._context.set_terse_output(terse)
        status, output, _ = self._context.cmd(command)
        self._context.set_terse_output(False)
        return json.loads(output) if status == 0 and output else None


def refusal(error: str) -> tuple[str, int | None]:
    """The first reason in libnftables' error text, and the number of the line that it is about."""
    found = _PLACE.search(error)
    if found:
        return found[2], int(found[1]) if found[1] else None
    return error.strip(), None
