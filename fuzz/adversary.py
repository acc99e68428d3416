"""python -m fuzz.adversary [--states N] [--seed S]: try to make the proof wrong about the running kernel.

Each state (adversary_states.py) is loaded, read back and proved, and a storm of packets without the uplink's mark
(storm.py) is sent in it. Wrong is a "proved" while a packet leaves, and a "refuted" whose packet does not leave. A
state that is proved is judged again with one change, and so on. A wrong state is reduced to the parts that matter,
and printed.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from attrs import Factory, define

from nftpolicy.proof.verdict import PROVED, UNKNOWN

from . import storm
from .adversary_draw import Part
from .adversary_judge import Judgement, Refused, judge_states, reset_machine
from .adversary_programs import DEVICES
from .adversary_states import State, draw_state, weaken
from .storm_machine import Machine

BATCH = 25  # states of one child process: what aborts it costs no more than these
_MOST_REDUCED = 20  # faults that are reduced; the others are reported as they are
_STEPS = 4  # changes of a state that is proved, one after the other as long as it is
_PROGRESS = 1000  # states between two lines of progress


@define
class Tally:
    """Counts of a run, and its faults."""

    verdicts: Counter[str] = Factory(Counter)
    weakened: Counter[str] = Factory(Counter)  # verdicts of proved states with one change
    kinds: Counter[str] = Factory(Counter)  # places of the parts of the states
    reasons: Counter[str] = Factory(Counter)
    escapes: Counter[str] = Factory(Counter)
    refused: int = 0
    aborted: int = 0
    replayed: int = 0
    faults: list[Judgement] = Factory(list)

    @property
    def states(self) -> int:
        """Return the number of states that were judged."""
        return sum(self.verdicts.values()) + sum(self.weakened.values())

    def add(self, result: Judgement | Refused, verdicts: Counter[str]) -> None:
        """Count a result; `verdicts` are the counts of its verdict."""
        if isinstance(result, Refused):
            self.refused += 1
            return
        verdicts[result.verdict] += 1
        self.replayed += len(result.replayed)
        self.kinds.update({part.program or part.table for part in result.state.parts})
        self.reasons.update(set(result.reasons) if result.verdict == UNKNOWN else ())
        self.escapes.update(storm.SENDERS[number].name for number in result.escaped)


def attack(
    machine: Machine, seeds: Sequence[int], report: Callable[[Judgement | Tally], None] = lambda _: None
) -> Tally:
    """Judge the states of these seeds, and those that are proved again with one change, and so on.

    `report` is called with each reduced fault, and now and then with the counts.
    """
    tally = Tally()
    reported = 0
    for start in range(0, len(seeds), BATCH):
        states = [(seed, draw_state(seed)) for seed in seeds[start : start + BATCH]]
        verdicts = tally.verdicts
        for step in range(_STEPS + 1):
            judgements = list(_judged(machine, states, tally, verdicts, report))
            proved = [judgement for judgement in judgements if judgement.verdict == PROVED and not judgement.fault]
            verdicts = tally.weakened
            states = [(each.seed, weaken(each.state, each.seed + step)) for each in proved]
        if tally.states >= reported + _PROGRESS:
            reported = tally.states
            report(tally)
    return tally


def _judged(
    machine: Machine,
    states: Sequence[tuple[int, State]],
    tally: Tally,
    verdicts: Counter[str],
    report: Callable[[Judgement | Tally], None],
) -> Iterator[Judgement]:
    """Judge states and count them; yield the judgements. Faults are reduced and reported."""
    results, lost = _judge_batch(machine, states)
    tally.aborted += lost
    for result in results:
        tally.add(result, verdicts)
        if isinstance(result, Refused):
            continue
        yield result
        if result.fault:
            tally.faults.append(_reduce(machine, result) if len(tally.faults) < _MOST_REDUCED else result)
            report(tally.faults[-1])


def _judge_batch(machine: Machine, states: Sequence[tuple[int, State]]) -> tuple[list[Judgement | Refused], int]:
    """Judge states in a child, and one by one if it does not survive them (nft 1.0.6 aborts on some)."""
    if not states:
        return [], 0
    try:
        return machine.node.call(judge_states, machine, states, timeout=120), 0
    except (ChildProcessError, TimeoutError):
        machine.node.call(reset_machine)
        if len(states) == 1:
            return [], 1
    results: list[Judgement | Refused] = []
    lost = 0
    for state in states:
        found, aborted = _judge_batch(machine, [state])
        results += found
        lost += aborted
    return results, lost


def _reduce(machine: Machine, judgement: Judgement) -> Judgement:
    """Remove parts of a state as long as its proof stays wrong in the same way."""
    smaller = True
    while smaller:
        smaller = False
        for state in judgement.state.reductions():
            results, _ = _judge_batch(machine, [(judgement.seed, state)])
            result = results[0] if results else None
            if isinstance(result, Judgement) and result.fault and result.verdict == judgement.verdict:
                judgement, smaller = result, True
                break
    return judgement


def missing_senders(machine: Machine) -> list[str]:
    """Return the senders whose packets do not leave by the uplink even without a guard."""
    escaped: set[int] = set()
    for devices in ((), *((device,) for device in DEVICES)):
        state = State(tuple(Part("link", device) for device in devices))
        (result,) = machine.node.call(judge_states, machine, [(0, state)])
        escaped |= result.escaped
    return [sender.name for number, sender in enumerate(storm.SENDERS) if number not in escaped]


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/adversary", description="Attack the proof with real packets.")
    parser.add_argument("--states", type=int, default=1000, help="number of random states (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first state (default: 1)")
    options = parser.parse_args()
    begin = time.monotonic()

    def report(news: Judgement | Tally) -> None:
        if isinstance(news, Judgement):
            print(f"--- seed {news.seed}: {news.fault}\n{news.state}", flush=True)
        else:
            counts = f"{news.states} states, {len(news.faults)} faults, {news.refused} refused, {news.aborted} aborted"
            print(f"{time.monotonic() - begin:.0f} s: {counts}", file=sys.stderr, flush=True)

    with Machine() as machine:
        if missing := missing_senders(machine):
            print("without a guard these do not leave:", *missing)
            return 2
        tally = attack(machine, range(options.seed, options.seed + options.states), report)
    print(f"{tally.states} states in {time.monotonic() - begin:.0f} s, {len(storm.SENDERS)} senders:")
    print(f"  {dict(tally.verdicts)}; proved ones with one change: {dict(tally.weakened)}")
    print(f"  {tally.refused} refused by nft, {tally.aborted} aborted nft")
    print(f"  {tally.replayed} refutations replayed; {len(tally.escapes)} kinds of senders got out somewhere")
    print(f"  with parts of: {', '.join(f'{kind} {count}' for kind, count in tally.kinds.most_common())}")
    for reason, count in tally.reasons.most_common(25):
        print(f"  {count:6} {reason[:110]}")
    print(f"{len(tally.faults)} faults")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
