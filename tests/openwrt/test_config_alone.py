"""What /etc/config keeps in an image without the tree: ip rules and routes, as netifd made them of it, and no guard."""

import errno
import socket
from collections.abc import Iterator

import pytest

from tests.lab.netns import Namespace, veth
from tests.lab.sniffer import Sniffer

pytestmark = pytest.mark.kernel

V4, V6 = "198.51.100.7", "2001:db8:ffff::7"
# netifd, with the sections that 95-nftpolicy wrote for router-wireguard.toml: the rules for packets without a mark.
NETIFD = (
    "addr add 203.0.113.178/24 dev wan noprefixroute",
    "-6 addr add 2001:db8:1::168/128 dev wan nodad",
    "neigh add 203.0.113.1 lladdr 02:00:00:00:00:01 dev wan",
    "-6 neigh add fe80::1 lladdr 02:00:00:00:00:01 dev wan",
    "route add 203.0.113.0/24 dev wan table 100",
    "route add default via 203.0.113.1 dev wan table 100",
    "-6 route add default via fe80::1 dev wan table 100 metric 512",
    "rule add priority 10000 from 203.0.113.178 lookup 100",
    "rule add priority 40000 unreachable",
    "-6 rule add priority 10000 from 2001:db8:1::168 lookup 100",
    "-6 rule add priority 20000 to 2001:db8:1::168 lookup 100",
    "-6 rule add priority 40000 unreachable",
)


@pytest.fixture
def router() -> Iterator[tuple[Namespace, Sniffer]]:
    with Namespace("router") as node, Namespace("uplink") as far:
        veth(node, "wan", far, "far")
        node.ip("link set lo up", *NETIFD)
        with Sniffer(far, "far") as sniffer:
            yield node, sniffer


def leaves(router: tuple[Namespace, Sniffer], family: int, to: str, source: str | None = None) -> bool:
    """Return whether an unmarked packet of an unbound socket, or one from `source`, leaves by the uplink."""
    node, sniffer = router
    with node.socket(family, socket.SOCK_DGRAM) as sender:
        if source:
            sender.bind((source, 0))
        try:
            sender.sendto(b"without the mark", (to, 9))
        except OSError as error:
            assert error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
            return False
    return sniffer.wait_for(lambda frame: b"without the mark" in frame.payload, 5) is not None


def test_config_alone_keeps_ipv4_back(router: tuple[Namespace, Sniffer]) -> None:
    assert not leaves(router, socket.AF_INET, V4)
    router[0].ip("route add default via 203.0.113.1 dev wan onlink")
    assert leaves(router, socket.AF_INET, V4), "inconclusive: the sender does not send"


def test_config_alone_lets_ipv6_leave(router: tuple[Namespace, Sniffer]) -> None:
    """Linux chooses a source address for a packet without a route, and looks again: rule 10000 matches then."""
    assert leaves(router, socket.AF_INET6, V6)
    router[0].ip("-6 rule del priority 10000")
    assert not leaves(router, socket.AF_INET6, V6), "the control: without netifd's rule there is no route"


def test_config_alone_lets_the_address_of_the_uplink_leave(router: tuple[Namespace, Sniffer]) -> None:
    assert leaves(router, socket.AF_INET, V4, "203.0.113.178")
