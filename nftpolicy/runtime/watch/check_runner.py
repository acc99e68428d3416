# SPDX-License-Identifier: BSD-2-Clause
"""Full checks of the watch daemon in a worker process, as often as rate limiters permit."""

from __future__ import annotations

import select
from typing import Any

from ...policy.objects import Policy
from ..rate_limiter import RateLimiter, earliest_deadline
from .environment import Environment
from .full_check import run_full_check
from .worker import WorkerProcess

_TIMEOUT = 120.0  # seconds
_MAX_OUTDATED = 5
# Comparison without a proof, and with one: least pause in seconds, multiple of the last duration.
_COMPARISON_PAUSE, _COMPARISON_COST = 0.02, 1.0
_PROOF_PAUSE, _PROOF_COST = 0.2, 4.0


class CheckRunner:
    """Full checks of one watch daemon.

    `worker` runs the current one, `proves` is True if it includes a proof.
    """

    def __init__(self, environment: Environment, poll: select.poll) -> None:
        self._environment, self._poll = environment, poll
        self._comparisons = RateLimiter(_COMPARISON_PAUSE, _COMPARISON_COST)
        self._proofs = RateLimiter(_PROOF_PAUSE, _PROOF_COST)
        self.worker: WorkerProcess | None = None
        self.proves = False
        self._repairs_at_start = self._outdated_results = 0

    def request_comparison(self) -> None:
        """Request a comparison of the kernel with the policy."""
        self._comparisons.request()

    def request_proof(self) -> None:
        """Request a comparison and a proof."""
        self._proofs.request()

    def due(self) -> float | None:
        """Return the time of the next start, or of the timeout of the running check.

        None for neither.
        """
        if self.worker:
            return self.worker.started_at + _TIMEOUT
        return earliest_deadline((self._comparisons.due(), self._proofs.due()))

    def start_if_due(self, policy: Policy, known_hash: int | None, repairs: int) -> None:
        """Start a check if one is requested and permitted now, and none is running.

        `repairs`: number of repairs so far.
        """
        if self.worker:
            return
        now = self._environment.now()
        proof_due, comparison_due = self._proofs.due(), self._comparisons.due()
        proves = proof_due is not None and now >= proof_due
        if not proves and (comparison_due is None or now < comparison_due):
            return
        self._comparisons.begin()
        if proves:
            self._proofs.begin()
        self.proves, self._repairs_at_start = proves, repairs
        applier, new_kernel = self._environment.applier, self._environment.new_kernel
        self.worker = WorkerProcess(lambda: run_full_check(new_kernel(), policy, applier, proves, known_hash))
        self._poll.register(self.worker.descriptor, select.POLLIN)

    def is_outdated(self, repairs: int) -> bool:
        """Return True if there were repairs since the start of the last check, so that its result says nothing.

        But not after _MAX_OUTDATED such results in a row, so that no conflict keeps all results away.
        """
        is_outdated = repairs != self._repairs_at_start and self._outdated_results < _MAX_OUTDATED
        self._outdated_results = self._outdated_results + 1 if is_outdated else 0
        return is_outdated

    def finished(self) -> Any:
        """Return the JSON result of `run_full_check` if the check has ended, else None.

        Never waits.

        A check that runs into its timeout is killed, logged, and requested again.

        Raises:
            ValueError: the check failed.
        """
        if self.worker is None:
            return None
        if self.worker.is_finished():
            return self._detach_worker().result()
        if self._environment.now() > self.worker.started_at + _TIMEOUT:
            self.cancel()
            self.request_proof()
            self._environment.log_event("failed", {"why": f"a full check took more than {_TIMEOUT:.0f} s"})
        return None

    def cancel(self) -> None:
        """Kill a running check."""
        if self.worker:
            self._detach_worker().cancel()

    def _detach_worker(self) -> WorkerProcess:
        assert self.worker is not None
        worker, self.worker = self.worker, None
        self._poll.unregister(worker.descriptor)
        now = self._environment.now()
        duration = now - worker.started_at
        self._comparisons.end(now, duration)
        if self.proves:
            self._proofs.end(now, duration)
        return worker
