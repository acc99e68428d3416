# SPDX-License-Identifier: BSD-2-Clause
"""Isolation of a service from the programs that answer for names in place of DNS (name_services.py).

A service does not see their sockets; the C library then asks by DNS, if nsswitch.conf(5) has it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ...integration.systemd_dropins import NAME_DAEMON_DIRECTORIES
from ...kernel.mount_namespace import hide_directories
from ...policy.objects import Uplink
from .name_services import NSSWITCH, WITHOUT_DNS, read_hosts
from .self_test import SelfTestResult

_SOCKETS = {"/run/systemd/resolve/io.systemd.Resolve": "systemd-resolved", "/run/nscd/socket": "nscd"}


def hide_name_daemons(uplink: Uplink) -> str | None:
    """Hide the sockets of the daemons from this process; return a warning if that is not possible.

    An uplink without a resolver has no names of its own, so nothing is hidden.
    """
    present = [path for path in NAME_DAEMON_DIRECTORIES if Path(path).is_dir()]
    if uplink.resolver is None or not present:
        return None
    try:
        hide_directories(present)
    except OSError as error:
        hidden = " and ".join(present)
        return f"cannot hide {hidden} from the program ({error.strerror}): it may get names of another network"
    return None


def check_names(uplink: Uplink) -> Iterator[SelfTestResult]:
    """Check that this process gets names by DNS only."""
    if uplink.resolver is None:
        return
    hosts = read_hosts(Path("/"))
    if hosts is not None and not hosts.reaches_dns_without_daemons():
        yield SelfTestResult(f"names: {NSSWITCH}:{hosts.line}: {WITHOUT_DNS}", False)
    reachable = [f"{daemon} answers at {path}" for path, daemon in _SOCKETS.items() if _accepts(path)]
    text = " and ".join(reachable) or "neither systemd-resolved nor nscd is reachable by its socket"
    yield SelfTestResult(f"names: {text}", not reachable)


def _accepts(path: str) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
        return True
    return False
