"""DNS queries on a machine without a default route: a service's reach its resolver, all others are refused at once."""

import contextlib
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import OTHER_GID, POLICY, SERVICE_GID, Guarded, guarded_lab, watching
from tests.lab import addresses as at
from tests.lab.netns import wait_until

pytestmark = pytest.mark.slow

AFAR = {4: "198.51.100.77", 6: "2001:db8:99::53"}  # a server that only a default route leads to
families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])
protocols = pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])


@pytest.fixture(scope="module")
def node() -> Iterator[Guarded]:
    """The policy and its resolver, and no default route beside the uplink's: the tunnel is not up yet."""
    with guarded_lab(resolver=True) as made:
        made.lab.mesh_default(False)
        wait_until(lambda: ask(made, 4, server="127.0.0.1") == [at.WHO_AT_HOME[4]], 5, "an answer of the home")
        yield made


def ask(made: Guarded, family: int, tcp: bool = False, gid: int = SERVICE_GID, server: str = "") -> list[str] | str:
    return made.lab.resolve(at.WHO, family, server or AFAR[family], tcp, gid=gid)


@contextlib.contextmanager
def without_query_rules(made: Guarded) -> Iterator[None]:
    """Remove the ip rules of the queries for a positive control."""
    for family in at.FAMILIES:
        made.lab.node.ip(*[f"-{family} rule del priority 33000"] * 2)
    try:
        yield
    finally:
        made.apply()


@families
@protocols
def test_query_without_default_route_reaches_resolver(node: Guarded, family: int, tcp: bool) -> None:
    with watching(node.lab) as watch:
        node.lab.mesh_sniffer.drain()
        assert ask(node, family, tcp) == [at.WHO_AT_HOME[family]]
        assert (watch.unmarked, watch.stray) == (0, 0)
    with without_query_rules(node):
        assert ask(node, family, tcp) == "ENETUNREACH", "the control: the call needs a route"


@families
@protocols
def test_query_of_no_service_is_refused_at_once(node: Guarded, family: int, tcp: bool) -> None:
    before = node.counters()["inet/dns-unrouted"]
    with watching(node.lab) as watch:
        node.lab.wan.drain(), node.lab.mesh_sniffer.drain()
        begin = time.monotonic()
        answer = ask(node, family, tcp, OTHER_GID)
        assert time.monotonic() - begin < 0.5, answer
        assert answer == ("ECONNREFUSED" if tcp else "EPERM")
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert node.counters()["inet/dns-unrouted"] > before
    assert not [frame for frame in node.lab.wan.frames() if frame.daddr == AFAR[family]]
    assert not [frame for frame in node.lab.mesh_sniffer.frames() if frame.daddr == AFAR[family]]
    with without_query_rules(node):
        assert ask(node, family, tcp, OTHER_GID) == "ENETUNREACH", "the control: it had no route before"


@families
def test_query_to_server_of_this_machine_is_answered(node: Guarded, family: int) -> None:
    """A local server answers anybody, on loopback and on the address of a device."""
    before = node.counters()["inet/dns-unrouted"]
    for server in ({4: "127.0.0.1", 6: "::1"}[family], at.NODE_MESH[family]):
        answer = ask(node, family, gid=OTHER_GID, server=server)
        assert answer not in ("EPERM", "ENETUNREACH"), (server, answer)
    assert node.counters()["inet/dns-unrouted"] == before


@families
def test_other_packet_without_route_has_none(node: Guarded, family: int) -> None:
    """The route is for DNS alone."""
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    for port, protocol in ((54, socket.SOCK_DGRAM), (853, socket.SOCK_STREAM)):
        with node.lab.node.socket(kind, protocol) as channel, pytest.raises(OSError, match="Network is unreachable"):
            channel.connect((AFAR[family], port))


@families
def test_query_prefers_route_by_mesh(node: Guarded, family: int) -> None:
    """With a default route, a query of no service goes to the mesh as before."""
    node.lab.mesh_default(True)
    try:
        node.lab.mesh_sniffer.drain()
        ask(node, family, gid=OTHER_GID)
        wait_until(lambda: any(frame.daddr == AFAR[family] for frame in node.lab.mesh_sniffer.frames()), 5, "the query")
        assert ask(node, family) == [at.WHO_AT_HOME[family]]
    finally:
        node.lab.mesh_default(False)


def test_library_resolves_name_by_distant_server(node: Guarded) -> None:
    """As wg-quick does at boot: the C library, and a server in resolv.conf that no route leads to."""
    node.lab.node.outside("/etc/resolv.conf").write_text(f"nameserver {AFAR[4]}\noptions timeout:1 attempts:1\n")
    words = ["getent", "ahostsv4", at.VPN]
    try:
        assert at.SERVER[4] in node.lab.node.run(words, gid=SERVICE_GID).stdout
        begin = time.monotonic()
        assert node.lab.node.run(words, gid=OTHER_GID, check=False).returncode == 2
        assert time.monotonic() - begin < 1
        with without_query_rules(node):
            failed = node.lab.node.run(words, gid=SERVICE_GID, check=False).returncode
            assert failed == 2, "the control: no route, no name"
    finally:
        node.lab.node.outside("/etc/resolv.conf").write_text("nameserver 127.0.0.1\nnameserver ::1\n")


def test_node_without_default_route_is_proved(node: Guarded) -> None:
    assert "P5" in node.nftpolicy("verify", "--live", POLICY).stdout
    refusing = "route add unreachable default metric 4000"
    with without_query_rules(node):
        assert node.nftpolicy("verify", "--live", POLICY, check=False).returncode == 1, "the control: no route"
    node.lab.node.ip(refusing)
    try:
        said = node.nftpolicy("verify", "--live", POLICY).stdout
        assert re.search(r"P5 .*refuted", said), said
    finally:
        node.lab.node.ip(refusing.replace("add", "del"))


@families
def test_watch_restores_rules_and_route_of_queries(node: Guarded, family: int) -> None:
    def is_routed() -> bool:
        return ask(node, family) == [at.WHO_AT_HOME[family]]

    with Watched(node, "--leave-routes"):
        for damage in ("rule del priority 33000", "route del default table 7853"):
            node.lab.node.ip(f"-{family} {damage}")
            wait_until(is_routed, 10, f"the repair of: {damage}")


def test_policy_applies_without_ipv6_on_lo() -> None:
    with guarded_lab() as made:
        made.release()
        made.lab.node.sysctl("net.ipv6.conf.lo.disable_ipv6", 1)
        made.apply()
        assert "7853" not in made.lab.node.run(["ip", "-6", "route", "show", "table", "all"]).stdout
        made.lab.node.sysctl("net.ipv6.conf.lo.disable_ipv6", 0)
        made.apply()
        assert "default dev lo table 7853" in made.lab.node.run(["ip", "-6", "route", "show", "table", "all"]).stdout


def test_release_restores_names_and_routes() -> None:
    with guarded_lab() as made:
        made.release()
        before = routing(made)
        made.apply()
        assert routing(made) != before
        assert "lookup 7853" in routing(made)
        made.release()
        assert routing(made) == before
        assert "7853" not in before
        assert ask(made, 4, gid=SERVICE_GID, server="127.0.0.1") == [at.WHO_IN_MESH[4]]


def routing(made: Guarded) -> str:
    commands = ("-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all")
    listings = [made.lab.node.run(["ip", *words.split()]).stdout for words in commands]
    resolv = made.lab.node.outside("/etc/resolv.conf").read_text()
    return "\n".join([*("\n".join(sorted(text.splitlines())) for text in listings), resolv])
