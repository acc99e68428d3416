"""B9: flows from before the first policy. The control: a rule that marks them again lets them leave."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.guarded_lab import Guarded, guarded_lab, wan_routes_in_main
from tests.lab import addresses as at
from tests.lab.limits import limit
from tests.leaks.test_forged_arrivals import (
    DATAGRAM,
    DOMAIN,
    MARKS_FIRST,
    SERVICE,
    SSH,
    STREAM,
    Session,
    answering,
    foreign,
)

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
MARKS_ALL = MARKS_FIRST.replace("PRIORITY", "-140").replace("ct status ! confirmed ", "")


@pytest.fixture
def made() -> Iterator[Guarded]:
    """Lab whose policy is not in force, with connection tracking by other rules."""
    with guarded_lab(answering) as made:
        made.release()
        for family in at.FAMILIES:
            address = made.lab.wan_address(family)
            made.lab.mesh.ip(f"-{family} route add {address} via {at.NODE_MESH[family]} dev to-node")
        yield made


@families
@pytest.mark.parametrize(("kind", "port"), [(STREAM, SSH), (DATAGRAM, SERVICE)], ids=["tcp", "udp"])
def test_B9_flow_marked_before_first_policy_is_deleted(made: Guarded, family: int, kind: int, port: int) -> None:
    with ExitStack() as stack:
        with foreign(made, MARKS_ALL):
            one = Session(made, stack, family, kind, port)
        assert "deleted 1 conntrack entry: marked before these rules were loaded" in made.apply()
        one.ask()
        assert one.answer() == (False, True)
        with foreign(made, MARKS_ALL):
            one.ask()
            assert one.answer()[0], "the control: a marked flow does not leave"
        assert "deleted" not in made.apply(), "the same policy deletes flows"


TRACKING = """
table inet foreign {
    chain arrival {
        type filter hook prerouting priority -140
        ct state established accept
    }
}
"""


@families
def test_connection_from_uplink_survives_first_policy(made: Guarded, family: int) -> None:
    """The connection of an administrator; the node sends first after the policy is in force."""
    wan_routes_in_main(made.lab)
    address = made.lab.wan_address(family) or ""
    with foreign(made, TRACKING), ExitStack() as stack:
        listener = stack.enter_context(made.lab.node.socket(DOMAIN[family], STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, SSH))
        listener.listen()
        client = stack.enter_context(made.lab.neighbour.socket(DOMAIN[family], STREAM))
        for end in (listener, client):
            end.settimeout(limit(5))
        client.connect((address, SSH))
        server = stack.enter_context(listener.accept()[0])
        client.send(b"request")
        assert server.recv(100) == b"request"
        made.apply()
        server.send(b"answer")
        assert client.recv(100) == b"answer"
        made.apply()
        server.send(b"once more")
        assert client.recv(100) == b"once more"
