"""Command `python -m tests.engines [N]`: N examples of each kind, with the answers counted."""

import argparse
import sys
import time
from collections import Counter

from hypothesis import given, settings

from tests import profiles  # noqa: F401 # registers "first"
from tests.engines import ruleset_strategies, toy_states
from tests.engines.compare_engines import disagreement, wrong_integrity, wrong_verdict

KINDS = {
    "rulesets": (ruleset_strategies.questions(), disagreement),
    "rulesets that write marks": (ruleset_strategies.questions(writes=True), disagreement),
    "rulesets with unknown things": (ruleset_strategies.questions(unknown=True, writes=True), disagreement),
    "chains that write marks": (toy_states.toys(), wrong_integrity),
    "machines": (toy_states.toys(), wrong_verdict),
    "machines with unknown things": (toy_states.toys(unknown=True), wrong_verdict),
}


def run(title: str, examples: int) -> bool:
    """Return True if no example of a kind shows a fault. Print the counts."""
    strategy, wrong = KINDS[title]
    tally: Counter[str] = Counter()
    begun, count = time.monotonic(), 0

    @settings(settings.get_profile("first"), derandomize=False, max_examples=examples)
    @given(strategy)
    def search(example: object) -> None:
        nonlocal count
        count += 1
        fault = wrong(example, tally)
        if fault is not None:
            raise AssertionError(f"{fault}\n{example}")

    failure = None
    try:
        search()
    except AssertionError as error:
        failure = str(error)
    print(f"{title}: {count} examples, {time.monotonic() - begun:.0f} s: {failure or 'no fault'}", flush=True)
    for answer, number in sorted(tally.items()):
        print(f"  {number:6} {answer}")
    return failure is None


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.engines")
    parser.add_argument("examples", nargs="?", type=int, default=1000, help="of each kind")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this one")
    asked = parser.parse_args()
    held = [run(title, asked.examples) for title in asked.kind or KINDS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
