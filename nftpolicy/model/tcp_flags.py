# SPDX-License-Identifier: BSD-2-Clause
"""Tests of the TCP flags as boxes: each flag is a field of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..netstate import nft
from . import values
from .box import Box, only

_FLAGS = nft.Payload("tcp", "flags")
# The first box without all of the others, which differ from it in the fields named.
Outside = Callable[[Box, Sequence[Box], Sequence[str]], list[Box] | None]


def selected(left: nft.Expression, elements: Iterable[nft.Element], op: str, outside: Outside) -> list[Box] | None:
    """The boxes of packets that pass the test; None if it is none of TCP flags that is understood."""
    asked = values.TCP_FLAGS
    if isinstance(left, nft.Bitwise) and left.of == _FLAGS and not left.put:
        masked = _names(left.keep)
        if masked is None or op not in ("==", "!="):
            return None
        left, asked = _FLAGS, masked
    if left != _FLAGS:
        return None
    needs: Box = {"protocol": only(6), "fragment": only(0), "nfproto": only(4, 6)}
    named = [_names(one) for one in elements]
    if None in named:
        return None
    sets = [one for one in named if one is not None]
    together = {flag for one in sets for flag in one}
    if op == "in":
        return [{**needs, f"tcp.{flag}": only(1)} for flag in sorted(together)]
    if op in ("&", "!"):
        return [{**needs, **{f"tcp.{flag}": only(int(op == "&")) for flag in together}}]
    exact = [
        {**needs, **{f"tcp.{flag}": only(int(flag in one)) for flag in asked}}
        for one in sets if set(one) <= set(asked)
    ]  # fmt: skip
    if op == "==":
        return exact
    return outside(needs, exact, [f"tcp.{flag}" for flag in asked]) if op == "!=" else None


def _names(value: object) -> tuple[str, ...] | None:
    """The flags that a value names: "ack,syn"."""
    if not isinstance(value, str):
        return () if value == 0 else None
    words = tuple(word.strip() for word in value.split(","))
    return words if all(word in values.TCP_FLAGS for word in words) else None
