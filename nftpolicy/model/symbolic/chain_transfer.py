# SPDX-License-Identifier: BSD-2-Clause
"""Transfer function of base chains: which packets of a region they accept, drop or rewrite.

A region is a box. A base chain is executed for all packets of the region, in one of two ways: each rule once
(chain_walk.py), or, if rules write fields that others read, path by path (chain_paths.py). Both use the same
function for each statement (rule_execution.py). docs/engine.md has an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...netstate import nft
from .box import Box, find_uncovered
from .box_index import BoxIndex
from .chain_event import BaseChain, ChainEvent
from .chain_paths import follow_paths
from .chain_walk import walk_chain
from .header_space import HeaderSpace
from .reachable_writes import MARKS, reachable_writes, writes_headers
from .rule_execution import substitute_written, without_fields
from .ruleset_scan import RulesetScan
from .symbolic_ruleset import SymbolicRuleset

__all__ = ["BaseChain", "ChainEvent", "ChainTransfer"]

_MAX_PATHS = 512  # through chains that write


class ChainTransfer:
    """The transfer function of the chains of `tables` over a header space. It has no state of its own."""

    def __init__(self, space: HeaderSpace, tables: Sequence[nft.Table], scan: RulesetScan) -> None:
        self.space = space
        self.ruleset = SymbolicRuleset(space, tables, scan)

    def can_write(self, table: nft.Table, name: str) -> bool:
        """Return True if a chain, or one that it calls, changes a mark or a header."""
        return self.ruleset.can_write(table, name)

    def fields_written_in(self, table: nft.Table) -> tuple[str, ...]:
        """Return the fields that rules of a table may write, as prefixes of names."""
        return self.ruleset.fields_written_in(table)

    def events(self, base_chain: BaseChain, region: Box) -> Iterator[ChainEvent]:
        """Yield what one base chain does with the packets of `region` (nft_do_chain)."""
        table, chain = base_chain
        if self.can_write(table, chain.name):
            return follow_paths(self.ruleset, base_chain, region, _MAX_PATHS)
        return walk_chain(self.ruleset, base_chain, region)

    def mark_writes(self, base_chain: BaseChain, region: Box) -> Iterator[ChainEvent]:
        """Yield every write that a packet of `region` may reach in a base chain, whatever was written before."""
        return reachable_writes(self.ruleset, base_chain, region)

    def find_accepted(
        self,
        base_chains: Sequence[BaseChain],
        region: Box,
        allowed: BoxIndex,
        covers: Sequence[Box] = (),
        unstable_fields: tuple[str, ...] = (),
    ) -> Box | None:
        """Return a part of `region`, outside `allowed`, that all base chains accept; or None (nf_hook_slow).

        If a chain writes, the order of the chains must be that of the kernel. Exact for chains that
        write nothing; after a chain that writes, the written fields may have any value in the chains
        that follow. `covers` are excluded parts of the region. `unstable_fields` may change from
        chain to chain whatever the rules do.
        """
        if not base_chains:
            excluded = [*covers, *allowed.overlapping(region)]
            return find_uncovered(region, excluded, self.space.max_values)
        base_chain, *following = base_chains
        # `allowed` applies to the packets after the last chain, where fields may be others.
        is_early = bool(following and (unstable_fields or any(self._writes_headers(each) for each in following)))
        for event in self.events(base_chain, region):
            if event.kind != "accept":
                continue
            decided = [*covers, *event.excluded]
            excluded = [*decided, *(() if is_early else _allowed_after(event, allowed))]
            accepted = find_uncovered(event.box, excluded, self.space.max_values)
            if accepted is None:
                continue
            if not following:
                return accepted
            lost = self._lost_after(event, unstable_fields)
            box = without_fields(event.box, lost) if lost else event.box
            still_decided = [each for each in decided if not (lost and any(name.startswith(lost) for name in each))]
            accepted = self.find_accepted(following, box, allowed, still_decided, unstable_fields)
            if accepted is not None:
                return accepted
        return None

    def _lost_after(self, event: ChainEvent, unstable_fields: tuple[str, ...]) -> tuple[str, ...]:
        """Return the fields about which the next chain knows nothing, as prefixes of names."""
        # A lookup may use the devices, which differ between hooks.
        lookups = ("fib ",) if self.space.opaque_values else ()
        return (*unstable_fields, *event.written, *lookups)

    def _writes_headers(self, base_chain: BaseChain) -> bool:
        return writes_headers(self.ruleset, base_chain[0])


def _allowed_after(event: ChainEvent, allowed: BoxIndex) -> list[Box]:
    """Return the packets that are allowed with the headers that the chain has written."""
    headers = {name: value for name, value in event.written.items() if not name.startswith(MARKS)}
    if not headers:
        return allowed.overlapping(event.box)
    substituted = (substitute_written(box, headers) for box in allowed.boxes)
    return [box for box in substituted if box is not None]
