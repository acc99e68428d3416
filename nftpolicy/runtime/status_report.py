# SPDX-License-Identifier: BSD-2-Clause
"""Report of `nftpolicy status`: one verdict, and the facts behind it, from the kernel and from the state directory."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from attrs import asdict, evolve, field, frozen

from ..compiler import object_names
from ..kernel.interface import Kernel
from ..kernel.netlink.link_state import link_states
from ..kernel.netlink.rtnetlink import Rtnetlink
from ..policy.errors import PolicyText
from ..policy.objects import Forward, Policy, Service
from ..proof.verdict import PROVED
from .apply.block_reason import BlockReasonFile
from .apply.confirm_timer import describe_problem
from .apply.executor import plan_change
from .apply.history import current_history
from .apply.history_events import HistoryEvent
from .apply.pending_confirm import FAILED, ConfirmError, PendingConfirm, read_pending
from .apply.state_dir import Locked, StateDir
from .apply.watch_record import WatchRecord, read_watch_record
from .boot_state import BootState, read_boot_state
from .device_warnings import find_device_warnings
from .services.readiness import link_problems
from .services.resolver_sockets import uplinks_without_resolver
from .status import Status, read_status

JSON_VERSION = 1  # nftpolicy-status(1) describes the keys
IN_FORCE, ON_TRIAL, GUARD_ONLY, BLOCKED, NOT_IN_FORCE = "in force", "on trial", "held", "blocked", "not in force"
VERDICTS = (IN_FORCE, ON_TRIAL, GUARD_ONLY, BLOCKED, NOT_IN_FORCE)
_NO_COMPARISON: dict[str, Any] = {
    "blocked": False, "block_reasons": [], "parts": {}, "differences": [], "notes": [], "strays": [],
    "asked_addresses": [], "foreign_rules": [], "uplinks": {}, "services": {}, "counters": [], "sockets": None,
    "socket_error": "",
}  # fmt: skip


@frozen
class UplinkState:
    """State of an uplink: what keeps packets from it, and whether its resolver runs (None: it has none)."""

    problems: tuple[str, ...] = ()
    resolver_runs: bool | None = None


@frozen
class StatusReport:
    """Facts that `nftpolicy status` prints. Times are UTC, ISO 8601; "" if not known.

    `comparison`: the kernel compared with the policy; None if no policy is applied. `file`: the name of the policy's
    file. `since`: the time of the apply, or of the block. `trial`: the pending confirmation. `warnings`: lines about a
    change that was interrupted, a trial, files of the system. `release`: the release after which no policy was applied.
    `has_tables`: the kernel has tables of nftpolicy.
    """

    comparison: Status | None
    file: str = ""
    since: str = ""
    trial: PendingConfirm | None = None
    warnings: tuple[str, ...] = ()
    uplinks: dict[str, UplinkState] = field(factory=dict)
    watch: WatchRecord | None = None
    boot: BootState = field(factory=BootState)
    release: HistoryEvent | None = None
    has_tables: bool = False
    resolver_leaks: tuple[str, ...] = ()
    sysctl_files: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Verdict: an item of VERDICTS."""
        if self.comparison is None:
            return NOT_IN_FORCE
        if self.comparison.is_blocked:
            return BLOCKED
        if self.comparison.as_expected:
            return ON_TRIAL if self.trial is not None and self.trial.state != FAILED else IN_FORCE
        return GUARD_ONLY if self.comparison.holds else NOT_IN_FORCE

    @property
    def is_in_force(self) -> bool:
        """True if the kernel holds the policy, and services may use their uplinks."""
        return self.verdict in (IN_FORCE, ON_TRIAL)

    @property
    def leaks(self) -> int | None:
        """Return 0 if the last proof of a running `watch` succeeded; None if leaks are not known."""
        return 0 if self.is_in_force and self.watch is not None and self.watch.verdict == PROVED else None

    @property
    def unusable_uplinks(self) -> tuple[str, ...]:
        """Names of the uplinks by which no packet can leave."""
        return tuple(name for name, state in self.uplinks.items() if state.problems)

    def as_json(self) -> dict[str, Any]:
        """Return the report as `status --json` prints it."""
        comparison = _NO_COMPARISON if self.comparison is None else self.comparison.as_json()
        uplinks = {
            name: {**fields, **_uplink_json(self.uplinks.get(name, UplinkState()))}
            for name, fields in comparison["uplinks"].items()
        }
        return {
            "version": JSON_VERSION,
            "policy": None if self.comparison is None else self.comparison.policy.name,
            "file": self.file,
            "verdict": self.verdict,
            "in_force": self.is_in_force,
            "since": self.since,
            "trial": self.trial and self.trial.as_json(),
            "released": self.release and self.release.as_json(),
            "leaks": self.leaks,
            "dropped": 0 if self.comparison is None else self.comparison.dropped,
            "watch": self.watch and asdict(self.watch),
            "boot": [*self.boot.units, *self.boot.scripts],
            **comparison,
            "uplinks": uplinks,
            "resolver_leaks": list(self.resolver_leaks),
            "sysctl_files": list(self.sysctl_files),
            "warnings": list(self.warnings),
        }

    @property
    def essence(self) -> object:
        """Parts whose change `status --watch` prints: not time that passes, and not packets that the policy permits."""
        report = self.as_json()
        wrong = [socket for socket in report["sockets"] or () if socket["verdict"] != "right"]
        trial = self.trial and (self.trial.state, self.trial.until)
        return {**report, "counters": [], "sockets": wrong, "trial": trial, "warnings": []}


def _uplink_json(state: UplinkState) -> dict[str, Any]:
    return {"usable": not state.problems, "problems": list(state.problems), "resolver_runs": state.resolver_runs}


def read_report(kernel: Kernel, source: tuple[Policy, PolicyText] | None, state_dir: StateDir) -> StatusReport:
    """Return the report about a policy; None: no policy is applied. Changes nothing. Raises OSError."""
    report = StatusReport(
        None,
        source[1].name if source else "",
        warnings=tuple(_warnings(state_dir)),
        watch=read_watch_record(state_dir),
        boot=read_boot_state(),
        has_tables=any(name == object_names.TABLE for _, name in kernel.table_names()),
    )
    if source is None:
        with suppress(OSError):
            report = evolve(report, release=current_history(state_dir).read().release)
        return report
    policy, text = source
    comparison = read_status(kernel, policy, plan_change(kernel, policy, state_dir))
    unnamed = find_device_warnings(policy, list(Rtnetlink().devices())).unnamed
    report = evolve(report, uplinks=read_uplinks(kernel, policy), warnings=(*report.warnings, *unnamed))
    report = evolve(report, watch=report.watch and report.watch.about(text.text.encode()))
    last = state_dir.policy()
    if last is not None and last[1] == text.text.encode():
        report = evolve(report, since=state_dir.applied_at())
        with suppress(ConfirmError):  # a warning covers it
            report = evolve(report, trial=read_pending(state_dir))
    elif last is not None:
        other = f"another policy was applied last ({last[0]}): 'nftpolicy status' shows its status"
        report = evolve(report, warnings=(*report.warnings, other))
    if comparison.is_blocked:
        reason = BlockReasonFile(state_dir.directory)
        comparison = evolve(comparison, block_reasons=reason.read())
        report = evolve(report, since=reason.time())
    return evolve(report, comparison=comparison)


def read_uplinks(kernel: Kernel, policy: Policy) -> dict[str, UplinkState]:
    """Return the state of each uplink, from its devices, addresses, routes and resolver."""
    routes = [route for family in kernel.ip_families() for route in Rtnetlink().routes(family)]
    without_resolver = uplinks_without_resolver(kernel, policy)
    states = {}
    for name, uplink in policy.uplink.items():
        table = [route for route in routes if route.table == uplink.table]
        problems = link_problems(uplink, link_states(uplink.devices), table, needs_default_route(policy, name))
        runs = None if uplink.resolver is None else name not in without_resolver
        states[name] = UplinkState(tuple(problems), runs)
    return states


def needs_default_route(policy: Policy, name: str) -> bool:
    """Return True if a service or forward of an uplink may send to any address."""
    users: list[Service | Forward] = [*policy.service.values(), *policy.forward.values()]
    return any(user.uplink == name and not user.to for user in users)


def _warnings(state_dir: StateDir) -> list[str]:
    """Return a line for an interrupted change, and for a problem of a policy on trial."""
    if not state_dir.directory.exists():
        return []
    lines = []
    try:
        with state_dir.lock():
            interrupted = state_dir.journal.interrupted()
        if interrupted is not None:
            lines.append(f"{interrupted}; type 'nftpolicy recover'")
    except Locked as error:
        lines.append(str(error))
    if problem := describe_problem(state_dir):
        lines.append(problem)
    return lines
