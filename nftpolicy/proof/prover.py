# SPDX-License-Identifier: BSD-2-Clause
"""P1 to P5 of a claim, for all packets, on a state: proved, refuted with packets, or unknown.

"Proved" comes from the lemmas alone, "refuted" from walks of single packets alone. What neither of
them shows is unknown.
"""

from __future__ import annotations

from collections.abc import Callable

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
    """Everything about a claim. `progress` is told what is being looked at.

    Not `use`: what must not happen alone (P1, P2, P5), not whether all words can be used (P3, P4).
    """
    full, assumed = completed(state, claim)
    ground = Ground(full, claim.devices, claim.masks)
    findings: list[Finding] = []
    for one in claim.uplinks:
        progress(f"P1 {one.name}")
        findings += no_leak(ground, claim, one)
        progress(f"P2 {one.name}")
        findings += no_stray(ground, claim, one)
        if claim.whole and one.table is not None:
            findings += kept_in_table(ground, claim, one)
        if claim.whole and one.names is not None:
            progress(f"P5 {one.name}")
            findings += right_names(ground, claim, one)
    if claim.whole:
        findings += unnamed_devices(ground, claim)
    if claim.whole and use:
        progress("P3, P4")
        used, skipped = used_words(ground, claim)
        findings += used
        assumed += skipped
    return Proof(tuple(findings), (*assumed, *assumptions(claim)), exemptions(claim))


def guards(state: NetState, claim: Claim) -> Proof:
    """P1 and P2 as the guard alone holds them, whatever the ip rules and routes are: also half-way in a change."""
    full, assumed = completed(state, claim)
    ground = Ground(full, claim.devices, claim.masks)
    findings: list[Finding] = []
    for one in claim.uplinks:
        findings += no_leak(ground, claim, one)
        findings += no_stray(ground, claim, one)
    if claim.whole:
        findings += unnamed_devices(ground, claim)
    return Proof(tuple(findings), (*assumed, *assumptions(claim)), exemptions(claim))


def exemptions(claim: Claim) -> tuple[str, ...]:
    """What may leave without a mark, in words."""
    return tuple(f"{one.name}: {exempt.name}" for one in claim.uplinks for exempt in one.holes)


def assumptions(claim: Claim) -> tuple[str, ...]:
    """What every verdict rests on."""
    found = [
        "the kernel carries out nftables, ip rules and routes as the model does",
        "no tc, XDP or cgroup program, no flowtable and no other network namespace puts marks on packets or sends them",
        "who may set SO_MARK (CAP_NET_ADMIN or CAP_NET_RAW) sets it as the policy says",
    ]
    found += [
        f"AF_PACKET sockets (CAP_NET_RAW) are not used on {device}: this kernel has no netdev egress hook"
        for one in claim.uplinks
        for device in (*one.devices, *one.ports)
        if not claim.frames
    ]
    if claim.whole and claim.frames:
        found.append("a frame of an AF_PACKET socket that set the mark itself counts as marked, whoever sent it")
    return tuple(found)
