# SPDX-License-Identifier: BSD-2-Clause
"""WireGuard on a mesh node, with the shipped policy.

In user space (wireguard-go), whose socket is identified by its group. And in the kernel: a packet there belongs to the
socket of the inner packet, or to none, so that it is identified by its port. VXLAN sends in the same way
(net/ipv4/udp_tunnel_core.c: udp_tunnel_xmit_skb) and stands for it, since not every kernel has WireGuard.
"""

import contextlib
import errno
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    OTHER_GID,
    ROOT,
    SERVICE_GID,
    Guarded,
    guarded_lab,
    no_wan_routes_in_main,
    replaced,
    wan_routes_in_main,
    watching,
)
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.conntrack_flush import flush_flows
from tests.lab.netns import wait_until
from tests.lab.topology import Lab
from tests.vpn_programs import INSIDE, WIREGUARD, echoes, of, set_wg, wait_for_echoes, wg_key, wireguard

pytestmark = pytest.mark.slow

DEVICE, GID = "wg_mesh", 802
families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])


def kernels(lab: Lab) -> str:
    """Return the shipped policy with the lab's lease."""
    return replaced(ROOT / "rulesets" / "gluon-wireguard.toml", {"lease": f'"{lab.wan_lease}"'})


def programs(lab: Lab) -> str:
    """Return the policy for a program in place of the kernel: a group instead of `kernel` and `sport`."""
    kept = [line for line in kernels(lab).splitlines() if not line.startswith("sport ")]
    return "\n".join(kept).replace("kernel = true", f"group = {GID}")


def endpoint(address: str) -> str:
    return f"[{address}]:{WIREGUARD}" if ":" in address else f"{address}:{WIREGUARD}"


# A program


@pytest.fixture(scope="module")
def node() -> Iterator[Guarded]:
    """Node whose WireGuard has no peer yet, and a server that knows the node."""
    with guarded_lab(programs, resolver=True) as made:
        lab = made.lab
        with wireguard(lab.server, "wg0"), wireguard(lab.node, DEVICE, GID):
            ends = f"{INSIDE[4][0]}/32,{INSIDE[6][0]}/128"
            set_wg(lab.server, "wg0", "peer", wg_key(lab.node, DEVICE), "allowed-ips", ends)
            yield made


@contextlib.contextmanager
def connected(node: Guarded, remote: str, mark: int = 1, gid: int | None = None) -> Iterator[None]:
    """Add the server as a peer, by this address or name, and mark packets to it; `gid` resolves the name."""
    lab, ends = node.lab, f"{INSIDE[4][1]}/32,{INSIDE[6][1]}/128"
    peer = ["peer", wg_key(lab.server, "wg0")]
    set_wg(lab.node, DEVICE, "fwmark", str(mark))
    words = ["allowed-ips", ends, "persistent-keepalive", "1", "endpoint", endpoint(remote)]
    set_wg(lab.node, DEVICE, *peer, *words, gid=gid)
    try:
        yield
    finally:
        set_wg(lab.node, DEVICE, *peer, "remove")


@families
def test_wireguard_go_connects_by_wan_only(node: Guarded, family: int) -> None:
    lab = node.lab
    lab.wan.drain(), lab.mesh_sniffer.drain()
    with watching(lab) as watch, connected(node, at.SERVER[family]):
        wait_for_echoes(lab)
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert {frame.saddr for frame in of(lab.wan, WIREGUARD)} == {lab.wan_address(family)}
    assert of(lab.mesh_sniffer, WIREGUARD) == []


def test_wireguard_go_gets_server_name_from_wan(node: Guarded) -> None:
    with connected(node, at.VPN, gid=SERVICE_GID):
        wait_for_echoes(node.lab)
    with pytest.raises(subprocess.CalledProcessError) as failed, connected(node, at.VPN, gid=OTHER_GID):
        pass
    assert "Name or service not known" in failed.value.stderr  # the mesh knows no such name


def finds_server(lab: Lab, gid: int) -> bool:
    """Return True if the C library finds the server's address (wg(8) tries again for a minute)."""
    return lab.node.run(["getent", "hosts", at.VPN], gid=gid, check=False).returncode == 0


def test_wireguard_go_gets_server_name_at_boot(node: Guarded) -> None:
    """Before the tunnel: no default route, and resolv.conf names servers that no route leads to."""
    lab, resolv = node.lab, node.lab.node.outside("/etc/resolv.conf")
    before = resolv.read_text()
    lab.mesh_default(False)
    resolv.write_text("nameserver 198.51.100.77\nnameserver 2001:db8:99::53\n")
    try:
        with watching(lab) as watch:
            lab.wan.drain(), lab.mesh_sniffer.drain()
            with connected(node, at.VPN, gid=SERVICE_GID):
                wait_for_echoes(lab)
            assert not finds_server(lab, OTHER_GID)
            assert (watch.unmarked, watch.stray) == (0, 0)
        assert any(frame.dport == 53 for frame in lab.wan.frames()), "inconclusive: the resolver asked no server"
        assert [frame for frame in lab.mesh_sniffer.frames() if frame.dport == 53] == []
        for family in at.FAMILIES:
            lab.node.ip(*[f"-{family} rule del priority 33000"] * 2)
        assert not finds_server(lab, SERVICE_GID), "the control: without the route no name"
    finally:
        resolv.write_text(before)
        lab.mesh_default(True)
        node.apply()


def test_wireguard_go_avoids_mesh_while_wan_is_down(node: Guarded) -> None:
    lab = node.lab
    with connected(node, at.SERVER[4]):
        wait_for_echoes(lab)
        lab.wan_down()
        try:
            with watching(lab) as watch:
                lab.mesh_sniffer.drain()
                assert not echoes(lab, 4, 1.2)  # longer than its keepalive
                assert lab.node.call(inbound_clients.udp, at.SERVER[4], at.ECHO_PORT) == b"hello", (
                    "inconclusive: no mesh"
                )
                assert watch.stray == 0
            assert of(lab.mesh_sniffer, WIREGUARD) == []
        finally:
            lab.wan_up()
        wait_for_echoes(lab, 20)


def test_wireguard_go_without_mark_is_dropped(node: Guarded) -> None:
    lab, family = node.lab, 6
    wan_routes_in_main(lab)
    try:
        before = node.counters()["inet/wan.dropped"]
        lab.wan.drain()
        with connected(node, at.SERVER[family], mark=0):
            echoes(lab, family, 0.2)  # something to send
            wait_until(lambda: node.counters()["inet/wan.dropped"] > before, 10, "the counter")
            assert of(lab.wan, WIREGUARD) == []
            with node.off():
                assert lab.wan.wait_for(lambda frame: frame.dport == WIREGUARD, 15), "inconclusive"
    finally:
        no_wan_routes_in_main(lab)


def test_wireguard_go_in_other_group_with_mark_is_dropped() -> None:
    with guarded_lab(programs) as made:
        lab = made.lab
        with wireguard(lab.server, "wg0"), wireguard(lab.node, DEVICE, OTHER_GID):
            with connected(made, at.SERVER[4]):
                echoes(lab, 4, 0.2)
                wait_until(lambda: made.counters()["inet/wan.unentitled"], 10, "the counter")
        assert of(lab.wan, WIREGUARD) == of(lab.mesh_sniffer, WIREGUARD) == []


# The kernel

KERNEL = "vx_kernel"
VXLAN = 4789
INNER = {4: ("198.18.9.1", "198.18.9.2", 24), 6: ("2001:db8:9::1", "2001:db8:9::2", 64)}  # node, server
MARKS = f"""
table netdev tunnel {{
    chain marks {{
        type filter hook egress device {KERNEL} priority 0; policy accept;
        meta mark set 1
    }}
}}
"""


def tunnel(lab: Lab, family: int, sport: int = WIREGUARD) -> None:
    """Create a tunnel of the kernel that marks its packets, as FwMark does, from one port, as ListenPort does."""
    here, there = lab.wan_address(family), at.SERVER[family]
    common = f"link add {KERNEL} type vxlan id 7 dstport {VXLAN}"
    lab.node.ip(f"{common} local {here} remote {there} srcport {sport} {sport + 1}")
    lab.server.ip(f"{common} local {there} remote {here}")
    for space, end in ((lab.node, 0), (lab.server, 1)):
        for ends in INNER.values():
            space.ip(f"addr add {ends[end]}/{ends[2]} dev {KERNEL}" + (" nodad" if ":" in ends[end] else ""))
        space.ip(f"link set {KERNEL} up")
    lab.node.nft(MARKS)
    for one in at.FAMILIES:  # who is behind the node is reached through the tunnel
        lab.server.ip(f"-{one} route replace {at.CLIENT_NET[one]} via {INNER[one][0]} dev {KERNEL}")


def no_tunnel(lab: Lab) -> None:
    lab.node.ip(f"link del {KERNEL}")
    lab.server.ip(f"link del {KERNEL}")
    for family in at.FAMILIES:
        lab.server.ip(f"-{family} route replace {at.CLIENT_NET[family]} via {at.MESH_TO_SERVER[family]}")


@pytest.fixture(scope="module")
def kernel() -> Iterator[Guarded]:
    with guarded_lab(kernels) as made:
        yield made


@contextlib.contextmanager
def tunnelled(made: Guarded, family: int, sport: int = WIREGUARD) -> Iterator[Lab]:
    tunnel(made.lab, family, sport)
    try:
        yield made.lab
    finally:
        no_tunnel(made.lab)
        made.lab.node.nft("delete table netdev tunnel")


@families
def test_kernel_tunnel_carries_own_and_forwarded_packets(kernel: Guarded, family: int) -> None:
    with tunnelled(kernel, family) as lab:
        lab.wan.drain(), lab.mesh_sniffer.drain()
        with watching(lab) as watch:
            for inner, (_, there, _) in INNER.items():
                assert lab.client.call(inbound_clients.udp, there, at.ECHO_PORT, b"hello", 3) == b"hello"
                for gid in (0, OTHER_GID, SERVICE_GID):
                    assert lab.node.call(inbound_clients.udp, there, at.ECHO_PORT, b"hello", 3, gid=gid) == b"hello", (
                        inner
                    )
                    assert lab.node.call(inbound_clients.tcp, there, at.ECHO_PORT, b"hello", 3, gid=gid) == b"hello", (
                        inner
                    )
            assert (watch.unmarked, watch.stray) == (0, 0)
        assert {frame.saddr for frame in of(lab.wan, VXLAN)} == {lab.wan_address(family)}
        assert of(lab.mesh_sniffer, VXLAN) == []


def test_kernel_tunnel_with_wrong_port_or_mark_is_dropped(kernel: Guarded) -> None:
    before, family = kernel.counters(), 4
    with tunnelled(kernel, family, WIREGUARD + 1) as lab:
        lab.wan.drain()
        (_, there, _) = INNER[4]
        assert lab.client.call(inbound_clients.udp, there, at.ECHO_PORT, b"hello", 0.3) == inbound_clients.NO_ANSWER
        assert lab.node.call(inbound_clients.udp, there, at.ECHO_PORT, b"hello", 0.3, gid=OTHER_GID) != b"hello"
        assert of(lab.wan, VXLAN) == []
        assert kernel.counters()["inet/wan.unentitled"] > before["inet/wan.unentitled"]
    with tunnelled(kernel, family) as lab:
        lab.node.nft("flush table netdev tunnel")
        lab.wan.drain()  # reports that the kernel sent into the tunnel before, with the mark
        wan_routes_in_main(lab)
        try:
            assert lab.client.call(inbound_clients.udp, there, at.ECHO_PORT, b"hello", 0.3) == inbound_clients.NO_ANSWER
            assert of(lab.wan, VXLAN) == []
            assert kernel.counters()["inet/wan.dropped"] > before["inet/wan.dropped"]
            with kernel.off():
                assert lab.client.call(inbound_clients.udp, there, at.ECHO_PORT, b"hello", 3) == b"hello", (
                    "inconclusive"
                )
        finally:
            no_wan_routes_in_main(lab)


def test_kernel_tunnel_without_sport_passes_ownerless_only() -> None:
    """Reason for the key: packets in a tunnel belong to the socket of the inner packet."""

    def bare(lab: Lab) -> str:
        return "\n".join(line for line in kernels(lab).splitlines() if not line.startswith("sport "))

    with guarded_lab(bare) as made, tunnelled(made, 4) as lab:
        (_, there, _) = INNER[4]
        assert lab.client.call(inbound_clients.udp, there, at.ECHO_PORT, b"hello", 3) == b"hello"
        before = made.counters()["inet/wan.unentitled"]
        assert lab.node.call(inbound_clients.udp, there, at.ECHO_PORT, b"hello", 0.3, gid=OTHER_GID) != b"hello"
        assert made.counters()["inet/wan.unentitled"] > before


@pytest.mark.parametrize("ports", ["", f'sport = ["udp/{VXLAN}"]'], ids=["without-sport", "sport"])
def test_kernel_tunnel_in_flow_of_peer_requires_sport(ports: str) -> None:
    """WireGuard has one port at each end, so that the replies to a peer that sent first are of the peer's flow."""

    def policy(lab: Lab) -> str:
        return "\n".join(ports if line.startswith("sport ") else line for line in kernels(lab).splitlines())

    with guarded_lab(policy) as made, tunnelled(made, 4, VXLAN) as lab:
        here, there, route = lab.wan_address(4), at.SERVER[4], f"route replace {at.CLIENT_NET[4]}"
        lab.server.ip(f"link del {KERNEL}")
        lab.server.ip(
            f"link add {KERNEL} type vxlan id 7 dstport {VXLAN} srcport {VXLAN} {VXLAN + 1} local {there} remote {here}"
        )
        lab.server.ip(f"addr add {INNER[4][1]}/{INNER[4][2]} dev {KERNEL}")
        lab.server.ip(f"link set {KERNEL} up")
        lab.server.ip(f"{route} via {INNER[4][0]} dev {KERNEL}")

        def is_answered() -> bool:
            flush_flows(lab.node)
            return lab.server.call(inbound_clients.ping, at.CLIENT_ADDRESS[4], 0.6)

        if ports:
            assert wait_until(is_answered, 10, "the answer")
            return
        # The node's own reports in the tunnel begin the flow sometimes.
        before = made.counters()["inet/wan.unanswered"]
        wait_until(lambda: not is_answered() and made.counters()["inet/wan.unanswered"] > before, 10, "a dropped reply")


def test_kernel_tunnel_keeps_port_from_programs(kernel: Guarded) -> None:
    """While the tunnel is up, a program can use its port only with headers that it writes itself."""

    def taken(family: int, reuse: int) -> str:
        with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
            try:
                made.bind(("", VXLAN))
            except OSError as error:
                return errno.errorcode[error.errno or 0]
        return "bound"

    with tunnelled(kernel, 4) as lab:
        assert [lab.node.call(taken, 4, reuse) for reuse in (0, 1)] == ["EADDRINUSE"] * 2
    assert lab.node.call(taken, 4, 0) == "bound", "inconclusive"


def test_kernel_tunnel_port_of_program_requires_mark(kernel: Guarded) -> None:
    def sent(mark: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            made.bind(("", WIREGUARD))
            with contextlib.suppress(PermissionError):
                made.sendto(b"by its port", (at.SERVER[4], 9))

    lab = kernel.lab
    for mark, leaves in ((0, False), (1, True)):  # only root sets marks; see service.NAME in nftpolicy.toml(5)
        lab.wan.drain()
        lab.node.call(sent, mark, gid=OTHER_GID, keep_caps=True)
        assert bool(lab.wan.wait_for(lambda frame: frame.payload == b"by its port", 2 if leaves else 0.3)) is leaves
