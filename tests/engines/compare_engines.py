"""Comparison of all engines on one question, and the faults in their answers."""

from collections import Counter
from collections.abc import Sequence

from nftpolicy.model.packet import FORWARD, FRAME, KERNEL, SOCKET, Packet
from nftpolicy.model.symbolic.box import Box
from nftpolicy.model.symbolic.box_index import BoxIndex
from nftpolicy.model.symbolic.chain_event import BaseChain
from nftpolicy.model.trace import Model
from nftpolicy.netstate.state import NetState
from nftpolicy.proof.context import ProofContext, unsupported_in
from nftpolicy.proof.lemmas import integrity_violations, unstable_fields
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED, REFUTED, Finding
from tests.finding_invariants import assert_findings_are_sound

from . import enumerate_packets, toy_states, z3_chains
from .ruleset_strategies import Question
from .toy_states import Toy

MASKS = (1, 2, 3, 0xFFFFFFFC)  # those that questions ask for


def disagreement(question: Question, tally: Counter[str] | None = None) -> str | None:
    """Return the disagreement of the engines; None without one. `tally` counts the answers of the boxes.

    Boxes must not miss a packet. Without writes, all engines must find each packet that the boxes find for certain. An
    answer that rests on an unsupported construct may have one packet too many, never one too few.
    """
    family = question.universe.family
    ground = ProofContext(NetState(question.tables), ("wan",), MASKS)
    ordered = ground.ruleset.base_chains(family, question.hook, question.device)
    hit = _first_through(ground, ordered, question)
    solved = z3_chains.first_through(family, ordered, question.region, question.allowed)
    sure, maybe = enumerate_packets.through(question)
    if tally is not None:
        doubted = hit is not None and unsupported_in(hit, ground.space(family))
        answer = "none" if hit is None else "found, with doubts" if doubted else "found"
        tally[f"{answer}, where there {'are some' if sure or maybe else 'is none'}"] += 1
    if solved is not bool(sure or maybe):
        return f"z3 says {solved}, and every single packet {(sure + maybe)[:1]}"
    if hit is None:
        return f"boxes miss {(sure + maybe)[0]}" if sure or maybe else None
    # What is written in one chain, or can't be seen in it, is not followed to the next: there may be too many.
    followed = not ground.ruleset_scan.writing_chains and not unstable_fields(ground, ordered)
    if followed and not unsupported_in(hit, ground.space(family)):
        inside = [
            view for view in question.universe.views() if enumerate_packets.in_box(view, hit, ground.space(family))
        ]
        wrong = [view for view in inside if view not in sure and view not in maybe]
        if not inside or wrong:
            return f"boxes invent {wrong[:1]} in {hit}"
    return None


def _first_through(ground: ProofContext, places: Sequence[BaseChain], question: Question) -> Box | None:
    passage = ground.chain_transfer(question.universe.family)
    holes = [box for one in question.allowed for box in one.boxes(passage.space)]
    volatile = unstable_fields(ground, places)
    found = (
        passage.find_accepted(places, start, BoxIndex(holes, passage.space.max_values), unstable_fields=volatile)
        for start in question.region.boxes(passage.space)
    )
    return next((box for box in found if box is not None), None)


# --- whole machines --------------------------------------------------------------------

_TITLES = {SOCKET: "sockets", KERNEL: "sockets", FORWARD: "forwarded packets", FRAME: "AF_PACKET sockets"}


def wrong_verdict(toy: Toy, tally: Counter[str] | None = None) -> str | None:
    """Return a fault in the prover's findings about a host, judged by all its packets; None without one."""
    proof = prove(toy.state, toy_states.CLAIM)
    assert_findings_are_sound(proof, toy_states.CLAIM)
    found = {_title(one): one for one in proof.findings if one.property in ("P1", "P2")}
    worst: dict[str, tuple[str, Packet]] = {}
    for packet, walk in toy_states.walks(toy):
        for title, answer in (
            (_TITLES[packet.origin], toy_states.may_leak(packet, walk)),
            ("P2", toy_states.may_stray(packet, walk)),
        ):
            if answer == "yes" or (answer and title not in worst):
                worst[title] = answer, packet
    for title, one in found.items():
        answer, packet = worst.get(title, ("no", None))
        if tally is not None:
            tally[f"{title}: {one.verdict}, by brute force {answer}"] += 1
        if one.verdict == PROVED and answer != "no":
            return f"{title}: proved, but {answer}: {packet}"
        if one.verdict == REFUTED:
            wrong = _no_example(toy, one)
            if wrong is not None:
                return f"{title}: refuted by what does not leak: {wrong}"
    return None


def _title(finding: Finding) -> str:
    return "P2" if finding.property == "P2" else finding.subject.partition(":")[0]


def _no_example(toy: Toy, finding: Finding) -> Packet | None:
    test = toy_states.may_stray if finding.property == "P2" else toy_states.may_leak
    model = Model(toy.state)
    return next((one.packet for one in finding.examples if test(one.packet, model.trace(one.packet)) != "yes"), None)


def wrong_integrity(toy: Toy, tally: Counter[str] | None = None) -> str | None:
    """Return a fault if z3 finds a chain that sets a mark which the prover missed; None without one."""
    uplink = toy_states.CLAIM.uplinks[0]
    ground = ProofContext(toy.state, toy_states.CLAIM.devices, toy_states.CLAIM.masks)
    hits = integrity_violations(ground, 4, uplink)
    kept = z3_chains.integrity(4, ground.all_chains(4), uplink.value, uplink.mask, uplink.devices)
    if tally is not None:
        tally[f"integrity: {'in doubt' if hits else 'proved'}, by z3 {'kept' if kept else 'not kept'}"] += 1
    return None if hits or kept else "the prover misses a write of the mark"
