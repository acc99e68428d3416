# SPDX-License-Identifier: BSD-2-Clause
"""Worker process: runs a function in a forked child, so that the event loop never blocks.

Memory that the child allocates is freed with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ...kernel.child_process import ChildProcess
from ...kernel.errors import ChildFailed

_NICENESS = 5  # lower than that of the parent, which repairs; but a busy machine must not starve the proof


class WorkerProcess:
    """Child process and its JSON result. `descriptor` is readable at its end.

    The function must not use objects bound to sockets that the child shares with its parent.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._child = ChildProcess(lambda: json.dumps(work()).encode(), nice=_NICENESS)
        self.started_at, self.descriptor = self._child.started, self._child.descriptor

    def is_finished(self) -> bool:
        """Return True if the child has ended. Never waits."""
        return self._child.has_ended()

    def result(self) -> Any:
        """Return the result of the function, once the child has ended.

        Raises:
            ValueError: the function failed, or the child ended without a result.
        """
        try:
            return json.loads(self._child.result())
        except ChildFailed as error:
            raise ValueError(f"worker process: {error}") from None

    def cancel(self) -> None:
        """Kill the child."""
        self._child.cancel()
