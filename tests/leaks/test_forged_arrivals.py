"""C-B: packets from the uplink's network that move a session of a host inside, and sockets that inherit the mark.

The control of each: a foreign rule marks the flow of every packet, or the guard is removed, and the session leaves.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.guarded_lab import OTHER_GID, Guarded, gluon, guarded_lab
from tests.lab import addresses as at
from tests.lab.frames import TCP, UDP, checksum
from tests.lab.limits import limit
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
SSH, OTHER, SERVICE = 22, 2222, 4444  # answered TCP port, a port that is not answered, answered UDP and TCP port
FIN, SYN, RST, ACK = 1, 2, 4, 16

# Marks the flow of each packet that arrives by the WAN, as a rule without a test of the flow's begin does.
MARKS_EACH = """
table inet foreign {
    chain arrival {
        type filter hook prerouting priority -140
        iifname "br-wan" ct mark set 1
    }
}
"""
MARKS_FIRST = """
table inet foreign {
    chain arrival {
        type filter hook prerouting priority PRIORITY
        iifname "bat0" ct status ! confirmed ct mark set 1
    }
}
"""


def answering(lab: Lab) -> str:
    """Return the shipped policy that also answers UDP and TCP on one port that any user can bind."""
    return gluon(lab).replace('["ssh", "ping"]', f'["ssh", "ping", "udp/{SERVICE}", "tcp/{SERVICE}"]')


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab(answering) as made:
        for family in at.FAMILIES:
            # A host in the mesh can reach the node by its WAN address.
            address = made.lab.wan_address(family)
            made.lab.mesh.ip(f"-{family} route add {address} via {at.NODE_MESH[family]} dev to-node")
        yield made


class Session:
    """A session of the mesh's gateway with a service of the node, at the node's WAN address."""

    def __init__(self, made: Guarded, stack: ExitStack, family: int, kind: int, port: int) -> None:
        lab, self.family, self.port = made.lab, family, port
        self.address = lab.wan_address(family) or ""
        self._wan = lab.wan
        listener = stack.enter_context(lab.node.socket(DOMAIN[family], kind))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.address, port))
        self.client = stack.enter_context(lab.mesh.socket(DOMAIN[family], kind))
        for one in (listener, self.client):
            one.settimeout(limit(5))
        if kind == STREAM:
            listener.listen()
        self.client.bind((at.GATEWAY[family], 0))
        self.client.connect((self.address, port))
        self.client_port = self.client.getsockname()[1]
        if kind == STREAM:
            self.server, _ = listener.accept()
            stack.enter_context(self.server)
            self.server.settimeout(limit(5))
        else:
            self.server = listener
        self.ask()

    def ask(self) -> None:
        """Send a request; it arrives."""
        self.client.send(b"request")
        assert self.server.recv(100) == b"request"

    def answer(self) -> tuple[bool, bool]:
        """Send an answer; return if it leaves by the WAN, and if the client receives it."""
        token = os.urandom(8).hex().encode()
        self._wan.drain()
        if self.server.type == STREAM:
            self.server.send(token)
        else:
            self.server.sendto(token, (at.GATEWAY[self.family], self.client_port))
        left = self._wan.wait_for(lambda frame: token in frame.payload, 0.3) is not None
        self.client.settimeout(limit(2) if not left else 0.1)
        try:
            return left, self.client.recv(100) == token
        except TimeoutError:
            return left, False


@contextmanager
def session(made: Guarded, family: int, kind: int, port: int) -> Iterator[Session]:
    with ExitStack() as stack:
        yield Session(made, stack, family, kind, port)


@contextmanager
def foreign(made: Guarded, text: str) -> Iterator[None]:
    made.lab.node.nft(text)
    try:
        yield
    finally:
        made.lab.node.nft("delete table inet foreign")


def forge(made: Guarded, one: Session, flags: int | None) -> None:
    """Send a packet of the session's client from the home's network: TCP with these flags, or UDP."""
    made.lab.home.call(send_forged, one.family, at.GATEWAY[one.family], one.address, one.client_port, one.port, flags)


def send_forged(family: int, source: str, destination: str, sport: int, dport: int, flags: int | None) -> None:
    addresses = socket.inet_pton(DOMAIN[family], source) + socket.inet_pton(DOMAIN[family], destination)
    if flags is None:
        protocol, packet, place = UDP, struct.pack("!HHHH", sport, dport, 14, 0) + b"forged", 6
    else:
        protocol, place = TCP, 16
        packet = struct.pack("!HHIIBBHHH", sport, dport, 0x11111111, 0, 0x50, flags, 1000, 0, 0)
    pseudo = addresses + struct.pack("!II", len(packet), protocol)
    packet = packet[:place] + struct.pack("!H", checksum(pseudo + packet)) + packet[place + 2 :]
    if family == 4:
        header = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(packet), 0, 64, protocol, 0) + addresses
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    else:
        header = struct.pack("!IHBB", 6 << 28, len(packet), protocol, 64) + addresses
    ethertype = {4: 0x0800, 6: 0x86DD}[family]
    macs = bytes.fromhex(at.NODE_WAN_MAC.replace(":", "") + at.HOME_MAC.replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.sendto(macs + struct.pack("!H", ethertype) + header + packet, ("lan-node", ethertype))


FORGED = {"syn": SYN, "ack": ACK, "syn-ack": SYN | ACK, "fin": FIN | ACK}


@families
@pytest.mark.parametrize("port", [SSH, SERVICE, OTHER])
@pytest.mark.parametrize("flags", FORGED.values(), ids=FORGED)
def test_B18_forged_tcp_does_not_move_session(made: Guarded, family: int, port: int, flags: int) -> None:
    with session(made, family, STREAM, port) as one:
        forge(made, one, flags)
        assert one.answer() == (False, True)
        assert one.answer() == (False, True)


@families
@pytest.mark.parametrize("answered", [True, False], ids=["established", "new"])
@pytest.mark.parametrize("port", [SERVICE, OTHER])
def test_B18_forged_udp_does_not_move_session(made: Guarded, family: int, port: int, answered: bool) -> None:
    with session(made, family, DATAGRAM, port) as one:
        if answered:
            assert one.answer() == (False, True)
        forge(made, one, None)
        assert one.server.recv(100) == b"forged", "inconclusive: it did not arrive"
        assert one.answer() == (False, True)


@families
@pytest.mark.parametrize(
    ("kind", "port", "flags"), [(STREAM, SSH, SYN), (STREAM, OTHER, SYN), (DATAGRAM, SERVICE, None)]
)
def test_B18_flow_marked_by_foreign_rule_moves(
    made: Guarded, family: int, kind: int, port: int, flags: int | None
) -> None:
    """The control: the same packets move the session where a rule marks the flow of each packet."""
    with foreign(made, MARKS_EACH), session(made, family, kind, port) as one:
        assert one.answer() == (False, True), "inconclusive"
        forge(made, one, flags)
        left, arrived = one.answer()
        assert not arrived, "the control: the forged packet does not belong to the flow"
        assert left == (port != OTHER)


@families
def test_B18_reply_to_forged_packet_stays_inside(made: Guarded, family: int) -> None:
    """The kernel answers a forged packet of a closed connection with its mark (fwmark_reflect)."""

    def replies(seconds: float) -> bool:
        with session(made, family, STREAM, SSH) as one:
            one.server.close()
            assert one.client.recv(1) == b""
            one.client.close()
            port = one.client_port
            waiting = ["ss", "-Htan", "state", "time-wait", f"dport = :{port}"]  # not one of an earlier connection
            wait_until(lambda: made.lab.node.run(waiting).stdout, 20, "the end of the connection")
            made.lab.wan.drain()
            forge(made, one, ACK)
            return made.lab.wan.wait_for(lambda frame: (frame.l4proto, frame.dport) == (TCP, port), seconds) is not None

    # Whether the kernel answers depends on the number that the connection began with.
    assert not any(replies(0.3) for _ in range(4))
    made.lab.node.nft("insert rule inet nftpolicy wan.mark-owner ct state established accept")
    try:
        assert any(replies(0.5) for _ in range(40)), "the control: the kernel does not answer"
    finally:
        made.apply()


@families
def test_B8_flow_that_inherits_the_mark_stays_inside(made: Guarded, family: int) -> None:
    """A flow that begins inside with the mark of another, as a helper expects it, loses the mark."""
    with foreign(made, MARKS_FIRST.replace("PRIORITY", "-160")), session(made, family, DATAGRAM, SERVICE) as one:
        assert one.answer() == (False, True)
    with foreign(made, MARKS_FIRST.replace("PRIORITY", "-140")), session(made, family, DATAGRAM, SERVICE) as one:
        assert one.answer()[0], "the control: a marked flow does not leave"


# --- B19: the socket that accepts a connection by the uplink inherits its mark --------------------


def accept_and_connect(family: int) -> tuple[int, str]:
    """Accept a connection, disconnect the socket and connect it elsewhere; return its mark and the outcome."""
    with socket.socket(DOMAIN[family], STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", SERVICE))
        listener.listen()
        listener.settimeout(limit(5))
        one, _ = listener.accept()
    with one:
        mark = one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        ctypes.CDLL(None).connect(one.fileno(), struct.pack("H26x", socket.AF_UNSPEC), 28)
        one.settimeout(0.3)
        try:
            one.connect((at.SERVER[family], at.ECHO_PORT))
        except OSError as error:
            return mark, type(error).__name__
        return mark, "connected"


def connect_until_accepted(address: str) -> None:
    """Connect to the port that any user can bind, as soon as a socket listens."""

    def is_accepted() -> bool:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, STREAM) as one:
            one.settimeout(0.3)
            return one.connect_ex((address, SERVICE)) == 0

    wait_until(is_accepted, 20, "the listener")


def connects_elsewhere(made: Guarded, family: int) -> tuple[int, str]:
    client = made.lab.home.spawn(connect_until_accepted, made.lab.wan_address(family))
    try:
        found: tuple[int, str] = made.lab.node.call(accept_and_connect, family, uid=OTHER_GID, gid=OTHER_GID)
    finally:
        made.lab.home.end(client)
    return found


@families
def test_B19_accepted_socket_cannot_connect_elsewhere(made: Guarded, family: int) -> None:
    before = made.counters()["inet/wan.unentitled"]
    mark, outcome = connects_elsewhere(made, family)
    assert mark & 1, "inconclusive: the socket does not inherit the mark"
    assert outcome != "connected"
    assert made.counters()["inet/wan.unentitled"] > before
    made.lab.node.nft(FREE)
    try:
        assert connects_elsewhere(made, family) == (1, "connected"), "the control: it does not even try"
    finally:
        made.apply()


# No guard, but the marks of arriving packets and the ip rules.
FREE = """
delete table netdev nftpolicy
flush chain inet nftpolicy guard
chain inet nftpolicy guard { policy accept; }
"""
