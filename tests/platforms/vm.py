"""python -m tests.platforms.vm [--kernel 6.1|6.12] [--list] [--write] [--cache DIRECTORY] [--mirror URL] [TEST...]

Exits with 1 if a test failed.
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import tested_page
from .debian_image import RELEASES, debian_image
from .early_sender import FRAME_SOURCE, GUARDED, MARKED, REMOVED, UNMARKED
from .virtual_machine import VirtualMachine

FIRST = (
    "package",
    "demo",
    "leaks",
    "wireguard",
    "vlan",
    "macvlan",
    "vrf",
    "gre",
    "l2tp",
    "pppoe",
    "ipsec",
    "l2tp-ip",
    "install",
)
SECOND = ("boot", "removal")  # after a restart
_SECONDS = 3600  # of a boot, at most
_PREFIX = "nftpolicy-vm-"
_INTRODUCTION = """## Stock kernels of Debian

Each kernel ran in QEMU (without KVM), with systemd and a Debian package built in that release; `script/vm --write`
replaces the rows of what it runs. A count without a policy is the control, by the same senders.

| Test | What ran |
|---|---|
| package | the Debian package, built in that release |
| demo | `nftpolicy demo` |
| leaks | leak tests and kernel facts of `tests/`, with the installed program |
| wireguard | the kernel's WireGuard by wg-quick, with `laptop-wireguard.toml`, seen at the far end of the uplink |
| vlan, macvlan, vrf, gre, l2tp, pppoe | an uplink of that kind: packets of each kind of sender, seen at the far end of the lowest device |
| ipsec, l2tp-ip | IPsec by xfrm devices and by policies, and L2TP over IP, in both families, with a policy that names the other ends: beside their packets those of processes, to other ends, in clear, in transport mode and in UDP |
| install, boot | `nftpolicy install --enable` of `vpn-killswitch.toml`; after a restart, QEMU records all frames from power-on, and status and proof are good; packet sockets send as soon as the device exists |
| removal | `uninstall`, `release`, and a purge of the package: nothing is left, and the uplink is open |
"""


def main() -> int:
    """Run the tests, and print a line as soon as a result is known."""
    parser = argparse.ArgumentParser(prog="script/vm", description="Run nftpolicy on stock kernels of Debian.")
    parser.add_argument("test", nargs="*", metavar="TEST", help="these tests; default: all")
    parser.add_argument("--kernel", choices=RELEASES, help="one kernel; default: all")
    parser.add_argument("--list", action="store_true", help="print the names of the tests and exit")
    parser.add_argument("--write", action="store_true", help="write the results into docs/tested.md")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nftpolicy"
    parser.add_argument("--cache", type=Path, default=cache, help="directory for the images (%(default)s); 4 GB each")
    parser.add_argument("--mirror", help="Debian mirror; default: that of debootstrap")
    options = parser.parse_args()
    if options.list:
        print(*FIRST, *SECOND, sep="\n")
        return 0
    if unknown := set(options.test) - {*FIRST, *SECOND}:
        parser.error(f"no such test: {', '.join(sorted(unknown))}; --list prints them")
    lacks = [
        f"the program {name}" for name in ("qemu-system-x86_64", "debootstrap", "mke2fs") if not shutil.which(name)
    ]
    if lacks := lacks + (["root"] if os.geteuid() else []):
        parser.error(f"this needs {', '.join(lacks)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _remove_leftovers()
    failed = False
    for kernel in [options.kernel] if options.kernel else RELEASES:
        with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as work:
            image = debian_image(kernel, options.cache, Path(work), options.mirror)
            versions: dict[str, str] = {}
            for answer in _run(VirtualMachine(image, Path(work)), options.test or [*FIRST, *SECOND]):
                if "versions" in answer:
                    versions = answer["versions"]
                    continue
                print(
                    f"{kernel} {answer['test']}: {answer['result']}; {answer['count']} ({answer['seconds']} s)",
                    flush=True,
                )
                if not answer["result"].startswith("passed"):
                    failed = True
                    print(answer.get("details", ""), file=sys.stderr, flush=True)
                if options.write and versions:
                    tested_page.write("vm", _INTRODUCTION, [_row(answer, versions)], [*FIRST, *SECOND])
    return 1 if failed else 0


def _run(machine: VirtualMachine, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the answers of the tests, and the versions of the machine. A second start shows that a policy lasts."""
    restarted = [name for name in SECOND if name in names]
    needed = {"package", *names, *(["install"] if restarted else [])}
    yield from _boot(machine, [name for name in FIRST if name in needed])
    control = _unmarked(machine)
    if restarted:
        answers = list(_boot(machine, SECOND))
        after = _frames(machine, REMOVED)
        for answer in answers:
            if answer.get("test") == "boot" and answer["result"] == "passed":
                answer = {**answer, **_boot_result(machine, answer["count"], control)}
            if answer.get("test") == "removal" and answer["result"] == "passed":
                answer = {**answer, "count": f"{answer['count']}; {after} unmarked frames left"}
                answer["result"] = "passed" if after else "failed: the uplink is not open"
            if answer.get("test", "boot") in (*restarted, "boot"):
                yield answer


def _boot_result(machine: VirtualMachine, sent: str, control: tuple[int, int]) -> Mapping[str, str]:
    """Return the result and the count of the second start; `control` are the unmarked frames of the first."""
    packets, early = _unmarked(machine)
    guarded, marked = _frames(machine, GUARDED), _frames(machine, MARKED)
    good = packets == early == guarded == 0 and marked and all(control)
    counts = [f"{packets} {sent} left, {control[0]} in the start without a policy", f"{marked} marked"]
    counts.append(
        f"frames of packet sockets: {control[1]} in the start without a policy, {early + guarded} in this one"
    )
    return {"result": "passed" if good else "failed: frames", "count": "; ".join(counts)}


def _boot(machine: VirtualMachine, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the answers of one boot; what did not answer has failed."""
    answered = set()
    try:
        for line in machine.boot(names, _SECONDS):
            try:
                answer: Mapping[str, Any] = json.loads(line)
            except ValueError:
                print(f"    {line}", file=sys.stderr, flush=True)
                continue
            answered.add(answer.get("test"))
            yield answer
        reason = " / ".join(machine.console()[-5:])
    except TimeoutError as error:
        reason = str(error)
    for name in names:
        if name not in answered:
            yield {"test": name, "result": "failed: no answer", "count": "", "seconds": 0, "details": reason}


def _frames(machine: VirtualMachine, payload: bytes) -> int:
    return sum(payload in frame for frame in machine.frames())


def _unmarked(machine: VirtualMachine) -> tuple[int, int]:
    """Return how many unmarked frames of the early sender left: its packets, and its frames by a packet socket."""
    sources = [frame[6:12] == FRAME_SOURCE for frame in machine.frames() if UNMARKED in frame]
    return sources.count(False), sources.count(True)


def _row(answer: Mapping[str, Any], versions: Mapping[str, str]) -> tested_page.Row:
    today = datetime.date.today().isoformat()
    return tested_page.Row(**versions, test=answer["test"], result=answer["result"], count=answer["count"], date=today)


def _remove_leftovers() -> None:
    """Remove the files of runs that were killed; their machines have ended with them."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not Path("/proc", directory.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main())
