"""Traffic of now that `check` says stops: it stops when the policy is applied, and the rest goes on."""

import contextlib
import re
import socket
import sys

import pytest

from tests.lab.limits import brief, limit
from tests.lab.netns import wait_until
from tests.reply_matrix import cells
from tests.reply_matrix.cells import Network
from tests.reply_matrix.reply_network import ENVIRONMENT, POLICY, PROGRAM, ReplyNetwork

ANSWERED, FORGOTTEN = 5000, 22
SERVER = """
import socket, time
plain, informed = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
informed.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
informed.bind(("", 5001)), plain.bind(("", 5000)), time.sleep(99)
"""


def connection(stack: contextlib.ExitStack, made: ReplyNetwork, port: int) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection from the uplink's network to a new server: that of the machine first."""
    server = stack.enter_context(made.node.socket(socket.AF_INET, socket.SOCK_STREAM))
    server.bind(("", port))
    server.listen()
    client = stack.enter_context(made.far["eth0"].socket(socket.AF_INET, socket.SOCK_STREAM))
    client.bind((made.client(4, cells.NEIGHBOUR), 0))
    for each in (server, client):
        each.settimeout(limit(5))
    client.connect((made.address(4), port))
    return stack.enter_context(server.accept()[0]), client


def test_check_names_traffic_that_stops_after_apply() -> None:
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(ReplyNetwork(Network(cells.ONE, cells.BY_UPLINK, False)))
        made.node.outside(POLICY).write_text(made.policy())

        def nftpolicy(command: str) -> list[str]:
            """Return the lines about traffic that stops, without PIDs."""
            said = made.node.run([PROGRAM, command, POLICY], env=ENVIRONMENT).stderr
            return re.sub(r"PID \d+", "PID", said).replace("nftpolicy: stops under this policy: ", "").splitlines()

        going, _ = (connection(stack, made, port) for port in (ANSWERED, FORGOTTEN))
        udp = made.node.popen([sys.executable, "-c", SERVER])
        sockets = lambda: made.node.run(["ss", "-nul"]).stdout  # noqa: E731
        wait_until(lambda: ":5000" in sockets(), 10, "the UDP server")
        live, server = nftpolicy("check")
        assert f"user 0 tcp {made.address(4)}:22 to {made.client(4, cells.NEIGHBOUR)}:" in live
        assert live.endswith(': answer ssh is not in the policy; add "ssh" to answer of [uplink.eth0]')
        assert "user 0 tcp *:22: requests by an uplink: answer ssh is not in the policy" in server
        assert nftpolicy("apply") == [live]
        for sender, receiver in (going[::-1], going):  # nothing tracked the connection before: its client speaks first
            sender.send(b"data")
            assert receiver.recv(100) == b"data"
        late = stack.enter_context(made.far["eth0"].socket(socket.AF_INET, socket.SOCK_STREAM))
        late.settimeout(brief(0.3))
        with pytest.raises(TimeoutError):  # the control is the first connection
            late.connect((made.address(4), FORGOTTEN))
        made.node.ip("route replace default dev tun9 metric 1")
        servers = [line for line in nftpolicy("check") if "the default route gives its replies" in line]
        assert [("python" in line, " udp *:5000: " in line) for line in servers] == [(True, True)], servers
        udp.kill()
