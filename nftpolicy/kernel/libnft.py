# SPDX-License-Identifier: BSD-2-Clause
"""libnftables, by the distribution's bindings: text in, JSON out."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from .interface import Unavailable

_PLACE = re.compile(r"^(?:[^:\n]*:(\d+):\d+-\d+: )?Error: (?:Could not process rule: )?(.*)$", re.MULTILINE)
_REFUSED = 2  # how the child that lists ends where there is no such object


class Unreadable(Unavailable):
    """This libnftables can't list what the kernel holds."""


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

    def listing(self, command: str, terse: bool = False) -> str | None:
        """What a list command prints as text; None if there is no such object. `terse`: no elements."""
        return self._listed(command, False, terse)

    def json(self, command: str, terse: bool = False) -> Any:
        """What a list command prints, parsed; None if there is no such object. `terse`: no elements.

        Raises:
            Unreadable: libnftables can't write it as JSON.
        """
        output = self._listed(command, True, terse)
        try:
            return json.loads(output) if output else None
        except json.JSONDecodeError:
            raise Unreadable(
                "libnftables breaks off when it is to list this kernel's ruleset; a newer one may not"
            ) from None

    def _listed(self, command: str, as_json: bool, terse: bool) -> str | None:
        """Listed in a child process, since nft 1.0.6 aborts on some rulesets of others: on an anonymous
        set with neighbouring wildcards, for one. That must not end this process in the middle of a plan."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what an abort says helps nobody
                self._context.set_json_output(as_json)
                self._context.set_terse_output(terse)
                refused, output, _ = self._context.cmd(command)
                with os.fdopen(writer, "wb") as pipe:
                    pipe.write(b"" if refused else output.encode())
                os._exit(_REFUSED if refused else 0)
            finally:
                os._exit(1)  # the binding can't decode what nft 1.0.6 prints of wildcards
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            printed = pipe.read()
        _, ended = os.waitpid(child, 0)
        if ended and os.waitstatus_to_exitcode(ended) != _REFUSED:
            how = f"ends (signal {os.WTERMSIG(ended)})" if os.WIFSIGNALED(ended) else "prints what is no text"
            raise Unreadable(
                f"libnftables itself {how} when it is to list this kernel's ruleset; a newer nft may be able to"
            )
        return None if ended else printed.decode()


def refusal(error: str) -> tuple[str, int | None]:
    """The first reason in libnftables' error text, and the number of the line that it is about."""
    found = _PLACE.search(error)
    if found:
        return found[2], int(found[1]) if found[1] else None
    return error.strip(), None
