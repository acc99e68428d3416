"""Command `script/mutate`: mutants of the product's code, and those that survive the tests."""

import argparse
import os
import random
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import hypothesis.strategies  # noqa: F401 # so that no child has to import it
from attrs import frozen

from tests.mutation import call_map, known_faults
from tests.mutation.child_run import (
    KILLED,
    PACKAGE,
    SURVIVED,
    TIMEOUT,
    UNTESTED,
    TestSelection,
    outcome,
    run_forked,
    run_tests,
)
from tests.mutation.operators import Mutant, mutants, mutate, package_files

PARTS = {
    "model": ("model",),
    "proof": ("proof/*.py",),
    "reproduce": ("proof/reproduce",),
    "planner": ("planner",),
    "order": (
        "runtime/apply/step_order.py",
        "runtime/apply/proved_order.py",
        "runtime/apply/transaction.py",
    ),
    "rtnetlink": ("kernel/netlink/rtnl_decode.py", "kernel/netlink/rtnetlink.py"),
}
EQUIVALENTS = Path(__file__).parent / "equivalents.toml"


@frozen
class Equivalent:
    """A change that no test can see, or that the tests need not see, with the reason."""

    path: str
    function: str
    change: str
    reason: str

    def matches(self, mutant: Mutant) -> bool:
        """Return True for the mutant of the change; a change that ends in * matches each with its beginning."""
        is_change = mutant.change == self.change
        if self.change.endswith("*"):
            is_change = mutant.change.startswith(self.change[:-1])
        return is_change and mutant.path == self.path and self.function in ("*", mutant.function)


def equivalents() -> list[Equivalent]:
    """Return the accepted equivalents."""
    entries = tomllib.loads(EQUIVALENTS.read_text())["equivalent"]
    return [Equivalent(entry["file"], entry["function"], entry["change"], entry["reason"]) for entry in entries]


def sample(parts: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Return `count` of all mutants of the parts, the same for the same seed; all if `count` is 0."""
    files = package_files(PACKAGE, [path for part in parts for path in PARTS.get(part, (part,))])
    everything = [mutant for file in files for mutant in mutants(file, (PACKAGE / file).read_text())]
    if not count or count >= len(everything):
        return everything
    return sorted(random.Random(seed).sample(everything, count), key=lambda mutant: (mutant.path, mutant.number))


def results(
    wanted: Sequence[Mutant], tests: Sequence[call_map.RecordedTest], arguments: argparse.Namespace
) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant with its outcome, as they end."""
    running: dict[int, Mutant] = {}
    waiting = list(reversed(wanted))
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            mutant = waiting.pop()
            selections = call_map.select(tests, mutant, arguments.budget)
            if not selections:
                yield mutant, UNTESTED
                continue
            path = PACKAGE / mutant.path

            def work(
                path: Path = path, mutant: Mutant = mutant, selections: tuple[TestSelection, ...] = selections
            ) -> int:
                return run_tests(selections, path, mutate(path.read_text(), mutant.number))

            seconds = sum(sum(selection.node_ids.values()) for selection in selections)
            running[run_forked(work, int(20 + 4 * seconds), _log(arguments.log, mutant))] = mutant
        if running:
            pid, status = os.wait()
            yield running.pop(pid), outcome(status)


def _log(directory: Path | None, mutant: Mutant) -> Path | None:
    if directory is None:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{mutant.path.replace('/', '.')}.{mutant.number}.log"


def main() -> int:
    parser = argparse.ArgumentParser(
        "script/mutate", description="Change the product, and list the changes that no test sees."
    )
    parser.add_argument(
        "--package", action="append", help=f"{', '.join(PARTS)}, or a path below nftpolicy/; default: all"
    )
    parser.add_argument("--count", type=int, default=100, help="mutants of the sample; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample")
    parser.add_argument("--budget", type=float, default=15, help="seconds of tests for one mutant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--only", help="mutants whose line contains a text")
    parser.add_argument("--fresh", action="store_true", help="record the calls of all tests again")
    parser.add_argument("--known", action="store_true", help="only the known faults, with their own tests")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    parser.add_argument("--log", type=Path, help="directory for pytest's output, a file for each mutant")
    arguments = parser.parse_args()
    if arguments.known:
        return known_faults.check(arguments.jobs)
    chosen = sample(arguments.package or list(PARTS), arguments.count, arguments.seed)
    chosen = [mutant for mutant in chosen if not arguments.only or arguments.only in str(mutant)]
    if arguments.list:
        print(*chosen, sep="\n")
        return 0
    tests = call_map.load(arguments.fresh)
    accepted = equivalents()
    begun, tally = time.monotonic(), Counter[str]()
    for mutant, result in results(chosen, tests, arguments):
        reason = next((each.reason for each in accepted if each.matches(mutant)), "")
        if result in (SURVIVED, UNTESTED) and reason:
            tally["equivalent"] += 1
            continue
        tally[result] += 1
        if result in (SURVIVED, UNTESTED):
            print(f"{result}: {mutant}", flush=True)
    killed, total = tally[KILLED] + tally[TIMEOUT], tally.total() - tally["equivalent"]
    counts = ", ".join(f"{number} {name}" for name, number in sorted(tally.items()))
    print(f"{killed} of {total} killed ({killed / max(total, 1):.1%}) in {time.monotonic() - begun:.0f} s: {counts}")
    return 0 if killed >= 0.95 * total else 1


if __name__ == "__main__":
    sys.exit(main())
