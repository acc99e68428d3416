"""Tunnels of the kernel: packets of their protocols to their other ends leave by the uplink, and no others.

The kernel of the tests may lack these tunnels, so raw sockets send their packets, without a mark as the kernel does.
"""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.guarded_lab import Guarded, gluon, guarded_lab, no_wan_routes_in_main, wan_routes_in_main, watching
from tests.lab import addresses as at
from tests.lab.netns import Namespace
from tests.lab.topology import Lab

DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
IPIP, SIX_IN_FOUR, GRE, OTHER = 4, 41, 47, 253


def policy(lab: Lab) -> str:
    return f"""{gluon(lab)}
[service.tunnels]
uplink = "wan"
kernel = true
ports  = ["ipip", "6in4", "gre"]
to     = ["{at.SERVER[4]}", "{at.SERVER[6]}"]
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab(policy, bridge=True) as found:
        yield found


def raw(protocol: int, word: str, to: str, device: str = "", mark: int = 0) -> None:
    """Send one packet of a protocol. Runs inside a namespace."""
    with socket.socket(DOMAIN[6 if ":" in to else 4], socket.SOCK_RAW, protocol) as sender:
        if device:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if mark:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        with contextlib.suppress(OSError):
            # Port 53 at the place of a port: such a packet is no DNS query.
            sender.sendto(b"\0\0\0\x35" + word.encode(), (to, 0))


def sent(lab: Lab, family: int) -> dict[str, set[str]]:
    """Send packets of every kind, and return those that left by WAN and mesh."""
    server, node, client = at.SERVER[family], lab.node, lab.client
    senders: dict[str, tuple[Namespace, int, str, str, int]] = {
        "<gre>": (node, GRE, server, "", 0),
        "<ipip>": (node, IPIP, server, "", 0),
        "<6in4>": (node, SIX_IN_FOUR, server, "", 0),
        "<marked>": (node, GRE, server, "", 1),
        "<bound>": (node, GRE, server, at.WAN, 0),
        "<elsewhere>": (node, GRE, at.NEIGHBOUR[family], at.WAN, 0),
        "<elsewhere-marked>": (node, GRE, at.NEIGHBOUR[family], "", 1),
        "<other>": (node, OTHER, server, at.WAN, 0),
        "<other-marked>": (node, OTHER, server, "", 1),
        "<mesh>": (node, GRE, server, at.MESH, 0),
        "<client>": (client, GRE, server, "", 0),
    }
    sniffers = {"wan": lab.wan, "mesh": lab.mesh_sniffer}
    for sniffer in sniffers.values():
        sniffer.drain()
    for word, (space, *arguments) in senders.items():
        protocol, to, device, mark = arguments
        space.call(raw, protocol, word, to, device, mark)
    time.sleep(0.25)
    payloads = {name: b"".join(frame.payload for frame in sniffer.frames()) for name, sniffer in sniffers.items()}
    return {name: {word for word in senders if word.encode() in payload} for name, payload in payloads.items()}


TUNNELS = {"<gre>", "<ipip>", "<6in4>", "<marked>", "<bound>"}
REST = {"<elsewhere>", "<elsewhere-marked>", "<other>", "<other-marked>"}


def test_tunnels_leave_by_the_uplink_alone(made: Guarded) -> None:
    lab = made.lab
    with watching(lab) as watch:
        by_table = {family: sent(lab, family) for family in at.FAMILIES}
        wan_routes_in_main(lab)
        try:
            by_main = {family: sent(lab, family) for family in at.FAMILIES}
            assert (watch.unmarked, watch.stray) == (0, 0)
            with made.off():
                control = {family: sent(lab, family) for family in at.FAMILIES}
        finally:
            no_wan_routes_in_main(lab)
    for family in at.FAMILIES:
        assert by_table[family] == {"wan": TUNNELS, "mesh": {"<client>"}}
        assert by_main[family] == {"wan": TUNNELS, "mesh": set()}
        assert control[family] == {"wan": TUNNELS | REST | {"<client>"}, "mesh": {"<mesh>"}}, "the control"


def test_tunnel_that_the_peer_began_is_answered(made: Guarded) -> None:
    for family in at.FAMILIES:
        made.lab.server.call(raw, GRE, "<hello>", made.lab.wan_address(family))
        assert "<gre>" in sent(made.lab, family)["wan"]


def test_tunnel_without_uplink_goes_nowhere(made: Guarded) -> None:
    made.lab.wan_down()
    for family in at.FAMILIES:
        assert sent(made.lab, family) == {"wan": set(), "mesh": {"<client>"}}
    with made.off():
        control = [sent(made.lab, family)["mesh"] for family in at.FAMILIES]
    assert all({"<gre>", "<ipip>", "<6in4>"} <= words for words in control), "the control"
