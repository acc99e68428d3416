"""Packets that carry a mark and an owner: those of sockets, and replies of the kernel."""

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.lab import addresses as at
from tests.lab.netns import Namespace, veth, wait_until

from .two_link_node import NODE_WAN, WAN, counters

pytestmark = pytest.mark.kernel
families = pytest.mark.parametrize("family", at.FAMILIES)

DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
OPEN, CLOSED, MARK = 8080, 8081, 7
FLAGS = "tcp flags & (fin | syn | rst | psh | ack)"
KINDS = {  # what the node sends, and how nft knows it
    "syn-ack": f"{FLAGS} == syn | ack",
    "data": f"{FLAGS} == psh | ack",
    "fin": f"{FLAGS} == fin | ack",
    "ack": f"{FLAGS} == ack",
    "rst": "tcp flags & rst == rst",
    "unreachable": "ICMP type destination-unreachable",
    "echo-reply": "ICMP type echo-reply",
}
TESTS = {  # what may be known of it
    "seen": "",
    "owned": "meta skuid 0-4294967294",
    "mine": "meta skuid 12345",
    "not-local": "meta skuid != 12345",
    "marked": f"meta mark {MARK}",
    "unmarked": "meta mark 0",
}


def ruleset(family: int) -> str:
    """Counters "kind.test" in postrouting, for what leaves by the WAN."""
    icmp = {4: "icmp", 6: "icmpv6"}[family]
    pairs = [(kind, test) for kind in KINDS for test in TESTS]
    declared = "\n".join(f" counter {kind}.{test} {{ }}" for kind, test in pairs)
    rules = "\n".join(
        f"  {KINDS[kind].replace('ICMP', icmp)} {TESTS[test]} counter name {kind}.{test}" for kind, test in pairs
    )
    return (
        f"table inet replies {{\n{declared}\n chain c {{\n  type filter hook postrouting priority 0; policy accept;\n"
        f"  oifname != {WAN} accept\n{rules}\n }}\n}}\n"
    )


class Talk:
    """Node and its peer on one link; the test uses the sockets of both."""

    def __init__(self, node: Namespace, peer: Namespace, family: int) -> None:
        veth(node, WAN, peer, "eth0")
        length = {4: 24, 6: 64}[family]
        node.ip(f"addr add {NODE_WAN[family]}/{length} dev {WAN}")
        peer.ip(f"addr add {at.HOME[family]}/{length} dev eth0")
        node.nft(ruleset(family))
        self.node, self.peer, self.family = node, peer, family
        self._stack = contextlib.ExitStack()

    def open(self, space: Namespace, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        made = self._stack.enter_context(space.socket(DOMAIN[self.family], kind, protocol))
        made.settimeout(2)
        return made

    def listener(self, space: Namespace) -> socket.socket:
        made = self.open(space)
        made.bind(("", OPEN))
        made.listen()
        return made

    def connection(self, passive: Namespace, active: socket.socket, address: str) -> socket.socket:
        """Connect to a listener; its end of the connection."""
        listener = self.listener(passive)
        active.connect((address, OPEN))
        return self._stack.enter_context(listener.accept()[0])

    def exchange(self) -> None:
        """Cause every kind of reply: a connection that the node closes first, and replies of the kernel."""
        ours = NODE_WAN[self.family]
        caller = self.open(self.peer)
        answered = self.connection(self.node, caller, ours)
        answered.sendall(b"data")
        answered.close()
        assert caller.recv(9) == b"data" and caller.recv(9) == b""
        caller.close()  # its FIN gets the last ACK of a connection that no socket holds any more
        with pytest.raises(ConnectionRefusedError):
            self.open(self.peer).connect((ours, CLOSED))
        question = self.open(self.peer, socket.SOCK_DGRAM)
        question.connect((ours, CLOSED))
        question.send(b"question")
        with pytest.raises(ConnectionRefusedError):
            question.recv(9)
        protocol, number = {4: (socket.IPPROTO_ICMP, 8), 6: (socket.IPPROTO_ICMPV6, 128)}[self.family]
        echo = self.open(self.peer, socket.SOCK_RAW, protocol)
        body = struct.pack("!BBHHH", number, 0, 0 if self.family == 6 else 0xF7FE, 0, 1)
        echo.sendto(body, (ours, 0))
        self.wait("ack", "echo-reply", "rst", "unreachable")

    def wait(self, *kinds: str) -> None:
        """Wait until the node has sent these, which is the positive control."""
        wait_until(lambda: all(counters(self.node)[f"{kind}.seen"] for kind in kinds), 2, f"{kinds} of the node")

    def kinds(self, test: str) -> set[str]:
        """Return the kinds of which at least one packet was seen, and every packet passes the test."""
        now = counters(self.node)
        return {kind for kind in KINDS if now[f"{kind}.seen"] and now[f"{kind}.{test}"] == now[f"{kind}.seen"]}

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(params=at.FAMILIES, ids=["ipv4", "ipv6"])
def talk(node: Namespace, far: Namespace, request: pytest.FixtureRequest) -> Iterator[Talk]:
    made = Talk(node, far, request.param)
    yield made
    made.close()


SOCKETLESS = {"ack", "rst", "unreachable", "echo-reply"}


def test_L6_kernel_reply_has_no_owner(talk: Talk) -> None:
    """RST, last ACK, ICMP error and echo reply match neither a uid nor its negation; SYN-ACK, data and FIN have one."""
    talk.exchange()
    assert talk.kinds("seen") == set(KINDS), "the positive control: all of them must be seen"
    assert talk.kinds("owned") == set(KINDS) - SOCKETLESS, "HAS_OWNER in the identity chain sorts other packets here"
    assert talk.kinds("not-local") == set(KINDS) - SOCKETLESS, (
        "`skuid !=` matches packets without a socket here, or fails on some that have one: see the entitlement of marks"
    )
    assert talk.kinds("mine") == set(), "packets match a uid that no user has"


ARRIVAL = (
    "table inet arrival {\n chain c {\n  type filter hook prerouting priority -150; policy accept;\n"
    f"  iifname {WAN} meta mark set {MARK}\n }}\n}}\n"
)
REFLECT = ("net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect", "net.ipv4.tcp_fwmark_accept")


def test_L7_kernel_reply_by_default_has_no_mark(talk: Talk) -> None:
    """With the default sysctls every reply has mark 0, even to a marked packet."""
    for key in REFLECT:
        talk.node.sysctl(key, 0)
    talk.node.nft(ARRIVAL)
    talk.exchange()
    assert talk.kinds("unmarked") == set(KINDS), "replies carry a mark that no sysctl of ours set"


def test_L7_kernel_reply_with_two_sysctls_carries_mark(talk: Talk) -> None:
    """With fwmark_reflect and tcp_fwmark_accept every reply and each later segment carries the mark of the request."""
    for key in REFLECT:
        talk.node.sysctl(key, 1)
    talk.node.nft(ARRIVAL)
    talk.exchange()
    assert talk.kinds("marked") == set(KINDS), "the restore chain must put the mark on these answers as well"


def test_L8_closed_socket_keeps_mark_and_loses_owner(talk: Talk) -> None:
    """The FIN of a marked socket and the later RST of its orphan carry the mark; the RST has no owner."""
    caller = talk.open(talk.node)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    other = talk.connection(talk.peer, caller, at.HOME[talk.family])
    caller.close()
    assert other.recv(9) == b""
    other.sendall(b"too late")
    talk.wait("fin", "rst")
    assert talk.kinds("marked") >= {"fin", "rst"}, "the mark is no sound key for packets after close"
    assert talk.kinds("owned") & {"fin", "rst"} == {"fin"}, "the identity chain's rule for packets without owner"


def test_L8_connection_in_time_wait_keeps_mark(talk: Talk) -> None:
    """The ACK of a marked connection in TIME_WAIT carries the mark and has no owner."""
    caller = talk.open(talk.node)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    other = talk.connection(talk.peer, caller, at.HOME[talk.family])
    caller.close()
    assert other.recv(9) == b""
    before = counters(talk.node)
    other.close()
    wait_until(lambda: counters(talk.node)["ack.seen"] > before["ack.seen"], 2, "the last ACK")
    now = counters(talk.node)
    assert now["ack.marked"] - before["ack.marked"] == 1, "the mark is no sound key for connections in TIME_WAIT"
    assert now["ack.owned"] == before["ack.owned"], "the identity chain's rule for packets without owner"
