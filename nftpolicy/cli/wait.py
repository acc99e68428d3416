# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy wait [FILE]"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from .common import (
    EXIT_BAD_INPUT,
    EXIT_REFUTED,
    Failure,
    change_errors_as_failure,
    last_policy,
    read_policy,
    require_known,
    this_kernel,
)
from .options import LONGEST_WAIT, AppliedPolicyFile
from .parameters import option, require_number

if TYPE_CHECKING:
    from ..runtime.services.readiness import Readiness


def command(
    file: AppliedPolicyFile = None,
    uplink: Annotated[str | None, option(help="Wait until this uplink is ready; default: all uplinks.")] = None,
    service: Annotated[str | None, option(help="Wait until this service has received a reply by its uplink.")] = None,
    timeout: Annotated[
        float, option(min=0, max=LONGEST_WAIT, callback=require_number, help="Seconds; 0 checks once.")
    ] = 60,
) -> None:
    """Wait until uplinks are ready or a service gets a reply.

    Exits with 1 after the timeout.
    """
    if uplink is not None and service is not None:
        raise Failure("--uplink and --service exclude each other: give one of them", EXIT_BAD_INPUT)
    gc.enable()
    kernel = this_kernel()
    from ..compiler import object_names
    from ..kernel.netlink.monitor import Monitor
    from ..netstate.routing import RTPROT_NFTPOLICY
    from ..runtime.apply.executor import plan_change
    from ..runtime.apply.state_dir import current_state_dir
    from ..runtime.services.readiness import Readiness, wait_until_ready
    from ..runtime.status import read_status

    state_dir = current_state_dir()
    policy, _ = read_policy(file) if file is not None else last_policy("nftpolicy wait FILE", state_dir)
    require_known("uplink", uplink, policy.uplink)
    require_known("service", service, policy.service)

    def is_guarded() -> bool:
        return read_status(kernel, policy, plan_change(kernel, policy, state_dir)).has_guard_and_rules

    with (
        change_errors_as_failure(None),
        Monitor(object_names.TABLE, object_names.BLOCK_TABLE, RTPROT_NFTPOLICY) as monitor,
    ):
        missing = wait_until_ready(
            _missing_parts(Readiness(policy, is_guarded, state_dir.directory), uplink, service),
            timeout,
            monitor.descriptors,
            monitor.read,
        )
    if missing:
        raise Failure("\nnftpolicy: ".join(missing), EXIT_REFUTED)


def _missing_parts(readiness: Readiness, uplink: str | None, service: str | None) -> Callable[[], list[str]]:
    """Return a function that returns what is not ready yet, a line each."""
    if service is not None:
        return lambda: readiness.service_problems(service)
    uplinks = list(readiness.policy.uplink) if uplink is None else [uplink]
    return lambda: [fault for name in uplinks for fault in readiness.uplink_problems(name)]
