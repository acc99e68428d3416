"""What a proof costs in time and memory, against z3 with the same state, each in a process of its own.

The prover is asked for all that it says; z3 for the lemmas of P1 and P2 alone, of a large state in IPv4 alone. z3 is stopped after `_PATIENCE`.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.claim import BOTH, Claim, Region, UplinkClaim
from nftpolicy.proof.ground import Ground
from nftpolicy.proof.lemmas import guard
from nftpolicy.proof.promise import REPORTS, claim, hole
from nftpolicy.proof.prover import prove

from . import large, policies
from .figures import Limit, Report, Series, in_turns, say

ROUNDS = 5
RULES, ROUTES, IP_RULES = 10_000, 10_000, 1_000
_PATIENCE = 60  # seconds
_MOST_MEMORY = 100  # MB
_OURS, _THEIRS = "nftpolicy", "z3"
_HERE = "tests.bench.proof"
_CLAIM = Claim((UplinkClaim(large.WAN, (large.WAN,), large.MARK, large.MARK),))
_SENT = {"socket": ((1, 1),), "fragment": ((0, 0),)}  # without this, what can't be read is not covered

# name: the state, what it has to say, the most time (seconds)
_USUAL, _FORGETS = f"usual shape, {RULES:,} rules twice", f"one of {RULES:,} rules forgets the mark"
_COVERED, _HOLE = f"{RULES:,} covered rules", f"{RULES:,} covered rules but one"
_GLUON = "gluon-fastd"
_CASES = {_GLUON: 0.010, _USUAL: 0.200, _FORGETS: 0.200, _COVERED: 10.0, _HOLE: 10.0}


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    for case, most in _CASES.items():
        say(f"proof: {case}")
        memory: dict[str, list[float]] = {_OURS: [], _THEIRS: []}

        def turn(engine: str, case: str = case, memory: dict[str, list[float]] = memory) -> float:
            seconds, used = _measured(case, engine)
            memory[engine].append(used)
            return seconds

        values = in_turns({engine: lambda engine=engine: turn(engine) for engine in (_OURS, _THEIRS)}, rounds or ROUNDS)
        bench, slow = f"proof {case}", max(values[_THEIRS]) >= _PATIENCE
        theirs = Series(bench, f"> {_THEIRS}, stopped" if slow else _THEIRS, "s", values[_THEIRS])
        ours = Series(bench, _OURS, "s", values[_OURS], theirs)
        other = Series(bench, _THEIRS, "MB", memory[_THEIRS])
        report.series += [theirs, ours, other, Series(bench, _OURS, "MB", memory[_OURS], other)]
        report.limits.append(Limit(f"{bench}, s", median(ours.values), most))
        report.limits.append(Limit(f"{bench}, MB", median(memory[_OURS]), _MOST_MEMORY))


def _measured(case: str, engine: str) -> tuple[float, float]:
    """Seconds, and megabytes at most, of one process."""
    command = [sys.executable, "-m", _HERE, case, engine]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE + 30, check=True)
    except subprocess.TimeoutExpired:
        return float(_PATIENCE), float("nan")
    told = json.loads(done.stdout)
    return min(told["seconds"], _PATIENCE), told["MB"]


# --- in the process of its own ----------------------------------------------------------


def _state(case: str) -> tuple[NetState, Claim]:
    if case == _GLUON:
        policy, _ = load(policies.GLUON.read_bytes())
        return compile_policy(policy), claim(policy)
    if case in (_USUAL, _FORGETS):
        return large.usual(RULES, ROUTES, IP_RULES, case == _FORGETS), _CLAIM
    return large.covered(RULES, case == _HOLE), _CLAIM


def _prover(case: str, state: NetState, wanted: Claim) -> str:
    uplink = wanted.uplinks[0]
    if case in (_COVERED, _HOLE):
        ground = Ground(state, wanted.devices, wanted.masks)
        region = Region(_SENT, (uplink.unmarked,), uplink.devices)
        return "proved" if guard(ground, 4, ground.at(4, "postrouting"), region) is None else "not proved"
    proof = prove(state, wanted)
    sent = next(one for one in proof.findings if one.subject.startswith("sockets:"))
    named = large.FORGOTTEN in sent.detail or any(
        large.FORGOTTEN in (getattr(step.thing, "comment", None) or "")
        for one in sent.examples
        for step in one.walk.decisions
    )
    return sent.verdict + (", and names the rule" if named else "")


def _z3(case: str, state: NetState, wanted: Claim) -> str:
    from tests.engines import smt  # takes its time, and the prover does without

    uplink = wanted.uplinks[0]
    ground = Ground(state, wanted.devices, wanted.masks)
    begun = time.perf_counter()

    def left() -> float:
        return max(_PATIENCE - (time.perf_counter() - begun), 0.001)

    if case in (_COVERED, _HOLE):
        region = Region(_SENT, (uplink.unmarked,), uplink.devices)
        found = smt.first_through(4, ground.at(4, "postrouting"), region, (), left())
        return {None: "stopped", True: "not proved", False: "proved"}[found]
    for family in BOTH if case == _GLUON else BOTH[:1]:
        for answer in _answers(ground, uplink, family, left):
            if not answer:
                return "stopped" if answer is None else "not proved"
    return "proved"


def _answers(ground: Ground, uplink: UplinkClaim, family: int, left: Callable[[], float]) -> Iterator[bool | None]:
    """Whether each lemma holds: no mark is given away, nothing leaves or strays; None for no answer in time."""
    from tests.engines import smt

    holes = [region for hole in uplink.holes for region in hole.headers.get(family, ())]
    leaving = Region(marks=(uplink.unmarked,), out=uplink.devices)
    straying = Region(marks=(uplink.marked,), not_out=(*uplink.devices, "lo"))
    yield smt.integrity(family, ground.every(family), uplink.value, uplink.mask, uplink.devices, left())
    yield _not(smt.first_through(family, ground.at(family, "postrouting"), leaving, holes, left()))
    for device in uplink.devices:
        yield _not(smt.first_through(family, ground.at(family, "egress", device), leaving, holes, left()))
    reports = [region for word in REPORTS for region in hole(word).headers.get(family, ())]
    yield _not(smt.first_through(family, ground.at(family, "postrouting"), straying, reports, left()))


def _not(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _main(case: str, engine: str) -> None:
    state, wanted = _state(case)
    ask = {_OURS: _prover, _THEIRS: _z3}[engine]
    begun = time.perf_counter()
    answer = ask(case, state, wanted)
    seconds = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "MB": used, "answer": answer}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
