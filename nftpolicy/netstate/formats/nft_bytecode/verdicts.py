# SPDX-License-Identifier: BSD-2-Clause
"""Verdicts of the kernel (include/uapi/linux/netfilter.h, netfilter/nf_tables.h: enum nft_verdicts)."""

from __future__ import annotations

from ... import nft
from .attributes import Attributes, UnsupportedBytecode, decode

_CODE, _CHAIN, _CHAIN_ID = 1, 2, 3
DATA_VALUE, DATA_VERDICT = 1, 2
_SIGN = 1 << 32
_KINDS = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
_CALLS = frozenset({"jump", "goto"})


def decode_verdict(raw: bytes) -> nft.Verdict:
    """Return a verdict. Raises UnsupportedBytecode."""
    return decode(raw, _verdict)


def _verdict(attributes: Attributes) -> nft.Verdict:
    number = attributes.number(_CODE)
    code = number - _SIGN if number >= _SIGN >> 1 else number
    kind = _KINDS.get(code)
    if kind is None:
        raise UnsupportedBytecode(f"verdict {code}")
    attributes.ignore(_CHAIN_ID)
    return nft.Verdict(kind, attributes.text(_CHAIN) if kind in _CALLS else None)


def data_or_verdict(raw: bytes) -> bytes | nft.Verdict:
    """Return a struct nft_data: bytes or a verdict. Raises UnsupportedBytecode."""
    return decode(raw, _either)


def _either(attributes: Attributes) -> bytes | nft.Verdict:
    verdict = attributes.take(DATA_VERDICT)
    return attributes.require(DATA_VALUE) if verdict is None else decode_verdict(verdict)
