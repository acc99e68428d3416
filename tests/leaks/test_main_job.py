"""The main job: the shipped policy on a mesh node lets only the VPN and its DNS queries out by the WAN."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.guarded_lab import OTHER_GID, SERVICE_GID, Guarded, Run, guarded_lab, run_probes, watching
from tests.lab import addresses as at
from tests.lab import inbound_clients, leak_probes
from tests.lab.frames import classify
from tests.lab.inbound_clients import NO_ANSWER
from tests.lab.netns import Namespace

pytestmark = pytest.mark.slow

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
transports = pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])


@pytest.fixture(scope="module", params=[False, True], ids=["port", "bridge"])
def either(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    """The WAN as a device, and as a bridge with a port."""
    with guarded_lab(bridge=request.param) as made:
        yield made


def names(sents: set[leak_probes.Sent] | frozenset[leak_probes.Sent] | list[leak_probes.Sent]) -> list[str]:
    return sorted(str(sent.probe) for sent in sents)


def marked_of(run: Run) -> list[leak_probes.Sent]:
    return [sent for sent in run.sents if sent.probe.marked]


# Every kind of packet


def test_wan_carries_marked_packets_only(either: Guarded) -> None:
    with watching(either.lab) as watch:
        run = run_probes(either.lab)
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert {sent.probe.kind for sent in run.sents} >= leak_probes.KINDS.keys() - {"udplite"}
    assert names(run.wan) == names(marked_of(run))
    assert [sent for sent in run.mesh if sent.probe.marked] == []
    assert run.unexplained() == []
    # Those that ask the routes go by the mesh: not one is lost between the ways.
    by_route = {sent for sent in run.sents if not sent.probe.marked and sent.probe.needs == leak_probes.DEFAULT_IN_MAIN}
    assert names(by_route - run.mesh) == []


def test_packets_on_wan_have_wan_address(either: Guarded) -> None:
    run = run_probes(either.lab, [probe for probe in leak_probes.matrix() if probe.marked and probe.family])
    own = {either.lab.wan_address(4), either.lab.wan_address(6)}
    sources = {(frame.saddr, str(sent.probe)) for frame in run.frames for sent in run.wan if sent.matches(frame)}
    near = ("unicast-scope", "multicast-link", "multicast-scope")  # from the link-local address
    wrong = {(a, p) for a, p in sources if a not in own and not (str(a).startswith("fe80:") and p.startswith(near))}
    assert len({p for _, p in sources}) == len(run.sents)
    assert wrong == set()


def test_marked_packets_avoid_mesh_while_wan_is_down(either: Guarded) -> None:
    either.lab.wan_down()
    try:
        with watching(either.lab) as watch:
            run = run_probes(either.lab)
            assert watch.stray == 0
        assert [sent for sent in run.mesh if sent.probe.marked] == []
        assert [sent for sent in run.mesh if not sent.probe.marked] != [], "inconclusive: the mesh is down too"
    finally:
        either.lab.wan_up()
    back = run_probes(either.lab)
    assert names(back.wan) == names(marked_of(back))


@families
def test_marked_packets_bound_to_mesh_are_dropped(guarded: Guarded, family: int) -> None:
    def enters(mark: int) -> bool:
        guarded.lab.mesh_sniffer.drain()
        guarded.lab.node.call(by_the_mesh, family, mark, gid=SERVICE_GID, keep_caps=True)
        return bool(guarded.lab.mesh_sniffer.wait_for(lambda frame: b"by the mesh" in frame.payload, 0.2))

    before = guarded.counters()["inet/wan.stray"]
    with watching(guarded.lab) as watch:
        assert not enters(1)
        assert watch.stray == 0
    assert guarded.counters()["inet/wan.stray"] > before
    assert enters(0), "inconclusive"
    with guarded.off():
        assert enters(1), "inconclusive"


def by_the_mesh(family: int, mark: int) -> None:
    """Send to the gateway and to a group, by the mesh device."""
    group = {4: "239.1.2.3", 6: "ff05::1234"}[family]
    for address in (at.GATEWAY[family], group):
        with socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.MESH.encode())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            with contextlib.suppress(OSError):
                made.sendto(b"by the mesh", (address, 9))


def test_unmarked_packets_without_mesh_default_are_dropped(either: Guarded) -> None:
    either.lab.mesh_default(False)
    try:
        with watching(either.lab) as watch:
            run = run_probes(either.lab)
            assert (watch.unmarked, watch.stray) == (0, 0)
        assert names(run.wan) == names(marked_of(run))
        assert run.unexplained() == []
    finally:
        either.lab.mesh_default(True)


def test_unmarked_packets_leave_by_mesh(guarded: Guarded) -> None:
    for space, address in ((guarded.lab.node, at.NODE_MESH), (guarded.lab.client, at.CLIENT_ADDRESS)):
        for family in (4, 6):
            assert space.call(inbound_clients.udp, at.SERVER[family], at.ECHO_PORT) == b"hello"
            assert space.call(inbound_clients.tcp, at.SERVER[family], at.ECHO_PORT) == b"hello"
            assert space.call(inbound_clients.ping, at.SERVER[family])
            assert guarded.lab.mesh_sniffer.wait_for(lambda frame, a=address[family]: frame.saddr == a, 0)


def test_packets_of_neighbour_are_not_forwarded(guarded: Guarded) -> None:
    home = guarded.lab.home
    for family in (4, 6):
        node = guarded.lab.wan_address(family)
        home.ip(f"-{family} route replace {at.MESH_NET[family]} via {node} dev br-lan")
        home.ip(f"-{family} route replace {at.CLIENT_NET[family]} via {node} dev br-lan")

    def tries() -> list[str]:
        guarded.lab.mesh_sniffer.drain()
        heard = []
        for family in (4, 6):
            home.call(inbound_clients.udp, at.GATEWAY[family], 4242, b"through", 0.1)
            home.call(inbound_clients.tcp, at.CLIENT_ADDRESS[family], 4243, b"", 0.1)
            if guarded.lab.mesh_sniffer.wait_for(lambda frame: b"through" in frame.payload, 0.2):
                heard.append(f"mesh {family}")
        return heard

    with guarded.off():
        assert tries() == ["mesh 4", "mesh 6"], "inconclusive"
    with watching(guarded.lab) as watch:
        assert tries() == []
        assert (watch.unmarked, watch.stray) == (0, 0)


# Identity


@families
def test_root_without_group_cannot_use_mark(guarded: Guarded, family: int) -> None:
    probe = leak_probes.Probe("udp", family, marked=True)
    before = guarded.counters()["inet/wan.unentitled"]
    (unentitled,) = leak_probes.send_all(guarded.lab, [probe], gid=OTHER_GID, uid=0)
    (entitled,) = leak_probes.send_all(guarded.lab, [probe], gid=SERVICE_GID, uid=0)
    assert leak_probes.sightings(guarded.lab.wan, [unentitled, entitled], 0.3) == {entitled}
    assert unentitled.error == "EPERM"
    assert not leak_probes.seen(guarded.lab.mesh_sniffer, unentitled)
    assert guarded.counters()["inet/wan.unentitled"] == before + 1


def test_root_without_group_cannot_use_mark_by_any_probe(guarded: Guarded) -> None:
    # Frames of AF_PACKET are not asked for their owner: only root sends them, and root can take the guard away.
    which = [probe for probe in leak_probes.matrix() if probe.marked and not probe.kind.startswith("packet")]
    run = run_probes(guarded.lab, which, gid=OTHER_GID)
    assert names(run.wan) == []
    assert names(run.mesh) == []
    control = run_probes(guarded.lab, which)
    assert names(control.wan) == names(list(control.sents)), "inconclusive"


# Names

SERVERS = ("127.0.0.1", "::1", at.GATEWAY[4], at.GATEWAY[6], "203.0.113.77", "2001:db8:3::77")


@transports
@families
@pytest.mark.parametrize("server", SERVERS)
def test_service_gets_names_from_wan(guarded: Guarded, server: str, family: int, tcp: bool) -> None:
    guarded.lab.mesh_sniffer.drain()
    assert guarded.lab.resolve(at.WHO, family, server, tcp, gid=SERVICE_GID) == [at.WHO_AT_HOME[family]]
    assert guarded.lab.resolve(at.VPN, family, server, tcp, gid=SERVICE_GID) == [at.SERVER[family]]
    assert [frame for frame in guarded.lab.mesh_sniffer.frames() if 53 in (frame.sport, frame.dport)] == []


@transports
@families
@pytest.mark.parametrize("server", SERVERS[:4])
def test_other_users_get_names_from_mesh(guarded: Guarded, server: str, family: int, tcp: bool) -> None:
    guarded.lab.wan.drain()
    for uid in (0, 65534):
        assert guarded.lab.resolve(at.WHO, family, server, tcp, gid=OTHER_GID, uid=uid) == [at.WHO_IN_MESH[family]]
        assert guarded.lab.resolve(at.VPN, family, server, tcp, gid=OTHER_GID, uid=uid) == "nxdomain"
    assert [frame for frame in guarded.lab.wan.frames() if 53 in (frame.sport, frame.dport)] == []


@transports
@pytest.mark.parametrize("server", SERVERS[:2])
def test_A24_resolver_refuses_other_groups(guarded: Guarded, server: str, tcp: bool) -> None:
    refused = "timeout" if tcp else "EPERM"  # the SYN is dropped again and again
    guarded.lab.wan.drain()
    before = guarded.counters()["inet/wan.resolver-refused"]
    for uid in (0, 65534):
        answer = guarded.lab.resolve(at.WHO, 4, server, tcp, gid=OTHER_GID, uid=uid, port=54, seconds=0.2)
        assert answer == refused
    assert guarded.counters()["inet/wan.resolver-refused"] > before
    # Without a payload it may be the end of an earlier connection of the resolver.
    assert [frame for frame in guarded.lab.wan.frames() if frame.dport == 53 and frame.payload] == []
    answer = guarded.lab.resolve(at.WHO, 4, server, tcp, gid=SERVICE_GID, port=54)
    assert answer == [at.WHO_AT_HOME[4]], "inconclusive: the resolver answers nobody"


@transports
@families
def test_A24_resolver_is_unreachable_from_outside(guarded: Guarded, family: int, tcp: bool) -> None:
    knock = inbound_clients.tcp if tcp else inbound_clients.udp
    for space, address in (
        (guarded.lab.neighbour, guarded.lab.wan_address(family)),
        (guarded.lab.client, at.NODE_CLIENT[family]),
        (guarded.lab.mesh, at.NODE_MESH[family]),
    ):
        answer = space.call(knock, address, 54, b"", 0.3)
        assert isinstance(answer, str), f"{space.name}: {answer!r}"
    answer = guarded.lab.resolve(at.WHO, family, "127.0.0.1", tcp, gid=SERVICE_GID, port=54)
    assert answer == [at.WHO_AT_HOME[family]], "inconclusive: the resolver answers nobody"


# From outside


@pytest.fixture(scope="module", params=[0, 65534], ids=["root", "nobody"])
def listeners(request: pytest.FixtureRequest, guarded: Guarded) -> Iterator[Guarded]:
    """Services on the node, of root and of another user: SSH, and a service on port 8080, both on UDP too."""
    guarded.lab.node.sysctl("net.ipv4.ip_unprivileged_port_start", 0)
    ids = {"uid": request.param, "gid": OTHER_GID}
    with (
        inbound_clients.listening(guarded.lab.node, 22, **ids),
        inbound_clients.listening(guarded.lab.node, 8080, **ids),
    ):
        yield guarded


def askers(guarded: Guarded) -> tuple[Namespace, ...]:
    return guarded.lab.neighbour, guarded.lab.home, guarded.lab.server


@families
def test_ssh_and_ping_are_answered_by_wan(listeners: Guarded, family: int) -> None:
    lab, address = listeners.lab, listeners.lab.wan_address(family)
    lab.wan.drain(), lab.mesh_sniffer.drain()
    data = bytes(range(256)) * 12
    with watching(lab) as watch:
        for space in askers(listeners):
            assert space.call(inbound_clients.tcp, address, 22, data) == data
            assert space.call(inbound_clients.ping, address)
            assert space.call(inbound_clients.ping, address, 0.6, bytes(3000))  # in fragments
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert any(frame.sport == 22 and len(frame.payload) > 1000 for frame in lab.wan.frames())
    assert [frame for frame in lab.mesh_sniffer.frames() if frame.saddr == address] == []


@families
def test_other_ports_on_wan_are_not_answered(listeners: Guarded, family: int) -> None:
    lab, address = listeners.lab, listeners.lab.wan_address(family)

    def answers() -> list[bytes | str]:
        return [
            space.call(knock, address, port, b"hello", 0.1)
            for space in askers(listeners)[1:]
            for knock, port in (
                (inbound_clients.tcp, 8080),
                (inbound_clients.udp, 8080),
                (inbound_clients.udp, 22),
                (inbound_clients.udp, 8081),
            )
        ]

    lab.wan.drain(), lab.mesh_sniffer.drain()
    with watching(lab) as watch:
        assert set(answers()) == {NO_ANSWER}
        assert (watch.unmarked, watch.stray) == (0, 0)
    answer_frames = [
        frame for frame in lab.wan.frames() if frame.sport in (8080, 8081, 22) or classify(frame) == "icmp-error"
    ]
    assert answer_frames == []
    assert [frame for frame in lab.mesh_sniffer.frames() if frame.saddr == address] == []
    assert [frame for frame in lab.mesh_sniffer.frames() if classify(frame) == "icmp-error"] == []
    with listeners.off():  # the replies take the way of the mesh then, but they are there
        answers()
        assert {frame.sport for frame in lab.mesh_sniffer.frames()} >= {8080, 22}, "inconclusive"


@families
def test_same_ports_on_mesh_are_answered(listeners: Guarded, family: int) -> None:
    for space, address in ((listeners.lab.mesh, at.NODE_MESH), (listeners.lab.client, at.NODE_CLIENT)):
        for port in (22, 8080):
            assert space.call(inbound_clients.tcp, address[family], port) == b"hello"
            assert space.call(inbound_clients.udp, address[family], port) == b"hello"
        assert space.call(inbound_clients.udp, address[family], 8081) == "ECONNREFUSED"


# The VPN itself


def test_vpn_connects_through_guard() -> None:
    with guarded_lab(resolver=True) as made:
        made.lab.start_fastd_client(SERVICE_GID, remote=at.VPN)
        (peer,) = made.lab.wait_for_fastd().values()
        assert any((made.lab.wan_address(family) or "?") in peer["address"] for family in (4, 6))
        mesh = made.lab.mesh_sniffer.frames()
        assert [frame for frame in mesh if at.FASTD_PORT in (frame.sport, frame.dport)] == []


def test_vpn_without_mark_does_not_connect_by_wan() -> None:
    with guarded_lab(resolver=True) as made:
        made.lab.start_fastd_client(SERVICE_GID, mark=0, remote=at.SERVER[4])
        assert made.lab.mesh_sniffer.wait_for(lambda frame: frame.dport == at.FASTD_PORT, 5)
        assert [frame for frame in made.lab.wan.frames() if frame.dport == at.FASTD_PORT] == []
