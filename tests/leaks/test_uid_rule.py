"""marks = "uid-rule": a program that sets no mark uses the uplink by its user id, and no other user does."""

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    OTHER_GID,
    SERVICE_GID,
    Guarded,
    gluon,
    guarded_lab,
    no_wan_routes_in_main,
    wan_routes_in_main,
    watching,
)
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

pytestmark = pytest.mark.slow

ANYWHERE, NARROW, NOBODY = 901, 902, 4711
DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])


def policy(lab: Lab) -> str:
    """Return the shipped policy, with users that set no mark."""
    services = f"""
[service.updates]
uplink = "wan"
user   = {ANYWHERE}
marks  = "uid-rule"

[service.narrow]
uplink = "wan"
user   = {NARROW}
marks  = "uid-rule"
ports  = ["tcp/{at.ECHO_PORT}", "udp/{at.ECHO_PORT}"]
"""
    return gluon(lab) + services


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    """Node whose WAN is a bridge, so that packets pass the link guard of its port too."""
    with guarded_lab(policy, resolver=True, bridge=True) as found:
        yield found


def talk(family: int, tcp: bool, port: int) -> str:
    """Exchange data with the server; return the source address or the error. Runs inside the node."""
    with socket.socket(DOMAIN[family], socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as made:
        made.settimeout(0.5)
        try:
            made.connect((at.SERVER[family], port))
            made.sendall(b"by its user")
            assert made.recv(99) == b"by its user"
        except OSError as error:
            return type(error).__name__
        return str(made.getsockname()[0])


@families
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_uid_rule_user_leaves_by_wan_other_user_does_not(made: Guarded, family: int, tcp: bool) -> None:
    lab, wan = made.lab, made.lab.wan_address(family)
    lab.wan.drain(), lab.mesh_sniffer.drain()
    with watching(lab) as watch:
        for user in (ANYWHERE, NARROW):
            assert lab.node.call(talk, family, tcp, at.ECHO_PORT, uid=user, gid=OTHER_GID) == wan
        assert (watch.unmarked, watch.stray) == (0, 0), "behind the guard it carries the mark, for the link guard"
    assert any(b"by its user" in frame.payload and frame.saddr == wan for frame in lab.wan.frames())
    assert [frame for frame in lab.mesh_sniffer.frames() if b"by its user" in frame.payload] == []
    lab.wan.drain()
    assert lab.node.call(talk, family, tcp, at.ECHO_PORT, uid=NOBODY, gid=OTHER_GID) == at.NODE_MESH[family]
    assert [frame for frame in lab.wan.frames() if b"by its user" in frame.payload] == []


@families
def test_control_without_uid_rule_leaves_by_mesh(made: Guarded, family: int) -> None:
    """Control: the rule leads the user to the WAN, and the guard keeps the user from the mesh."""
    lab = made.lab
    with made.off():
        assert lab.node.call(talk, family, True, at.ECHO_PORT, uid=ANYWHERE, gid=OTHER_GID) == at.NODE_MESH[family]
    rule = f"uidrange {ANYWHERE}-{ANYWHERE}"
    lab.node.ip(f"-{family} rule del {rule} priority 850", f"-{family} rule del {rule} priority 855")
    before = made.counters()["inet/wan.stray"]
    lab.mesh_sniffer.drain()
    assert lab.node.call(talk, family, True, at.ECHO_PORT, uid=ANYWHERE, gid=OTHER_GID) == "TimeoutError"
    assert made.counters()["inet/wan.stray"] > before
    assert made.nftpolicy("status", check=False).returncode == 1
    made.apply()
    assert lab.node.call(talk, family, True, at.ECHO_PORT, uid=ANYWHERE, gid=OTHER_GID) == lab.wan_address(family)


@families
def test_uid_rule_user_reaches_policy_destinations_only(made: Guarded, family: int) -> None:
    made.lab.wan.drain()
    before = made.counters()["inet/wan.unentitled"]
    made.lab.node.call(send, family, 4711, b"elsewhere", "", uid=NARROW, gid=OTHER_GID)
    made.lab.node.call(send, family, 4711, b"anywhere", "", uid=ANYWHERE, gid=OTHER_GID)
    assert made.lab.wan.wait_for(lambda frame: b"anywhere" in frame.payload, 1), "inconclusive"
    assert [frame for frame in made.lab.wan.frames() if b"elsewhere" in frame.payload] == []
    assert made.counters()["inet/wan.unentitled"] == before + 1


def send(family: int, port: int, word: bytes, device: str) -> None:
    with socket.socket(DOMAIN[family], socket.SOCK_DGRAM) as made:
        if device:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        with contextlib.suppress(OSError):
            made.sendto(word, (at.SERVER[family], port))


@families
def test_uid_rule_user_avoids_mesh(made: Guarded, family: int) -> None:
    """The user names the mesh device, or the WAN is down."""
    lab = made.lab
    lab.mesh_sniffer.drain()
    lab.node.call(send, family, 4711, b"<bound by other user>", at.MESH, uid=NOBODY, gid=OTHER_GID)
    lab.node.call(send, family, 4711, b"<bound by the user>", at.MESH, uid=ANYWHERE, gid=OTHER_GID)
    lab.wan_down()
    try:
        lab.node.call(send, family, 4711, b"<the user, wan down>", "", uid=ANYWHERE, gid=OTHER_GID)
        lab.node.call(send, family, 4711, b"<nobody, wan down>", "", uid=NOBODY, gid=OTHER_GID)
        assert lab.mesh_sniffer.wait_for(lambda frame: b"<nobody, wan down>" in frame.payload, 1), "inconclusive"
    finally:
        lab.wan_up()
    heard = {word for word in (b"<bound by other user>", b"<bound by the user>", b"<the user, wan down>")
             if any(word in frame.payload for frame in lab.mesh_sniffer.frames())}  # fmt: skip
    assert heard == {b"<bound by other user>"}


@families
def test_uid_rule_other_user_is_dropped_at_uplink(made: Guarded, family: int) -> None:
    """The packets go by routes that lead there, and by the device."""
    wan_routes_in_main(made.lab)
    try:
        made.lab.wan.drain()
        before = made.counters()["inet/wan.dropped"]
        for device in ("", at.WAN):
            made.lab.node.call(send, family, 4711, b"<of nobody>", device, uid=NOBODY, gid=OTHER_GID)
            made.lab.node.call(send, family, 4711, b"<of the user>", device, uid=ANYWHERE, gid=OTHER_GID)
        assert made.lab.wan.wait_for(lambda frame: b"<of the user>" in frame.payload, 1), "inconclusive"
        assert [frame for frame in made.lab.wan.frames() if b"<of nobody>" in frame.payload] == []
        assert made.counters()["inet/wan.dropped"] == before + 2
    finally:
        no_wan_routes_in_main(made.lab)


@families
def test_uid_rule_user_gets_names_from_wan(made: Guarded, family: int) -> None:
    for tcp in (False, True):
        answer = made.lab.resolve(at.WHO, family, at.GATEWAY[family], tcp, gid=OTHER_GID, uid=ANYWHERE)
        assert answer == [at.WHO_AT_HOME[family]]
        answer = made.lab.resolve(at.WHO, family, at.GATEWAY[family], tcp, gid=OTHER_GID, uid=NOBODY)
        assert answer == [at.WHO_IN_MESH[family]]


def upload(family: int, port: int, mark: int, gid: int) -> int:
    """Send until the kernel takes no more, and close at once; return the bytes taken. Runs inside the node."""
    os.setegid(gid)
    made = socket.socket(DOMAIN[family], socket.SOCK_STREAM)
    if mark:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    made.settimeout(5)
    made.connect((at.SERVER[family], port))
    made.setblocking(False)
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while taken < 1 << 22:
            taken += made.send(bytes(1 << 16))
    made.close()
    return taken


def arrives(made: Guarded, family: int, mark: int = 0, **ids: int) -> tuple[int, int]:
    """Return the bytes that a program sent before it closed its socket, and the bytes that reached the server."""
    with made.lab.server.socket(DOMAIN[family], socket.SOCK_STREAM) as listener:
        listener.bind((at.SERVER[family], 0))
        listener.listen()
        listener.settimeout(5)
        port = listener.getsockname()[1]
        taken = made.lab.node.call(upload, family, port, mark, ids.pop("gid"), **ids, keep_caps=True)
        with listener.accept()[0] as peer:
            peer.settimeout(2)
            got = 0
            with contextlib.suppress(TimeoutError):
                while part := peer.recv(1 << 20):
                    got += len(part)
            return taken, got


@families
def test_uid_rule_unsent_data_of_closed_socket_is_lost(made: Guarded, family: int) -> None:
    """Data of a closed socket has no owner: neither mark nor user identifies it. With a mark nothing is lost."""
    taken, got = arrives(made, family, mark=1, uid=0, gid=SERVICE_GID)
    assert got == taken, "inconclusive"
    before = made.counters()["inet/wan.dropped"]
    taken, got = arrives(made, family, uid=ANYWHERE, gid=OTHER_GID)
    assert 0 < got < taken
    assert made.counters()["inet/wan.dropped"] > before


@families
def test_uid_rule_reset_of_closed_socket_leaves(made: Guarded, family: int) -> None:
    """The kernel reflects the mark of the packet that arrives: here in a reset, for data after the end."""
    with made.lab.server.socket(DOMAIN[family], socket.SOCK_STREAM) as listener:
        listener.bind((at.SERVER[family], 0))
        listener.listen()
        listener.settimeout(5)
        made.lab.node.call(briefly, family, listener.getsockname()[1], uid=ANYWHERE, gid=OTHER_GID)
        with listener.accept()[0] as peer:
            peer.settimeout(5)
            assert peer.recv(9) == b""
            peer.sendall(b"too late")
            wait_until(lambda: peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 5, "the reset")


def briefly(family: int, port: int) -> None:
    made = socket.socket(DOMAIN[family], socket.SOCK_STREAM)
    made.settimeout(5)
    made.connect((at.SERVER[family], port))
    made.close()


@families
def test_uid_rule_leaves_other_services_unchanged(made: Guarded, family: int) -> None:
    address = made.lab.wan_address(family)
    with inbound_clients.listening(made.lab.node, 22, uid=0, gid=OTHER_GID):
        assert made.lab.neighbour.call(inbound_clients.tcp, address, 22, b"hello") == b"hello"
