"""The command line of the benchmarks."""

import argparse
import sys
import time

from tests.lab import topology

from . import (
    apply_bench,
    exposure_bench,
    packet_path_bench,
    proof_bench,
    ruleset_bench,
    startup_bench,
    transition_bench,
)
from .figures import Report

_BENCHES = {
    "start": startup_bench.run,
    "apply": apply_bench.run,
    "path": packet_path_bench.run,
    "proof": proof_bench.run,
    "ruleset": ruleset_bench.run,
    "window": transition_bench.run,
    "exposure": exposure_bench.run,
}


def main() -> int:
    """Run the selected benchmarks and print them. A limit that does not hold is not a failure."""
    parser = argparse.ArgumentParser("script/bench", description="Measure nftpolicy against its peers.")
    parser.add_argument("bench", nargs="?", choices=_BENCHES, help="only this one")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of every case, in place of each bench's own")
    parser.add_argument("--json", action="store_true", help="print every single value as JSON")
    asked = parser.parse_args()
    if asked.rounds is not None and asked.rounds < 1:
        parser.error("--rounds is at least 1")
    if lacks := topology.missing():
        print(f"bench: missing here: {', '.join(lacks)}", file=sys.stderr)
        return 1
    report, begun = Report(), time.monotonic()
    for name in [asked.bench] if asked.bench else _BENCHES:
        _BENCHES[name](report, asked.rounds)
    print(report.json() if asked.json else report.text())
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
