# SPDX-License-Identifier: BSD-2-Clause
"""Expressions that the model does not evaluate, in nft's syntax: one text for what the kernel and JSON hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import nft
from .nft_text_values import expression_text, unsupported_error

_IPSEC_KEYS = frozenset({"reqid", "spi", "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr"})
_TTL_MODES = {0: "", 1: "loose", 2: "skip"}  # include/uapi/linux/netfilter/nfnetlink_osf.h


def numgen(mode: str, modulus: int, offset: int) -> nft.OpaqueExpression:
    """Return a generated number; `mode` is "inc" or "random"."""
    return nft.OpaqueExpression(f"numgen {mode} mod {modulus}{_offset(offset)}")


def jhash(key: nft.Expression, modulus: int, seed: int | None, offset: int) -> nft.OpaqueExpression:
    """Return a hash of an expression; `seed` None: chosen by the kernel. Raises ValueError if `key` has no text."""
    suffix = "" if seed is None else f" seed {seed:#x}"
    return nft.OpaqueExpression(f"jhash {expression_text(key)} mod {modulus}{suffix}{_offset(offset)}", key)


def symhash(modulus: int, offset: int) -> nft.OpaqueExpression:
    """Return the hash of the packet's flow."""
    return nft.OpaqueExpression(f"symhash mod {modulus}{_offset(offset)}")


def osf(key: str, ttl: int) -> nft.OpaqueExpression:
    """Return the sender's operating system; `key` is "name" or "version". Raises ValueError for an unknown `ttl`."""
    if ttl not in _TTL_MODES:
        raise unsupported_error(f"osf ttl {ttl}")
    mode = f"ttl {_TTL_MODES[ttl]} " if ttl else ""
    return nft.OpaqueExpression(f"osf {mode}{key}")


def ipsec(direction: str, number: int, key: str) -> nft.OpaqueExpression:
    """Return a property of the packet's IPsec state `number`: "reqid", "spi", "ip saddr", ..."""
    suffix = f" spnum {number}" if number else ""
    return nft.OpaqueExpression(f"ipsec {direction}{suffix} {key}")


def _offset(number: int) -> str:
    return f" offset {number}" if number else ""


def decode_json(kind: str, body: Mapping[str, Any], key: nft.Expression | None) -> nft.OpaqueExpression | None:
    """Return the expression of a JSON object, None for another; `key` is its decoded "expr"."""
    try:
        return _decode(kind, dict(body), key)
    except ValueError:  # a key without text
        return None


def _decode(kind: str, body: dict[str, Any], key: nft.Expression | None) -> nft.OpaqueExpression | None:
    match kind, body:
        case "osf", {"key": "name" | "version" as name, **rest} if not rest.keys() - {"ttl"}:
            modes = [number for number, mode in _TTL_MODES.items() if mode == rest.get("ttl", "")]
            return osf(name, modes[0]) if modes else None
        case "ipsec", {"dir": "in" | "out" as direction, "key": str(name), **rest} if not rest.keys() - {
            "family",
            "spnum",
        }:
            name = f"{rest['family']} {name}" if "family" in rest else name
            number = rest.get("spnum", 0)
            return ipsec(direction, number, name) if name in _IPSEC_KEYS and isinstance(number, int) else None
    offset, modulus = body.pop("offset", 0), body.pop("mod", None)
    if not isinstance(offset, int) or not isinstance(modulus, int):
        return None
    match kind, body:
        case "numgen", {"mode": "inc" | "random" as mode, **rest} if not rest:
            return numgen(mode, modulus, offset)
        case "symhash", {**rest} if not rest:
            return symhash(modulus, offset)
        case "jhash", {"expr": _, **rest} if key is not None and not rest.keys() - {"seed"}:
            seed = rest.get("seed")
            return jhash(key, modulus, seed, offset) if seed is None or isinstance(seed, int) else None
    return None
