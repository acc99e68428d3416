"""python -m fuzz [--minutes N] [TARGET...]: run the targets in turn until the time is over.

A round that fails is told as "TARGET SEED"; python -m fuzz --replay TARGET SEED runs just that round again.
"""

import argparse
import itertools
import os
import random
import sys
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz.targets import TARGETS

ROUND = 100  # examples of one target before the next has its turn


class Found(Exception):
    """A round that failed: how many examples it had run, and what to type to see it again."""


def run(target, examples, number=0, shrink=True):
    """Run examples of a target, always the same ones for a number; how many there were. What it found is raised, as
    small as it can be made."""
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
    def one(value):
        nonlocal count
        count += 1
        target.check(value)

    try:
        one()
    except Exception as error:
        raise Found(f"after {count} examples; to see it again: script/fuzz --replay {target.name} {number}") from error
    return count


def main():
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="script/fuzz", description="Feed arbitrary input to nftpolicy.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run (default: 1)")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "SEED"), help="run one round again, as it was")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(names)} (default: all)")
    asked = parser.parse_args()
    wanted = [asked.replay[0]] if asked.replay else asked.targets
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    chosen = [target for target in TARGETS if not wanted or target.name in wanted]
    if asked.replay:
        print(f"{chosen[0].name}: {run(chosen[0], ROUND, int(asked.replay[1]))} examples, nothing found")
        return
    ran = dict.fromkeys((target.name for target in chosen), 0)
    end = time.monotonic() + 60 * asked.minutes
    try:
        for target in itertools.cycle(chosen):
            if time.monotonic() > end:
                break
            ran[target.name] += run(target, ROUND, random.getrandbits(32))
    except KeyboardInterrupt:
        pass
    finally:
        for name, count in ran.items():
            print(f"{name}: {count} examples")
    print(f"{sum(ran.values())} examples, nothing found")


if __name__ == "__main__":
    os.environ.pop("CI", None)
    sys.exit(main())
