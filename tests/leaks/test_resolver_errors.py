"""The resolver passes on each answer of its server: an error too, and as fast as the server itself."""

import time
from collections.abc import Iterator

import pytest

from tests.guarded_lab import SERVICE_GID, Guarded, guarded_lab
from tests.lab import addresses as at
from tests.lab import dns_message, slow_dns_server
from tests.lab.limits import limit
from tests.lab.netns import Namespace, wait_until

pytestmark = pytest.mark.slow

SERVERS, TRUTH = ("192.0.2.60", "192.0.2.61"), "192.0.2.201"
ANSWERS = {
    "empty": [],
    "rcode1": "rcode-1",  # FORMERR, RFC 1035 4.1.1
    "rcode2": "servfail",
    "rcode3": "nxdomain",
    "rcode4": "rcode-4",  # NOTIMP
    "rcode5": "refused",
}
MORE = 0.002  # seconds


@pytest.fixture(scope="module", params=[1, 2], ids=["one server", "two servers"])
def made(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    servers = SERVERS[: request.param]
    with guarded_lab(resolver=True) as lab:
        for server in servers:
            lab.lab.neighbour.ip(f"addr add {server}/24 dev eth0")
            lab.lab.neighbour.spawn(slow_dns_server.serve, server, TRUTH, 0)
        new = lab.lab.node.outside(f"{lab.lab.wan_lease}.new")
        new.write_text("".join(f"nameserver {server}\n" for server in servers))
        new.replace(lab.lab.node.outside(lab.lab.wan_lease))
        wait_until(lambda: ask(lab.lab.node, "127.0.0.1", "known") == [TRUTH], 5, "the server's answer")
        time.sleep(5.5)  # the home's own servers leave: servers_file.LEAVING_SECONDS
        yield lab


def ask(space: Namespace, server: str, label: str, family: int = 4) -> list[str] | str:
    answer: list[str] | str = space.call(dns_message.ask, server, f"{label}.errors.example", family, gid=SERVICE_GID)
    return answer


def quickest(server: str, label: str) -> float:
    """Return the shortest time in seconds of some queries by the calling process."""
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        dns_message.ask(server, f"{label}.errors.example", 4)
        times.append(time.perf_counter() - begin)
    return min(times)


@pytest.mark.parametrize("family", at.FAMILIES, ids=["A", "AAAA"])
@pytest.mark.parametrize(("label", "answer"), ANSWERS.items(), ids=ANSWERS)
def test_resolver_passes_on_answer(made: Guarded, label: str, answer: list[str] | str, family: int) -> None:
    assert ask(made.lab.neighbour, SERVERS[0], label, family) == answer, "the control: the server itself"
    assert ask(made.lab.node, "127.0.0.1", label, family) == answer


@pytest.mark.parametrize("label", ANSWERS)
def test_resolver_answers_as_fast_as_server(made: Guarded, label: str) -> None:
    direct = made.lab.home.call(quickest, SERVERS[0], label)
    assert made.lab.node.call(quickest, "127.0.0.1", label, gid=SERVICE_GID) - direct < limit(MORE)
