# SPDX-License-Identifier: BSD-2-Clause
"""Progress of a region through one chain: its decided parts, and the parts that left the chain."""

from __future__ import annotations

from attrs import field, mutable

from .box import Box
from .box_index import BoxIndex


@mutable(eq=False)
class ChainState:
    """A region in one chain.

    `region` is the box of the packets that enter the chain, `prefix` is what the calls up to this
    chain add to the region of the base chain. All boxes in `decided_boxes` and `returned_boxes` are relative to
    the region of the base chain. `returned_boxes` only grows, so the numbers of its boxes at one moment
    (`returned_counts`) identify its content at that moment.

    `decided_boxes` has the parts that any chain accepted or dropped so far; all chains of one base chain
    share it. `returned_boxes` has the parts that left a chain early and continue in its caller: for each
    caller, outermost first, and for this chain (last). `callers` are the names of the callers.
    """

    region: Box
    prefix: Box
    decided_boxes: BoxIndex
    returned_boxes: tuple[BoxIndex, ...]
    callers: tuple[str, ...] = ()
    is_exhausted: bool = field(default=False, init=False)  # no packet is left for the next rule

    @property
    def is_empty(self) -> bool:
        """Return True if no packet of the region comes out at the end of the chain."""
        return self.is_exhausted and not len(self.returned_boxes[-1])

    def call(self, caller: str, narrow: Box, tops: dict[str, int]) -> ChainState:
        """Return the state of a chain that `caller` calls for the part `narrow` of the region."""
        return ChainState(
            {**self.region, **narrow},
            {**self.prefix, **narrow},
            self.decided_boxes,
            (*self.returned_boxes, BoxIndex((), tops)),
            (*self.callers, caller),
        )

    def excluded(self, box: Box) -> list[Box]:
        """Return the parts that are no longer in the chain and may overlap `box`."""
        parts = list(self.decided_boxes.overlapping(box))
        for returned in self.returned_boxes:
            parts += returned.overlapping(box)
        return parts

    def returned_counts(self) -> list[int]:
        """Return how many boxes have returned from each chain so far."""
        return [len(returned) for returned in self.returned_boxes]

    def leave(self, narrow: Box) -> None:
        """Record that the part `narrow` of the region returns to the caller."""
        self.returned_boxes[-1].append({**self.prefix, **narrow})
        self.remove(narrow)

    def remove(self, narrow: Box) -> None:
        """Record that the part `narrow` has no further rule in this chain."""
        if not narrow:
            self.is_exhausted = True
