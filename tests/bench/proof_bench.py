"""Time and memory of a proof, against z3 with the same state, each in a process of its own.

z3 gets the lemmas of P1 and P2 only, of a large state in IPv4 only, and is stopped after `_PATIENCE`. The prover gets
P1 and P2 of gluon-fastd, as z3 does, and once more all properties (P3 and P4 too, which need a trace of a packet for
each word in each family). The prover's time for gluon-fastd is that of a process which has made a proof before.
"""

import json
import resource
import signal
import subprocess
import sys
import time
from statistics import median

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.lemmas import guard_violation
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove, prove_guard
from nftpolicy.proof.spec import IP_FAMILIES, Region, Spec, UplinkSpec

from . import large_states, sized_policies
from .figures import Limit, Report, Series, in_turns, say

ROUNDS = 3
RULES, ROUTES, IP_RULES = 10_000, 10_000, 1_000
_PATIENCE = 60  # seconds
_WARM = 20  # proofs of gluon-fastd in one process, after a first one that is not counted: the time is their median
_STOPPED = f"> {_PATIENCE} s, stopped"
_MOST_MEMORY = 100  # MB
_OURS, _THEIRS = "nftpolicy", "z3"
_HERE = "tests.bench.proof_bench"
_CLAIM = Spec((UplinkSpec(large_states.WAN, (large_states.WAN,), large_states.MARK, large_states.MARK),))
_SENT = {"socket": ((1, 1),), "fragment": ((0, 0),)}  # without this, what cannot be read is not covered

# name: the state, what it has to say, the most time (seconds)
_USUAL, _FORGETS = f"usual shape, {RULES:,} rules twice", f"one of {RULES:,} rules forgets the mark"
_COVERED, _HOLE = f"{RULES:,} covered rules", f"{RULES:,} covered rules but one"
_GLUON, _WHOLE = "gluon-fastd", "gluon-fastd, P1 to P5"
_CASES = {_GLUON: 0.010, _WHOLE: None, _USUAL: 0.200, _FORGETS: None, _COVERED: 10.0, _HOLE: 10.0}


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    for case, most in _CASES.items():
        say(f"proof: {case}")
        engines = {name: _Engine(case, name) for name in (_OURS, _THEIRS)}
        values = in_turns({name: engine.turn for name, engine in engines.items()}, rounds or ROUNDS)
        bench, ours, theirs = f"proof {case}", engines[_OURS], engines[_THEIRS]
        peer = Series(bench, theirs.label, "s", values[_THEIRS])
        other = Series(bench, theirs.label, "MB", theirs.memory)
        report.series += [peer, Series(bench, ours.label, "s", values[_OURS], peer)]
        report.series += [other, Series(bench, ours.label, "MB", ours.memory, other)]
        if most is not None:
            report.limits.append(Limit(f"{bench}, s", median(values[_OURS]), most))
        report.limits.append(Limit(f"{bench}, MB", median(ours.memory), _MOST_MEMORY))


class _Engine:
    """One engine on one case: its time and its answer."""

    def __init__(self, case: str, name: str) -> None:
        self._case, self._name = case, name
        self._answer = ""
        self.memory: list[float] = []

    @property
    def label(self) -> str:
        """Return its name and its answer."""
        return f"{self._name}: {self._answer}"

    def turn(self) -> float:
        """Return the seconds of a run; an engine that was stopped once is not run again."""
        if self._answer == _STOPPED:
            self.memory.append(self.memory[-1])
            return float(_PATIENCE)
        command = [sys.executable, "-m", _HERE, self._case, self._name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        self._answer = found["answer"]
        self.memory.append(found["MB"])
        return found["seconds"]


# --- in the process of its own ----------------------------------------------------------


def _state(case: str) -> tuple[NetState, Spec]:
    if case in (_GLUON, _WHOLE):
        policy, _ = load(sized_policies.GLUON.read_bytes())
        return compile_policy(policy), build_spec(policy)
    if case in (_USUAL, _FORGETS):
        return large_states.usual(RULES, ROUTES, IP_RULES, case == _FORGETS), _CLAIM
    return large_states.covered(RULES, case == _HOLE), _CLAIM


def _prover(case: str, state: NetState, wanted: Spec) -> str:
    uplink = wanted.uplinks[0]
    if case in (_COVERED, _HOLE):
        ground = ProofContext(state, wanted.devices, wanted.masks)
        region = Region(_SENT, (uplink.lacks_mark,), uplink.devices)
        return (
            "proved"
            if guard_violation(ground, 4, ground.filter_chains(4, "postrouting"), region) is None
            else "not proved"
        )
    proof = prove_guard(state, wanted) if case == _GLUON else prove(state, wanted)
    sent = next(one for one in proof.findings if one.subject.startswith("sockets:"))
    named = large_states.FORGOTTEN in sent.detail or any(
        large_states.FORGOTTEN in (getattr(step.subject, "comment", None) or "")
        for one in sent.examples
        for step in one.trace.steps
    )
    return sent.verdict + (", and names the rule" if named else "")


def _z3(case: str, state: NetState, wanted: Spec) -> str:
    from tests.engines import z3_chains, z3_lemmas  # takes its time, and the prover does without

    uplink = wanted.uplinks[0]
    ground = ProofContext(state, wanted.devices, wanted.masks)
    begun = time.perf_counter()

    def left() -> float:
        return max(_PATIENCE - (time.perf_counter() - begun), 0.001)

    if case in (_COVERED, _HOLE):
        region = Region(_SENT, (uplink.lacks_mark,), uplink.devices)
        found = z3_chains.first_through(4, ground.filter_chains(4, "postrouting"), region, (), left())
        return {None: _STOPPED, True: "not proved", False: "proved"}[found]
    for family in IP_FAMILIES if case in (_GLUON, _WHOLE) else IP_FAMILIES[:1]:
        for answer in z3_lemmas.answers(ground, uplink, family, left):
            if not answer:
                return _STOPPED if answer is None else "not proved"
    return "proved"


class _Late(Exception):
    """Time is up."""


def _give_up(*_: object) -> None:
    raise _Late


def _main(case: str, engine: str) -> None:
    ask = {_OURS: _prover, _THEIRS: _z3}[engine]
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_PATIENCE)
    seconds: list[float] = []
    try:
        for _ in range(1 + (_WARM if engine == _OURS and case in (_GLUON, _WHOLE) else 0)):
            state, wanted = _state(case)  # new objects: a cache must not know the state of the proof before
            begun = time.perf_counter()
            answer = ask(case, state, wanted)
            seconds.append(time.perf_counter() - begun)
    except _Late:
        answer, seconds = _STOPPED, [float(_PATIENCE)]
    signal.alarm(0)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": median(seconds[1:] or seconds), "MB": used, "answer": answer}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
