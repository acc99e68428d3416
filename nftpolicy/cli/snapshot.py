# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy snapshot [FILE]"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .. import __version__
from .common import EXIT_BAD_INPUT, Failure, read_input, resolve_account, this_kernel, warn, write_output
from .parameters import argument, option

if TYPE_CHECKING:
    from ..runtime.apply.journal import PolicySource
    from ..runtime.snapshot import PolicyInForce, Snapshot

_PRIVATE = 0o600  # the document has addresses, routes and the firewall of the machine
_EXECUTABLE = 0o755


def command(
    file: Annotated[
        Path | None, argument(metavar="[FILE]", help="File to write; default or -: standard output.")
    ] = None,
    script: Annotated[
        bool,
        option("--script", help="Write the sh script that takes a snapshot on a router without Python."),
    ] = False,
) -> None:
    """Write all that a proof reads of this kernel into one file.

    `nftpolicy verify --snapshot FILE` proves it on any machine, without root.
    """
    if script:
        from ..integration.openwrt.tree import snapshot_script

        write_output(file or Path("-"), snapshot_script(), _EXECUTABLE)
        return
    import os

    from attrs import evolve

    from ..runtime.apply.state_dir import current_state_dir, read_undisturbed
    from ..runtime.snapshot import encode_snapshot, take_snapshot

    kernel = this_kernel()
    state_dir = current_state_dir()
    source, snapshot = read_undisturbed(state_dir, lambda: (state_dir.policy(), take_snapshot(kernel)))
    snapshot = evolve(
        snapshot,
        policy=_policy_in_force(source),
        program=__version__,
        kernel=os.uname().release,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_output(file or Path("-"), encode_snapshot(snapshot), _PRIVATE)


def _policy_in_force(source: PolicySource | None) -> PolicyInForce | None:
    from ..policy.errors import PolicyError
    from ..runtime.snapshot import policy_in_force

    if source is None:
        return None
    try:
        return policy_in_force(*source, resolve_account)
    except PolicyError as error:
        warn(f"the snapshot is written without the policy in force, which is no longer valid: {error}")
        return None


def read_snapshot(file: Path) -> Snapshot:
    """Return the snapshot in a file; "-" is standard input.

    Raises:
        Failure: the file cannot be read, or is not a snapshot of this version.
    """
    from ..runtime.snapshot import SnapshotError, decode_snapshot

    data, name = read_input(file)
    try:
        return decode_snapshot(data)
    except SnapshotError as error:
        raise Failure(f"{name}: {error}; write it with 'nftpolicy snapshot FILE'", EXIT_BAD_INPUT) from None
