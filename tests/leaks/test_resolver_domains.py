"""Servers with a port, and servers for the names of one domain: each query leaves for its own server alone."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.guarded_lab import RESOLVER_UID, SERVICE_GID, Guarded, gluon, guarded_lab
from tests.lab import addresses as at
from tests.lab import daemons
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

CORP, CORP_ADDRESS, PORT = "host.corp.example", {4: "192.0.2.77", 6: "2001:db8:1::77"}, 5353
BESIDE = {"the next port": (at.NEIGHBOUR[4], PORT + 1), "that port of another server": (at.HOME[4], PORT)}


def policy(lab: Lab) -> str:
    domain = f'domains = {{ "corp.example" = ["{at.NEIGHBOUR[4]}:{PORT}", "[{at.NEIGHBOUR[6]}]:{PORT}"] }}'
    return gluon(lab).replace("[uplink.wan.resolver]", f"[uplink.wan.resolver]\n{domain}")


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab(policy) as lab:
        records = {CORP: CORP_ADDRESS, at.WHO: CORP_ADDRESS}
        lab.lab.neighbour.popen([*daemons.dnsmasq(at.NEIGHBOUR.values(), records), f"--port={PORT}"])
        lab.start_resolver()
        wait_until(lambda: ask(lab, CORP) == [CORP_ADDRESS[4]], 5, "an answer of the domain's server")
        yield lab


def ask(made: Guarded, name: str, family: int = 4, tcp: bool = False) -> list[str] | str:
    return made.lab.resolve(name, family, "127.0.0.1", tcp, gid=SERVICE_GID, seconds=0.5)


def queries(made: Guarded) -> tuple[str, str]:
    """Return the queries that the home's and the neighbour's server have logged."""
    spaces = (made.lab.home, made.lab.neighbour)
    home, neighbour = (space.outside(f"{daemons.FOLDER}/dnsmasq.log").read_text() for space in spaces)
    return home, neighbour


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_names_go_to_servers_of_their_domain_alone(made: Guarded, tcp: bool) -> None:
    for family in at.FAMILIES:
        assert ask(made, CORP, family, tcp) == [CORP_ADDRESS[family]]
        assert ask(made, at.WHO, family, tcp) == [at.WHO_AT_HOME[family]]
    home, neighbour = queries(made)
    assert (CORP in home, CORP in neighbour, at.WHO in home, at.WHO in neighbour) == (False, True, True, False)


def test_guard_drops_queries_beside_the_servers(made: Guarded) -> None:
    assert arrives(made, at.NEIGHBOUR[4], PORT), "the control: a server of the policy"
    assert arrives(made, at.HOME[4], 53), "the control: the learned servers have port 53"
    for server, port in BESIDE.values():
        assert not arrives(made, server, port)
    made.lab.node.nft("flush ruleset")
    for server, port in BESIDE.values():
        assert arrives(made, server, port), "the control: without the guard it leaves"
    made.apply()


def arrives(made: Guarded, server: str, port: int) -> bool:
    """Return True if a datagram that the resolver's user sends with the mark arrives at the uplink."""
    made.lab.wan.drain()
    made.lab.node.call(send, server, port, uid=RESOLVER_UID, keep_caps=True)
    return bool(made.lab.wan.wait_for(lambda frame: (frame.daddr, frame.dport) == (server, port), 0.3))


def send(server: str, port: int) -> None:
    """Runs inside the node."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel, contextlib.suppress(PermissionError):
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
        channel.sendto(b"query", (server, port))
