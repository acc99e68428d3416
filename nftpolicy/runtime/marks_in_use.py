# SPDX-License-Identifier: BSD-2-Clause
"""Marks in use: how many flows and sockets of a network namespace carry each mark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from ..kernel.errors import Unavailable
from ..proof.spec import Spec, UplinkSpec

if TYPE_CHECKING:
    from ..kernel.interface import Kernel


@frozen
class MarksInUse:
    """Numbers of flows and of sockets by mark; None where the kernel lists none."""

    flows: Mapping[int, int] | None = None
    sockets: Mapping[int, int] | None = None

    def count(self, spec: Spec) -> Spec:
        """Return the specification with the numbers of flows and sockets that carry each uplink's mark."""
        return evolve(spec, uplinks=tuple(map(self._count, spec.uplinks)))

    def _count(self, uplink: UplinkSpec) -> UplinkSpec:
        flows, sockets = (_total(numbers, uplink) for numbers in (self.flows, self.sockets))
        return evolve(uplink, marked_flows=flows, marked_sockets=sockets)


def _total(numbers: Mapping[int, int] | None, uplink: UplinkSpec) -> int | None:
    if numbers is None:
        return None
    return sum(number for mark, number in numbers.items() if mark & uplink.mask == uplink.value)


def read_marks_in_use(kernel: Kernel) -> MarksInUse:
    """Return the marks that flows and sockets of this kernel carry now."""
    live_sockets = kernel.live_sockets()
    flows = sockets = None
    if live_sockets is not None:
        with live_sockets:
            with suppress(Unavailable, OSError):
                flows = Counter(flow.mark for flow in live_sockets.flows(0, 0))
            with suppress(Unavailable, OSError):
                sockets = Counter(entry.mark or 0 for entry in live_sockets.sockets())
    return MarksInUse(flows, sockets)
