"""What is meant for the uplink's own private network gets an error, and does not go into the tunnel."""

import errno
import re
import socket
from collections.abc import Iterator

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import SERVICE_GID, Guarded, gluon
from tests.lab import addresses as at
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

PATIENCE = 10
PORT, RENEWAL = 445, b"a request to renew a lease"
NETWORKS = {4: ("192.168.77.0/24", "192.168.77.1", "192.168.77.2/24"), 6: ("fd77::/64", "fd77::1", "fd77::2/64")}
PUBLIC = "1.2.3.0/25", "1.2.3.9", "1.2.3.77/25"  # each documentation prefix is private


@pytest.fixture(scope="module")
def node_lab() -> Iterator[Lab]:
    with Lab(wan="main", groups={"gluon-mesh-vpn": SERVICE_GID}) as lab:
        for _, host, own in (*NETWORKS.values(), PUBLIC):
            lab.node.ip(f"addr add {own} dev {at.WAN}{' nodad' if ':' in own else ''}")
            lab.home.ip(f"addr add {host}/{own.split('/')[1]} dev br-lan{' nodad' if ':' in host else ''}")
        yield lab


def guarded(lab: Lab, kind: str) -> Guarded:
    """Return the node with a policy whose private networks get a route of this kind: "throw" with a resolver."""
    text = gluon(lab)
    if kind == "unreachable":
        text, number = re.subn(r"\[uplink\.wan\.resolver\].*?(?=\[service)", "", text, flags=re.DOTALL)
        assert number == 1
    return Guarded(lab, text)


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


@pytest.mark.parametrize("kind", ["unreachable", "throw"])
@pytest.mark.parametrize("family", [4, 6])
def test_private_network_of_uplink_is_unreachable(node_lab: Lab, family: int, kind: str) -> None:
    network, host, own = NETWORKS[family]
    lab, made = node_lab, guarded(node_lab, kind)
    assert not is_seen_in_mesh(made, host), "inconclusive: the connected route leads to the home"
    before = main_routes(made, network)
    made.apply()
    with Watched(made):
        wait_until(lambda: f"dev {at.WAN}" not in str(main_routes(made, network)), PATIENCE, "the move")
        assert [line.startswith(kind) for line in main_routes(made, network)] == [True]
        assert lab.node.call(connect, host) in (errno.EHOSTUNREACH, errno.ENETUNREACH)
        assert not is_seen_in_mesh(made, host)
        assert made.nftpolicy("status").returncode == 0
        assert made.nftpolicy("verify", "--live").stdout.startswith("proved")
        assert "nothing to change" in made.nftpolicy("apply", "/run/lab/policy.toml").stdout
        # Another program deletes it: it comes back, and that is no difference.
        lab.node.ip(f"-{family} route del {kind} {network} proto 78 metric 4294967294")
        wait_until(lambda: main_routes(made, network), PATIENCE, "the route again")
        lab.node.ip(f"addr del {own} dev {at.WAN}")
        wait_until(lambda: not main_routes(made, network), PATIENCE, "the end of the prefix")
        assert is_seen_in_mesh(made, host), "the control: without the route it goes into the mesh"
        lab.node.ip(f"addr add {own} dev {at.WAN}{' nodad' if family == 6 else ''}")
        wait_until(lambda: kind in str(main_routes(made, network)), PATIENCE, "the prefix again")
        made.nftpolicy("release")
        assert [line.split()[0] for line in main_routes(made, network)] == [line.split()[0] for line in before]
    assert not is_seen_in_mesh(made, host)


def renew(host: str) -> int:
    """Return the errno of a datagram from port 68 to port 67 by a socket that is bound to no device, as dhclient's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("", 68))
        try:
            client.sendto(RENEWAL, (host, 67))
        except OSError as error:
            return error.errno or errno.EIO
    return 0


def test_renewal_by_unicast_reaches_private_network(node_lab: Lab) -> None:
    network, host, _ = NETWORKS[4]
    made = guarded(node_lab, "unreachable")
    made.apply()
    with Watched(made):
        wait_until(lambda: "unreachable" in str(main_routes(made, network)), PATIENCE, "the private network")
        wait_until(lambda: f"dev {at.WAN}" not in str(main_routes(made, network)), PATIENCE, "the move")
        assert made.lab.node.call(renew, host) == errno.EHOSTUNREACH, "the control: without the word"
        made.file.write_text(made.file.read_text().replace('"dhcpv4"', '"dhcpv4", "dhcpv4-unicast"'))
        made.apply()
        wait_until(lambda: "throw" in str(main_routes(made, network)), PATIENCE, "the other kind")
        made.lab.wan.drain(), made.lab.mesh_sniffer.drain()
        assert made.lab.node.call(renew, host) == 0
        assert made.lab.wan.wait_for(lambda frame: RENEWAL in frame.payload, 3)
        assert made.lab.node.call(connect, host) in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM)
        assert not any(frame.daddr == host for frame in made.lab.mesh_sniffer.frames())
        assert made.nftpolicy("verify", "--live").stdout.startswith("proved")
    made.release()


def test_public_network_of_uplink_is_left_to_routing(node_lab: Lab) -> None:
    network, host, _ = PUBLIC
    made = guarded(node_lab, "throw")
    made.apply()
    with Watched(made):
        wait_until(lambda: not main_routes(made, network), PATIENCE, "the move")
        assert is_seen_in_mesh(made, host)
    made.nftpolicy("release")
