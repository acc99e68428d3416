"""`nftpolicy demo`: it holds, it detects broken states, and it leaves nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import demo_verdict, topology
from tests.lab.frames import Frame
from tests.lab.limits import limit
from tests.lab.netns import wait_until

COMMAND = [sys.executable, "-m", "nftpolicy", "demo"]
needs_lab = pytest.mark.skipif(bool(topology.missing()), reason=f"the lab needs {', '.join(topology.missing())}")


def remaining_objects() -> tuple[list[str], set[str]]:
    """Return the links of this namespace, and the empty cgroups of nftpolicy."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = Path("/sys/fs/cgroup").glob("**/nftpolicy/*/cgroup.procs")
    groups = {str(one.parent) for one in found if not one.read_text()}
    return [line.split(":")[1] for line in links], groups


@pytest.mark.alone  # counts cgroups of the whole machine
@pytest.mark.kernel
@needs_lab
def test_demo_holds_in_json_and_leaves_nothing() -> None:
    before = remaining_objects()
    done = subprocess.run(
        [*COMMAND, "--json", "--rounds", "1"], capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["held"] is True
    assert [state["name"] for state in report["states"]] == ["no policy", "guarded", "WAN cut", "mesh cut"]
    assert report["states"][0]["unmarked_on_wan"] > 40  # the positive control
    assert all(report["facts"].values()) and len(report["facts"]) >= 7
    links, groups = remaining_objects()
    assert links == before[0] and groups <= before[1]


@pytest.mark.alone  # counts cgroups of the whole machine
@pytest.mark.kernel
@needs_lab
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_demo_leaves_nothing(which: signal.Signals) -> None:
    before = remaining_objects()
    # A shell that runs the tests in its background has SIGINT ignored, and that is inherited.
    process = subprocess.Popen(
        COMMAND,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while "connects" not in process.stderr.readline():  # in the middle: the resolver runs
        assert process.poll() is None
    process.send_signal(which)
    assert process.wait(limit(20)) != 0
    process.stderr.close()
    wait_until(lambda: not _child_processes(process.pid), 5, "the end of the demo's processes")
    links, groups = remaining_objects()
    assert links == before[0]
    if which != signal.SIGKILL:  # an empty cgroup outlives a killed owner; the next resolver sweeps it
        assert groups <= before[1]


def _child_processes(parent: int) -> list[str]:
    """Return the lab's processes that `parent` started, found by their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(entry.parent.name)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody without subordinate ids")
def test_demo_without_root_is_one_line_with_status_4() -> None:
    environment = {**os.environ, "USER": "nobody", "PYTHONDONTWRITEBYTECODE": "1"}
    nobody = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    if subprocess.run(["test", "-r", __file__], check=False, **nobody).returncode:  # type: ignore[call-overload]
        pytest.skip("the checkout can't be read by another user than root")
    done = subprocess.run(COMMAND, capture_output=True, text=True, env=environment, check=False, **nobody)  # type: ignore[call-overload]
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1 and "sudo nftpolicy demo" in done.stderr
    assert done.stdout == ""


FRAME = Frame(0x0800, "02:00:5e:00:53:02", "192.0.2.100", "198.51.100.10", 17, 4000, 9, None, b"x", 60)


def test_disallowed_frame_has_no_reason() -> None:
    assert demo_verdict.reason(FRAME, []) is None
    assert demo_verdict.described(FRAME).startswith("udp 192.0.2.100 > 198.51.100.10")


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (demo_verdict.State(demo_verdict.GUARDED, 100, 29, unmarked_on_wan=1, marked_on_wan=48), "unmarked"),
        (demo_verdict.State(demo_verdict.GUARDED, 100, 29, marked_on_wan=48, marked_in_mesh=1), "mesh"),
        (
            demo_verdict.State(demo_verdict.GUARDED, 100, 29, marked_on_wan=48, unexplained=["udp a > b"]),
            "nothing allows",
        ),
        (demo_verdict.State(demo_verdict.GUARDED, 100, 29, marked_on_wan=0), "inconclusive"),
        (demo_verdict.State(demo_verdict.OPEN, 100, 29, unmarked_on_wan=3, marked_on_wan=48), "inconclusive"),
    ],
)
def test_broken_state_is_a_fault(state: demo_verdict.State, word: str) -> None:
    faults = demo_verdict.Report(states=[state]).faults()
    assert len(faults) == 1 and word in faults[0]


@pytest.mark.parametrize(
    "asked",
    [
        demo_verdict.Asked(demo_verdict.GUARDED, demo_verdict.SERVICE, 8, by_wan=7, by_mesh=1),
        demo_verdict.Asked(demo_verdict.GUARDED, demo_verdict.OTHERS, 8, by_wan=1, by_mesh=7),
        demo_verdict.Asked(demo_verdict.GUARDED, demo_verdict.SERVICE, 8, by_wan=7, unanswered=1),
        demo_verdict.Asked(demo_verdict.NO_WAN, demo_verdict.SERVICE, 2, by_mesh=2),
        demo_verdict.Asked(demo_verdict.NO_MESH, demo_verdict.OTHERS, 2, by_wan=2),
        demo_verdict.Asked(demo_verdict.NO_WAN, demo_verdict.SERVICE, 2, by_wan=2),
    ],
)
def test_wrong_dns_answer_is_a_fault(asked: demo_verdict.Asked) -> None:
    assert len(demo_verdict.Report(names=[asked]).faults()) == 1


def test_false_fact_is_a_fault() -> None:
    assert demo_verdict.Report(facts={"the sky is up": False}).faults() == ["not so: the sky is up"]
    assert demo_verdict.Report(facts={"the sky is up": True}).faults() == []
