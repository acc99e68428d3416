# SPDX-License-Identifier: BSD-2-Clause
"""Warnings of a change that stops traffic of now, and the refusal of one that may lock the user out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from .common import EXIT_BAD_INPUT, Failure, applied_policy, warn
from .plain_output import plain_line

if TYPE_CHECKING:
    from ..policy.objects import Policy
    from ..runtime.present_traffic import StoppedTraffic

_MOST_TRAFFIC = 3  # lines; 'check' names all
_FAR_ADDRESS = "240.0.0.1"  # reserved (RFC 1112): only a default route leads there
_TRIAL = 60  # seconds


def warn_of_lockout(policy: Policy, starts_watch: bool = False) -> list[str]:
    """Warn of devices and of present traffic; return the reasons why the change may lock the user out.

    `starts_watch`: the change starts the watch daemon, too, which moves the uplinks' routes.
    """
    from ..runtime.present_traffic import describe_traffic, find_stopped_traffic

    devices, is_misnamed = _device_warnings(policy)
    live = [each for each in find_stopped_traffic(policy, starts_watch) if each.is_live]
    for line in (*devices, *describe_traffic(live, _MOST_TRAFFIC)):
        warn(plain_line(line))
    reasons = [plain_line(reason) for reason in _session_reasons(live)]
    # Without a terminal there is no user to ask, and at boot devices come later.
    if is_misnamed and sys.stdin.isatty():
        reasons.append("a device of an uplink is absent, and one in use is in no part of the policy")
    return reasons


def require_confirmation(reasons: list[str], command: str) -> None:
    """Refuse a change that may lock the user out.

    Raises:
        Failure: there is a reason.
    """
    if reasons:
        raise Failure(
            f"this may lock you out: {'; '.join(reasons)}\n"
            f"nftpolicy: nothing was changed; '{command} --confirm {_TRIAL}' undoes it after {_TRIAL} s unless "
            "'nftpolicy confirm' follows; --yes applies it at once",
            EXIT_BAD_INPUT,
        )


def require_trial(policy: Policy, file: str) -> None:
    """Refuse to start the units of a policy that may lock the user out, unless it is in force.

    Raises:
        Failure: there is a reason.
    """
    applied = None
    with suppress(Failure, OSError, ValueError):  # it is not valid any more, or damaged
        applied = applied_policy()
    if applied is not None and applied[0] == policy:
        return
    reasons = warn_of_lockout(policy, starts_watch=True)
    if reasons:
        raise Failure(
            f"this may lock you out: {'; '.join(reasons)}\nnftpolicy: nothing was changed; apply the policy first: "
            f"'nftpolicy apply {file} --confirm {_TRIAL}', then 'nftpolicy confirm'",
            EXIT_BAD_INPUT,
        )


def _session_reasons(live: list[StoppedTraffic]) -> Iterator[str]:
    stopped = [each for each in live if each.is_own]
    if stopped:
        yield f"the connection of this session stops: {stopped[0].subject}: {stopped[0].reason}"


def _device_warnings(policy: Policy) -> tuple[tuple[str, ...], bool]:
    from ..kernel.netlink.rtnetlink import RouteLookups, Rtnetlink
    from ..runtime.device_warnings import find_device_warnings

    try:
        with RouteLookups() as lookups:
            route = lookups.get_route(4, _FAR_ADDRESS)
        default_devices = () if isinstance(route, int) else (str(route.device),)
        warnings = find_device_warnings(policy, list(Rtnetlink().devices()), default_devices)
    except OSError:
        return (), False
    return warnings.lines, warnings.is_misnamed
