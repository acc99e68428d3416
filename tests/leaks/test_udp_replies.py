"""Replies of UDP servers to hosts at the WAN: by the WAN, from the address that was asked, or not at all."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.guarded_lab import Guarded, guarded_lab, watching
from tests.lab import addresses as at
from tests.lab.conntrack_flush import flush_flows
from tests.lab.limits import limit
from tests.lab.netns import Namespace, wait_until
from tests.leaks.test_forged_arrivals import DATAGRAM, DOMAIN, SERVICE, answering

WILDCARD, BOUND, PKTINFO = "wildcard", "bound", "pktinfo"
WAN, MESH, LOST = "by the WAN", "by the mesh", "lost"
ANY = {4: "0.0.0.0", 6: "::"}
UDP4 = (socket.AF_INET, DATAGRAM)
families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab(answering) as found:
        yield found


class Exchange:
    """A UDP server of the node, and a client at the WAN that asks it."""

    def __init__(self, made: Guarded, stack: ExitStack, family: int, mode: str) -> None:
        self.lab, self.family, self.mode = made.lab, family, mode
        self.address = made.lab.wan_address(family) or ""
        self.server = stack.enter_context(made.lab.node.socket(DOMAIN[family], DATAGRAM))
        if family == 6:
            self.server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.server.bind((self.address if mode == BOUND else ANY[family], SERVICE))
        self.client = stack.enter_context(made.lab.neighbour.socket(DOMAIN[family], DATAGRAM))
        for each in (self.server, self.client):
            each.settimeout(limit(5))
        self.client.bind((at.NEIGHBOUR[family], 0))
        self.client.connect((self.address, SERVICE))

    def ask(self) -> None:
        """Send a request; the server gets it."""
        self.client.send(b"request")
        assert self.server.recv(100) == b"request"

    def reply(self) -> str:
        """Send a reply; return where it goes."""
        token = os.urandom(8).hex().encode()
        self.lab.wan.drain(), self.lab.mesh_sniffer.drain()
        target = self.client.getsockname()[:2]
        try:
            if self.mode == PKTINFO:
                self.server.sendmsg([token], [self._source()], 0, target)
            else:
                self.server.sendto(token, target)
        except OSError:
            return LOST
        frame = self.lab.wan.wait_for(lambda frame: token in frame.payload, 0.3)
        if frame is not None:
            assert self.client.recv(100) == token, "it has another source address than the one that was asked"
            return WAN
        return MESH if any(token in frame.payload for frame in self.lab.mesh_sniffer.frames()) else LOST

    def _source(self) -> tuple[int, int, bytes]:
        """Return the control message that selects the source address, and no device."""
        raw = socket.inet_pton(DOMAIN[self.family], self.address)
        if self.family == 4:
            return socket.IPPROTO_IP, 8, bytes(4) + raw + bytes(4)  # IP_PKTINFO, struct in_pktinfo
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, raw + bytes(4)


@contextmanager
def exchange(made: Guarded, family: int, mode: str, default: bool) -> Iterator[Exchange]:
    """Yield a new exchange; with `default`, main has a default route by the mesh."""
    if not default:
        made.lab.mesh_default(False)
    try:
        with ExitStack() as stack:
            yield Exchange(made, stack, family, mode)
    finally:
        if not default:
            made.lab.mesh_default(True)


@families
@pytest.mark.parametrize("mode", [WILDCARD, BOUND, PKTINFO])
@pytest.mark.parametrize("default", [True, False], ids=["default-inside", "no-default"])
def test_udp_reply_leaves_by_wan_or_not_at_all(made: Guarded, family: int, mode: str, default: bool) -> None:
    expected = LOST if default and mode == WILDCARD else WAN
    with watching(made.lab) as watch, exchange(made, family, mode, default) as talk:
        talk.ask()
        assert talk.reply() == expected
        assert talk.reply() == expected, "the server speaks again"
        flush_flows(made.lab.node)
        assert talk.reply() == LOST, "nothing tells that it is a reply"
        talk.ask()
        assert talk.reply() == expected
        assert (watch.unmarked, watch.stray) == (0, 0)


@families
def test_wildcard_reply_is_counted(made: Guarded, family: int) -> None:
    before = made.counters()["inet/wan.misrouted-reply"]
    with exchange(made, family, WILDCARD, True) as talk:
        talk.ask()
        assert talk.reply() == LOST
    assert made.counters()["inet/wan.misrouted-reply"] == before + 1


def other_port_goes_inside(made: Guarded, family: int, host: Namespace, client: str) -> bool:
    """Ask a server that replies by a new socket on the address that was asked (TFTP); return True if it goes inside."""
    address = made.lab.wan_address(family) or ""
    with (
        made.lab.node.socket(DOMAIN[family], DATAGRAM) as server,
        made.lab.node.socket(DOMAIN[family], DATAGRAM) as second,
        host.socket(DOMAIN[family], DATAGRAM) as asking,
    ):
        server.settimeout(limit(5))
        server.bind((address, SERVICE))
        second.bind((address, 0))
        asking.bind((client, 0))
        asking.sendto(b"request", (address, SERVICE))
        assert server.recv(100) == b"request"
        token = os.urandom(8).hex().encode()
        made.lab.mesh_sniffer.drain()
        for _ in range(2):
            with suppress(PermissionError):
                second.sendto(token, asking.getsockname()[:2])
        return made.lab.mesh_sniffer.wait_for(lambda frame: token in frame.payload, 0.3) is not None


def test_udp_reply_without_policy_goes_into_mesh(made: Guarded) -> None:
    """Positive control: main leads it there, a wildcard's from the address of the mesh."""
    with made.off():
        for family in at.FAMILIES:
            for mode in (WILDCARD, BOUND):
                with exchange(made, family, mode, True) as talk:
                    talk.ask()
                    assert talk.reply() == MESH, (family, mode)
            assert other_port_goes_inside(made, family, made.lab.neighbour, at.NEIGHBOUR[family])


def test_reply_from_another_port_never_goes_inside(made: Guarded) -> None:
    """To conntrack it begins a flow, which main leads into the mesh: the test before this one is the control."""
    with watching(made.lab) as watch:
        for family in at.FAMILIES:
            assert not other_port_goes_inside(made, family, made.lab.neighbour, at.NEIGHBOUR[family])
            assert not other_port_goes_inside(made, family, made.lab.server, at.SERVER[family])
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert made.nftpolicy("verify", "--live").stdout.startswith("proved")


@families
def test_flow_inside_outlives_forged_request(made: Guarded, family: int) -> None:
    """A host at the WAN with the address of one inside ends no flow with that from the WAN's address."""
    address, inside = made.lab.wan_address(family) or "", at.GATEWAY[family]
    made.lab.neighbour.ip(f"-{family} address add {inside} dev lo" + " nodad" * (family == 6))
    try:
        with ExitStack() as stack:
            ours, later = (stack.enter_context(made.lab.node.socket(DOMAIN[family], DATAGRAM)) for _ in range(2))
            forger = stack.enter_context(made.lab.neighbour.socket(DOMAIN[family], DATAGRAM))
            peer = stack.enter_context(made.lab.mesh.socket(DOMAIN[family], DATAGRAM))
            peer.settimeout(limit(5))
            peer.bind((inside, 0))
            for each in (ours, later):
                each.bind((address, 0))
                each.connect(peer.getsockname()[:2])
            ours.send(b"first")
            assert peer.recv(100) == b"first"
            forger.bind((inside, 0))
            forger.sendto(b"request", (address, SERVICE))
            listed = f"nft list set inet nftpolicy wan.askers{family}".split()
            wait_until(lambda: inside in made.lab.node.run(listed).stdout, 5, "the forged request")
            with pytest.raises(PermissionError):
                later.send(b"the control: to the guard, a reply")
            ours.send(b"again")
            assert peer.recv(100) == b"again"
    finally:
        made.lab.neighbour.ip(f"-{family} address del {inside} dev lo")


@families
def test_own_udp_traffic_from_answered_port_passes_inside(made: Guarded, family: int) -> None:
    """A server on the same port goes on serving the mesh, and may speak first there."""
    with ExitStack() as stack:
        server = stack.enter_context(made.lab.node.socket(DOMAIN[family], DATAGRAM))
        if family == 6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind((ANY[family], SERVICE))
        peer = stack.enter_context(made.lab.mesh.socket(DOMAIN[family], DATAGRAM))
        for each in (server, peer):
            each.settimeout(limit(5))
        peer.bind((at.GATEWAY[family], 0))
        server.sendto(b"first", peer.getsockname()[:2])
        assert peer.recv(100) == b"first"
        peer.sendto(b"request", (at.NODE_MESH[family], SERVICE))
        assert server.recv(100) == b"request"
        server.sendto(b"reply", peer.getsockname()[:2])
        assert peer.recv(100) == b"reply"


def test_status_is_right_after_requests(made: Guarded) -> None:
    """Packets add elements to the sets of peers; that is no difference from the policy."""
    for family in at.FAMILIES:
        with exchange(made, family, BOUND, True) as talk:
            talk.ask()
    listed = made.lab.node.run(["nft", "list", "set", "inet", "nftpolicy", "wan.peers4"]).stdout
    assert at.NEIGHBOUR[4] in listed
    assert made.nftpolicy("status", check=False).returncode == 0
    assert "in force already" in made.apply()


def test_answer_to_broadcast_does_not_go_inside(made: Guarded) -> None:
    """To conntrack it is no reply, since nothing was asked at the address that it is sent from."""

    def goes_inside() -> bool:
        with made.lab.node.socket(*UDP4) as server, made.lab.neighbour.socket(*UDP4) as client:
            server.settimeout(limit(5))
            server.bind(("", SERVICE))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            client.bind((at.NEIGHBOUR[4], 0))
            client.sendto(b"question", (at.HOME_BROADCAST, SERVICE))
            token = os.urandom(8).hex().encode()
            made.lab.mesh_sniffer.drain()
            with suppress(PermissionError):
                server.sendto(token, server.recvfrom(100)[1])
            return made.lab.mesh_sniffer.wait_for(lambda frame: token in frame.payload, 0.3) is not None

    assert not goes_inside()
    with made.off():
        assert goes_inside(), "inconclusive: the answer does not go inside without the policy either"


def test_wildcard_server_replies_from_exclusive_port(made: Guarded) -> None:
    text = made.file.read_text()
    plain = f'"udp/{SERVICE}"'
    assert text.count(plain) == 1
    for family in at.FAMILIES:
        with exchange(made, family, WILDCARD, default=True) as without:
            without.ask()
            assert without.reply() == LOST, "the control: without the word"
    made.file.write_text(text.replace(plain, f"{{ name = {plain}, exclusive = true }}"))
    made.apply()
    try:
        for family in at.FAMILIES:
            with exchange(made, family, WILDCARD, default=True) as one, watching(made.lab) as watch:
                for _ in range(2):
                    one.ask()
                    assert one.reply() == WAN
                with made.lab.client.socket(DOMAIN[family], DATAGRAM) as inside:
                    inside.settimeout(limit(5))
                    inside.bind((at.CLIENT_ADDRESS[family], 0))
                    one.server.sendto(b"to a network inside", inside.getsockname()[:2])
                    assert inside.recv(100) == b"to a network inside"
                assert watch.unmarked == 0
        assert made.nftpolicy("verify", "--live").stdout.startswith("proved")
        made.lab.node.ip("rule del priority 895")
        report = made.nftpolicy("verify", "--live", check=False).stdout
        assert report.startswith("REFUTED") and f"udp/{SERVICE} of a server that is bound to no address" in report
    finally:
        made.file.write_text(text)
        made.apply()
