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
def routed_node(node: Namespace, far: Namespace) -> Iterator[Namespace]:
    """Node that reaches the server by the mesh, and with mark 1 by the WAN."""
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
def server(routed_node: Namespace, far: Namespace) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        yield Server(routed_node, far, stack)


def sockets() -> list[InetSocket]:
    with SockDiag() as diag:
        return diag.sockets()


def destroy(one: InetSocket) -> str:
    with SockDiag() as diag:
        return diag.destroy(one)


def find_socket(space: Namespace, made: socket.socket) -> InetSocket:
    inode = os.fstat(made.fileno()).st_ino
    return next(one for one in space.call(sockets) if one.inode == inode)


def exchange_works(mine: socket.socket, theirs: socket.socket) -> bool:
    mine.sendall(b"still here")
    return theirs.recv(99) == b"still here"


def next_read_error(made: socket.socket) -> str:
    """Return the error of the next read."""
    with pytest.raises(OSError) as caught:
        made.recv(99)
    return errno.errorcode.get(caught.value.errno or 0, str(caught.value))


# --- Listing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_sock_diag_connection_is_listed_with_every_field(routed_node: Namespace, server: Server, family: int) -> None:
    mine, _ = server.connect(family, 0x71)
    found = find_socket(routed_node, mine)
    assert (found.family, found.protocol, found.state, found.mark) == (family, TCP, "established", 0x71)
    assert (found.local, found.sport) == mine.getsockname()[:2]
    assert found.local == NODE["wan"][family]
    assert (found.remote, found.dport) == mine.getpeername()[:2]
    assert (found.uid, found.bound, found.is_connected) == (0, None, True)
    assert found.cookie == int.from_bytes(mine.getsockopt(socket.SOL_SOCKET, 57, 8), "little")  # SO_COOKIE
    assert found.cgroup


def _open_user_sockets() -> list[InetSocket]:
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


def test_sock_diag_lists_states_owners_and_devices(routed_node: Namespace) -> None:
    found = routed_node.call(_open_user_sockets, uid=4711, keep_caps=True)
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


def test_sock_diag_half_open_connection_is_destroyed(routed_node: Namespace, far: Namespace) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(routed_node.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("", 4002))
        listener.listen()
        far.nft(
            "table inet t {\n chain c {\n type filter hook output priority 0\n tcp flags ack / syn,ack drop\n }\n}\n"
        )
        _half_open(far, stack)
        found = wait_until(
            lambda: [one for one in routed_node.call(sockets) if one.state == "syn-recv"], 2, "a half-open connection"
        )
        assert [(one.local, one.remote) for one in found] == [(NODE["wan"][4], FAR["wan"][4])]
        assert routed_node.call(destroy, found[0]) == CLOSED
        assert [one.state for one in routed_node.call(sockets)] == ["listen"]


def _ten_thousand() -> tuple[int, float]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        for _ in range(5000):
            stack.enter_context(socket.create_connection(listener.getsockname()))
            stack.enter_context(listener.accept()[0])
        with LiveSockets() as running:
            start = time.process_time()  # of the processor: others may use it too
            found = running.sockets()
            return len(found), time.process_time() - start


@pytest.mark.alone  # measures time
def test_sock_diag_lists_ten_thousand_sockets_in_a_second(node: Namespace) -> None:
    count, seconds = node.call(_ten_thousand)
    assert count >= 10000
    assert seconds < 1


# --- Closing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_destroy_closes_one_connection_at_both_ends(routed_node: Namespace, server: Server, family: int) -> None:
    mine, theirs = server.connect(family)
    other = server.connect(family)
    known = find_socket(routed_node, mine)
    assert exchange_works(mine, theirs)
    assert routed_node.call(destroy, known) == CLOSED
    assert (next_read_error(mine), next_read_error(theirs)) == ("ECONNABORTED", "ECONNRESET")
    assert exchange_works(*other)
    assert routed_node.call(destroy, known) == ABSENT


def test_destroy_selects_socket_by_cookie(routed_node: Namespace, server: Server) -> None:
    mine, theirs = server.connect()
    known = find_socket(routed_node, mine)
    another = evolve(known, identity=known.identity[:-1] + bytes((known.identity[-1] ^ 1,)))
    assert routed_node.call(destroy, another) == ABSENT
    assert exchange_works(mine, theirs)
    assert routed_node.call(destroy, known) == CLOSED


def test_destroy_without_capability_closes_nothing(routed_node: Namespace, server: Server) -> None:
    mine, theirs = server.connect()
    known = find_socket(routed_node, mine)
    with pytest.raises(Unavailable, match="needs root"):
        routed_node.call(destroy, known, uid=65534)
    assert exchange_works(mine, theirs)


def test_destroyed_udp_socket_gets_error_and_remains_usable(routed_node: Namespace, server: Server) -> None:
    """Reason why the cleanup of stale sockets does not report UDP sockets as closed."""
    mine = server.udp(mark=1)
    assert routed_node.call(destroy, find_socket(routed_node, mine)) == CLOSED
    assert next_read_error(mine) == "ECONNABORTED"
    with pytest.raises(OSError, match="Destination address"):
        mine.send(b"it has no other end now")
    assert mine.sendto(b"but can say where to", (SERVER[4], 9))
    assert mine.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 1


# --- Resets -----------------------------------------------------------------------------------


def _close(one: InetSocket, suppression: tuple[Any, ...] | None) -> tuple[str | None, str]:
    with LiveSockets() as running, contextlib.ExitStack() as stack:
        loud = stack.enter_context(running.suppress_resets(*suppression)) if suppression else None
        return loud, running.destroy(one)


@pytest.mark.parametrize("family", [4, 6])
def test_destroyed_udp_socket_loses_its_device(routed_node: Namespace, family: int) -> None:
    """Reason why UDP sockets that are bound to a device stay open."""
    with routed_node.socket(DOMAIN[family], socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan")
        made.connect((FAR["wan"][family], 9))
        known = find_socket(routed_node, made)
        assert known.bound == "wan"
        assert routed_node.call(destroy, known) == CLOSED
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b""


SUPPRESSIONS = {
    "none": (None, True),
    "by mark": (([(1, 1)], [], ["wan"]), False),
    "by another mark": (([(2, 2)], [], ["wan"]), True),
    "by address": (([], [*NODE["wan"].values()], ["wan"]), False),
    "by another address": (([], [*NODE["mesh"].values()], ["wan"]), True),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("suppression", "strays"), SUPPRESSIONS.values(), ids=SUPPRESSIONS)
def test_closed_connection_reset_leaves_unless_suppressed(
    routed_node: Namespace,
    far: Namespace,
    server: Server,
    family: int,
    suppression: tuple[Any, ...] | None,
    strays: bool,
) -> None:
    mine, _ = server.connect(family, 1)
    known = find_socket(routed_node, mine)
    assert known.local == NODE["wan"][family]
    routed_node.ip(*(f"-{each} rule del priority 10" for each in (4, 6)))  # the mark means nothing any more
    # A neighbour that is not known yet would make a reset wait: so something goes by the mesh before.
    with routed_node.socket(DOMAIN[family], socket.SOCK_DGRAM) as probe:
        probe.sendto(b"warm", (SERVER[family], 9))
    time.sleep(0.05)
    sniffer = Sniffer(far, "to-mesh")
    try:
        assert routed_node.call(_close, known, suppression) == (None, CLOSED)
        found = sniffer.wait_for(lambda frame: frame.saddr == NODE["wan"][family], 1 if strays else 0.2)
        assert bool(found) == strays
    finally:
        sniffer.stop()
    assert next_read_error(mine) == "ECONNABORTED"
    assert routed_node.run(["nft", "list", "tables"]).stdout == ""


def _suppress_and_wait() -> None:
    with LiveSockets() as running, running.suppress_resets([(1, 1)], [], []):
        time.sleep(30)


def test_reset_suppression_ends_with_killed_process(routed_node: Namespace) -> None:
    process = routed_node.spawn(_suppress_and_wait)
    wait_until(lambda: "nftpolicy-closing" in routed_node.run(["nft", "list", "tables"]).stdout, 5, "the suppression")
    routed_node.end(process)  # by SIGKILL
    assert signal.SIGKILL
    wait_until(lambda: routed_node.run(["nft", "list", "tables"]).stdout == "", 2, "its end")


# --- Who and where to ----------------------------------------------------------------------------


def _hold(ready: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect((SERVER[4], 9))
        Path(ready).write_text(str(os.fstat(made.fileno()).st_ino))
        time.sleep(30)


def _groups(inodes: list[int]) -> dict[int, int]:
    with LiveSockets() as running:
        return running.owner_groups(inodes)


def test_owner_groups_are_of_opener(routed_node: Namespace) -> None:
    note = routed_node.outside("/run/lab/inode")
    process = routed_node.spawn(_hold, "/run/lab/inode", gid=4712, uid=0, keep_caps=True)
    try:
        inode = int(wait_until(lambda: note.exists() and note.read_text(), 5, "the socket"))
        assert routed_node.call(_groups, [inode, 1]) == {inode: 4712}
        assert routed_node.call(_groups, []) == {}
    finally:
        routed_node.end(process)


def _egress_devices(which: list[InetSocket]) -> list[str | None]:
    with LiveSockets() as running:
        return [running.egress_device(one) for one in which]


@pytest.mark.parametrize("family", [4, 6])
def test_egress_device_follows_mark_and_address_of_socket(routed_node: Namespace, server: Server, family: int) -> None:
    known = [find_socket(routed_node, server.connect(family, mark)[0]) for mark in (0, 1)]
    known.append(find_socket(routed_node, server.udp(family, 1)))
    assert routed_node.call(_egress_devices, known) == ["mesh", "wan", "wan"]
    routed_node.ip(f"-{family} rule del priority 10")
    assert routed_node.call(_egress_devices, known) == ["mesh", "mesh", "mesh"]
    routed_node.ip(f"-{family} route del default")
    assert routed_node.call(_egress_devices, known) == [None, None, None]


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


def delete_flows(which: list[ConntrackEntry]) -> list[bool]:
    with Conntrack() as channel:
        return [channel.delete_flow(one) for one in which]


ECHO_REQUEST = bytes.fromhex("0800f7fd00010001")  # RFC 792, with its checksum


@pytest.fixture
def tracked(routed_node: Namespace, far: Namespace) -> Namespace:
    routed_node.nft(MARKING)
    for family in (4, 6):
        for port in range(1001, 1007):
            with routed_node.socket(DOMAIN[family], socket.SOCK_DGRAM) as made:
                made.sendto(b"x", (SERVER[family], port))
    # A reset in answer to a SYN would end the entry at once, so a server listens.
    with far.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((SERVER[4], 1007))
        listener.listen()
        with routed_node.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            made.connect((SERVER[4], 1007))
    with routed_node.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as made:
        made.sendto(ECHO_REQUEST, (SERVER[4], 0))
    return routed_node


def names(found: list[ConntrackEntry]) -> set[tuple[int, int, int]]:
    return {(one.family, one.protocol, one.original.dport) for one in found}


def test_flows_of_mark_are_listed_with_both_directions(tracked: Namespace) -> None:
    found = tracked.call(flows, 1, 1)
    every = {(family, 17, port) for family in (4, 6) for port in (1001, 1002, 1003)}
    assert names(found) == every | {(4, 6, 1007), (4, 1, 0)}
    one = next(one for one in found if (one.family, one.original.dport) == (6, 1001))
    assert (one.original.source, one.original.destination) == (NODE["mesh"][6], SERVER[6])
    assert (one.reply.source, one.reply.destination) == (SERVER[6], NODE["mesh"][6])
    assert (one.reply.sport, one.reply.dport, one.mark) == (1001, one.original.sport, 1)
    assert names(tracked.call(flows, 0x70, 0x7F)) == {(4, 17, 1005), (6, 17, 1005)}
    assert names(tracked.call(flows, 0, 0)) > every


def test_flow_delete_leaves_other_flows(tracked: Namespace) -> None:
    every = names(tracked.call(flows, 0, 0))
    stale = tracked.call(flows, 1, 1)
    assert len(stale) == 8
    first = next(one for one in stale if one.original.dport == 1002)  # in a zone
    assert tracked.call(delete_flows, [first]) == [True]
    assert names(tracked.call(flows, 0, 0)) == every - names([first])
    assert tracked.call(delete_flows, stale) == [one != first for one in stale]
    assert names(tracked.call(flows, 0, 0)) == every - names(stale)
    assert names(tracked.call(flows, 0, 0)) >= {(family, 17, port) for family in (4, 6) for port in (1004, 1005, 1006)}


def test_flow_delete_leaves_replaced_entry(tracked: Namespace) -> None:
    one = tracked.call(flows, 1, 1)[0]
    other = evolve(one, number=bytes((one.number[0] ^ 1,)) + one.number[1:])
    assert tracked.call(delete_flows, [other]) == [False]
    assert one in tracked.call(flows, 1, 1)


def test_flows_without_capability_are_not_listed(tracked: Namespace) -> None:
    with pytest.raises(Unavailable, match="needs root"):
        tracked.call(flows, 1, 1, uid=65534)
