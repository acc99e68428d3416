"""ARP and neighbour discovery: the node answers for the addresses of its WAN, whoever asks, and for no others."""

import socket
import struct
from collections.abc import Iterator

import pytest

from tests.guarded_lab import Guarded, gluon, guarded_lab
from tests.lab import addresses as at
from tests.lab.frames import classify
from tests.lab.topology import Lab

ELSEWHERE = "172.31.1.1"  # outside the subnet of the WAN: the gateway of a host with a /32, or a second subnet
REVERSE_PATH = ("net/ipv4/conf/all/rp_filter", "net/ipv4/conf/all/arp_filter")


@pytest.fixture
def made() -> Iterator[Guarded]:
    with guarded_lab() as made:
        yield made


def ask(target: str, sender: str) -> None:
    """Send an ARP request, as arping does."""
    mac = bytes.fromhex(at.NEIGHBOUR_MAC.replace(":", ""))
    request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + socket.inet_aton(sender)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        frame = b"\xff" * 6 + mac + struct.pack("!H", 0x0806) + request + bytes(6) + socket.inet_aton(target)
        made.sendto(frame, ("eth0", 0x0806))


def is_answered(lab: Lab, target: str | None, sender: str = at.NEIGHBOUR[4], seconds: float = 0.4) -> bool:
    assert target is not None, "inconclusive: the WAN has no address"
    lab.wan.drain()
    lab.neighbour.call(ask, target, sender)
    addresses = (target, sender)  # of the answer; the node has requests of its own

    return bool(
        lab.wan.wait_for(lambda frame: classify(frame) == "arp" and (frame.saddr, frame.daddr) == addresses, seconds)
    )


def test_arp_of_sender_outside_the_subnet_is_answered(made: Guarded) -> None:
    address = made.lab.wan_address(4)
    assert is_answered(made.lab, address, ELSEWHERE)
    made.lab.node.sysctl(f"net/ipv4/conf/{at.WAN}/arp_ignore", 2)
    assert not is_answered(made.lab, address, ELSEWHERE), "the control: the test sees no missing answer"


@pytest.mark.parametrize("value", [1, 2])
def test_arp_is_answered_despite_filters_of_all(value: int) -> None:
    with Lab() as lab:
        for path in REVERSE_PATH:
            lab.node.sysctl(path, value)
        made = Guarded(lab, gluon(lab))
        made.apply()
        assert is_answered(lab, lab.wan_address(4))
        assert is_answered(lab, lab.wan_address(4), ELSEWHERE)
        made.release()
        values = [lab.node.run(["sysctl", "-n", path.replace("/", ".")]).stdout.strip() for path in REVERSE_PATH]
        assert values == [str(value), str(value)]


def test_strict_filter_of_all_leaves_arp_unanswered(made: Guarded) -> None:
    """The reason for the value that the policy sets."""
    made.lab.node.sysctl(REVERSE_PATH[0], 1)
    assert not is_answered(made.lab, made.lab.wan_address(4))


def test_proxy_of_all_gives_no_address_away() -> None:
    with Lab() as lab:
        lab.node.sysctl("net/ipv4/conf/all/proxy_arp", 1)
        lab.node.sysctl("net/ipv4/ip_forward", 1)
        # A proxy waits for up to 0.8 seconds (proxy_delay).
        assert is_answered(lab, at.CLIENT_ADDRESS[4], seconds=2), "the control"
        assert is_answered(lab, at.NODE_CLIENT[4]), "the control"
        Guarded(lab, gluon(lab)).apply()
        assert not is_answered(lab, at.CLIENT_ADDRESS[4])
        assert not is_answered(lab, at.NODE_CLIENT[4])
        assert is_answered(lab, lab.wan_address(4)), "inconclusive"
