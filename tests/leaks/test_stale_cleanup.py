"""After a change of policy, connections on the old decision end at once, and other connections stay."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.guarded_lab import POLICY, SERVICE_GID, Guarded, gluon, guarded_lab
from tests.lab import addresses as at

OTHER = "/run/lab/other.toml"


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab() as found:
        text = gluon(found.lab).replace('mark    = "0x1/0x1"', 'mark    = "0x2/0x2"')
        assert text != gluon(found.lab)
        found.lab.node.outside(OTHER).write_text(text)
        yield found


def connect(family: int, mark: int) -> int:
    """Open a connection to the server's echo service; its descriptor stays in this process. Runs inside the node."""
    one = socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_STREAM)
    one.settimeout(3)
    if mark:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    one.connect((at.SERVER[family], at.ECHO_PORT))
    KEPT.append(one)
    return len(KEPT) - 1


KEPT: list[socket.socket] = []


def outcome(family: int, mark: int, change: list[str]) -> tuple[str, str]:
    """Connect as the service, change the policy, and return the state of the connection. Runs inside the node."""
    import os
    import subprocess

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(SERVICE_GID) if mark else None
        try:
            connect(family, mark)
            os.write(writer, b"c")
            os.read(GO[0], 1)
            one = KEPT[0]
            error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            os.write(writer, (errno.errorcode.get(error, "alive")).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"c", "the connection"
    done = subprocess.run(change, capture_output=True, text=True, check=True, env={**os.environ, **ENV})
    os.write(GO[1], b"g")
    with os.fdopen(reader) as said:
        found = said.readline().strip()
    os.waitpid(child, 0)
    return found, done.stdout + done.stderr


GO: tuple[int, int]
ENV: dict[str, str] = {}


def _around(family: int, mark: int, change: list[str], env: dict[str, str]) -> tuple[str, str]:
    import os

    global GO
    GO = os.pipe()
    ENV.update(env)
    return outcome(family, mark, change)


@pytest.mark.parametrize("family", [4, 6])
def test_connection_with_removed_mark_is_closed(made: Guarded, family: int) -> None:
    from tests.guarded_lab import ENVIRONMENT, PROGRAM

    made.apply()
    found, said = made.lab.node.call(_around, family, 1, [PROGRAM, "apply", OTHER], ENVIRONMENT, timeout=30)
    assert found == "ECONNABORTED", said
    assert "closed 1 connection: the mark 0x1/0x1 of uplink wan is not used any more" in said
    made.apply()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mark", [0, 1], ids=["in the mesh", "of the service, whose mark stays"])
def test_connection_with_kept_decision_stays_open(made: Guarded, family: int, mark: int) -> None:
    from tests.guarded_lab import ENVIRONMENT, PROGRAM

    made.apply()
    file = OTHER if not mark else "/run/lab/table.toml"
    made.lab.node.outside("/run/lab/table.toml").write_text(
        gluon(made.lab).replace('answer  = ["ssh", "ping"]', "answer  = []")
    )
    found, said = made.lab.node.call(_around, family, mark, [PROGRAM, "apply", file], ENVIRONMENT, timeout=30)
    assert "applied in" in said
    assert found == "alive", said
    made.nftpolicy("apply", POLICY)


def test_flows_of_removed_mark_are_deleted(made: Guarded) -> None:
    """A request from outside by the uplink has a flow with its mark."""
    made.apply()
    with ExitStack() as stack:
        for port in (22, 2222):
            one = stack.enter_context(made.lab.home.socket(socket.AF_INET, socket.SOCK_DGRAM))
            address = made.lab.wan_address(4)
            assert address is not None
            one.sendto(b"x", (address, port))
    said = made.nftpolicy("apply", OTHER).stdout
    assert "deleted " in said
    assert "the mark 0x1/0x1 of uplink wan" in said
    made.apply()
