"""Command `python -m tests.reply_matrix [--write FILE]`: measure the matrix, print it, or write the page."""

import argparse
import os
import sys
from itertools import product
from pathlib import Path

from . import cells
from .cells import Network
from .measure import all_cells, measure
from .page import faults, page


def main() -> int:
    parser = argparse.ArgumentParser("script/reply-matrix")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there instead of printing it")
    parser.add_argument("--uplinks", choices=cells.UPLINKS, action="append", help="only these networks")
    asked = parser.parse_args()
    if os.geteuid():
        parser.error("network namespaces need root")
    networks = product(asked.uplinks or cells.UPLINKS, cells.DEFAULTS, (True, False))
    matrix = {network: measure(network, all_cells()) for network in (Network(*each) for each in networks)}
    if asked.write:
        asked.write.write_text(page(matrix))
    else:
        print(page(matrix), end="")
    found = list(faults(matrix))
    print(*found, sep="\n", file=sys.stderr)
    count = sum(map(len, matrix.values()))
    print(f"{count} replies, {len(found)} faults", file=sys.stderr)
    return 1 if found else 0


sys.exit(main())
