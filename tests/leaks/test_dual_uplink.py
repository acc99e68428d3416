# SPDX-License-Identifier: BSD-2-Clause
"""LTE beside a wired line: each service has one uplink, its addresses and its names, and never those of the other."""

import contextlib
import errno
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from tests.guarded_lab import ENVIRONMENT, OTHER_GID, POLICY, PROGRAM, ROOT, Guarded, guarded_lab, watching
from tests.lab import addresses as at
from tests.lab import daemons, inbound_clients
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.sniffer import Sniffer
from tests.lab.topology import Lab

LTE = "wwan0"
GATEWAY = {4: "198.18.20.1", 6: "2001:db8:20::1"}
OWN = {4: "198.18.20.2", 6: "2001:db8:20::2"}
NET = {4: "198.18.20.0/24", 6: "2001:db8:20::/64"}
BEYOND = {4: ("198.18.21.1", "198.18.21.10", 24), 6: ("2001:db8:21::1", "2001:db8:21::10", 64)}  # gateway, server
WHO_BY_LTE = {4: "198.18.20.200", 6: "2001:db8:20::200"}
LEASE = "/run/lab/lte.resolv"
TABLES = {"wired": 100, "lte": 101}
MARKS = {"wired": 0x10, "lte": 0x20}
GROUPS = {"wired": 861, "lte": 862}
ALARM = 863
DISCARD = 9
families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])


def policy(lab: Lab) -> str:
    """Return the shipped policy with the devices and leases of the lab."""
    text = (ROOT / "rulesets" / "dual-uplink.toml").read_text()
    for old, new in (
        ('["br-lan", "tun*"]', f'["{at.MESH}", "{at.CLIENT}", "tun*"]'),
        ('["eth0"]', f'["{at.WAN}"]'),
        ('["wwan0"]', f'["{LTE}"]'),
        ('"/run/nftpolicy/wired.dns"', f'"{lab.wan_lease}"'),
        ('"/run/nftpolicy/lte.dns"', f'"{LEASE}"'),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def with_lte(lab: Lab, lte: Namespace, table: int = TABLES["lte"]) -> None:
    """Add a second uplink with static addresses, and a network behind it that also leads to the server.

    In the table of the wired line, it is the spare one.
    """
    veth(lte, "to-node", lab.node, LTE)
    veth(lte, "to-server", lab.server, "to-lte")
    lte.sysctl("net/ipv4/ip_forward", 1), lte.sysctl("net/ipv6/conf/all/forwarding", 1)
    for family in at.FAMILIES:
        length, (near, far, beyond) = NET[family].split("/")[1], BEYOND[family]
        lte.ip(f"addr add {GATEWAY[family]}/{length} dev to-node", f"addr add {near}/{beyond} dev to-server")
        lab.server.ip(f"addr add {far}/{beyond} dev to-lte", f"-{family} route add {NET[family]} via {near}")
        lte.ip(f"-{family} route add {at.SERVER_NET[family]} via {far}")
        metric = f"table {table} metric 2000 src {OWN[family]}"
        lab.node.ip(
            f"addr add {OWN[family]}/{length} dev {LTE} noprefixroute",
            f"-{family} route add {NET[family]} dev {LTE} {metric}",
            f"-{family} route add default via {GATEWAY[family]} dev {LTE} {metric}",
        )
    lte.popen(daemons.dnsmasq(GATEWAY.values(), {at.WHO: WHO_BY_LTE, at.VPN: at.SERVER}))
    lab.node.outside(LEASE).write_text("".join(f"nameserver {one}\n" for one in GATEWAY.values()))


@dataclass(frozen=True)
class DualUplinkNode:
    """Node with a sniffer on each uplink."""

    guarded: Guarded
    sniffers: dict[str, Sniffer]

    @property
    def lab(self) -> Lab:
        return self.guarded.lab

    def send(
        self, family: int, gid: int, mark: int, device: str = "", to: Mapping[int, str] = at.SERVER
    ) -> tuple[dict[str, set[str]], str]:
        """Send one datagram; return the source addresses by uplink, and the name of the errno."""
        for sniffer in (*self.sniffers.values(), self.lab.mesh_sniffer):
            sniffer.drain()
        word = f"{gid}-{mark}-{device}".encode()
        error = self.lab.node.call(sent, to[family], mark, device, word, gid=gid, keep_caps=True)
        if not error:
            wait_until(lambda: any(self.seen(word).values()), 3, "a datagram anywhere")
        return self.seen(word), error

    def seen(self, word: bytes) -> dict[str, set[str]]:
        everywhere = {**self.sniffers, "mesh": self.lab.mesh_sniffer}
        found = {
            name: {frame.saddr for frame in sniffer.frames() if frame.payload == word}
            for name, sniffer in everywhere.items()
        }
        return {name: addresses for name, addresses in found.items() if addresses}

    def own(self, uplink: str, family: int) -> str | None:
        return self.lab.wan_address(family) if uplink == "wired" else OWN[family]


def sent(address: str, mark: int, device: str, word: bytes) -> str:
    """Send a datagram, by a device if one is given; return the name of the errno, or an empty text."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if device:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        try:
            made.sendto(word, (address, DISCARD))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return ""


@pytest.fixture(scope="module")
def dual() -> Iterator[DualUplinkNode]:
    with Namespace("lte") as lte, contextlib.ExitStack() as stack:

        def prepared(lab: Lab) -> str:
            with_lte(lab, lte)
            return policy(lab)

        made = stack.enter_context(guarded_lab(prepared, table=TABLES["wired"]))
        for uplink in TABLES:
            path = made.lab.node.outside(f"/run/lab/resolver-{uplink}.log")
            with path.open("w") as said:
                words = [PROGRAM, "resolver", "--uplink", uplink, POLICY]
                made.lab.daemon(words, env=ENVIRONMENT, stdout=said, stderr=said)
            wait_until(lambda path=path: "answers on" in path.read_text(), 10, f"the resolver of {uplink}")
        sniffer = stack.enter_context(Sniffer(lte, "to-node"))
        yield DualUplinkNode(made, {"wired": made.lab.wan, "lte": sniffer})


@contextlib.contextmanager
def watched(dual: DualUplinkNode) -> Iterator[None]:
    """Check that behind the guard only packets with the wired line's mark leave by the wired line."""
    with watching(dual.lab, f"{MARKS['wired']:#x}/0xf0") as watch:
        yield
        assert (watch.unmarked, watch.stray) == (0, 0)


@families
@pytest.mark.parametrize("uplink", TABLES)
def test_service_leaves_by_its_own_uplink(dual: DualUplinkNode, uplink: str, family: int) -> None:
    with watched(dual):
        where, error = dual.send(family, GROUPS[uplink], MARKS[uplink])
    assert (where, error) == ({uplink: {dual.own(uplink, family)}}, "")


@families
@pytest.mark.parametrize(("uplink", "other"), [("wired", "lte"), ("lte", "wired")])
def test_mark_of_uplink_is_dropped_at_other_uplink(dual: DualUplinkNode, uplink: str, other: str, family: int) -> None:
    device, gateway = {"wired": (at.WAN, at.HOME), "lte": (LTE, GATEWAY)}[other]
    route = f"{gateway[family]} dev {device} metric 1"  # in the main table, which no mark reaches
    dual.lab.node.ip(f"-{family} route add {route}")
    try:
        with watched(dual):
            # Its own mark by the other's device, where IPv6 does without a route no more than without the device...
            before = dual.guarded.counters()[f"inet/{uplink}.stray"]
            where, error = dual.send(family, GROUPS[uplink], MARKS[uplink], device, gateway)
            assert (where, error) == ({}, {4: "EPERM", 6: "ENETUNREACH"}[family])
            assert dual.guarded.counters()[f"inet/{uplink}.stray"] == before + (family == 4)
            # ... and the other's mark on its own socket.
            before = dual.guarded.counters()[f"inet/{other}.unentitled"]
            assert dual.send(family, GROUPS[uplink], MARKS[other], "", gateway) == ({}, "EPERM")
            assert dual.guarded.counters()[f"inet/{other}.unentitled"] > before
        with dual.guarded.off():
            assert dual.send(family, GROUPS[uplink], MARKS[uplink], device, gateway)[0].keys() == {other}
    finally:
        dual.lab.node.ip(f"-{family} route del {route}")


@families
def test_wired_line_down_stops_only_its_services(dual: DualUplinkNode, family: int) -> None:
    lab = dual.lab
    lab.wan_down()
    try:
        with watched(dual):
            assert dual.send(family, GROUPS["wired"], MARKS["wired"]) == ({}, "EHOSTUNREACH")
            assert dual.send(family, GROUPS["lte"], MARKS["lte"]) == ({"lte": {OWN[family]}}, "")
            assert dual.lab.node.call(alarm, family, gid=ALARM) == "ECONNREFUSED"  # there and back
            assert lab.node.call(inbound_clients.udp, at.SERVER[family], at.ECHO_PORT, gid=OTHER_GID) == b"hello"
        assert lab.resolve(at.WHO, family, "127.0.0.1", gid=GROUPS["lte"]) == [WHO_BY_LTE[family]]
        assert lab.resolve(at.WHO, family, "127.0.0.1", gid=GROUPS["wired"], seconds=0.5) in ("timeout", "refused")
    finally:
        lab.wan_up()
        mine = {"server": "127.0.0.1", "gid": GROUPS["wired"], "seconds": 0.3}  # it has to read the new lease first
        wait_until(lambda: lab.resolve(at.WHO, 4, **mine) == [at.WHO_AT_HOME[4]], 10, "names of the wired line")
    assert dual.send(family, GROUPS["wired"], MARKS["wired"])[0].keys() == {"wired"}


def alarm(family: int) -> str:
    """Connect to the only port that the alarm may use; no server listens there."""
    with socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARKS["lte"])
        made.settimeout(3)
        return errno.errorcode.get(made.connect_ex((at.SERVER[family], 443)), "connected")


@families
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_service_gets_names_of_its_own_uplink(dual: DualUplinkNode, family: int, tcp: bool) -> None:
    answers = {GROUPS["wired"]: at.WHO_AT_HOME, GROUPS["lte"]: WHO_BY_LTE, ALARM: WHO_BY_LTE, OTHER_GID: at.WHO_IN_MESH}
    for server in ("127.0.0.1", "::1", GATEWAY[4], at.HOME[4]):
        for gid, answer in answers.items():
            if gid != OTHER_GID or server in ("127.0.0.1", "::1"):
                assert dual.lab.resolve(at.WHO, family, server, tcp, gid=gid) == [answer[family]], (server, gid)


def test_resolver_of_uplink_refuses_service_of_other(dual: DualUplinkNode) -> None:
    ports = {"wired": 5301, "lte": 5302}
    for uplink, port in ports.items():
        (other,) = ports.keys() - {uplink}
        assert dual.lab.resolve(at.WHO, 4, "127.0.0.1", port=port, gid=GROUPS[other], seconds=0.2) == "EPERM"
        assert dual.lab.resolve(at.WHO, 4, "127.0.0.1", port=port, gid=OTHER_GID, seconds=0.2) == "EPERM"
        mine = dual.lab.resolve(at.WHO, 4, "127.0.0.1", port=port, gid=GROUPS[uplink])
        assert mine == [{"wired": at.WHO_AT_HOME, "lte": WHO_BY_LTE}[uplink][4]]
