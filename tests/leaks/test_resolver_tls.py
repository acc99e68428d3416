"""Servers that are queried over TLS, by unbound: no query leaves in plain text, whatever the server does."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guarded_lab import GLUON, RESOLVER_UID, ROOT, SERVICE_GID, Guarded, guarded_lab, replaced
from tests.lab import addresses as at
from tests.lab import tls_dns_server
from tests.lab.daemons import tool
from tests.lab.netns import wait_until

NAME, TRUTH, CA = "dns.example", "192.0.2.201", "/etc/ssl/certs/ca-certificates.crt"


def policy(name: str) -> str:
    text = replaced(GLUON, {"lease": "[]"}).replace("lease ", "servers ")
    return text.replace("= []", f'= ["tls://{at.NEIGHBOUR[4]}#{name}"]')


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("tls")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(ROOT / ".venv/unbound/usr/sbin"), prepend=":")
        if tool("unbound") is None or not Path(CA).exists():
            pytest.skip("unbound or ca-certificates is missing")
        tls_dns_server.make_certificate(directory, NAME)
        with guarded_lab(lambda _: policy(NAME)) as lab:
            lab.lab.neighbour.spawn(tls_dns_server.serve, at.NEIGHBOUR[4], directory, TRUTH)
            lab.lab.node.run(["mount", "--bind", str(directory / "ca.pem"), CA])
            yield lab


def ask(made: Guarded, tcp: bool = False, seconds: float = 2.0) -> list[str] | str:
    return made.lab.resolve(at.WHO, 4, "127.0.0.1", tcp, gid=SERVICE_GID, seconds=seconds)


def ports(made: Guarded) -> set[int]:
    """Return the ports that the node has queried at the uplink, of those of DNS."""
    return {frame.dport for frame in made.lab.wan.frames() if frame.dport in (53, 853)}


def test_queries_leave_over_tls_alone(made: Guarded) -> None:
    made.lab.wan.drain()
    made.start_resolver()
    wait_until(lambda: ask(made) == [TRUTH], 5, "an answer over TLS")
    assert ask(made, tcp=True) == [TRUTH]
    assert ports(made) == {853}
    assert made.stop_resolver() == 0


def test_guard_drops_queries_without_tls(made: Guarded) -> None:
    assert arrives(made, at.NEIGHBOUR[4], 853, socket.SOCK_STREAM), "the control: the server of the policy"
    refused = ((at.NEIGHBOUR[4], 853), (at.NEIGHBOUR[4], 53), (at.HOME[4], 53))
    assert not any(arrives(made, *each) for each in refused)
    made.lab.node.nft("flush ruleset")
    assert all(arrives(made, *each) for each in refused), "the control: without the guard they leave"
    made.apply()


def test_server_with_another_name_gets_no_query(made: Guarded) -> None:
    made.file.write_text(policy("other.example"))
    made.apply()
    made.lab.wan.drain()
    made.start_resolver()
    assert ask(made) in ("servfail", "timeout")
    assert ports(made) == {853}, "it has tried, and not without TLS"
    assert "certificate verify failed" in made.resolver_log()
    made.stop_resolver()


def arrives(made: Guarded, server: str, port: int, kind: int = socket.SOCK_DGRAM) -> bool:
    """Return True if a packet that the resolver's user sends with the mark arrives at the uplink."""
    made.lab.wan.drain()
    made.lab.node.call(send, server, port, kind, uid=RESOLVER_UID, keep_caps=True)
    packet = server, port, {socket.SOCK_STREAM: 6, socket.SOCK_DGRAM: 17}[kind]
    return bool(made.lab.wan.wait_for(lambda frame: (frame.daddr, frame.dport, frame.l4proto) == packet, 0.3))


def send(server: str, port: int, kind: int) -> None:
    """Runs inside the node."""
    with socket.socket(socket.AF_INET, kind) as channel, contextlib.suppress(OSError):
        channel.settimeout(0.3)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
        channel.connect((server, port))
        channel.send(b"query")
