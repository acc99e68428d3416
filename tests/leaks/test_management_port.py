"""A management port without a gateway, and `apply` alone: nobody who logs in by it is locked out."""

import contextlib
import json
import os
import pty
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.limits import brief, limit
from tests.lab.netns import Namespace, veth
from tests.reply_matrix.reply_network import ENVIRONMENT, POLICY, PROGRAM

NET = {4: "192.0.2.", 6: "2001:db8:5::"}
LENGTH = {4: 24, 6: 64}
TEXT = """
name = "mgmt"
inside = ["eth0"]
[uplink.mgmt]
devices = ["eth1"]
mark = "0x30/0xf0"
table = 102
exempt = ["arp", "ndp"]
answer = ["ssh"]
"""


class Server:
    """A server whose default route leads to eth0, and an administrator behind eth1."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.node, self.admin = (stack.enter_context(Namespace(name)) for name in ("server", "admin"))
        public = stack.enter_context(Namespace("public"))
        veth(self.node, "eth0", public, "far")
        veth(self.node, "eth1", self.admin, "far")
        self.node.ip("addr add 203.0.113.2/24 dev eth0", "route add default via 203.0.113.1")
        for family, net in NET.items():
            flags = " nodad" if family == 6 else ""
            self.node.ip(f"addr add {net}10/{LENGTH[family]} dev eth1{flags}")
            self.admin.ip(f"addr add {net}1/{LENGTH[family]} dev far{flags}")
        self.node.outside(POLICY).write_text(TEXT)
        self.listener = stack.enter_context(self.node.socket(socket.AF_INET6, socket.SOCK_STREAM))
        self.listener.bind(("::", 22))
        self.listener.listen()

    def log_in(self, stack: contextlib.ExitStack, source: str) -> str:
        """Connect to the server's SSH; return the variable SSH_CONNECTION of that session."""
        session = stack.enter_context(self.admin.socket(socket.AF_INET, socket.SOCK_STREAM))
        session.settimeout(limit(5))
        session.bind((source, 0))
        session.connect((f"{NET[4]}10", 22))
        stack.enter_context(self.listener.accept()[0])
        return f"{source} {session.getsockname()[1]} {NET[4]}10 22"

    def apply(self, text: str, *options: str, session: str = "") -> "subprocess.CompletedProcess[str]":
        self.node.outside(POLICY).write_text(text)
        return self.nftpolicy("apply", *options, POLICY, SSH_CONNECTION=session)

    def nftpolicy(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return self.node.run([PROGRAM, *words], check=False, env={**ENVIRONMENT, **environment})

    def answers(self, seconds: float = 2) -> dict[int, bool]:
        """Return whether the server answers the administrator's SSH, by family."""
        return {family: self._connects(f"{net}10", seconds) for family, net in NET.items()}

    def _connects(self, address: str, seconds: float) -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.admin.socket(family, socket.SOCK_STREAM) as client, contextlib.suppress(OSError):
            client.settimeout(brief(seconds))
            client.connect((address, 22))
            self.listener.accept()[0].close()
            return True
        return False

    def connected(self, table: str) -> dict[int, bool]:
        """Return whether a table has the route to the administrator's network, by family."""
        return {
            family: f"{net}{'0' if family == 4 else ''}/{LENGTH[family]} dev eth1"
            in self.node.run(["ip", f"-{family}", "route", "show", "table", table]).stdout
            for family, net in NET.items()
        }


BOTH, NEITHER = {4: True, 6: True}, {4: False, 6: False}


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        yield Server(stack)


def test_apply_alone_keeps_administrator_connected(server: Server) -> None:
    assert server.answers() == BOTH
    assert server.nftpolicy("apply", POLICY).returncode == 0
    assert server.answers() == BOTH
    assert server.connected("102") == server.connected("main") == BOTH
    live = json.loads(server.nftpolicy("verify", "--live", "--json", POLICY).stdout)
    assert live["verdict"] == "proved"
    notes = [text for text in live["assumptions"] if "answer ssh" in text]
    assert notes == [
        f"no route exists now for: answer ssh beyond the uplink's own network (IPv{family})" for family in (4, 6)
    ]
    for family in NET:
        server.node.ip(f"-{family} route flush table 102 proto kernel")
    assert server.answers(0.3) == NEITHER, "the control"
    again = server.nftpolicy("apply", POLICY)
    assert (again.returncode, "nothing to change" in again.stdout) == (0, True)
    assert server.answers() == BOTH
    server.node.ip("addr del 192.0.2.10/24 dev eth1", "addr add 192.0.2.10/25 dev eth1")
    server.nftpolicy("apply", POLICY)
    routes = server.node.run(["ip", "route", "show", "table", "102"]).stdout
    assert "192.0.2.0/25 dev eth1" in routes and "192.0.2.0/24" not in routes
    released = server.nftpolicy("release", POLICY)
    assert "put back" not in released.stdout
    assert server.connected("102") == NEITHER
    assert server.answers() == BOTH


def test_change_that_locks_out_needs_confirmation(server: Server) -> None:
    far = "198.51.100.7"
    server.admin.ip(f"addr add {far}/32 dev lo")
    server.node.ip(f"route add {far}/32 via {NET[4]}1 dev eth1")
    unanswered, misnamed = TEXT.replace("ssh", "ping"), TEXT.replace("eth1", "eth7")
    with contextlib.ExitStack() as stack:
        near_session, far_session = (server.log_in(stack, source) for source in (f"{NET[4]}1", far))
        for text, session, reason in (
            (unanswered, near_session, "answer ssh is not in the policy"),
            (TEXT, far_session, "its replies have no route in table 102"),
            (misnamed, near_session, "device eth1 is in no part of the policy"),
        ):
            refused = server.apply(text, session=session)
            assert (refused.returncode, reason in refused.stderr.splitlines()[-2]) == (2, True), refused.stderr
            assert "apply /run/lab/policy.toml --confirm 60'" in refused.stderr
            assert "--yes" in refused.stderr
        assert "uplink.mgmt.devices: this machine has no device 'eth7' now (did you mean 'eth1'?)" in refused.stderr
        assert "nftpolicy" not in server.node.run(["nft", "list", "tables"]).stdout
        applied = server.apply(TEXT, "--yes", session=far_session)
        assert (applied.returncode, "this session: " in applied.stderr) == (0, True)
        last = applied.stdout.splitlines()[-2:]
        assert [line.partition("; type: ")[0] for line in last] == [
            "not running: watch, which repairs the rules and keeps the uplinks' routes",
            "not installed: the guard from boot",
        ]
        again = server.apply(TEXT, session=far_session)
        assert (again.returncode, "nothing to change" in again.stdout) == (0, True)
        by_script = server.apply(unanswered)
        assert (by_script.returncode, "stops under this policy" in by_script.stderr) == (0, True)
        assert server.answers(0.3) == NEITHER  # as it was said


def test_wrong_device_name_is_refused_on_terminal(server: Server) -> None:
    server.node.outside(POLICY).write_text(TEXT.replace("eth1", "eth7"))
    ours, theirs = pty.openpty()
    before = server.node.run(["nft", "list", "ruleset"]).stdout + server.node.run(["ip", "rule"]).stdout
    process = server.node.popen([PROGRAM, "apply", POLICY], env=ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the program has closed it
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    text = " ".join(shown.decode().split())
    assert process.wait(limit(20)) == 2, text
    assert "no device 'eth7' now (did you mean 'eth1'?)" in text
    assert "nothing was changed" in text and "--confirm 60" in text and "--yes" in text
    assert server.node.run(["nft", "list", "ruleset"]).stdout + server.node.run(["ip", "rule"]).stdout == before
    assert server.nftpolicy("apply", POLICY).returncode == 0, "the control: without a terminal it is only a warning"
    assert "nftpolicy" in server.node.run(["nft", "list", "tables"]).stdout
