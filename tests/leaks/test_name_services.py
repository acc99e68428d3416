"""A service does not reach systemd-resolved or nscd, whose answers are those of another network."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guarded_lab import ENVIRONMENT, POLICY, PROGRAM, SERVICE_GID, Guarded, guarded_lab
from tests.lab import addresses as at
from tests.lab.netns import wait_until

pytestmark = pytest.mark.slow

SOCKETS = ("/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket")
sockets = pytest.mark.parametrize("path", SOCKETS, ids=["systemd-resolved", "nscd"])
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('reached')"


@pytest.fixture(scope="module")
def node() -> Iterator[Guarded]:
    with guarded_lab(resolver=True) as made:
        for path in SOCKETS:
            made.lab.node.outside(path).parent.mkdir(parents=True)
            listen(made, path)
        yield made


def accept_all(path: str) -> None:
    """Listen at a path, as the daemon does when it starts, until the process ends."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        Path(path).chmod(0o666)
        server.listen()
        while True:
            server.accept()


def listen(made: Guarded, path: str) -> None:
    made.lab.node.spawn(accept_all, path)
    wait_until(lambda: "reached" in connect(made, path), 5, f"{path}, the control: any other process reaches it")


def connect(made: Guarded, path: str) -> str:
    return made.lab.node.run(["/usr/bin/python3", "-c", CONNECT, path], gid=SERVICE_GID, check=False).stdout


def run(made: Guarded, *words: str) -> tuple[int, str]:
    done = made.nftpolicy("run", "--policy", POLICY, "fastd", *words, check=False)
    return done.returncode, done.stdout + done.stderr


@sockets
def test_run_hides_daemon_from_program(node: Guarded, path: str) -> None:
    status, said = run(node, "--", "/usr/bin/python3", "-c", CONNECT, path)
    assert (status, "reached" in said, "FileNotFoundError" in said) == (1, False, True), said


@sockets
def test_run_hides_daemon_that_starts_again(node: Guarded, path: str) -> None:
    """A mount on the socket itself would be gone with the socket."""
    log = node.lab.node.outside("/run/lab/again.log")
    program = f"import time; print('started', flush=True); time.sleep(2); {CONNECT}"
    words = [PROGRAM, "run", "--policy", POLICY, "fastd", "--", "/usr/bin/python3", "-c", program, path]
    with log.open("w") as said:
        process = node.lab.node.popen(words, env=ENVIRONMENT, stdout=said, stderr=said)
    wait_until(lambda: "started" in log.read_text(), 10, "the program")
    node.lab.node.outside(path).unlink()
    listen(node, path)
    assert process.wait(20) == 1
    assert "FileNotFoundError" in log.read_text()
    assert "reached" in connect(node, path), "the control: the host still sees it"


def test_program_without_servers_finds_name(node: Guarded) -> None:
    """systemd-resolved keeps resolv.conf in the hidden directory; any server address is redirected.

    An empty file is to the C library what a missing one is. The node's file is a mount: to delete it would delete
    the file of the machine.
    """
    resolv = node.lab.node.outside("/etc/resolv.conf")
    before = resolv.read_text()
    resolv.write_text("")
    try:
        status, said = run(node, "--", "getent", "ahostsv4", at.VPN)
        assert (status, at.SERVER[4] in said) == (0, True), said
    finally:
        resolv.write_text(before)


def test_run_check_reports_hidden_daemons(node: Guarded) -> None:
    status, said = run(node, "--check")
    assert "ok: names: neither systemd-resolved nor nscd is reachable" in said, said
    assert status in (0, 1)  # by the rest of the host


def test_run_check_finds_host_without_dns(node: Guarded) -> None:
    file = node.lab.node.outside("/etc/nsswitch.conf")
    before = file.read_text() if file.exists() else None
    file.write_text("hosts: files resolve\n")
    try:
        status, said = run(node, "--check")
        assert (status, "fault: names: /etc/nsswitch.conf:1:" in said) == (1, True), said
    finally:
        file.write_text(before or "hosts: files dns\n")
