"""kernel = true with TCP ports: connections of the kernel leave to its servers, those of processes do not.

The kernel's own connections are those that MPTCP adds: it connects to the address that the peer announces.
"""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.guarded_lab import Guarded, gluon, guarded_lab, wan_routes_in_main
from tests.lab import addresses as at
from tests.lab import inbound_clients

NFS, OTHER = 2049, 2050
IPPROTO_MPTCP = 262
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    """Node with the WAN's routes in main too, which announces the server's addresses to its own MPTCP clients."""
    service = f"""
[service.nfs]
uplink = "wan"
kernel = true
ports  = ["tcp/{NFS}"]
to     = ["{at.SERVER[4]}", "{at.SERVER[6]}"]
"""
    with guarded_lab(lambda lab: gluon(lab) + service) as found:
        if found.lab.node.run(
            ["ip", "mptcp", "limits", "set", "subflow", "4", "add_addr_accepted", "4"], check=False
        ).returncode:
            pytest.skip("no multipath TCP here")
        for family in at.FAMILIES:
            found.lab.node.run(["ip", "mptcp", "endpoint", "add", at.SERVER[family], "signal"])
        wan_routes_in_main(found.lab)
        yield found


def connect_by_kernel(family: int, port: int) -> None:
    """Have the kernel connect to the server's port: both ends of an MPTCP connection are in this process."""
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    with contextlib.ExitStack() as stack:
        listener, client = (
            stack.enter_context(socket.socket(domain, socket.SOCK_STREAM, IPPROTO_MPTCP)) for _ in range(2)
        )
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK[family], port))
        listener.listen()
        client.connect((LOOPBACK[family], port))
        server = stack.enter_context(listener.accept()[0])
        server.sendall(b"to the client")
        client.sendall(b"to the server")
        client.recv(100)
        time.sleep(0.3)


def syns(made: Guarded, port: int) -> set[str]:
    """Return the source addresses of the packets to the server's port at the WAN."""
    return {
        str(frame.saddr)
        for frame in made.lab.wan.frames()
        if frame.daddr in at.SERVER.values() and (frame.l4proto, frame.dport) == (socket.IPPROTO_TCP, port)
    }


def test_kernel_alone_connects_to_its_server_by_wan(made: Guarded) -> None:
    node = made.lab.node
    made.lab.wan.drain()
    for family in at.FAMILIES:
        node.call(inbound_clients.tcp, at.SERVER[family], NFS, b"data", 0.1)
        node.call(connect_by_kernel, family, OTHER)
    assert syns(made, NFS) == set(), "of a process"
    assert syns(made, OTHER) == set(), "to a port that the policy does not name"
    for family in at.FAMILIES:
        node.call(connect_by_kernel, family, NFS)
    assert syns(made, NFS) == {made.lab.wan_address(family) for family in at.FAMILIES}
    with made.off():
        for family in at.FAMILIES:
            node.call(inbound_clients.tcp, at.SERVER[family], 2051, b"data", 0.1)
            node.call(connect_by_kernel, family, OTHER)
    assert len(syns(made, 2051)) == len(syns(made, OTHER)) == 2, "the control: without the guard all leave"
