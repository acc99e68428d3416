# SPDX-License-Identifier: BSD-2-Clause
"""libnftables, by the bindings of the distribution: text in, JSON out."""

from __future__ import annotations

import errno
import json
import os
import re
from typing import Any

from .child_process import run_in_child
from .errors import ChildFailed, RulesetUnreadable, Unavailable

_ERROR = re.compile(r"^(?:[^:\n]*:(\d+):\d+-\d+: )?Error: (?:Could not process rule: )?(.*)$", re.MULTILINE)
_MODULES = {"ipsec out": "nft_xfrm"}  # by the text of a rule; a kernel can be built without them
_NEEDS_MODULE = re.compile(rf"\n.*\b({'|'.join(_MODULES)}) ")  # on the line that nft prints below its error
# The first byte of what the listing process sends: an output follows, or there is no such object.
_LISTED, _NO_SUCH_OBJECT = b"+", b"-"
_STDERR = 2


class Nft:
    """A libnftables context. Each command is one transaction."""

    def __init__(self) -> None:
        try:
            import nftables  # type: ignore[import-untyped]
        except ImportError:
            raise Unavailable(
                "the nftables bindings are missing: apt-get install python3-nftables, "
                "and make the virtual environment with --system-site-packages"
            ) from None
        try:
            self._context = nftables.Nftables()
        except OSError as error:
            raise Unavailable(f"cannot load libnftables: {error}") from None

    def load(self, text: str, check: bool = False) -> str | None:
        """Apply commands in nft's syntax; return None, or libnftables' error text.

        `check`: the kernel validates the transaction without committing it.
        """
        self._context.set_json_output(False)
        self._context.set_dry_run(check)
        # From a file, because only then an error names its line. The file is in memory.
        with os.fdopen(os.memfd_create("nftpolicy"), "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            try:
                status, _, error = self._context.cmd_from_file(f"/proc/self/fd/{file.fileno()}")
            except UnicodeDecodeError:  # by the bindings, from the message of an error
                return "refused, with a message that is not text"
            finally:
                self._context.set_dry_run(False)
        return None if status == 0 else (error or "refused without a reason")

    def list_text(self, command: str, terse: bool = False) -> str | None:
        """Return the text that a list command prints; None if there is no such object.

        `terse`: without set elements. Raises RulesetUnreadable.
        """
        return self._list(command, False, terse)

    def list_json(self, command: str, terse: bool = False) -> Any:
        """Return the parsed JSON that a list command prints; None if there is no such object.

        `terse`: without set elements.

        Raises:
            RulesetUnreadable: libnftables cannot write it as JSON.
        """
        output = self._list(command, True, terse)
        try:
            return json.loads(output) if output else None
        except json.JSONDecodeError:
            raise RulesetUnreadable(
                "libnftables writes incomplete JSON for this kernel's ruleset; install a newer nftables"
            ) from None

    def _list(self, command: str, as_json: bool, terse: bool) -> str | None:
        """Run a list command in a child process.

        nft 1.0.6 aborts on some foreign rulesets, for instance on an anonymous set with
        neighbouring wildcards. That must not end this process in the middle of a plan.
        """

        def run() -> bytes:
            os.dup2(os.open(os.devnull, os.O_WRONLY), _STDERR)  # hides the message of an abort
            self._context.set_json_output(as_json)
            self._context.set_terse_output(terse)
            status, output, _ = self._context.cmd(command)
            return _NO_SUCH_OBJECT if status else _LISTED + output.encode()

        try:
            printed = run_in_child(run)
        except ChildFailed as failure:
            # Without a signal the binding could not decode the output: nft 1.0.6 prints wildcards
            # as bytes.
            how = f"aborts (signal {failure.signal})" if failure.signal else "prints bytes that are not text"
            raise RulesetUnreadable(
                f"libnftables itself {how} when it lists this kernel's ruleset; install a newer nftables"
            ) from None
        return None if printed == _NO_SUCH_OBJECT else printed[len(_LISTED) :].decode()


def parse_error(text: str) -> tuple[str, int | None]:
    """Return the first reason in libnftables' error text, and the line number that it names, or None."""
    match = _ERROR.search(text)
    if match:
        lacks = _NEEDS_MODULE.match(text, match.end()) if match[2] == os.strerror(errno.ENOENT) else None
        module = f" (`{lacks[1]}` needs the kernel module {_MODULES[lacks[1]]})" if lacks else ""
        return match[2] + module, int(match[1]) if match[1] else None
    return text.strip(), None
