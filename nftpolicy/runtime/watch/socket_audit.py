# SPDX-License-Identifier: BSD-2-Clause
"""Socket audit: verdicts on all sockets, once for `status`, and periodically for `watch`.

The kernel sends no notification when a socket is opened or marked, so the audit polls. The guard
drops packets of misconfigured sockets in any case; so the audit may be slow.
"""

from __future__ import annotations

import select
from collections.abc import Mapping, Sequence
from typing import Any

from ...kernel.interface import Kernel
from ...policy.objects import Policy
from ..services.socket_classifier import SocketVerdict
from ..services.socket_verdicts import read_verdicts
from .environment import Environment
from .worker import WorkerProcess

MIN_PAUSE = 10.0  # least seconds from the end of an audit to the next one
COST_FACTOR = 200.0  # least pause as a multiple of the duration of the last audit
MAX_LOG_LINES = 20  # log lines of one audit
_MAX_KNOWN = 1000  # wrong sockets that are tracked: the oldest ones
_TIMEOUT = 60.0  # seconds


def verdict_fields(verdict: SocketVerdict) -> dict[str, Any]:
    """Return the fields of a log line about a wrong socket."""
    fields: dict[str, Any] = {
        "verdict": verdict.verdict,
        "socket": str(verdict.socket),
        "uplink": verdict.uplink,
        "service": verdict.owner,
        "program": verdict.process.name if verdict.process else "",
        "pid": verdict.process.pid if verdict.process else "",
        "user": verdict.socket.uid,
        "counter": verdict.counter,
    }
    return {**{key: value for key, value in fields.items() if value != ""}, "why": verdict.description}


def wrong_socket_fields(kernel: Kernel, policy: Policy) -> dict[str, dict[str, Any]]:
    """Return the log fields of the wrong sockets, by verdict and socket cookie. A JSON object."""
    live_sockets = kernel.live_sockets()
    if live_sockets is None:
        return {}
    with live_sockets:
        verdicts = [verdict for verdict in read_verdicts(live_sockets, policy) if verdict.is_wrong]
    # The kernel numbers sockets in ascending order.
    verdicts.sort(key=lambda verdict: verdict.socket.cookie)
    return {f"{verdict.verdict} {verdict.socket.cookie}": verdict_fields(verdict) for verdict in verdicts[:_MAX_KNOWN]}


def _gone_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("socket", "uplink", "service", "program", "pid")
    return {
        "verdict": "gone",
        "was": fields["verdict"],
        **{key: fields[key] for key in keys if key in fields},
    }


class SocketAudit:
    """Periodic socket audit.

    Logs each wrong socket once when it appears, and once when it is gone.
    """

    def __init__(self, kernel: Kernel, environment: Environment, poll: select.poll) -> None:
        self._is_supported = kernel.live_sockets() is not None
        self._new_kernel, self._log, self._now = environment.new_kernel, environment.log_event, environment.now
        self._poll = poll
        self._worker: WorkerProcess | None = None
        self._policy: Policy | None = None
        self._known: dict[str, dict[str, Any]] = {}
        self._next = 0.0
        self._failure = ""

    def due(self, policy: Policy | None) -> float | None:
        """Return the time of the next action that no descriptor announces; None: never."""
        if self._worker is not None:
            return self._worker.started_at + _TIMEOUT
        return self._next if policy is not None and self._is_supported else None

    def process(self, policy: Policy | None) -> None:
        """Do all that is due. Never waits."""
        now = self._now()
        if self._worker is not None and self._worker.is_finished():
            self._process_result(now)
        elif self._worker is not None and now > self._worker.started_at + _TIMEOUT:
            self.cancel()
            self._log_failure(f"an audit of the sockets took more than {_TIMEOUT:.0f} s")
            self._next = now + COST_FACTOR * _TIMEOUT
        if policy is None or policy != self._policy:
            # No "gone" lines for sockets that were wrong by another policy: they are classified
            # anew.
            self._policy, self._known = policy, {}
            if policy is not None:
                self._next = 0.0
            self.cancel()
        if policy is None or self._worker is not None or now < self._next or not self._is_supported:
            return
        self._worker = WorkerProcess(lambda: wrong_socket_fields(self._new_kernel(), policy))
        self._poll.register(self._worker.descriptor, select.POLLIN)

    def cancel(self) -> None:
        """Kill the worker process of a running audit."""
        if self._worker is not None:
            self._detach_worker().cancel()

    def _detach_worker(self) -> WorkerProcess:
        assert self._worker is not None
        worker, self._worker = self._worker, None
        self._poll.unregister(worker.descriptor)
        return worker

    def _process_result(self, now: float) -> None:
        worker = self._detach_worker()
        self._next = now + max(MIN_PAUSE, COST_FACTOR * (now - worker.started_at))
        try:
            fields_by_key = worker.result()
        except ValueError as error:
            self._log_failure(str(error))
            return
        self._failure = ""
        self._log_sockets([fields for key, fields in fields_by_key.items() if key not in self._known])
        self._log_sockets([_gone_fields(fields) for key, fields in self._known.items() if key not in fields_by_key])
        self._known = fields_by_key

    def _log_sockets(self, lines: Sequence[dict[str, Any]]) -> None:
        for fields in lines[:MAX_LOG_LINES]:
            self._log("socket", fields)
        if len(lines) > MAX_LOG_LINES:
            self._log("socket", {"verdict": lines[0]["verdict"], "more": len(lines) - MAX_LOG_LINES})

    def _log_failure(self, why: str) -> None:
        if why != self._failure:
            self._failure = why
            self._log("failed", {"what": "socket audit", "why": why})
