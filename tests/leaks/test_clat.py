"""464XLAT on an IPv6-only uplink: a service's IPv4 packets are translated, and nobody else's."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.guarded_lab import OTHER_GID, SERVICE_GID, Guarded, gluon, run_probes
from tests.lab import addresses as at
from tests.lab import clat, inbound_clients
from tests.lab.frames import ETH_IPV4, ETH_IPV6, UDP
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

PORT = 7777
_SO_MARK = 36
ARP_LIKE = "8.6.0.1"  # its first bytes are at the place of an ethertype in a packet without link header: 0x0806
IPV4_DEFAULT = f"default dev {clat.DEVICE} metric 1"
IPV6_DEFAULT = f"default via {at.HOME_LINK_LOCAL} dev {at.WAN} metric 1"
FAR = clat.mapped(at.SERVER[4])


def echo(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        while True:
            data, peer = server.recvfrom(2048)
            server.sendto(data, peer)


def send_to_clat(token: bytes) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.bind((FAR, 0))
        client.sendto(token, (clat.OWN6, PORT))


def heard(made: Guarded, token: bytes) -> bytes:
    """Return what a socket of the node hears if the network asks it through the CLAT."""
    with made.lab.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((clat.OWN4, PORT))
        server.settimeout(0.5)
        made.lab.home.call(send_to_clat, token)
        try:
            return server.recv(2048)
        except TimeoutError:
            return b""


def ask(token: bytes, mark: int, device: str = "") -> bytes:
    """Return what the server answers; b"" if nothing, or if the packet cannot be sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        if device:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        client.settimeout(3 if mark else 0.3)
        try:
            client.sendto(token, (at.SERVER[4], PORT))
            return client.recv(2048)
        except OSError:
            return b""


def send_frame(token: bytes, source: str) -> None:
    """Send an IPv4 packet into the device by an AF_PACKET socket."""
    body = struct.pack("!HHHH", PORT, PORT, 8 + len(token), 0) + token
    ends = socket.inet_aton(source) + socket.inet_aton(at.SERVER[4])
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, UDP, 0) + ends + body
    for ethertype in (ETH_IPV4, ETH_IPV6):
        # ENOBUFS: dropped.
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as raw, contextlib.suppress(OSError):
            raw.sendto(packet, (clat.DEVICE, ethertype))


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with Lab(groups={"gluon-mesh-vpn": SERVICE_GID}) as lab:
        lab.node.ip(f"-4 addr flush dev {at.WAN}")
        lab.node.spawn(clat.serve)
        wait_until(lambda: clat.DEVICE in lab.node.run(["ip", "link"]).stdout, 10, "the device of the CLAT")
        lab.node.sysctl("net.ipv4.ip_forward", 1)
        lab.node.sysctl("net.ipv6.conf.all.forwarding", 1)
        lab.node.sysctl(f"net.ipv6.conf.{at.WAN}.proxy_ndp", 1)
        lab.node.ip(
            f"link set {clat.DEVICE} up",
            f"addr add {clat.OWN4}/32 dev {clat.DEVICE}",
            f"-6 neigh add proxy {clat.OWN6} dev {at.WAN}",
            *(f"route add {IPV4_DEFAULT} table {table}" for table in ("main", "1")),
            *(f"-6 route add {clat.OWN6} dev {clat.DEVICE} table {table}" for table in ("main", "1")),
            f"-6 route add {IPV6_DEFAULT}",
        )
        lab.home.ip(f"addr add {FAR}/128 dev lo")
        lab.home.spawn(echo, FAR, PORT)
        yield Guarded(lab, with_clat(gluon(lab)))


def with_clat(text: str) -> str:
    assert f'["{at.WAN}"]' in text
    text = text.replace(f'["{at.WAN}"]', f'["{at.WAN}", "{clat.DEVICE}"]')
    return f'{text}\n[uplink.wan.clat]\ndevice = "{clat.DEVICE}"\n'


def unmarked(made: Guarded) -> set[str]:
    """Send IPv4 packets without the mark in all ways, and return those that leave by the uplink."""
    lab = made.lab
    tokens = {name: os.urandom(8) for name in ("socket", "bound", "forwarded", "frame", "frame like ARP")}
    lab.wan.drain()
    lab.node.call(ask, tokens["socket"], 0, gid=OTHER_GID)
    lab.node.call(ask, tokens["bound"], 0, clat.DEVICE, gid=OTHER_GID)
    lab.client.call(inbound_clients.udp, at.SERVER[4], PORT, tokens["forwarded"], 0.1)
    lab.node.call(send_frame, tokens["frame"], clat.OWN4)
    lab.node.call(send_frame, tokens["frame like ARP"], ARP_LIKE)
    lab.wan.wait_for(lambda _: False, 0.3)
    payloads = [frame.payload for frame in lab.wan.frames()]
    return {name for name, token in tokens.items() if any(token in payload for payload in payloads)}


def test_clat_carries_the_service_alone(made: Guarded) -> None:
    lab = made.lab
    everything = {"socket", "bound", "forwarded", "frame", "frame like ARP"}
    assert unmarked(made) == everything, "the control: without a policy, they leave"
    question = os.urandom(8)
    assert heard(made, question) == question, "the control: without a policy, the network can ask through the CLAT"
    made.apply()
    token = os.urandom(8)
    assert lab.node.call(ask, token, 1, gid=SERVICE_GID) == token
    frames = [frame for frame in lab.wan.frames() if token in frame.payload]
    assert {(frame.saddr, frame.daddr) for frame in frames} == {(clat.OWN6, FAR)}
    assert unmarked(made) == set()
    assert lab.node.call(ask, os.urandom(8), 1, gid=OTHER_GID) == b"", "only the service may use the mark"
    assert heard(made, question) == b"", "only answers reach the CLAT"
    run = run_probes(lab)
    assert run.unmarked() == []
    lab.node.ip(f"-6 route del {IPV6_DEFAULT}", f"route del {IPV4_DEFAULT}")
    proof = made.nftpolicy("verify", "--live").stdout
    assert proof.startswith("proved"), proof
    assert f"no packet of the CLAT behind {clat.DEVICE} was tried" not in proof
    assert made.counters()["inet/wan.clat"] >= 2
