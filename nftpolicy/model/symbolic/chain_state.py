# SPDX-License-Identifier: BSD-2-Clause
"""Position of a region in the chains of a base chain: the jump stack of nft_do_chain, for sets of packets.

Values only: each function returns a new state.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import Factory, evolve, frozen

from ...netstate import nft
from .box import Box, subtract_boxes
from .box_set import BoxSet
from .rule_execution import RuleEffect

_MAX_PIECES = 256  # of a decided part, without the packets that had left its chain before


@frozen
class ChainFrame:
    """Chain that is being executed, and the packets in it.

    `region` is the box of the packets that entered it, `added` is what the calls up to this chain add to the
    region of the base chain. `effects` are those of the last executed rule that are still to be applied, and
    `next_rule` is the number of the rule behind it. `returned` has the parts that left the chain early, and
    continue in the caller. If `is_exhausted`, all packets have left, or are decided.

    `call` is the verdict, jump or goto, that called the chain; None for the base chain. `starts` is a cache: the
    parts of `region` that pass the cheap matches of a rule, which many rules have in common.
    """

    chain: nft.Chain
    region: Box
    added: Box
    returned: BoxSet
    call: RuleEffect | None = None
    next_rule: int = 0
    effects: tuple[tuple[nft.Rule, RuleEffect], ...] = ()
    is_exhausted: bool = False
    starts: dict[tuple[object, ...], Sequence[Box]] = Factory(dict)

    @property
    def is_finished(self) -> bool:
        """Return True if no effect and no rule of the chain is left."""
        return not self.effects and (self.is_exhausted or self.next_rule >= len(self.chain.rules))

    @property
    def is_empty(self) -> bool:
        """Return True if no packet comes out of the chain: each is accepted or dropped."""
        return self.is_exhausted and self.returned.is_empty


@frozen
class ChainState:
    """The chains that are being executed, innermost last, and the parts that are accepted or dropped.

    The boxes of `decided`, and those of `returned` in each frame, are about the region of the base chain.
    """

    frames: tuple[ChainFrame, ...]
    decided: BoxSet

    @property
    def frame(self) -> ChainFrame:
        """Return the innermost chain."""
        return self.frames[-1]

    @property
    def is_finished(self) -> bool:
        """Return True if the base chain is finished."""
        return len(self.frames) == 1 and self.frame.is_finished


def enter_base_chain(chain: nft.Chain, region: Box, tops: dict[str, int]) -> ChainState:
    """Return the state at the first rule of a base chain."""
    return ChainState((ChainFrame(chain, region, {}, BoxSet.empty(tops)),), BoxSet.empty(tops))


def with_frame(state: ChainState, frame: ChainFrame) -> ChainState:
    """Return the state with another innermost frame."""
    return ChainState((*state.frames[:-1], frame), state.decided)


def enter_chain(state: ChainState, call: RuleEffect, target: nft.Chain, tops: dict[str, int]) -> ChainState:
    """Return the state at the first rule of a chain that a jump or goto calls (NFT_JUMP, NFT_GOTO)."""
    caller = state.frame
    called = ChainFrame(
        target, {**caller.region, **call.narrow}, {**caller.added, **call.narrow}, BoxSet.empty(tops), call
    )
    return ChainState((*state.frames, called), state.decided)


def leave_called_chain(state: ChainState, tops: dict[str, int]) -> ChainState:
    """Return the state of the caller when a called chain is finished.

    Behind a goto the caller is not continued: nft_do_chain puts no rule of it on the jump stack.
    """
    called, caller = state.frames[-1], ChainState(state.frames[:-1], state.decided)
    assert called.call is not None
    if called.is_empty:
        return decide(caller, called.call.narrow, tops)
    if isinstance(called.call.statement, nft.Verdict) and called.call.statement.kind == "goto":
        return leave_early(caller, called.call.narrow)
    return caller


def leave_early(state: ChainState, narrow: Box) -> ChainState:
    """Return the state when the part `narrow` has left the innermost chain, and continues in its caller."""
    frame = state.frame
    returned = frame.returned.with_boxes([{**frame.added, **narrow}])
    return with_frame(state, _without_part(evolve(frame, returned=returned), narrow))


def decide(state: ChainState, narrow: Box, tops: dict[str, int]) -> ChainState:
    """Return the state when the part `narrow` of the innermost chain is accepted or dropped."""
    decided = state.decided.with_boxes(still_in_chain(state, narrow, tops))
    return ChainState((*state.frames[:-1], _without_part(state.frame, narrow)), decided)


def _without_part(frame: ChainFrame, narrow: Box) -> ChainFrame:
    """Return the frame when `narrow` has no further rule in its chain."""
    return frame if narrow else evolve(frame, effects=(), is_exhausted=True)


def still_in_chain(state: ChainState, narrow: Box, tops: dict[str, int]) -> list[Box]:
    """Return the part `narrow` of the innermost chain without packets that have left a chain early, as boxes.

    Empty if there are too many pieces: the packets then count as not decided, which is safe.
    """
    box = {**state.frame.added, **narrow}
    before = [part for frame in state.frames for part in frame.returned.overlapping(box)]
    if not before:
        return [box]
    return subtract_boxes(box, before, tops, _MAX_PIECES) or []


def excluded_parts(state: ChainState, box: Box) -> list[Box]:
    """Return the parts that are decided or have left a chain early, and may overlap `box`."""
    parts = list(state.decided.overlapping(box))
    for frame in state.frames:
        parts += frame.returned.overlapping(box)
    return parts
