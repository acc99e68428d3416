"""Sockets and flows are listed, and ended one by one, from outside."""

import contextlib
import errno
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from nftpolicy.kernel.errors import Unavailable
from nftpolicy.kernel.live_sockets import LiveSockets
from nftpolicy.kernel.netlink.conntrack import Conntrack, ConntrackEntry
from nftpolicy.kernel.netlink.sock_diag import ABSENT, CLOSED, TCP, UDP, InetSocket, SockDiag
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.sniffer import Sniffer

pytestmark = pytest.mark.kernel

NODE = {"wan": {4: "192.0.2.2", 6: "2001:db8:1::2"}, "mesh": {4: "203.0.113.2", 6: "2001:db8:3::2"}}
FAR = {"wan": {4: "192.0.2.1", 6: "2001:db8:1::1"}, "mesh": {4: "203.0.113.1", 6: "2001:db8:3::1"}}
SERVER = {4: "198.51.100.10", 6: "2001:db8:2::10"}
DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
LENGTH = {4: 24, 6: 64}
PORT = 99
RESET = 0x04


@pytest.fixture
def two_ways(node: Namespace, far: Namespace) -> Iterator[Namespace]:
    """A node that reaches the server by the mesh, and with mark 1 by the WAN."""
    for device in NODE:
        veth(node, device, far, f"to-{device}")
        for family, length in LENGTH.items():
            node.ip(f"addr add {NODE[device][family]}/{length} dev {device}")
            far.ip(f"addr add {FAR[device][family]}/{length} dev to-{device}")
            table = {"wan": "1", "mesh": "main"}[device]
            node.ip(f"-{family} route add default via {FAR[device][family]} dev {device} table {table}")
    for family, length in {4: 32, 6: 128}.items():
        far.ip(f"addr add {SERVER[family]}/{length} dev lo")
        node.ip(f"-{family} rule add fwmark 1/1 lookup 1 priority 10")
    yield node


class Server:
    """TCP connections from the node to a far listener, each with both of its ends."""

    def __init__(self, node: Namespace, far: Namespace, stack: contextlib.ExitStack) -> None:
        self._node, self._far, self._stack = node, far, stack

    def connect(self, family: int = 4, mark: int = 0) -> tuple[socket.socket, socket.socket]:
        with self._far.socket(DOMAIN[family], socket.SOCK_STREAM) as listener:
            listener.bind((SERVER[family], 0))
            listener.listen()
            mine = self._stack.enter_context(self._node.socket(DOMAIN[family], socket.SOCK_STREAM))
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            mine.settimeout(2)
            mine.connect(listener.getsockname()[:2])
            theirs = self._stack.enter_context(listener.accept()[0])
            theirs.settimeout(2)
            return mine, theirs

    def udp(self, family: int = 4, mark: int = 0) -> socket.socket:
        mine = self._stack.enter_context(self._node.socket(DOMAIN[family], socket.SOCK_DGRAM))
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        mine.connect((SERVER[family], 9))
        return mine


@pytest.fixture
def server(two_ways: Namespace, far: Namespace) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        yield Server(two_ways, far, stack)


def sockets() -> list[InetSocket]:
    with SockDiag() as diag:
        return diag.sockets()


def destroy(one: InetSocket) -> str:
    with SockDiag() as diag:
        return diag.destroy(one)


def of(space: Namespace, made: socket.socket) -> InetSocket:
    inode = os.fstat(made.fileno()).st_ino
    return next(one for one in space.call(sockets) if one.inode == inode)


def works(mine: socket.socket, theirs: socket.socket) -> bool:
    mine.sendall(b"still here")
    return theirs.recv(99) == b"still here"


def trouble(made: socket.socket) -> str:
    """The error of the next read."""
    with pytest.raises(OSError) as caught:
        made.recv(99)
    return errno.errorcode.get(caught.value.errno or 0, str(caught.value))


# --- Listing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_is_listed_with_all_that_decides_about_it(
    two_ways: Namespace, server: Server, family: int
) -> None:
    mine, _ = server.connect(family, 0x71)
    found = of(two_ways, mine)
    assert (found.family, found.protocol, found.state, found.mark) == (family, TCP, "established", 0x71)
    assert (found.local, found.sport) == mine.getsockname()[:2]
    assert found.local == NODE["wan"][family]
    assert (found.remote, found.dport) == mine.getpeername()[:2]
    assert (found.uid, found.bound, found.is_connected) == (0, None, True)
    assert found.cookie == int.from_bytes(mine.getsockopt(socket.SOL_SOCKET, 57, 8), "little")  # SO_COOKIE
    assert found.cgroup


def _of_a_user() -> list[InetSocket]:
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as mapped,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as half,
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener,
    ):
        half.setblocking(False)
        half.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan")
        half.connect_ex(("192.0.2.77", 80))
        listener.bind(("::", 4000))
        listener.listen()
        mapped.connect(("::ffff:127.0.0.1", 4000))
        udp.bind(("", 4001))
        return sockets()


def test_states_users_devices_and_mapped_addresses(two_ways: Namespace) -> None:
    found = two_ways.call(_of_a_user, uid=4711, keep_caps=True)
    assert {one.uid for one in found if one.inode} == {4711}
    half, listener, udp = (
        next(one for one in found if one.state == state) for state in ("syn-sent", "listen", "close")
    )
    assert (half.bound, half.remote, half.dport) == ("wan", "192.0.2.77", 80)
    assert (listener.family, listener.local, listener.sport, listener.is_connected) == (6, None, 4000, False)
    assert (udp.protocol, udp.local, udp.sport) == (UDP, None, 4001)
    mapped = next(one for one in found if one.dport == 4000)
    assert (mapped.family, mapped.local, mapped.remote, mapped.domain) == (
        4,
        "127.0.0.1",
        "127.0.0.1",
        socket.AF_INET6,
    )


def _half_open(far: Namespace, stack: contextlib.ExitStack) -> None:
    made = stack.enter_context(far.socket(socket.AF_INET, socket.SOCK_STREAM))
    made.setblocking(False)
    made.connect_ex((NODE["wan"][4], 4002))


def test_what_is_half_open_from_outside_is_listed_and_closed(two_ways: Namespace, far: Namespace) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(two_ways.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("", 4002))
        listener.listen()
        far.nft(
            "table inet t {\n chain c {\n type filter hook output priority 0\n tcp flags ack / syn,ack drop\n }\n}\n"
        )
        _half_open(far, stack)
        found = wait_until(
            lambda: [one for one in two_ways.call(sockets) if one.state == "syn-recv"], 2, "a half-open connection"
        )
        assert [(one.local, one.remote) for one in found] == [(NODE["wan"][4], FAR["wan"][4])]
        assert two_ways.call(destroy, found[0]) == CLOSED
        assert [one.state for one in two_ways.call(sockets)] == ["listen"]


def _ten_thousand() -> tuple[int, float]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        for _ in range(5000):
            stack.enter_context(socket.create_connection(listener.getsockname()))
            stack.enter_context(listener.accept()[0])
        with LiveSockets() as running:
            start = time.perf_counter()
            found = running.sockets()
            return len(found), time.perf_counter() - start


@pytest.mark.alone  # measures time
def test_ten_thousand_sockets_are_listed_in_less_than_a_second(node: Namespace) -> None:
    count, seconds = node.call(_ten_thousand)
    assert count >= 10000
    assert seconds < 1


# --- Closing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_one_connection_is_closed_at_both_ends_and_another_stays(
    two_ways: Namespace, server: Server, family: int
) -> None:
    mine, theirs = server.connect(family)
    other = server.connect(family)
    known = of(two_ways, mine)
    assert works(mine, theirs)
    assert two_ways.call(destroy, known) == CLOSED
    assert (trouble(mine), trouble(theirs)) == ("ECONNABORTED", "ECONNRESET")
    assert works(*other)
    assert two_ways.call(destroy, known) == ABSENT


def test_a_socket_is_known_by_its_cookie_not_by_its_ports(two_ways: Namespace, server: Server) -> None:
    mine, theirs = server.connect()
    known = of(two_ways, mine)
    another = evolve(known, identity=known.identity[:-1] + bytes((known.identity[-1] ^ 1,)))
    assert two_ways.call(destroy, another) == ABSENT
    assert works(mine, theirs)
    assert two_ways.call(destroy, known) == CLOSED


def test_without_the_right_nothing_is_closed(two_ways: Namespace, server: Server) -> None:
    mine, theirs = server.connect()
    known = of(two_ways, mine)
    with pytest.raises(Unavailable, match="needs root"):
        two_ways.call(destroy, known, uid=65534)
    assert works(mine, theirs)


def test_udp_gets_an_error_and_can_go_on(two_ways: Namespace, server: Server) -> None:
    """Why Aftermath does not call UDP sockets closed."""
    mine = server.udp(mark=1)
    assert two_ways.call(destroy, of(two_ways, mine)) == CLOSED
    assert trouble(mine) == "ECONNABORTED"
    with pytest.raises(OSError, match="Destination address"):
        mine.send(b"it has no other end now")
    assert mine.sendto(b"but can say where to", (SERVER[4], 9))
    assert mine.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 1


# --- Resets -----------------------------------------------------------------------------------


def _close(one: InetSocket, muffle: tuple[Any, ...] | None) -> tuple[str | None, str]:
    with LiveSockets() as running, contextlib.ExitStack() as stack:
        loud = stack.enter_context(running.suppress_resets(*muffle)) if muffle else None
        return loud, running.destroy(one)


@pytest.mark.parametrize("family", [4, 6])
def test_a_udp_socket_that_is_destroyed_loses_its_device(two_ways: Namespace, family: int) -> None:
    """Why those that are bound to one are left open."""
    with two_ways.socket(DOMAIN[family], socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan")
        made.connect((FAR["wan"][family], 9))
        known = of(two_ways, made)
        assert known.bound == "wan"
        assert two_ways.call(destroy, known) == CLOSED
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b""


MUFFLES = {
    "none": (None, True),
    "by mark": (([(1, 1)], [], ["wan"]), False),
    "by another mark": (([(2, 2)], [], ["wan"]), True),
    "by address": (([], [*NODE["wan"].values()], ["wan"]), False),
    "by another address": (([], [*NODE["mesh"].values()], ["wan"]), True),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("muffle", "strays"), MUFFLES.values(), ids=MUFFLES)
def test_the_reset_of_a_closed_connection_goes_by_the_new_routes_unless_it_is_muffled(
    two_ways: Namespace, far: Namespace, server: Server, family: int, muffle: tuple[Any, ...] | None, strays: bool
) -> None:
    mine, _ = server.connect(family, 1)
    known = of(two_ways, mine)
    assert known.local == NODE["wan"][family]
    two_ways.ip(*(f"-{each} rule del priority 10" for each in (4, 6)))  # the mark means nothing any more
    # A neighbour that is not known yet would make a reset wait: so something goes by the mesh before.
    with two_ways.socket(DOMAIN[family], socket.SOCK_DGRAM) as probe:
        probe.sendto(b"warm", (SERVER[family], 9))
    time.sleep(0.05)
    sniffer = Sniffer(far, "to-mesh")
    try:
        assert two_ways.call(_close, known, muffle) == (None, CLOSED)
        found = sniffer.wait_for(lambda frame: frame.saddr == NODE["wan"][family], 1 if strays else 0.2)
        assert bool(found) == strays
    finally:
        sniffer.stop()
    assert trouble(mine) == "ECONNABORTED"
    assert two_ways.run(["nft", "list", "tables"]).stdout == ""


def _muffle_and_wait() -> None:
    with LiveSockets() as running, running.suppress_resets([(1, 1)], [], []):
        time.sleep(30)


def test_the_muffle_ends_with_its_process_however_that_ends(two_ways: Namespace) -> None:
    process = two_ways.spawn(_muffle_and_wait)
    wait_until(lambda: "nftpolicy-closing" in two_ways.run(["nft", "list", "tables"]).stdout, 5, "the muffle")
    two_ways.end(process)  # by SIGKILL
    assert signal.SIGKILL
    wait_until(lambda: two_ways.run(["nft", "list", "tables"]).stdout == "", 2, "its end")


# --- Who and where to ----------------------------------------------------------------------------


def _hold(ready: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect((SERVER[4], 9))
        Path(ready).write_text(str(os.fstat(made.fileno()).st_ino))
        time.sleep(30)


def _groups(inodes: list[int]) -> dict[int, int]:
    with LiveSockets() as running:
        return running.owner_groups(inodes)


def test_the_group_of_who_opened_a_socket_is_found(two_ways: Namespace) -> None:
    note = two_ways.outside("/run/lab/inode")
    process = two_ways.spawn(_hold, "/run/lab/inode", gid=4712, uid=0, keep_caps=True)
    try:
        inode = int(wait_until(lambda: note.exists() and note.read_text(), 5, "the socket"))
        assert two_ways.call(_groups, [inode, 1]) == {inode: 4712}
        assert two_ways.call(_groups, []) == {}
    finally:
        two_ways.end(process)


def _leads(which: list[InetSocket]) -> list[str | None]:
    with LiveSockets() as running:
        return [running.egress_device(one) for one in which]


@pytest.mark.parametrize("family", [4, 6])
def test_where_a_socket_leads_is_asked_with_its_mark_and_address(
    two_ways: Namespace, server: Server, family: int
) -> None:
    known = [of(two_ways, server.connect(family, mark)[0]) for mark in (0, 1)]
    known.append(of(two_ways, server.udp(family, 1)))
    assert two_ways.call(_leads, known) == ["mesh", "wan", "wan"]
    two_ways.ip(f"-{family} rule del priority 10")
    assert two_ways.call(_leads, known) == ["mesh", "mesh", "mesh"]
    two_ways.ip(f"-{family} route del default")
    assert two_ways.call(_leads, known) == [None, None, None]


# --- Flows -----------------------------------------------------------------------------------------

MARKING = """
table inet marking {
    chain out {
        type filter hook output priority 0
        udp dport { 1001, 1002 } ct mark set 0x1
        udp dport 1003 ct mark set 0x71
        udp dport 1004 ct mark set 0x2
        udp dport 1005 ct mark set 0x70
        udp dport 1006 counter
        tcp dport 1007 ct mark set 0x1
        icmp type echo-request ct mark set 0x1
    }
    chain zones {
        type filter hook output priority -300
        udp dport 1002 ct zone set 7
    }
}
"""


def flows(value: int, mask: int) -> list[ConntrackEntry]:
    with Conntrack() as channel:
        return channel.flows(value, mask)


def forget(which: list[ConntrackEntry]) -> list[bool]:
    with Conntrack() as channel:
        return [channel.delete_flow(one) for one in which]


ECHO_REQUEST = bytes.fromhex("0800f7fd00010001")  # RFC 792, with its checksum


@pytest.fixture
def tracked(two_ways: Namespace, far: Namespace) -> Namespace:
    two_ways.nft(MARKING)
    for family in (4, 6):
        for port in range(1001, 1007):
            with two_ways.socket(DOMAIN[family], socket.SOCK_DGRAM) as made:
                made.sendto(b"x", (SERVER[family], port))
    # A reset in answer to a SYN would end the entry at once, so somebody listens.
    with far.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((SERVER[4], 1007))
        listener.listen()
        with two_ways.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            made.connect((SERVER[4], 1007))
    with two_ways.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as made:
        made.sendto(ECHO_REQUEST, (SERVER[4], 0))
    return two_ways


def names(found: list[ConntrackEntry]) -> set[tuple[int, int, int]]:
    return {(one.family, one.protocol, one.original.dport) for one in found}


def test_flows_are_listed_by_mark_with_both_directions(tracked: Namespace) -> None:
    found = tracked.call(flows, 1, 1)
    every = {(family, 17, port) for family in (4, 6) for port in (1001, 1002, 1003)}
    assert names(found) == every | {(4, 6, 1007), (4, 1, 0)}
    one = next(one for one in found if (one.family, one.original.dport) == (6, 1001))
    assert (one.original.source, one.original.destination) == (NODE["mesh"][6], SERVER[6])
    assert (one.reply.source, one.reply.destination) == (SERVER[6], NODE["mesh"][6])
    assert (one.reply.sport, one.reply.dport, one.mark) == (1001, one.original.sport, 1)
    assert names(tracked.call(flows, 0x70, 0x7F)) == {(4, 17, 1005), (6, 17, 1005)}
    assert names(tracked.call(flows, 0, 0)) > every


def test_flows_are_forgotten_one_by_one_and_others_stay(tracked: Namespace) -> None:
    every = names(tracked.call(flows, 0, 0))
    stale = tracked.call(flows, 1, 1)
    assert len(stale) == 8
    first = next(one for one in stale if one.original.dport == 1002)  # in a zone
    assert tracked.call(forget, [first]) == [True]
    assert names(tracked.call(flows, 0, 0)) == every - names([first])
    assert tracked.call(forget, stale) == [one != first for one in stale]
    assert names(tracked.call(flows, 0, 0)) == every - names(stale)
    assert names(tracked.call(flows, 0, 0)) >= {(family, 17, port) for family in (4, 6) for port in (1004, 1005, 1006)}


def test_an_entry_that_is_another_one_by_now_stays(tracked: Namespace) -> None:
    one = tracked.call(flows, 1, 1)[0]
    other = evolve(one, number=bytes((one.number[0] ^ 1,)) + one.number[1:])
    assert tracked.call(forget, [other]) == [False]
    assert one in tracked.call(flows, 1, 1)


def test_without_the_right_no_flows_are_listed(tracked: Namespace) -> None:
    with pytest.raises(Unavailable, match="needs root"):
        tracked.call(flows, 1, 1, uid=65534)
