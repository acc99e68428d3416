"""python -m tests.beside [--only NAME...] [--list] [--write FILE] [--cache DIRECTORY] [--mirror URL]

Exits with 1 if a cell of the table is bad.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from tests.lab import systemd_machine

from . import debian_root, report
from .machine import remove_leftovers
from .runner import run_scenario
from .scenarios import SCENARIOS


def main() -> int:
    """Run the scenarios and print a row as soon as it is known."""
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="script/beside", description="Run nftpolicy beside real daemons.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these scenarios; default: all")
    parser.add_argument("--list", action="store_true", help="print the names of the scenarios and exit")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write, or update, a page in Markdown")
    cache = os.environ.get("NFTPOLICY_BESIDE_CACHE", "/var/cache/nftpolicy-beside")
    parser.add_argument(
        "--cache", type=Path, default=Path(cache), help="directory for the Debian machine (%(default)s)"
    )
    parser.add_argument("--mirror", help="Debian mirror; default: that of debootstrap")
    options = parser.parse_args()
    if options.list:
        print(*names, sep="\n")
        return 0
    if lacks := debian_root.missing() + systemd_machine.missing():
        parser.error(f"this needs {', '.join(lacks)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    remove_leftovers()
    chosen = [one for one in SCENARIOS if not options.only or one.name in options.only]
    root = debian_root.debian_root(options.cache, {name for one in chosen for name in one.packages}, options.mirror)
    rows = []
    print(*report.head(), sep="\n", flush=True)
    for scenario in chosen:
        for row in run_scenario(scenario, root):
            rows.append(row)
            print(*report.lines([row]), sep="\n", flush=True)
            for fault in row.faults:
                print(f"    {fault}", file=sys.stderr, flush=True)
    if options.write:
        versions = debian_root.versions(root, {name for one in chosen for name in one.packages})
        earlier = options.write.read_text() if options.write.exists() else ""
        options.write.write_text(report.page(rows, chosen, versions, earlier))
    return 1 if any(row.faults for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
