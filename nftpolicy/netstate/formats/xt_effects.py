# SPDX-License-Identifier: BSD-2-Clause
"""Effects of the matches and targets of xtables (xtables-extensions(8)) by name, without their parameters.

A listing of nft has only the names. The world is closed: another name, and one of which a revision may write a
mark or pass the packet elsewhere (socket, MARK, CONNMARK, CT, SET, TPROXY, NFQUEUE, TEE), may have any effect.
"""

from __future__ import annotations

from .. import nft
from ..nft import Statement
from .xt_match_decode import BRIDGE_TESTS, MATCHES, TESTS, TRACKING_TESTS
from .xt_target_decode import BRIDGE_NEUTRAL_TARGETS, NEUTRAL_TARGETS, TRACKING_TARGETS

_TRACKING = TRACKING_TESTS | {"connmark", "conntrack", "state"}
_TESTS = {*TESTS, *(name for name, _ in MATCHES)} - {"socket"}  # which may restore a mark
_NEUTRAL = {*NEUTRAL_TARGETS, "LOG", "NFLOG"} - {"SET"}  # whose later revision may write a mark
_FAMILIES = ("ip", "ip6", "inet")
# The field that a target writes, by the family of the table.
_HEADER_FIELDS = {
    ("TTL", "ip"): nft.Payload("ip", "ttl"),
    ("HL", "ip6"): nft.Payload("ip6", "hoplimit"),
    **{(name, family): nft.Payload(family, "dscp") for name in ("DSCP", "TOS") for family in ("ip", "ip6")},
}


def match_statement(name: str, family: str) -> Statement | None:
    """Return the match of a name in a table of `family`, a test with an unknown result; None if it may do more."""
    if (family in _FAMILIES and name in _TESTS) or (family == "bridge" and name in {*TESTS, *BRIDGE_TESTS}):
        return nft.UnmodelledMatch(f"xt match {name}", name in _TRACKING)
    return None


def target_statement(name: str, family: str) -> Statement | None:
    """Return the target of a name in a table of `family`; None if it may have any effect."""
    if name in (BRIDGE_NEUTRAL_TARGETS if family == "bridge" else _NEUTRAL if family in _FAMILIES else ()):
        return nft.NeutralTarget(name, name in TRACKING_TARGETS)
    if family not in _FAMILIES:
        return None
    unknown = nft.UnknownExpression(f"xt target {name}")
    if (name, family) in _HEADER_FIELDS:
        return nft.Mangle(_HEADER_FIELDS[name, family], unknown)
    statements: dict[str, Statement] = {
        "REJECT": nft.Reject(),
        "NOTRACK": nft.Notrack(),
        "DNAT": nft.Dnat(None, unknown, unknown),
        "SNAT": nft.Snat(None, unknown, unknown),
        "MASQUERADE": nft.Masquerade(unknown),
        "REDIRECT": nft.Redirect(unknown),
    }
    return statements.get(name)
