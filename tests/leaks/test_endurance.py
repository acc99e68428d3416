"""Many applies in one process: nothing grows. NFTPOLICY_APPLIES sets a larger number than CI makes."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftpolicy.runtime.apply import history
from tests.lab import addresses as at
from tests.lab.netns import Namespace, veth
from tests.leaks.test_crash import FOLDER, NEW, OLD, changed, changer, held
from tests.policy_transitions import STICK

pytestmark = pytest.mark.slow

APPLIES = int(os.environ.get("NFTPOLICY_APPLIES", "55"))
WARM = 25  # applies until all is loaded, and the history and every cache are full
HISTORY = 10  # entries that are kept here, so that the history is full soon


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace("node") as made, Namespace("far") as far:
        for device in (at.WAN, STICK, at.MESH):
            veth(made, device, far, f"to-{device}")
            made.ip(f"link set {device} up")
            far.ip(f"link set to-{device} up")
        made.ip(
            f"addr add 192.0.2.2/24 dev {at.WAN}",
            f"-6 addr add 2001:db8:1::2/64 dev {at.WAN} nodad",
            f"addr add 198.18.0.1/24 dev {STICK}",
            f"-6 addr add 2001:db8:99::1/64 dev {STICK} nodad",
        )
        yield made


def used() -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kept = [path for path in Path(FOLDER).rglob("*") if path.is_file()]
    return {
        "KiB of memory": int(status["VmRSS"].split()[0]),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "files": len(kept),
        "bytes of files": sum(path.stat().st_size for path in kept),
        "temporary files": sum(path.name.startswith(".") for path in kept),
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
    }


def many(applies: int) -> tuple[dict[str, int], dict[str, int], float, bool]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    history.MAX_ENTRIES = HISTORY
    made, begun = changer(), time.monotonic()
    for number in range(applies):
        if number == WARM:
            before = used()
        steps = changed(made, (OLD, NEW)[number % 2])
        assert steps
    last = (OLD, NEW)[(applies - 1) % 2]
    assert changed(made, last) == 0, "the second time sends nothing"
    return before, used(), (time.monotonic() - begun) / applies, held(last)


def test_many_applies_leave_no_descriptors_or_memory(node: Namespace) -> None:
    before, after, seconds, right = node.call(many, APPLIES, timeout=600)
    print(f"{APPLIES} applies of {seconds * 1000:.0f} ms: {before} -> {after}")
    assert right
    assert after.pop("KiB of memory") < before.pop("KiB of memory") + 4096
    assert after.pop("bytes of files") < before.pop("bytes of files") + 8192
    assert after == before
