"""`status` and `watch` report the owners of sockets, and the guard agrees with them."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nftpolicy.kernel.netlink.sock_diag import SockDiag
from nftpolicy.kernel.socket_owners import cgroup_numbers
from tests.exposure_lab import Watched
from tests.guarded_lab import OTHER_GID, SERVICE_GID, Guarded, guarded_lab
from tests.kernel import bpf_programs
from tests.lab import addresses as at
from tests.lab.netns import wait_until

DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 9


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab() as found:
        yield found


def hold(family: int, tcp: bool, mark: int, device: str, ready: str) -> None:
    """Hold a socket that is connected to the server (TCP: echo service), until the process ends. Runs in the node."""
    made = socket.socket(DOMAIN[family], socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    if mark:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    if device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    made.setblocking(False)
    made.connect_ex((at.SERVER[family], at.ECHO_PORT if tcp else PORT))
    with contextlib.suppress(OSError):
        made.send(b"" if tcp else b"said")
    Path(ready).touch()
    time.sleep(600)


@contextlib.contextmanager
def held(made: Guarded, gid: int, family: int = 4, tcp: bool = False, mark: int = 0, device: str = "") -> Iterator[int]:
    """Yield the process id (in /proc of the test) of a process that holds such a socket."""
    ready = f"/run/lab/held-{time.monotonic_ns()}"
    pid = made.lab.node.spawn(hold, family, tcp, mark, device, ready, uid=0, gid=gid, groups=[], keep_caps=True)
    try:
        wait_until(lambda: made.lab.node.outside(ready).exists(), 10, "the socket")
        yield pid
    finally:
        made.lab.node.end(pid)


def sockets(made: Guarded) -> list[dict[str, object]]:
    """Return the entries of `status` for the sockets that are held here."""
    done = made.nftpolicy("status", "--json", check=False)
    assert done.returncode == 0, "wrong sockets alone do not make a wrong state"
    found = json.loads(done.stdout)["sockets"]
    return [one for one in found if one["program"] and one["remote"] in at.SERVER.values()]


KINDS = {
    "the service's": ({"gid": SERVICE_GID, "mark": 1}, ("right", "fastd", "")),
    "it forgot the mark": ({"gid": SERVICE_GID}, ("unmarked", "fastd", "wan.dropped")),
    "the mark of nobody": ({"gid": OTHER_GID, "mark": 1}, ("forged", "", "wan.unentitled")),
    "on the way to the mesh": (
        {"gid": SERVICE_GID, "mark": 1, "device": at.MESH},
        ("wrong-device", "fastd", "wan.stray"),
    ),
}


# Bound to a device inside, IPv6 finds no route in the uplink's table, so there is no such socket.
CASES = [(kind, family) for kind in KINDS for family in at.FAMILIES if (kind, family) != ("on the way to the mesh", 6)]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(("kind", "family"), CASES)
def test_status_names_wrong_socket_and_guard_counts(made: Guarded, kind: str, family: int, tcp: bool) -> None:
    how, (verdict, who, counter) = KINDS[kind]
    before = made.counters()
    made.lab.wan.drain()
    with held(made, family=family, tcp=tcp, **how):  # type: ignore[arg-type]
        (one,) = sockets(made)
        assert (one["verdict"], one["who"], one["counter"]) == (verdict, who, counter)
        assert (one["protocol"], one["family"]) == ("tcp" if tcp else "udp", family)
        assert (one["gid"], one["uid"], one["mark"]) == (how["gid"], 0, how.get("mark", 0))
        if counter and verdict != "unmarked":  # one without a mark goes by the mesh
            assert made.counters()[f"inet/{counter}"] > before[f"inet/{counter}"]
        right = verdict == "right"
        left = made.lab.wan.wait_for(
            lambda frame: frame.family == family and at.SERVER[family] == frame.daddr, 2 if right else 0.3
        )
        assert bool(left) is right, "what is right is the positive control of what is not"
    assert sockets(made) == []


def test_unmarked_socket_is_counted_at_uplink(made: Guarded) -> None:
    before = made.counters()["inet/wan.dropped"]
    with held(made, SERVICE_GID, device=at.WAN):
        (one,) = sockets(made)
        assert (one["verdict"], one["counter"], one["bound"]) == ("unmarked", "wan.dropped", at.WAN)
        assert made.counters()["inet/wan.dropped"] > before


def test_status_socket_table_is_short(made: Guarded) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(24):
            stack.enter_context(held(made, OTHER_GID, mark=1))
        stack.enter_context(held(made, SERVICE_GID, mark=1))
        said = made.nftpolicy("status").stdout
    assert "sockets: 1 right, 24 not right" in said
    assert said.count("forged: it has the mark 0x1/0x1") == 1


def test_status_socket_without_process_is_unknown(made: Guarded) -> None:
    """A socket of this process, which is outside the node's PID namespace."""
    with made.lab.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
        one.connect((at.SERVER[4], PORT))
        listed = json.loads(made.nftpolicy("status", "--json").stdout)["sockets"]
        mine = [each for each in listed if each["sport"] == one.getsockname()[1]]
        assert [(each["verdict"], each["program"], each["gid"]) for each in mine] == [("unknown", None, None)]


def test_watch_reports_wrong_socket_once_and_its_end(made: Guarded) -> None:
    with contextlib.ExitStack() as stack:
        with held(made, OTHER_GID, mark=1):
            watched = stack.enter_context(Watched(made))
            socket_events = wait_until(lambda: watched.events("socket"), 40, "a word of the socket")
            assert (socket_events[0]["verdict"], socket_events[0]["uplink"], socket_events[0]["counter"]) == (
                "forged",
                "wan",
                "wan.unentitled",
            )
            assert f"udp {made.lab.wan_address(4)}" in socket_events[0]["socket"]
            assert "dropped" in socket_events[0]["why"]
        gone = wait_until(lambda: watched.events("socket")[1:], 40, "the end of the socket")
        assert [(one["verdict"], one["was"]) for one in gone] == [("gone", "forged")]
        assert watched.stop() == 0


def test_socket_cgroup_is_found_by_number(made: Guarded) -> None:
    """A socket that is opened below a cgroup is in it, another socket is not."""
    with bpf_programs.cgroup() as path:
        below = path / "below"
        below.mkdir()
        try:
            inside = made.lab.node.call(bpf_programs.joined, below, partial(numbers_of_a_socket, path.name))
            outside = made.lab.node.call(numbers_of_a_socket, path.name)
        finally:
            below.rmdir()
    (number, known), (other, _) = inside, outside
    assert number in known
    assert other not in known


def numbers_of_a_socket(name: str) -> tuple[int | None, set[int]]:
    """Return the cgroup of a new socket, and the numbers of a cgroup. Runs inside the node."""
    with udp_to_the_server() as one, SockDiag() as diag:
        inode = os.fstat(one.fileno()).st_ino
        found = next(each for each in diag.sockets() if each.inode == inode)
        return found.cgroup, cgroup_numbers([name])[name]


def udp_to_the_server() -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.connect((at.SERVER[4], PORT))
    return one
