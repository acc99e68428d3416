# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy check FILE"""

from __future__ import annotations

import os

from .common import policy_file, read_policy, warn
from .findings_text import warning_lines
from .options import PolicyFile
from .proving import require_proof
from .render.phrases import quantity


def command(file: PolicyFile = None) -> None:
    """Check a policy for errors and prove what it compiles to.

    Needs no root and changes nothing.
    """
    file = policy_file(file)
    policy, source = read_policy(file)
    from ..policy.known_marks import MARK_USER_FILES
    from ..policy.lint import find_warnings

    present = frozenset(sign for sign in MARK_USER_FILES if os.path.exists(sign))  # noqa: PTH110
    for line in warning_lines(source, find_warnings(policy, present)):
        warn(line)
    from ..runtime.resolver.resolv_files import find_host_leaks as resolver_leaks

    for leak in resolver_leaks(policy):
        warn(str(leak))
    from ..runtime.published_ports import unpublished_notes

    for note in unpublished_notes(policy):
        warn(note)
    require_proof(policy, source, f"type 'nftpolicy verify {file}' for the whole report")
    counts = f"{quantity(len(policy.uplink), 'uplink')}, {quantity(len(policy.service), 'service')}"
    for noun, entries in (("forward", policy.forward), ("published port", policy.publish)):
        counts += f", {quantity(len(entries), noun)}" if entries else ""
    print(f"{file}: {policy.name}: good: {counts}, proved")
