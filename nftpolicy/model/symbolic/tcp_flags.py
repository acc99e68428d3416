# SPDX-License-Identifier: BSD-2-Clause
"""Tests of the TCP flags as boxes: each flag is a field of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ...netstate import nft
from ...netstate.nft.symbols import TCP_FLAGS
from .box import Box, points

_FLAGS = nft.Payload("tcp", "flags")
# Returns the first box without all of the others.
Subtract = Callable[[Box, Sequence[Box]], list[Box] | None]


HAS_TCP_HEADER: Box = {"protocol": points(6), "fragment": points(0), "nfproto": points(4, 6)}


def flag_boxes(
    left: nft.Expression, elements: Iterable[nft.Element], op: str, readable: Box, subtract: Subtract
) -> list[Box] | None:
    """Return the boxes of packets that pass the test; None: not a supported test of TCP flags.

    `readable` is the condition that the transport header can be read.
    """
    tested: tuple[str, ...] = TCP_FLAGS
    if isinstance(left, nft.Bitwise) and left.operand == _FLAGS and not left.or_bits:
        masked = _flag_names(left.and_mask)
        if masked is None or op not in ("==", "!="):
            return None
        left, tested = _FLAGS, masked
    if left != _FLAGS:
        return None
    needs: Box = {**HAS_TCP_HEADER, **readable}
    parsed = [_flag_names(element) for element in elements]
    values = [flags for flags in parsed if flags is not None]
    if len(values) < len(parsed):
        return None
    union = {flag for flags in values for flag in flags}
    if op == "in":
        return [{**needs, f"tcp.{flag}": points(1)} for flag in sorted(union)]
    if op in ("&", "!"):
        bit = points(int(op == "&"))
        return [{**needs, **{f"tcp.{flag}": bit for flag in union}}]
    exact = [
        {**needs, **{f"tcp.{flag}": points(int(flag in flags)) for flag in tested}}
        for flags in values
        if set(flags) <= set(tested)
    ]
    if op == "==":
        return exact
    return subtract(needs, exact) if op == "!=" else None


def _flag_names(value: object) -> tuple[str, ...] | None:
    """Return the flags that a value like "ack,syn" names; None: unsupported."""
    if not isinstance(value, str):
        return () if value == 0 else None
    names = tuple(name.strip() for name in value.split(","))
    return names if all(name in TCP_FLAGS for name in names) else None
