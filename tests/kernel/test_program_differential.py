"""Random rules, executed by the kernel and by the interpreter of the kernel's own program, packet by packet."""

import random
import socket
from collections import Counter
from copy import deepcopy

import pytest
from hypothesis import given

from tests.engines import kernel_program, nft_dump
from tests.lab.netns import wait_until

from .chain_differential import MARKS, SAMPLE, ChainComparison, node_with_far_end
from .probe_packets import packet_at
from .rule_strategies import EXAMPLES, RULESETS, tables

pytestmark = pytest.mark.kernel


def executed(program, name, packet):
    """Return the verdict, or None if the interpreter does not decide; such a run counts nothing."""
    counts, sets = program.counts.copy(), deepcopy(program.table.sets)
    try:
        return program.run(name, packet)
    except kernel_program.Undecided:
        program.counts, program.table.sets = counts, sets
        return None


def kernel_counts(family: str) -> Counter:
    """Return the packets of each counter of the table, by chain and number of the rule."""
    chains = nft_dump.read_tables()[family, "probed"].chains
    return Counter(
        {
            (name, index): nft_dump.number(found[2])
            for name, chain in chains.items()
            for index, rule in enumerate(chain.rules)
            for expression, found in rule
            if expression == "counter"
        }
    )


def compare_table(comparison: ChainComparison, table) -> tuple[int, int]:
    """Return the numbers of packets that were compared and that the interpreter does not decide."""
    try:
        comparison.load(table)
    except ValueError:  # nft refuses what two of its statements imply together
        return 0, 0
    program = kernel_program.read_program(table.family, "probed")
    (base,) = (chain for chain in table.chains if chain.hook)
    hook, indices = base.hook, {name: index for index, name in socket.if_nameindex()}
    versions = {"ip": (4,), "ip6": (6,)}.get(table.family, (4, 6))
    able = [each for each in comparison.probes if each.passes(hook.hook) and each.family in versions]
    sent, undecided, marks = [], 0, Counter()
    for probe in random.Random(repr(table)).sample(able, min(SAMPLE, len(able))):
        packet = packet_at(probe, hook.hook, hook.priority, indices)
        verdict = executed(program, base.name, packet)
        if verdict is None:
            undecided += 1
            continue
        sent.append(probe)
        if verdict == kernel_program.ACCEPT:
            marks[MARKS.index(packet.mark) if packet.mark in MARKS else len(MARKS)] += 1
    comparison.send(sent)

    def difference():
        counts, expected = kernel_counts(table.family), program.counts
        seen = dict(enumerate(comparison.read_counters()[1]))
        wrong = {
            place: (counts[place], expected[place]) for place in counts | expected if counts[place] != expected[place]
        }
        strange = {index: (count, marks[index]) for index, count in seen.items() if count != marks[index]}
        return (wrong, strange) if wrong or strange else None

    try:
        wait_until(lambda: difference() is None, 0.5, "agreement")
    except TimeoutError:
        rules = {name: chain.rules for name, chain in program.table.chains.items()}
        raise AssertionError(f"kernel, interpreter: {difference()}\n{rules}\n{list(map(str, sent))}") from None
    return len(sent), undecided


def test_interpreter_on_random_rulesets_agrees_with_kernel(egress) -> None:
    with node_with_far_end() as (node, channel):

        def run() -> tuple[int, int]:
            comparison, total = ChainComparison(channel), [0, 0]

            @RULESETS
            @given(tables())
            def compare(table):
                for index, number in enumerate(compare_table(comparison, table)):
                    total[index] += number

            try:
                compare()
            except Exception as error:  # its notes say it all again, at length
                raise AssertionError(f"{type(error).__name__}: {error}") from None
            return total[0], total[1]

        compared, undecided = node.call(run, timeout=60 + 2 * EXAMPLES)
    print(f"{compared} packets compared; left out: {undecided} that the interpreter does not decide")
    assert compared > 15 * EXAMPLES
    assert undecided < compared / 20
