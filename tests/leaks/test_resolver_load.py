"""The resolver under load, while its servers change, one of them lies and the link fails: no leak, no lost query."""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    OTHER_GID,
    SERVICE_GID,
    Guarded,
    guarded_lab,
    no_wan_routes_in_main,
    wan_routes_in_main,
    watching,
)
from tests.lab import addresses as at
from tests.lab import dns_message, slow_dns_server
from tests.lab.dns_client import Asked, ask_often
from tests.lab.netns import wait_until

pytestmark = pytest.mark.slow

DOMAIN = "storm.example"
TRUTH, LIE = "192.0.2.201", "192.0.2.222"
RATE, SECONDS, CHANGES = 200, 12, 50
SLOW = 0.06  # seconds that each server takes, so that a dozen queries are on their way at any time
HONEST, LIARS = ("192.0.2.60", "2001:db8:1::60"), tuple(at.NEIGHBOUR.values())
LISTS = (  # each differs from the next, and one begins with a server that is not there
    (HONEST[0],),
    (LIARS[0], HONEST[0]),
    (HONEST[1],),
    ("192.0.2.61", LIARS[1]),
    (LIARS[0],),
)


@pytest.fixture(scope="module")
def storm() -> Iterator[Guarded]:
    """Home with one correct DNS server and one that gives false answers for any name; both are slow."""
    with guarded_lab(resolver=True) as made:
        neighbour = made.lab.neighbour
        neighbour.ip(f"addr add {HONEST[0]}/24 dev eth0", f"addr add {HONEST[1]}/64 dev eth0 nodad")
        for servers, answer in ((HONEST, TRUTH), (LIARS, LIE)):
            for one in servers:
                neighbour.spawn(slow_dns_server.serve, one, answer, SLOW)
        listed(made, LISTS[0])
        wait_until(lambda: ask(made) == [TRUTH], 5, "an answer of the home")
        yield made


def ask(made: Guarded, gid: int = SERVICE_GID, port: int = 53) -> list[str] | str:
    return made.lab.resolve(f"one.{DOMAIN}", 4, "127.0.0.1", gid=gid, port=port, seconds=0.5)


def listed(made: Guarded, servers: tuple[str, ...]) -> None:
    """Replace the server list by a new file, as a DHCP client does."""
    new = made.lab.node.outside(f"{made.lab.wan_lease}.new")
    new.write_text("".join(f"nameserver {one}\n" for one in servers))
    new.replace(made.lab.node.outside(made.lab.wan_lease))


def asked_of_the_machines_own(made: Guarded) -> int:
    """Return the queries below DOMAIN that reached the node's primary resolver, on port 53."""
    log = made.lab.node.outside("/run/lab/dnsmasq.log").read_text()
    return sum(DOMAIN in line and " query[" in line for line in log.splitlines())


class QueryLoad(threading.Thread):
    """The service, which queries port 53, and another user, who queries the resolver's own port; both in the node."""

    def __init__(self, made: Guarded, seconds: float) -> None:
        super().__init__()
        self.made, self.seconds = made, seconds
        self.service: list[Asked] = []
        self.others: list[Asked] = []
        self.start()

    def run(self) -> None:
        other = threading.Thread(target=self._others)
        other.start()
        self.service = self._ask(["127.0.0.1", "::1"], RATE, SERVICE_GID, 53)
        other.join()

    def _others(self) -> None:
        self.others = self._ask(["127.0.0.1", "::1"], 20, OTHER_GID, 54)

    def _ask(self, servers: list[str], rate: float, gid: int, port: int) -> list[Asked]:
        args = (servers, DOMAIN, rate, self.seconds, 5.0, port)
        answered: list[Asked] = self.made.lab.node.call(ask_often, *args, gid=gid, timeout=self.seconds + 20)
        return answered


def figures(asked: list[Asked]) -> str:
    answers = Counter(one.answer if isinstance(one.answer, str) else " ".join(one.answer) for one in asked)
    waits = sorted(one.answered - one.sent for one in asked if one.answered)
    return f"{len(asked)} queries: {dict(answers)}; slowest {waits[-1] * 1000:.0f} ms" if waits else f"{dict(answers)}"


def test_resolver_server_change_loses_no_query(storm: Guarded, capsys: pytest.CaptureFixture[str]) -> None:
    storm.lab.wan.drain(), storm.lab.mesh_sniffer.drain()
    primary, changes = asked_of_the_machines_own(storm), storm.resolver_log().count("servers of uplink")
    with watching(storm.lab) as watch:
        askers = QueryLoad(storm, SECONDS)
        for number in range(CHANGES):
            time.sleep(SECONDS / (CHANGES + 2))
            listed(storm, LISTS[(number + 1) % len(LISTS)])
        askers.join()
        assert (watch.unmarked, watch.stray) == (0, 0)
    lists = storm.resolver_log().count("servers of uplink") - changes
    with capsys.disabled():
        print(f"\n{lists} lists; the service: {figures(askers.service)}; others: {figures(askers.others)}")
    assert lists >= CHANGES / 2  # on a busy machine two changes may be seen as one
    assert len(askers.service) == RATE * SECONDS
    lost = [one for one in askers.service if one.answer not in ([TRUTH], [LIE])]
    assert lost == [], figures(askers.service)
    assert {str(one.answer) for one in askers.service} == {f"['{TRUTH}']", f"['{LIE}']"}, "inconclusive: nobody lied"
    assert not [one for one in askers.others if one.answered]
    assert asked_of_the_machines_own(storm) == primary
    queries = [frame for frame in storm.lab.wan.drain() if frame.dport == 53]
    assert len(queries) >= RATE * SECONDS
    assert [frame for frame in storm.lab.mesh_sniffer.drain() if frame.dport == 53] == []
    assert storm.lab.wan.dropped == storm.lab.mesh_sniffer.dropped == 0


def test_resolver_flapping_link_leaks_nothing(storm: Guarded, capsys: pytest.CaptureFixture[str]) -> None:
    primary, seconds = asked_of_the_machines_own(storm), 8
    storm.lab.mesh_sniffer.drain()
    downs: list[tuple[float, float]] = []
    listed(storm, LISTS[1])
    wait_until(lambda: ask(storm) == [LIE], 5, "the list")
    with watching(storm.lab) as watch:
        askers = QueryLoad(storm, seconds)
        time.sleep(1.1)  # on a busy machine the flaps take the rest of the time
        for number in range(3):
            time.sleep(0.9)
            begin = time.monotonic()
            storm.lab.wan_down()
            listed(storm, LISTS[number])
            time.sleep(0.2)
            storm.lab.wan_up()  # DHCP brings the list of the home's router, which has no such name
            listed(storm, LISTS[number])
            downs.append((begin, time.monotonic()))
        askers.join()
        assert (watch.unmarked, watch.stray) == (0, 0)
    untouched = [one for one in askers.service if not any(begin - 0.6 < one.sent < end + 1 for begin, end in downs)]
    with capsys.disabled():
        print(f"\ndown {sum(end - begin for begin, end in downs):.1f} s; {figures(askers.service)}; "
              f"of those that the link did not touch: {figures(untouched)}")  # fmt: skip
    assert len(untouched) >= RATE / 2, "inconclusive"
    # "nxdomain" is what the router says, who is on the list until `listed` is noticed.
    assert [one for one in untouched if one.answer not in ([TRUTH], [LIE], "nxdomain")] == [], figures(untouched)
    assert not [one for one in askers.others if one.answered]
    assert asked_of_the_machines_own(storm) == primary
    assert [frame for frame in storm.lab.mesh_sniffer.drain() if frame.dport == 53] == []
    listed(storm, LISTS[0])
    wait_until(lambda: ask(storm) == [TRUTH], 5, "answers after the storm")


def flags(name: str, do: bool) -> tuple[bool, bool, int]:
    """Return AD of the answer, DO of its OPT record, and its size field, as the calling process gets them."""
    options = struct.pack("!BHHBBHH", 0, 41, 4096, 0, 0, 0x8000 if do else 0, 0)
    query = dns_message.query(name, 4, 7)[:10] + b"\0\1" + dns_message.query(name, 4, 7)[12:] + options
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(2)
        channel.connect(("127.0.0.1", 53))
        channel.send(query)
        answer = channel.recv(4096)
    at = answer.rfind(b"\0\0\x29")
    if at < 0:  # the server knows no EDNS, and nor does who asks it
        return bool(answer[3] & 0x20), False, 512
    size, _, _, bits = struct.unpack_from("!HBBH", answer, at + 3)
    return bool(answer[3] & 0x20), bool(bits & 0x8000), size


def test_resolver_passes_dnssec_flags(storm: Guarded) -> None:
    """The server sets AD if the query has DO, and the resolver changes neither flag."""
    for do in (True, False):
        found = storm.lab.node.call(flags, f"secure.{DOMAIN}", do, gid=SERVICE_GID)
        assert found[:2] == (do, do)
        assert 512 <= found[2] <= 1232  # larger answers would be fragments


def test_control_leaked_queries_are_counted(storm: Guarded) -> None:
    """Positive controls: a query to the machine's own resolver, and an unmarked query that leaves."""
    primary = asked_of_the_machines_own(storm)
    ask(storm, gid=OTHER_GID)
    wait_until(lambda: asked_of_the_machines_own(storm) > primary, 5, "the query of another user")
    with storm.off():
        wan_routes_in_main(storm.lab)
        try:
            with watching(storm.lab) as watch:
                assert storm.lab.node.call(dns_message.ask, HONEST[0], f"two.{DOMAIN}", 4, gid=SERVICE_GID) == [TRUTH]
                assert watch.unmarked > 0
        finally:
            no_wan_routes_in_main(storm.lab)
