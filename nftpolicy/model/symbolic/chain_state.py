# SPDX-License-Identifier: BSD-2-Clause
"""Position of a region in the chains of a base chain: the jump stack of nft_do_chain, for sets of packets.

Values only: each function returns a new state.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import Factory, frozen

from ...netstate import nft
from .box import Box, subtract_boxes
from .box_set import BoxSet
from .rule_execution import RuleEffect
from .rule_shape import effect_of

_MAX_PIECES = 256  # of a decided part, without the packets that had left its chain before


@frozen
class ChainCall:
    """Call of a chain for the packets of `region`.

    `added` is what the calls up to this one add to the region of the base chain. `starts` is a cache: the parts of
    `region` that pass the cheap matches of a rule, which many rules have in common.
    """

    chain: nft.Chain
    region: Box
    added: Box
    starts: dict[tuple[object, ...], Sequence[Box]] = Factory(dict)


@frozen
class ChainFrame:
    """Progress of a called chain.

    `effects` are those of the rule before `next_rule` that are not finished; the first one is a jump or goto if
    another frame is above this one. `returned` has the parts that left the chain early, and continue in the caller.
    If `is_exhausted`, all packets have left the chain, or are decided.
    """

    call: ChainCall
    returned: BoxSet
    next_rule: int = 0
    effects: Sequence[RuleEffect] = ()
    is_exhausted: bool = False

    @property
    def rule(self) -> nft.Rule:
        """Return the rule that was executed last."""
        return self.call.chain.rules[self.next_rule - 1]

    @property
    def is_finished(self) -> bool:
        """Return True if no effect and no rule of the chain is left."""
        return not self.effects and (self.is_exhausted or self.next_rule >= len(self.call.chain.rules))

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
        return len(self.frames) == 1 and self.frames[0].is_finished


def enter_base_chain(chain: nft.Chain, region: Box, tops: dict[str, int]) -> ChainState:
    """Return the state at the first rule of a base chain."""
    return ChainState((ChainFrame(ChainCall(chain, region, {}), BoxSet(tops)),), BoxSet(tops))


def enter_chain(state: ChainState, target: nft.Chain, tops: dict[str, int]) -> ChainState:
    """Return the state at the first rule of a chain that the first effect calls (NFT_JUMP, NFT_GOTO)."""
    frame = state.frames[-1]
    narrow = frame.effects[0].narrow
    call = ChainCall(target, {**frame.call.region, **narrow}, {**frame.call.added, **narrow})
    return ChainState((*state.frames, ChainFrame(call, BoxSet(tops))), state.decided)


def leave_called_chain(state: ChainState, tops: dict[str, int]) -> ChainState:
    """Return the state of the caller when a called chain is finished.

    Behind a goto the caller is not continued: nft_do_chain puts no rule of it on the jump stack.
    """
    called, caller = state.frame, ChainState(state.frames[:-1], state.decided)
    if called.is_empty:
        return decide(caller, tops)
    return leave_early(caller) if effect_of(caller.frame.effects[0].statement) == "goto" else continue_rule(caller)


# Each of these functions finishes the first effect of the innermost frame.


def continue_rule(state: ChainState) -> ChainState:
    """Return the state when the packets of the first effect continue in the chain."""
    frame = state.frames[-1]
    frame = ChainFrame(frame.call, frame.returned, frame.next_rule, frame.effects[1:], frame.is_exhausted)
    return ChainState((*state.frames[:-1], frame), state.decided)


def leave_early(state: ChainState) -> ChainState:
    """Return the state when the packets of the first effect have left the chain, and continue in its caller."""
    frame = state.frames[-1]
    returned = frame.returned.with_boxes([{**frame.call.added, **frame.effects[0].narrow}])
    return ChainState((*state.frames[:-1], _without_part(frame, returned)), state.decided)


def decide(state: ChainState, tops: dict[str, int]) -> ChainState:
    """Return the state when the packets of the first effect are accepted or dropped."""
    frame = state.frames[-1]
    decided = state.decided.with_boxes(still_in_chain(state, frame.effects[0].narrow, tops))
    return ChainState((*state.frames[:-1], _without_part(frame, frame.returned)), decided)


def _without_part(frame: ChainFrame, returned: BoxSet) -> ChainFrame:
    """Return the frame when the packets of its first effect have no further rule in the chain."""
    if not frame.effects[0].narrow:  # all packets
        return ChainFrame(frame.call, returned, frame.next_rule, (), True)
    return ChainFrame(frame.call, returned, frame.next_rule, frame.effects[1:], frame.is_exhausted)


def still_in_chain(state: ChainState, narrow: Box, tops: dict[str, int]) -> list[Box]:
    """Return the part `narrow` of the innermost chain without packets that have left a chain early, as boxes.

    Empty if there are too many pieces: the packets then count as not decided, which is safe.
    """
    box = {**state.frame.call.added, **narrow}
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
