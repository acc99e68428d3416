# SPDX-License-Identifier: BSD-2-Clause
"""Wired mesh of a Gluon node, by the devices of its netifd, under the shipped policies."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest

from tests.guarded_lab import GLUON, Guarded, guarded_lab
from tests.lab import addresses as at
from tests.lab.frames import Frame

BATMAN, VXLAN, UDP = 0x4305, 4789, 17
FRAMES = 5
OTHER, UPLINK = "vx_mesh_other", "vx_mesh_uplink"
BRIDGE, PORT, NEIGHBOUR = "br-mesh_other", "lan1", "lan1-peer"
TEXT = GLUON.read_text()


def send(device: str, token: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as made:
        made.bind((device, 0))
        for _ in range(FRAMES):
            with contextlib.suppress(OSError):  # ENOBUFS: dropped at egress
                made.send(b"\xff" * 6 + made.getsockname()[4] + BATMAN.to_bytes(2, "big") + token.ljust(46, b"."))


def arrivals(made: Guarded, device: str, port: int | None) -> int:
    """Return how many frames of batman-adv, sent by a device, the home receives: in VXLAN, or bare if `port` is None."""
    token = os.urandom(8)

    def is_carried(frame: Frame) -> bool:
        carried = frame.ethertype == BATMAN if port is None else (frame.l4proto, frame.dport) == (UDP, port)
        return carried and token in frame.payload

    made.lab.wan.drain()
    made.lab.node.call(send, device, token)
    made.lab.wan.wait_for(lambda _: False, 0.3)
    return sum(map(is_carried, made.lab.wan.frames()))


def receive(device: str, token: bytes) -> int:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as made:  # ETH_P_ALL
        made.bind((NEIGHBOUR, 3))
        made.settimeout(0.3)
        send(device, token)
        found, end = 0, time.monotonic() + 0.5
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < end:
                found += token in made.recv(2000)
        return found


def tunnel(made: Guarded, name: str, device: str) -> None:
    """Create a VXLAN as the protocols gluon_wired and vxlan6 do."""
    local = made.lab.node.run(["ip", "-6", "-o", "address", "show", "dev", device, "scope", "link"]).stdout.split()[3]
    made.lab.node.ip(
        f"link add {name} type vxlan id 212190 group ff02::15c local {local.split('/')[0]} dev {device} "
        f"dstport {VXLAN} udp6zerocsumtx udp6zerocsumrx",
        f"link set {name} up",
    )


@pytest.fixture(scope="module")
def made(able: None) -> Iterator[Guarded]:
    with guarded_lab(lambda _: TEXT, bridge=True) as made:
        tunnel(made, UPLINK, at.WAN)
        yield made


@contextlib.contextmanager
def exempting(made: Guarded, *words: str) -> Iterator[None]:
    made.file.write_text(TEXT.replace('"igmp"]', ", ".join(('"igmp"', *(f'"{word}"' for word in words))) + "]"))
    made.apply()
    try:
        yield
    finally:
        made.file.write_text(TEXT)
        made.apply()


@pytest.mark.parametrize(
    ("word", "device", "port"), [("vxlan-mesh", UPLINK, VXLAN), ("batman-adv", at.WAN, None)], ids=["VXLAN", "bare"]
)
def test_mesh_on_wan_needs_its_word(made: Guarded, word: str, device: str, port: int | None) -> None:
    assert arrivals(made, device, port) == 0
    with made.off():
        assert arrivals(made, device, port) == FRAMES, "inconclusive: not received without the policy either"
    with exempting(made, word):
        assert arrivals(made, device, port) == FRAMES


@pytest.mark.parametrize(
    ("device", "vxlan", "received"),
    [(BRIDGE, True, FRAMES), (BRIDGE, False, FRAMES), (PORT, True, 0)],
    ids=["bridge, VXLAN", "bridge, bare", "port, VXLAN"],
)
def test_wired_mesh_leaves_by_its_bridge(made: Guarded, device: str, vxlan: bool, received: int) -> None:
    """`600-nftpolicy` makes a bridge of a single port, whose name no policy knows."""
    node = made.lab.node
    node.ip(f"link add {PORT} type veth peer name {NEIGHBOUR}", f"link set {NEIGHBOUR} up", f"link set {PORT} up")
    try:
        if device == BRIDGE:
            node.ip(f"link add {BRIDGE} type bridge", f"link set {PORT} master {BRIDGE}", f"link set {BRIDGE} up")
        if vxlan:
            time.sleep(2)  # duplicate address detection
            tunnel(made, OTHER, device)
        sender = OTHER if vxlan else device
        assert node.call(receive, sender, os.urandom(8)) == received
        with made.off():
            assert node.call(receive, sender, os.urandom(8)) == FRAMES
    finally:
        for name in (OTHER, BRIDGE, PORT):
            with contextlib.suppress(Exception):
                node.ip(f"link del {name}")
