# SPDX-License-Identifier: BSD-2-Clause
"""Proof of P1 to P5 of a specification, for all packets: proved, refuted with packets, or unknown.

Only the lemmas yield "proved", and only traces of single packets yield "refuted". Everything else
is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..netstate.state import NetState
from .claim import Claim
from .dead_words import used_words
from .ground import Ground
from .no_leak import no_leak, unnamed_devices
from .no_stray import kept_in_table, no_stray
from .right_names import right_names
from .surroundings import completed
from .verdict import Finding, Proof

Progress = Callable[[str], None]


def prove(state: NetState, claim: Claim, progress: Progress = lambda _: None, use: bool = True) -> Proof:
    """Return the proof of all properties; `progress` is called before each part, with its name.

    Without `use` only the safety properties P1, P2 and P5 are proved, not usability (P3, P4).
    """
    full_state, assumed = completed(state, claim)
    ground = Ground(full_state, claim.devices, claim.masks)
    findings: list[Finding] = []
    for uplink in claim.uplinks:
        progress(f"P1 {uplink.name}")
        findings += no_leak(ground, claim, uplink)
        progress(f"P2 {uplink.name}")
        findings += no_stray(ground, claim, uplink)
        if claim.whole and uplink.table is not None:
            findings += kept_in_table(ground, claim, uplink)
        if claim.whole and uplink.names is not None:
            progress(f"P5 {uplink.name}")
            findings += right_names(ground, claim, uplink)
    if claim.whole:
        findings += unnamed_devices(ground, claim)
    if claim.whole and use:
        progress("P3, P4")
        usability, skipped = used_words(ground, claim)
        findings += usability
        assumed += skipped
    return Proof(tuple(findings), (*assumed, *assumptions(claim)), exemptions(claim))


def guards(state: NetState, claim: Claim) -> Proof:
    """Return the proof of P1 and P2 for the guard alone, for all ip rules and routes.

    It also holds in the intermediate states of a change.
    """
    full_state, assumed = completed(state, claim)
    ground = Ground(full_state, claim.devices, claim.masks)
    findings: list[Finding] = []
    for uplink in claim.uplinks:
        findings += no_leak(ground, claim, uplink)
        findings += no_stray(ground, claim, uplink)
    if claim.whole:
        findings += unnamed_devices(ground, claim)
    return Proof(tuple(findings), (*assumed, *assumptions(claim)), exemptions(claim))


def exemptions(claim: Claim) -> tuple[str, ...]:
    """Return the exemptions, which may leave without a mark, as "uplink: exemption"."""
    return tuple(f"{uplink.name}: {exemption.name}" for uplink in claim.uplinks for exemption in uplink.holes)


def assumptions(claim: Claim) -> tuple[str, ...]:
    """Return the assumptions of every verdict, as text."""
    return tuple(_assumptions(claim))


def _assumptions(claim: Claim) -> Iterator[str]:
    yield "the kernel applies nftables, ip rules and routes as the model does"
    yield "no tc, XDP or cgroup program, no flowtable and no other network namespace marks or sends packets"
    yield "processes that may set SO_MARK (CAP_NET_ADMIN or CAP_NET_RAW) set it as the policy requires"
    if not claim.frames:
        for uplink in claim.uplinks:
            for device in (*uplink.devices, *uplink.ports):
                yield (
                    f"AF_PACKET sockets (CAP_NET_RAW) are not used on {device}: this kernel has no netdev egress hook"
                )
    if claim.whole and claim.frames:
        yield "a frame of an AF_PACKET socket that set the mark itself counts as marked, whatever process sent it"
