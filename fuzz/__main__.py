"""python -m fuzz [--minutes N] [TARGET...]: run the targets in turn until the time is up.

A failed round is reported as "TARGET SEED"; python -m fuzz --replay TARGET SEED repeats that round.
"""

import argparse
import itertools
import os
import random
import sys
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz.hostile_text import SEEDS
from fuzz.targets import TARGETS

ROUND = 100  # examples of one target before the next target runs


class RoundFailed(Exception):
    """Failed round: number of examples that it ran, and the command that repeats it."""


def run_target(target, examples, number=0, shrink=True):
    """Run the examples of a seed and return their number.

    Raises:
        RoundFailed: an example failed; hypothesis has minimized it.
    """
    if target.inputs is SEEDS:
        return run_seeds(target, examples, number)
    count = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=False,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
    )
    @given(target.inputs)
    def check_example(value):
        nonlocal count
        count += 1
        target.check(value)

    try:
        check_example()
    except Exception as error:
        raise round_failed(target, number, count) from error
    return count


def run_seeds(target, examples, number):
    """Run a target that draws from a seed itself: without hypothesis, a round takes a tenth of the time."""
    seeds = random.Random(number)
    for count in range(1, examples + 1):
        try:
            target.check(seeds.randbytes(8))
        except Exception as error:
            raise round_failed(target, number, count) from error
    return examples


def round_failed(target, number, count):
    """Return the error of a failed round."""
    return RoundFailed(f"after {count} examples; to repeat: script/fuzz --replay {target.name} {number}")


def main():
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="script/fuzz", description="Feed arbitrary input to nftpolicy.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run (default: 1)")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "SEED"), help="repeat one round")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(names)} (default: all)")
    options = parser.parse_args()
    requested = [options.replay[0]] if options.replay else options.targets
    if unknown := set(requested) - set(names):
        parser.error(f"unknown target {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    selected = [target for target in TARGETS if not requested or target.name in requested]
    if options.replay:
        count = run_target(selected[0], ROUND, int(options.replay[1]))
        print(f"{selected[0].name}: {count} examples, nothing found")
        return
    counts = dict.fromkeys((target.name for target in selected), 0)
    end = time.monotonic() + 60 * options.minutes
    try:
        for target in itertools.cycle(selected):
            if time.monotonic() > end:
                break
            counts[target.name] += run_target(target, ROUND, random.getrandbits(32))
    except KeyboardInterrupt:
        pass
    finally:
        for name, count in counts.items():
            print(f"{name}: {count} examples")
    print(f"{sum(counts.values())} examples, nothing found")


if __name__ == "__main__":
    os.environ.pop("CI", None)
    sys.exit(main())
