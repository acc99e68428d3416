"""A unit of root that its cgroup's mark alone tells from the rest of root: its packets leave, no other ones."""

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guarded_lab import ENVIRONMENT, PROGRAM, Guarded, gluon, guarded_lab, wan_routes_in_main, watching
from tests.kernel import bpf_programs
from tests.lab import addresses as at
from tests.leaks.test_forged_arrivals import DATAGRAM
from tests.leaks.test_udp_replies import LOST, WAN, WILDCARD, Exchange

NOBODY = 65534
SEND = """
import os, socket, sys
os.setresuid(*[int(sys.argv[1])] * 3)
for address in sys.argv[3:]:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    try: made.sendto(sys.argv[2].encode(), (address, 4711)); print(made.getsockopt(1, 36), "sent")
    except OSError: print(made.getsockopt(1, 36), "refused")
"""
LOOK_UP = f"import socket; print(sorted({{one[4][0] for one in socket.getaddrinfo({at.WHO!r}, 1)}}))"


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    """Node with the WAN's routes in main too: only the guard stops unmarked packets."""
    with bpf_programs.cgroup() as path:
        service = f'[service.tools]\nuplink = "wan"\nuser = 0\nmarks = "cgroup"\ncgroup = "{path.name}/tools"\n'
        with guarded_lab(lambda lab: gluon(lab) + service, resolver=True) as found:
            wan_routes_in_main(found.lab)
            yield found
        with contextlib.suppress(OSError):
            Path(path, "tools").rmdir()


def send(made: Guarded, inside: bool, uid: int = 0) -> tuple[list[str], int]:
    """Send from a program of the service, or one outside; return what it printed, and the number of arrivals."""
    token = uuid.uuid4().hex
    made.lab.wan.drain()
    starter = [PROGRAM, "run", "tools", "--"] if inside else []
    command = [*starter, "python3", "-c", SEND, str(uid), token, at.SERVER[4], at.SERVER[6]]
    said = made.lab.node.run(command, env=ENVIRONMENT).stdout.splitlines()
    if "sent" in str(said):
        made.lab.wan.wait_for(lambda frame: token.encode() in frame.payload, 0.5)
    return said, sum(token.encode() in frame.payload for frame in made.lab.wan.frames())


def test_root_leaves_from_the_cgroup_alone(made: Guarded) -> None:
    with watching(made.lab) as watch:
        assert send(made, inside=True) == (["1 sent"] * 2, 2)
        assert send(made, inside=False) == (["0 refused"] * 2, 0)
        assert send(made, inside=True, uid=NOBODY) == (["1 refused"] * 2, 0), "the mark of another user"
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert made.counters()["inet/wan.unentitled"] >= 2
    made.stop_resolver()
    with made.off():
        assert send(made, inside=False) == (["0 sent"] * 2, 2), "the control: root outside reaches the WAN"
    made.start_resolver()


def test_root_gets_names_by_the_mark(made: Guarded) -> None:
    outside = made.lab.node.run(["python3", "-c", LOOK_UP]).stdout.strip()
    assert outside == str(sorted(at.WHO_IN_MESH.values())), "root without the mark asks the system's resolver"
    inside = made.nftpolicy("run", "tools", "--", "python3", "-c", LOOK_UP).stdout.strip()
    assert inside == str(sorted(at.WHO_AT_HOME.values()))


def ask(address: str, mark: int) -> bool:
    """Ask the resolver directly, as root; return True if the query leaves the socket and is answered."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, DATAGRAM) as made:
        made.settimeout(1)
        if mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        try:
            made.sendto(os.urandom(2) + b"\1\0\0\1\0\0\0\0\0\0\0\0\2\0\1", (address, 54))
            return bool(made.recv(512))
        except OSError:
            return False


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_resolver_answers_root_with_the_mark_only(made: Guarded, address: str) -> None:
    assert made.lab.node.call(ask, address, 1), "the control"
    assert not made.lab.node.call(ask, address, 0)


@pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])
def test_reply_of_another_server_of_root_is_dropped(made: Guarded, family: int) -> None:
    """The kernel marks its reply for the flow, but the service only begins flows."""
    with ExitStack() as stack:
        exchange = Exchange(made, stack, family, WILDCARD)
        exchange.ask()
        assert exchange.reply() == LOST
        made.lab.node.run(
            ["nft", "insert", "rule", "inet", "nftpolicy", "wan.mark-owner", "meta", "skuid", "0", "accept"]
        )
        assert exchange.reply() == WAN, "the control: root's packets in either direction"
        made.apply()
