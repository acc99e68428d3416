# SPDX-License-Identifier: BSD-2-Clause
"""A router whose LAN uses a tunnel, with LTE as the spare of its uplink: the shipped policy in place of pbr and mwan3.

WireGuard runs in user space, since not every kernel has it: a group in place of its port.
"""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    OTHER_GID,
    ROOT,
    guarded_lab,
    no_wan_routes_in_main,
    replaced,
    wan_routes_in_main,
    watching,
)
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.netns import Namespace
from tests.lab.sniffer import Sniffer
from tests.lab.topology import Lab
from tests.leaks import test_dual_uplink as dual
from tests.leaks.test_dual_uplink import LTE, DualUplinkNode
from tests.vpn_programs import INSIDE, WIREGUARD, of, set_wg, wait_for_echoes, wg_key, wireguard

GID, NTP_USER, NTP, PUBLISHED = 802, 123, 123, 8443
DIRECT, TUNNELLED = at.CLIENT_ADDRESS[4], "203.0.113.131"  # hosts of the LAN
WATCHED = "0x10/0xf0"
ENDPOINT = ("endpoint", f"{at.SERVER[4]}:{WIREGUARD}")
families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])
DNAT = f"""
table inet test-dnat {{
    chain pre {{
        type nat hook prerouting priority dstnat; policy accept;
        meta nfproto ipv4 tcp dport {{ {PUBLISHED}, {PUBLISHED + 1} }} fib daddr type local dnat ip to {DIRECT}:80
    }}
}}
"""


def policy(lab: Lab) -> str:
    """Return the shipped policy with the devices and addresses of the lab, and a program in place of the kernel."""
    file = ROOT / "rulesets" / "router-wireguard.toml"
    text = replaced(file, {"devices": f'["{at.WAN}", "{LTE}"]', "from": f'["{at.CLIENT}"]', "source": f'["{DIRECT}"]'})
    text = text.replace('["br-lan", "wg0"]', f'["{at.CLIENT}", "{at.MESH}", "wg0"]').replace(
        '"br-lan"', f'"{at.CLIENT}"'
    )
    kept = [line for line in text.splitlines() if not line.startswith("sport ")]
    return "\n".join(kept).replace("kernel = true", f"group = {GID}")


@pytest.fixture(scope="module")
def router() -> Iterator[DualUplinkNode]:
    """A router whose tunnel has connected by the wired line. The mesh is another device inside: a second tunnel."""
    with Namespace("lte") as lte, contextlib.ExitStack() as stack:

        def prepared(lab: Lab) -> str:
            dual.with_lte(lab, lte, dual.TABLES["wired"])
            return policy(lab)

        made = stack.enter_context(guarded_lab(prepared, table=dual.TABLES["wired"]))
        lab = made.lab
        lab.client.ip(f"addr add {TUNNELLED}/25 dev eth0")
        stack.enter_context(wireguard(lab.server, "wg0"))
        stack.enter_context(wireguard(lab.node, "wg0", GID))
        ends = [f"{INSIDE[4][end]}/32,{INSIDE[6][end]}/128" for end in (0, 1)]
        set_wg(lab.server, "wg0", "peer", wg_key(lab.node, "wg0"), "allowed-ips", ends[0])
        set_wg(lab.node, "wg0", "fwmark", "0x10")
        server = ["peer", wg_key(lab.server, "wg0"), "allowed-ips", ends[1], "persistent-keepalive", "1"]
        set_wg(lab.node, "wg0", *server, *ENDPOINT)
        yield DualUplinkNode(made, {"wired": lab.wan, "lte": stack.enter_context(Sniffer(lte, "to-node"))})


def datagram(source: str, target: str, port: int, word: bytes) -> None:
    """Send a datagram from an address; the kernel may refuse it."""
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as made:
        if source:
            made.bind((source, 0))
        with contextlib.suppress(OSError):
            made.sendto(word, (target, port))


def sent(
    router: DualUplinkNode, space: Namespace, source: str, target: str, port: int, word: bytes, uid: int = 0
) -> dict[str, set[str]]:
    """Send a datagram in a namespace; return its source addresses by device."""
    for sniffer in (*router.sniffers.values(), router.lab.mesh_sniffer):
        sniffer.drain()
    space.call(datagram, source, target, port, word, uid=uid)
    time.sleep(0.2)  # for what does not leave, too
    return router.seen(word)


def tunnel(router: DualUplinkNode) -> dict[str, set[str]]:
    """Use the tunnel in both families; return the source addresses of its packets, by uplink."""
    for sniffer in router.sniffers.values():
        sniffer.drain()
    wait_for_echoes(router.lab)
    found = {name: {frame.saddr or "" for frame in of(one, WIREGUARD)} for name, one in router.sniffers.items()}
    return {name: addresses for name, addresses in found.items() if addresses}


@contextlib.contextmanager
def in_main(lab: Lab) -> Iterator[None]:
    """Lead all packets to the uplink, as without a tunnel."""
    wan_routes_in_main(lab)
    try:
        yield
    finally:
        no_wan_routes_in_main(lab)


def test_lan_uses_uplink_only_where_named(router: DualUplinkNode) -> None:
    """Hosts of `forward`, and the port of `publish`; then the same without the policy."""
    lab, own = router.lab, router.lab.wan_address(4)
    lab.node.nft(DNAT)
    with inbound_clients.listening(lab.client, 80), in_main(lab):
        assert sent(router, lab.client, DIRECT, at.SERVER[4], 9, b"direct") == {"wired": {own}}
        assert sent(router, lab.client, TUNNELLED, at.SERVER[4], 9, b"no tunnel") == {}
        assert sent(router, lab.client, "", at.SERVER[6], 9, b"no tunnel, IPv6") == {}
        assert lab.server.call(inbound_clients.tcp, own, PUBLISHED, b"published", 5) == b"published"
        assert lab.server.call(inbound_clients.tcp, own, PUBLISHED + 1, b"hidden") == inbound_clients.NO_ANSWER
        with router.guarded.off():
            assert sent(router, lab.client, TUNNELLED, at.SERVER[4], 9, b"off").keys() == {"wired"}, "the control"
            assert sent(router, lab.client, "", at.SERVER[6], 9, b"off, IPv6").keys() == {"wired"}, "the control"
            hidden = lab.server.call(inbound_clients.tcp, own, PUBLISHED + 1, b"hidden", 5)
            assert hidden == b"hidden", "the control"


@families
def test_clock_is_set_by_the_uplink(router: DualUplinkNode, family: int) -> None:
    node, own = router.lab.node, {router.own("wired", family)}
    assert sent(router, node, "", at.SERVER[family], NTP, b"time", uid=NTP_USER) == {"wired": own}
    assert sent(router, node, "", at.SERVER[family], 9, b"no time", uid=NTP_USER) == {}
    assert sent(router, node, "", at.SERVER[family], NTP, b"other", uid=OTHER_GID).keys() == {"mesh"}


def test_tunnel_moves_to_the_spare_uplink(router: DualUplinkNode) -> None:
    """The last test, since the wired line stays down."""
    lab, by_lte = router.lab, {"lte": {dual.OWN[4]}}
    with watching(lab, WATCHED) as watch:
        assert tunnel(router) == {"wired": {lab.wan_address(4)}}
        lab.wan_down()
        # wireguard-go keeps its source address for 15 s; the kernel does not (drivers/net/wireguard/socket.c: send4).
        set_wg(lab.node, "wg0", "peer", wg_key(lab.server, "wg0"), *ENDPOINT)
        assert tunnel(router) == by_lte
        assert watch.unmarked == 0
    assert sent(router, lab.client, DIRECT, at.SERVER[4], 9, b"spare") == by_lte
    assert sent(router, lab.client, TUNNELLED, at.SERVER[4], 9, b"inside") == {"mesh": {TUNNELLED}}
