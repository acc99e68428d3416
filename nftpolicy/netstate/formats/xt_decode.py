# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of iptables extensions in nf_tables: the expressions `match` and `target` of nft_compat.

Only what the kernel executes counts: name, revision and struct. The world is closed: another name, revision, size
or flag gives UnknownStatement.
"""

from __future__ import annotations

import json
import sys

from .. import nft
from .xt_match_decode import BRIDGE_TESTS, MATCHES, TESTS, TRACKING_TESTS
from .xt_struct import Statements, UnsupportedXt
from .xt_target_decode import BRIDGE_NEUTRAL_TARGETS, NEUTRAL_TARGETS, TARGETS, TARGETS_OF_IP6, TRACKING_TARGETS

__all__ = ["decode_named_xt", "decode_xt", "must_end_rule"]

_FAMILIES = ("ip", "ip6")
_WRITING_MATCHES = frozenset({("socket", 3)})  # with XT_SOCKET_RESTORESKMARK
# Tests of a header that hardly any packet has: no inversion makes them hold without it (rt_mt6, srh_mt6).
_ROUTING_TESTS = frozenset({"rt", "srh"})
_ROUTING_HEADER = nft.Match(nft.Option("exthdr", "rt"), "exists")
_TRACKING_MATCHES = frozenset({"connmark", "conntrack", "state"})


def decode_xt(
    kind: str, name: str, revision: int, info: bytes, family: str, byteorder: str = sys.byteorder
) -> Statements:
    """Return the statements of an expression of nft_compat; () for one without effect (comment).

    `kind` is "match" or "target", `info` the kernel's struct, `family` that of the table, `byteorder` that of the
    machine it was read on. Headers are read as the kernel does, whatever the transport protocol is: so ICMP types
    and TCP flags are RawPayload.
    """
    try:
        if family in _FAMILIES:
            return _decode(kind, name, revision, info, family, byteorder)
        if family == "bridge":
            return _decode_bridge(kind, name, revision)
    except UnsupportedXt:
        pass
    raw = {"xt": {"type": kind, "name": name, "revision": revision, "info": info.hex(), "family": family}}
    return (nft.UnknownStatement(json.dumps(raw, sort_keys=True)),)


def decode_named_xt(
    kind: str, name: str, revision: int, info: bytes, family: str, byteorder: str = sys.byteorder
) -> Statements:
    """Return the statements of an expression of which only name and revision are known, as `decode_xt` does.

    A match writes nothing, so that only its result is unknown.
    """
    if kind == "match" and family in _FAMILIES and (name, revision) in MATCHES.keys() - _WRITING_MATCHES:
        tracks = name in TRACKING_TESTS or name in _TRACKING_MATCHES
        return (nft.UnmodelledMatch(f"xt match {name}", tracks),)
    return decode_xt(kind, name, revision, b"", family, byteorder)


def must_end_rule(kind: str, name: str) -> bool:
    """Return True if the expression differs from its statements once another expression follows.

    CONNMARK goes on for a packet without a connection; the assignment of a connection's mark ends the rule there.
    """
    return (kind, name) == ("target", "CONNMARK")


def _decode(kind: str, name: str, revision: int, info: bytes, family: str, byteorder: str) -> Statements:
    key = (name, revision)
    if kind == "match":
        layout = MATCHES.get(key)
        if layout is None and revision in TESTS.get(name, ()):
            header = (_ROUTING_HEADER,) if name in _ROUTING_TESTS and family == "ip6" else ()
            return (*header, nft.UnmodelledMatch(f"xt match {name}", name in TRACKING_TESTS))
    elif kind == "target":
        layout = (TARGETS_OF_IP6.get(key) if family == "ip6" else None) or TARGETS.get(key)
        if layout is None and revision in NEUTRAL_TARGETS.get(name, ()):
            return (nft.NeutralTarget(name, name in TRACKING_TARGETS),)
    else:
        layout = None
    if layout is None:
        raise UnsupportedXt
    return layout.decode(layout.read(info, byteorder), family)


def _decode_bridge(kind: str, name: str, revision: int) -> Statements:
    """Return the statements of an extension in a table of ebtables, whose structs are not read."""
    if kind == "match" and (revision in TESTS.get(name, ()) or (name in BRIDGE_TESTS and not revision)):
        return (nft.UnmodelledMatch(f"xt match {name}", name in TRACKING_TESTS),)
    if kind == "target" and name in BRIDGE_NEUTRAL_TARGETS and not revision:
        return (nft.NeutralTarget(name),)
    raise UnsupportedXt
