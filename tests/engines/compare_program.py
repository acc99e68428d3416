"""Comparison of the kernel's program, interpreted, with the product's model of the lifted rules, packet by packet."""

import struct
from collections import Counter
from copy import deepcopy

from attrs import evolve

from nftpolicy.model.branching import explore_branches
from nftpolicy.model.nft.chains import Ruleset, evaluate_chain
from nftpolicy.netstate import nft

from .kernel_program import ACCEPT, Program, Undecided
from .nft_dump import RawTable
from .program_packets import PacketSource, constants

_VERSIONS = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "netdev": (4, 6)}
FAMILIES = frozenset(_VERSIONS)  # of tables whose packets can be drawn
_HAS_VERDICT = (nft.Verdict, nft.VerdictMap, nft.VerdictMapRef, nft.Reject)
_DROP_EXPRESSION = ("immediate", {1: bytes(4), 2: struct.pack("=HHHHI", 12, 2, 8, 1, 0)})


def single_rule(raw: RawTable, lifted: nft.Table, chain: str, index: int) -> tuple[RawTable, nft.Table]:
    """Return the table with one rule only, in both forms. A rule without a verdict drops what matches."""
    raw_rule = list(raw.chains[chain].rules[index])
    rules = {each.name: each.rules for each in lifted.chains}
    rule = rules[chain][index]
    if not any(isinstance(each, _HAS_VERDICT) for each in rule.statements):
        raw_rule.append(_DROP_EXPRESSION)
        rule = evolve(rule, statements=(*rule.statements, nft.DROP))
    alone = RawTable({**raw.chains, chain: deepcopy(raw.chains[chain])}, raw.sets)
    alone.chains[chain].rules = [raw_rule]
    chains = tuple(evolve(each, rules=(rule,)) if each.name == chain else each for each in lifted.chains)
    return alone, evolve(lifted, chains=chains)


def disagreement(
    raw: RawTable, lifted: nft.Table, chain: str, packets: int, tally: Counter[str], seed: int = 1
) -> str | None:
    """Return the first packet whose outcome the model excludes, or None.

    The model must have the kernel's outcome among its own; with one branch only they are equal. `tally` counts packets
    by how far the engines decide.
    """
    (base,) = (each for each in lifted.chains if each.name == chain)
    assert base.hook is not None
    known = constants(raw, [rule for each in raw.chains.values() for rule in each.rules])
    source = PacketSource(base.hook.hook, base.hook.priority, _VERSIONS[lifted.family], known, seed)
    ruleset = Ruleset((lifted,))
    for _ in range(packets):
        packet, view = source.draw()
        start = str(packet)
        program = Program(RawTable(raw.chains, deepcopy(raw.sets)))
        try:
            verdict = program.run(chain, packet)
        except Undecided:
            tally["not interpreted"] += 1
            continue
        flow_mark = packet.flow.mark if packet.flow is not None else None
        outcome = ("accept" if verdict == ACCEPT else "drop", packet.mark, flow_mark)

        def run(choices, view=view, has_flow=packet.flow is not None):
            each = evolve(view)
            verdict = evaluate_chain(ruleset, lifted, base, each, choices)
            return verdict, each.mark, each.ct_mark if has_flow else None

        branches = explore_branches(run)
        if branches.undetermined or not branches.is_complete:
            tally["unsupported"] += 1
            continue
        tally["one outcome" if len(set(branches.results)) == 1 else "several outcomes"] += 1
        tally[outcome[0]] += 1
        # A dropped packet has no mark any more.
        results = {(each[0], *each[1:]) if each[0] == "accept" else each[:1] for each in branches.results}
        if (outcome if outcome[0] == "accept" else outcome[:1]) not in results:
            return f"{start}\nthe program: {outcome}\nthe model: {results}"
    return None


def programs_differ(first: tuple[RawTable, list], second: tuple[RawTable, list], chain: str, packets: int) -> bool:
    """Return True if two rules of a base chain, each of its table, have different outcomes for a packet.

    So do rules that the interpreter does not decide for each packet.
    """
    alone = []
    for raw, rule in (first, second):
        each = RawTable({**raw.chains, chain: deepcopy(raw.chains[chain])}, raw.sets)
        each.chains[chain].rules = [[*rule, _DROP_EXPRESSION]]
        alone.append(each)
    known = constants(alone[0], alone[0].chains[chain].rules)
    source = PacketSource("input", 0, (4, 6), known, 1)
    for _ in range(packets):
        packet, _ = source.draw()
        try:
            outcomes = [
                (Program(RawTable(each.chains, deepcopy(each.sets))).run(chain, copied), copied)
                for each in alone
                for copied in (deepcopy(packet),)
            ]
        except Undecided:
            return True
        if outcomes[0] != outcomes[1]:
            return True
    return False
