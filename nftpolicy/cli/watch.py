# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy watch [FILE]"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from .apply_common import announce, create_applier, print_report
from .common import change_errors_as_failure, read_policy, this_kernel
from .options import WaitSeconds
from .parameters import argument, option
from .plain_output import json_line


def command(
    file: Annotated[
        Path | None,
        argument(
            metavar="[FILE]", help="Policy file (TOML) to apply first; default: the policy that was applied last."
        ),
    ] = None,
    as_json: Annotated[bool, option("--json", help="Log JSON, one object a line.")] = False,
    block_unknown: Annotated[
        bool,
        option(
            "--block-unknown",
            help="Block the uplinks also when the proof is inconclusive (unknown).",
        ),
    ] = False,
    leave_routes: Annotated[
        bool, option("--leave-routes", help="Do not move routes into the uplinks' tables.")
    ] = False,
    wait: WaitSeconds = 30,
) -> None:
    """Enforce the policy: repair damage, re-prove foreign changes.

    Blocks the uplinks where a packet leaves. Runs in the foreground until SIGTERM.
    """
    gc.enable()
    named = read_policy(file) if file is not None else None
    kernel = this_kernel()
    from ..compiler import object_names
    from ..kernel.libnft import Nft
    from ..kernel.linux import Linux
    from ..kernel.netlink import monitor
    from ..kernel.netlink.port_block import PortBlock
    from ..kernel.netlink.route_mover import RouteMover
    from ..kernel.sd_notify import ServiceManager
    from ..kernel.session_priority import apply_nice_to_session
    from ..netstate.routing import RTPROT_NFTPOLICY
    from ..runtime.apply.history import current_history
    from ..runtime.apply.state_dir import Locked
    from ..runtime.apply.transaction import ChangeOptions, TargetPolicy
    from ..runtime.apply.watch_record import WatchRecorder
    from ..runtime.resolver.resolv_files import LeakWatcher
    from ..runtime.watch.environment import Environment
    from ..runtime.watch.log_limiter import LogLimiter
    from ..runtime.watch.loop import Watch

    applier = create_applier(kernel, ChangeOptions(wait))
    with monitor.Monitor(object_names.TABLE, object_names.BLOCK_TABLE, RTPROT_NFTPOLICY) as events:
        limited_log, nft = LogLimiter(EventLog(as_json).write, time.monotonic), Nft()
        log = WatchRecorder(applier.state_dir, current_history(applier.state_dir), limited_log.write)
        nft.load(f"add table inet {object_names.BLOCK_TABLE}\n", check=True)  # binds its netlink socket to an address
        # A table with an owner (kernel 5.12) is removed with the socket that made it.
        shadow_table = f"table inet {object_names.SHADOW_TABLE} {{\n\tflags owner\n}}\n"
        supports_owner = nft.load(shadow_table, check=True) is None
        environment = Environment(
            applier, Linux, events, nft.load, log.write, monitor.tx_packets,
            monitor.own_netlink_ports, ServiceManager(), block_unknown, supports_owner,
            None if leave_routes else RouteMover(), resolver_leaks=LeakWatcher().changes,
            port_block=PortBlock(object_names.PORT_BLOCK_TABLE, object_names.BLOCK_PRIORITY),
        )  # fmt: skip
        apply_nice_to_session()
        watch = Watch(environment)
        if named is not None:
            policy, source = named
            wanted = TargetPolicy(policy, (source.name, source.text.encode()))

            def apply() -> None:
                checked_plan = applier.check(wanted)
                announce(checked_plan)
                print_report(applier.apply(checked_plan, wanted, why="watch"))

            watch.prepare(policy)
            with change_errors_as_failure(source):
                try:
                    with applier.locked():
                        apply()
                except Locked as error:
                    # To end here would remove the shadow guard.
                    log.write("failed", {"what": source.name, "why": str(error), "then": "applied later"})
                    watch.first_change = apply
        with log.running():
            watch.run()


class EventLog:
    """Log on standard error, one event a line: key=value, or JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write one event. An error of standard error is ignored, so that the watch continues."""
        from ..runtime.watch.repair_plan import format_log_line

        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            **facts,
        }
        try:
            print(json_line(record) if self._as_json else format_log_line(record), file=sys.stderr, flush=True)
        except OSError:
            return
