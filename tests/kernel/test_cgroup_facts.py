"""Cgroups: visibility of the tree, and effects of a short program on sockets."""

import os
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import Namespace

from . import bpf_programs
from .two_link_node import NOBODY, SENT, outcome

pytestmark = pytest.mark.kernel

IP_UNICAST_IF, SO_BINDTOIFINDEX, IP_PKTINFO = 50, 62, 8
MARK = 1


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with bpf_programs.cgroup() as path:
        yield path


@pytest.mark.parametrize(
    ("way", "visible"),
    [("ip netns exec probe", False), ("nsenter --net=/run/netns/probe", True)],
    ids=["ip", "nsenter"],
)
def test_K11_ip_netns_exec_hides_cgroup_tree(node: Namespace, cgroup: Path, way: str, visible: bool) -> None:
    """`ip netns exec` mounts a fresh /sys without cgroups; nsenter and setns leave /sys as it is."""
    node.run(["mkdir", "-p", "/run/netns"])
    if not node.outside("/run/netns").is_dir() or not Path("/var/run").samefile("/run"):
        pytest.skip("/var/run is not /run, so a named namespace would stay behind")
    node.run(["ip", "netns", "add", "probe"])
    assert node.run(["test", "-d", str(cgroup)], check=False).returncode == 0, "the positive control: it is there"
    found = node.run([*way.split(), "test", "-d", str(cgroup)], check=False)
    if found.returncode not in (0, 1):
        pytest.skip(f"{way} does not run here: {found.stderr.strip()}")
    assert (found.returncode == 0) is visible, (
        "cgroups stay visible in `ip netns exec`: services may be started with it"
        if not visible
        else "nsenter hides cgroups as well: services in namespaces cannot be known by their cgroup"
    )


def _marks() -> tuple[int, int, int]:
    os.setresuid(NOBODY, NOBODY, NOBODY)
    kinds = [
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET6, socket.SOCK_STREAM),
    ]
    found = []
    for domain, kind in kinds:
        with socket.socket(domain, kind) as made:
            found.append(made.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
    return found[0], found[1], found[2]


def test_L18_cgroup_program_marks_sockets_of_service(node: Namespace, cgroup: Path) -> None:
    """Four instructions at sock_create give every socket of an unprivileged service the mark, and no other socket."""
    assert node.call(bpf_programs.joined, cgroup, _marks) == (0, 0, 0), "without the program there must be no mark"
    code = bpf_programs.mark_program(MARK)
    assert len(code) == 4 * 8
    with bpf_programs.attached(cgroup, bpf_programs.SOCK_CREATE, code):
        inside, outside = node.call(bpf_programs.joined, cgroup, _marks), node.call(_marks)
    assert inside == (MARK, MARK, MARK), "sockets cannot be marked by cgroup here: the service must mark them itself"
    assert outside == (0, 0, 0), "the program marks sockets of others: it must not be used"
    assert node.call(bpf_programs.joined, cgroup, _marks) == (0, 0, 0), "the program outlives its detachment"


REFUSED = {
    "bindtodevice": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo"),
    "mark": (socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=i", MARK)),
    "large-mark": (socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=i", MARK).ljust(5000, b"\0")),
    "unicast-if": (socket.IPPROTO_IP, IP_UNICAST_IF, struct.pack("!i", 1)),
}
ALLOWED = {
    "reuseaddr": (socket.SOL_SOCKET, socket.SO_REUSEADDR, struct.pack("=i", 1)),
    "large-reuseaddr": (socket.SOL_SOCKET, socket.SO_REUSEADDR, struct.pack("=i", 1).ljust(5000, b"\0")),
    "bindtoifindex": (socket.SOL_SOCKET, SO_BINDTOIFINDEX, struct.pack("=i", 1)),
}


def _options() -> dict[str, str]:
    found = {}
    for name, option in (REFUSED | ALLOWED).items():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            found[name] = outcome(lambda made=made, option=option: made.setsockopt(*option))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        control = [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=i8x", 1))]
        found["pktinfo"] = outcome(lambda: made.sendmsg([b"x"], control, 0, ("127.0.0.1", 9)))
    return found


def test_L19_cgroup_program_refuses_options_to_root(node: Namespace, cgroup: Path) -> None:
    """Twelve instructions refuse SO_BINDTODEVICE, SO_MARK and IP_UNICAST_IF with EPERM, and nothing else."""
    free = node.call(bpf_programs.joined, cgroup, _options)
    assert set(free.values()) == {SENT}, "the positive control: without the program root may do all of them"
    code = bpf_programs.refuse_program([option[:2] for name, option in REFUSED.items() if not name.startswith("large")])
    assert len(code) == 12 * 8
    with bpf_programs.attached(cgroup, bpf_programs.SETSOCKOPT, code):
        inside, outside = node.call(bpf_programs.joined, cgroup, _options), node.call(_options)
    assert {name for name, result in inside.items() if result == "EPERM"} == set(REFUSED), (
        "a refused option passes, or the program breaks others: a service can name its device and its mark again"
    )
    # SO_BINDTOIFINDEX and the control message show why the guard is needed all the same.
    assert {inside[name] for name in (*ALLOWED, "pktinfo")} == {SENT}, (
        "options that the program does not name fail: see what optlen does to large ones"
    )
    assert outside == free, "the program works on others than its cgroup"


@pytest.mark.parametrize(("hook", "accepted"), [("output", True), ("postrouting", False)])
def test_cgroup_match_is_refused_in_postrouting(node: Namespace, cgroup: Path, hook: str, accepted: bool) -> None:
    """So no guard can ask for it: only in postrouting, the device by which a packet leaves is certain."""
    path = cgroup.relative_to("/sys/fs/cgroup")
    ruleset = f"""table inet {hook} {{
        chain c {{ type filter hook {hook} priority 0; socket cgroupv2 level 1 "{path}" counter; }}
    }}"""
    loaded = node.run(["nft", "-f", "-"], input=ruleset, check=False)
    assert (loaded.returncode == 0) is accepted, loaded.stderr
    if not accepted:
        assert "Operation not supported" in loaded.stderr


def test_cgroup_below_root_needs_dac_override(cgroup: Path) -> None:
    """The root has the mode 0555; the resolver's unit has a helper make the cgroup below it."""
    root = cgroup.parent
    if stat.S_IMODE(root.stat().st_mode) != 0o555:
        pytest.skip("a cgroup namespace, whose root is another's child")

    def makes(path: Path, capabilities: str) -> bool:
        words = ["setpriv", f"--bounding-set={capabilities}", "mkdir", str(path)]
        made = subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0
        if made:
            path.rmdir()
        return made

    beside = root / f"{cgroup.name}-beside"
    assert not makes(beside, "-dac_override")
    assert makes(beside, "+all"), "the control"
    assert makes(cgroup / "below", "-dac_override")
