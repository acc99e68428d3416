"""Kill switch of a desktop: only the VPN leaves by the untrusted network, other packets by the tunnel or not."""

from collections.abc import Iterator

import pytest

from tests.guarded_lab import ROOT, Guarded, guarded_lab, replaced, run_probes, watching
from tests.lab import addresses as at
from tests.lab import inbound_clients, leak_probes
from tests.lab.inbound_clients import NO_ANSWER
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

MARK, VPN_GID, TABLE = 0x1110, 851, 51
INSIDE = {4: ("198.18.7.1", "198.18.7.2", 24), 6: ("2001:db8:7::1", "2001:db8:7::2", 64)}  # node, server
families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


def policy(lab: Lab) -> str:
    """Return the shipped policy with the devices of the lab."""
    return replaced(
        ROOT / "rulesets" / "vpn-killswitch.toml",
        {"inside": f'["tun*", "{at.TUNNEL}"]', "devices": f'["{at.WAN}"]', "lease": f'"{lab.wan_lease}"'},
    )


@pytest.fixture(scope="module")
def desktop() -> Iterator[Guarded]:
    """A machine whose only network is the untrusted one, and its VPN is up."""
    with guarded_lab(policy, resolver=True, table=TABLE) as made:
        lab = made.lab
        lab.mesh_down()
        lab.start_fastd_client(VPN_GID, mark=MARK, remote=at.VPN)
        lab.wait_for_fastd()
        for family, (here, there, length) in INSIDE.items():
            flag = " nodad" if family == 6 else ""
            lab.node.ip(f"addr add {here}/{length} dev {at.TUNNEL}{flag}")
            lab.server.ip(f"addr add {there}/{length} dev fastd0{flag}")
        for space, device in ((lab.node, at.TUNNEL), (lab.server, "fastd0")):
            space.ip(f"link set {device} up")
        for family, (_, there, _) in INSIDE.items():
            lab.node.ip(f"-{family} route add default via {there} dev {at.TUNNEL}")
        yield made


def test_killswitch_passes_vpn_only(desktop: Guarded) -> None:
    lab = desktop.lab
    with watching(lab, f"{MARK:#x}/0x3f10") as watch:
        run = run_probes(lab, mark=MARK, gid=VPN_GID)
        assert (watch.unmarked, watch.stray) == (0, 0)
    marked = [sent for sent in run.sents if sent.probe.marked]
    assert sorted(str(sent.probe) for sent in run.wan) == sorted(str(sent.probe) for sent in marked)
    assert [frame for frame in run.unexplained() if frame.dport != at.FASTD_PORT] == []
    with desktop.off():
        open_ = run_probes(lab, mark=MARK, gid=VPN_GID)
        needs_nothing = {
            probe for probe in leak_probes.matrix() if not probe.marked and probe.needs == leak_probes.NOTHING
        }
        assert {sent.probe for sent in open_.wan} >= needs_nothing, "inconclusive"


def test_killswitch_drops_other_mark(desktop: Guarded) -> None:
    which = [probe for probe in leak_probes.matrix() if probe.marked and probe.kind == "udp-bound"]
    for mark in (0x5000, 0x51, 1, 0x4100, 0xFF00):
        assert run_probes(desktop.lab, which, mark=mark, gid=VPN_GID).wan == frozenset()
    for mark in (0x1110, 0x1111, 0x345110):  # other bits are others' business
        assert len(run_probes(desktop.lab, which, mark=mark, gid=VPN_GID).wan) == len(which)
    assert run_probes(desktop.lab, which, mark=MARK, gid=VPN_GID + 1).wan == frozenset()


@families
def test_killswitch_other_traffic_uses_tunnel(desktop: Guarded, family: int) -> None:
    lab, (here, there, _) = desktop.lab, INSIDE[family]
    with watching(lab, f"{MARK:#x}/0x3f10") as watch:
        assert lab.node.call(inbound_clients.udp, there, at.ECHO_PORT) == b"hello"
        assert lab.node.call(inbound_clients.tcp, there, at.ECHO_PORT) == b"hello"
        assert lab.server.call(inbound_clients.ping, here)
        assert (watch.unmarked, watch.stray) == (0, 0)
    lab.wan.drain()
    assert not lab.node.call(inbound_clients.ping, at.HOME[family], 0.2)
    assert {frame.dport for frame in lab.wan.frames() if frame.dport is not None} <= {at.FASTD_PORT}


@families
def test_killswitch_answers_nothing(desktop: Guarded, family: int) -> None:
    lab, address = desktop.lab, desktop.lab.wan_address(family)
    lab.node.sysctl("net.ipv4.ip_unprivileged_port_start", 0)
    with inbound_clients.listening(lab.node, 22), watching(lab, f"{MARK:#x}/0x3f10") as watch:
        for space in (lab.neighbour, lab.home):
            for port in (22, 8081):
                assert space.call(inbound_clients.tcp, address, port, b"", 0.15) == NO_ANSWER
                assert space.call(inbound_clients.udp, address, port, b"", 0.15) == NO_ANSWER
            assert not space.call(inbound_clients.ping, address, 0.15)
        assert (watch.unmarked, watch.stray) == (0, 0)
        (here, _, _) = INSIDE[family]
        assert lab.server.call(inbound_clients.tcp, here, 22) == b"hello"  # by the tunnel it is


@families
def test_killswitch_vpn_gets_names_from_network(desktop: Guarded, family: int) -> None:
    for server in ("127.0.0.1", "::1"):
        for tcp in (False, True):
            answer = desktop.lab.resolve(at.VPN, family, server, tcp, gid=VPN_GID)
            assert answer == [at.SERVER[family]]
    refused = desktop.lab.resolve(at.VPN, family, "127.0.0.1", port=5351, gid=VPN_GID + 1, seconds=0.2)
    assert refused == "EPERM"


def test_killswitch_without_tunnel_leaks_nothing(desktop: Guarded) -> None:
    lab = desktop.lab
    lab.node.ip(f"link set {at.TUNNEL} down")
    try:
        with watching(lab, f"{MARK:#x}/0x3f10") as watch:
            run = run_probes(lab, mark=MARK, gid=VPN_GID)
            assert run.unmarked() == []
            assert watch.unmarked == 0
    finally:
        lab.node.ip(f"link set {at.TUNNEL} up")
    wait_until(lambda: lab.server_fastd_peers(), 10, "the VPN")
