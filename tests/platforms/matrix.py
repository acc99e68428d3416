"""python -m tests.platforms.matrix [RELEASE...] [PART...] [--write]

Exits with 1 if a part fails.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tests.beside import debian_root

from . import debian_shell, first_minute, releases, tested_page

_INSTALL = """
{ apt-get -qq update; apt-get -q -y --no-install-recommends install ./dist/nftpolicy_*.deb; } >/tmp/apt 2>&1 ||
    { cat /tmp/apt; exit 1; }
"""
# The library that marks sockets is a file of the package, and not of the source tree.
_PYTEST = (
    _INSTALL
    + """
cp /usr/lib/python3/dist-packages/nftpolicy/preload/libpacketmark.so nftpolicy/preload/
/usr/bin/python3 -m pytest -q -p no:cacheprovider -n "${workers:-2}" --dist loadfile """
)
_UNIT = "tests/unit tests/golden"
_KERNEL = """tests/kernel/test_nft_round_trip.py tests/kernel/test_nft_bytecode.py tests/kernel/test_nft_elements.py \\
    tests/kernel/test_nft_facts.py tests/kernel/test_written_text.py"""
_LEAKS = "tests/leaks/test_main_job.py tests/leaks/test_apply.py tests/leaks/test_boot.py"


@dataclass(frozen=True)
class Part:
    """Script in a root directory, and the regular expression of what its output counts; the last match is shown.

    Without a script: first_minute.py.
    """

    title: str
    root: Callable[[Path, str, str | None], Path]
    script: str
    count: str
    seconds: float = 3000


_SUMMARY = r"^(?:=+ )?((?:\d+ (?:failed|passed|skipped|errors?|deselected|warnings?)(?:, )?)+) in "
PARTS = {
    "package": Part(
        "script/package builds the Debian package", releases.tools, "script/package", r"^(nftpolicy_.*deb)"
    ),
    "life": Part(
        "package: installation to purge",
        releases.fresh,
        'sh tests/platforms/package_life.sh "$PWD/dist"',
        r"^fact: (.*)",
    ),
    "unit": Part("tests/unit, tests/golden", releases.tools, _PYTEST + _UNIT, _SUMMARY),
    "kernel": Part("tests/kernel, in part", releases.tools, _PYTEST + _KERNEL, _SUMMARY),
    "leaks": Part("tests/leaks, in part", releases.tools, _PYTEST + _LEAKS, _SUMMARY),
    "ways": Part("three ways from a fresh system, and back", releases.fresh, "", r"^fact: (.*)"),
    "demo": Part("script/demo", releases.tools, _INSTALL + "script/demo", r"^(held: .* kinds)"),
}
_TRANSCRIPTS = debian_shell.ROOT / "docs" / "first-minutes.md"  # of the ways, on the release that ran last
_INTRODUCTION = """
Written by `script/matrix`: each release is a root directory made by debootstrap, with the Python packages, nft and systemd
of the release, on the kernel of the machine that ran it.
"""


def main() -> int:
    """Run the parts on the releases and print a line for each."""
    parser = argparse.ArgumentParser(prog="script/matrix", description="Test the userland of Debian releases.")
    parser.add_argument(
        "what",
        nargs="*",
        choices=[*releases.RELEASES, *PARTS, []],
        metavar="RELEASE|PART",
        help=f"{', '.join([*releases.RELEASES, *PARTS])}; default: all",
    )
    parser.add_argument("--write", action="store_true", help="write docs/tested.md and docs/first-minutes.md")
    cache = os.environ.get("NFTPOLICY_MATRIX_CACHE", "/var/cache/nftpolicy-matrix")
    parser.add_argument(
        "--cache", type=Path, default=Path(cache), help="directory for the root directories (%(default)s)"
    )
    parser.add_argument("--mirror", help="Debian mirror; default: that of debootstrap")
    options = parser.parse_args()
    if lacks := debian_root.missing():
        parser.error(f"this needs {', '.join(lacks)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows = []
    for release in [one for one in releases.RELEASES if one in options.what] or releases.RELEASES:
        tree = debian_shell.copy_source(options.cache / "source" / release)
        parts = [name for name in PARTS if name in options.what] or list(PARTS)
        for name in dict.fromkeys(["package", *parts]):
            rows.append(_run(options, release, PARTS[name], tree))
            print(*tested_page.lines(rows[-1:]), sep="\n", flush=True)
    if options.write:
        tested_page.write("matrix", _INTRODUCTION, rows, [part.title for part in PARTS.values()])
    return 1 if any(row.result != "passed" for row in rows) else 0


def _run(options: argparse.Namespace, release: str, part: Part, tree: Path) -> tested_page.Row:
    root = part.root(options.cache, release, options.mirror)
    versions = releases.versions(releases.tools(options.cache, release, options.mirror))
    if part.script:
        with tempfile.TemporaryDirectory(prefix="nftpolicy-matrix-") as place:
            done = debian_shell.run(root, tree, part.script, Path(place), part.seconds)
    else:
        words = [sys.executable, "-m", "tests.platforms.first_minute", str(root), str(tree)]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        print(done.stdout, file=sys.stderr, flush=True)
        if options.write and done.returncode == 0:
            _TRANSCRIPTS.write_text(first_minute.page(versions[0], done.stdout))
    found = re.findall(part.count, done.stdout, re.MULTILINE)
    result = "passed" if done.returncode == 0 and found else f"failed (exit status {done.returncode})"
    if result != "passed" and part.script:
        print(done.stdout[-8000:], file=sys.stderr, flush=True)
    count = f"{len(found)} facts" if "fact" in part.count else (found[-1].rstrip(", ") if found else "")
    return tested_page.Row(*versions, part.title, result, count, str(date.today()))


if __name__ == "__main__":
    sys.exit(main())
