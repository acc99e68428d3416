"""python -m fuzz [--minutes N] [TARGET...]: run the targets in turn until the time is over."""

import argparse
import itertools
import os
import sys
import time

from hypothesis import HealthCheck, Phase, given, settings

from fuzz.targets import TARGETS

ROUND = 250  # examples of one target before the next has its turn


def run(target, examples):
    """Run examples of a target; how many there were. What it found is raised, as small as it can be made."""
    count = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=False,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(target.inputs)
    def one(value):
        nonlocal count
        count += 1
        target.check(value)

    one()
    return count


def main():
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="script/fuzz", description="Feed arbitrary input to nftpolicy's readers.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run (default: 1)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(names)} (default: all)")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(names):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    chosen = [target for target in TARGETS if not asked.targets or target.name in asked.targets]
    ran = dict.fromkeys((target.name for target in chosen), 0)
    end = time.monotonic() + 60 * asked.minutes
    try:
        for target in itertools.cycle(chosen):
            if time.monotonic() > end:
                break
            ran[target.name] += run(target, ROUND)
    except KeyboardInterrupt:
        pass
    for name, count in ran.items():
        print(f"{name}: {count} examples")
    print(f"{sum(ran.values())} examples, nothing found")


if __name__ == "__main__":
    os.environ.pop("CI", None)
    sys.exit(main())
