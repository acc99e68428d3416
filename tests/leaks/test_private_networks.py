"""What is meant for the uplink's own private network gets an error, and does not go into the tunnel."""

import errno
import socket
from collections.abc import Iterator

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import SERVICE_GID, Guarded, gluon
from tests.lab import addresses as at
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

PATIENCE = 10
PORT = 445
NETWORKS = {4: ("192.168.77.0/24", "192.168.77.1", "192.168.77.2/24"), 6: ("fd77::/64", "fd77::1", "fd77::2/64")}
PUBLIC = "198.51.100.0/25", "198.51.100.9", "198.51.100.77/25"


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with Lab(wan="main", groups={"gluon-mesh-vpn": SERVICE_GID}) as lab:
        for _, host, own in (*NETWORKS.values(), PUBLIC):
            lab.node.ip(f"addr add {own} dev {at.WAN}{' nodad' if ':' in own else ''}")
            lab.home.ip(f"addr add {host}/{own.split('/')[1]} dev br-lan{' nodad' if ':' in host else ''}")
        yield Guarded(lab, gluon(lab))


def connect(host: str) -> int:
    """Return the errno of a TCP connection by an ordinary program, 0 if it is made."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(0.3)
        try:
            return client.connect_ex((host, PORT))
        except TimeoutError:
            return errno.ETIMEDOUT


def is_seen_in_mesh(made: Guarded, host: str) -> bool:
    made.lab.mesh_sniffer.drain()
    made.lab.node.call(connect, host)
    return made.lab.mesh_sniffer.wait_for(lambda frame: frame.daddr == host, 0.3) is not None


def main_routes(made: Guarded, network: str) -> list[str]:
    family = 6 if ":" in network else 4
    text = made.lab.node.run(["ip", f"-{family}", "route", "show", network, "table", "main"]).stdout
    return text.splitlines()


@pytest.mark.parametrize("family", [4, 6])
def test_private_network_of_uplink_is_unreachable(made: Guarded, family: int) -> None:
    network, host, own = NETWORKS[family]
    lab = made.lab
    assert not is_seen_in_mesh(made, host), "inconclusive: the connected route leads to the home"
    before = main_routes(made, network)
    made.apply()
    with Watched(made):
        wait_until(lambda: f"dev {at.WAN}" not in str(main_routes(made, network)), PATIENCE, "the move")
        assert ["unreachable" in line for line in main_routes(made, network)] == [True]
        assert lab.node.call(connect, host) in (errno.EHOSTUNREACH, errno.ENETUNREACH)
        assert not is_seen_in_mesh(made, host)
        assert made.nftpolicy("status").returncode == 0
        assert made.nftpolicy("verify", "--live").stdout.startswith("proved")
        assert "nothing to change" in made.nftpolicy("apply", "/run/lab/policy.toml").stdout
        # Another program deletes it: it comes back, and that is no difference.
        lab.node.ip(f"-{family} route del unreachable {network} proto 78 metric 4294967294")
        wait_until(lambda: main_routes(made, network), PATIENCE, "the route again")
        lab.node.ip(f"addr del {own} dev {at.WAN}")
        wait_until(lambda: not main_routes(made, network), PATIENCE, "the end of the prefix")
        assert is_seen_in_mesh(made, host), "the control: without the route it goes into the mesh"
        lab.node.ip(f"addr add {own} dev {at.WAN}{' nodad' if family == 6 else ''}")
        wait_until(lambda: "unreachable" in str(main_routes(made, network)), PATIENCE, "the prefix again")
        made.nftpolicy("release")
        assert [line.split()[0] for line in main_routes(made, network)] == [line.split()[0] for line in before]
    assert not is_seen_in_mesh(made, host)


def test_public_network_of_uplink_is_left_to_routing(made: Guarded) -> None:
    network, host, _ = PUBLIC
    made.apply()
    with Watched(made):
        wait_until(lambda: not main_routes(made, network), PATIENCE, "the move")
        assert is_seen_in_mesh(made, host)
    made.nftpolicy("release")
