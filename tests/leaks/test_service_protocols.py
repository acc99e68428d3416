"""Services of protocols without ports: tunnels of the kernel to their other ends, and pings; answers to some networks.

The kernel of the tests may lack these tunnels, so raw sockets send their packets, without a mark as the kernel does.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from tests.guarded_lab import (
    GLUON,
    OTHER_GID,
    Guarded,
    guarded_lab,
    no_wan_routes_in_main,
    replaced,
    wan_routes_in_main,
    watching,
)
from tests.lab import addresses as at
from tests.lab import frames, inbound_clients
from tests.lab.netns import Namespace
from tests.lab.topology import Lab

DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
IPIP, SIX_IN_FOUR, GRE, ESP, L2TP, OTHER = 4, 41, 47, 50, 115, 253
IPSEC_END = {4: "198.51.100.77", 6: "2001:db8:2::77"}  # beside the server; nothing answers
MONITOR, PINGER, ANSWERED = 901, 902, 8022
ECHO_REQUEST, TIMESTAMP = {4: 8, 6: 128}, {4: 13, 6: 139}  # 139: node information query (RFC 4620)


def policy(lab: Lab) -> str:
    nets = f'"{at.HOME_NET[4]}", "{at.HOME_NET[6]}"'
    answers = f'["ping", {{ name = "tcp/{ANSWERED}", source = [{nets}] }}]'
    return f"""{replaced(GLUON, {"lease": f'"{lab.wan_lease}"', "answer": answers})}
[service.tunnels]
uplink = "wan"
kernel = true
ports  = ["ipip", "6in4", "gre", "l2tp"]
to     = ["{at.SERVER[4]}", "{at.SERVER[6]}"]

[service.ipsec]
uplink = "wan"
kernel = true
ports  = ["esp"]
to     = ["{IPSEC_END[4]}", "{IPSEC_END[6]}"]

[service.monitor]
uplink = "wan"
user   = {MONITOR}
marks  = "uid-rule"
ports  = ["ping"]

[service.pinger]
uplink = "wan"
group  = {PINGER}
ports  = ["ping"]
to     = ["{at.SERVER_NET[4]}", "{at.SERVER_NET[6]}"]
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
            # Port 53 at the place of a port: such a packet is no DNS query. A control packet of L2TP begins with 0.
            first = b"\0\0\0\0" if "control" in word else b"\0\0\0\x35"
            sender.sendto(first + word.encode(), (to, 0))


def sent(lab: Lab, family: int) -> dict[str, set[str]]:
    """Send packets of every kind, and return those that left by WAN and mesh."""
    server, node, client = at.SERVER[family], lab.node, lab.client
    senders: dict[str, tuple[Namespace, int, str, str, int]] = {
        "<gre>": (node, GRE, server, "", 0),
        "<ipip>": (node, IPIP, server, "", 0),
        "<6in4>": (node, SIX_IN_FOUR, server, "", 0),
        "<l2tp>": (node, L2TP, server, "", 0),
        "<l2tp-control>": (node, L2TP, server, "", 0),
        "<l2tp-control-marked>": (node, L2TP, server, "", 1),
        "<esp>": (node, ESP, IPSEC_END[family], "", 0),
        "<esp-elsewhere>": (node, ESP, server, "", 1),
        "<other-to-ipsec>": (node, OTHER, IPSEC_END[family], "", 0),
        "<marked>": (node, GRE, server, "", 1),
        "<bound>": (node, GRE, server, at.WAN, 0),
        "<elsewhere>": (node, GRE, at.NEIGHBOUR[family], at.WAN, 0),
        "<elsewhere-marked>": (node, GRE, at.NEIGHBOUR[family], "", 1),
        "<other>": (node, OTHER, server, at.WAN, 0),
        "<other-marked>": (node, OTHER, server, "", 1),
        "<mesh>": (node, GRE, server, at.MESH, 0),
        "<client>": (client, GRE, server, "", 0),
    }
    with sightings(lab, senders) as found:
        for word, (space, protocol, to, device, mark) in senders.items():
            space.call(raw, protocol, word, to, device, mark)
    return found


@contextlib.contextmanager
def sightings(lab: Lab, words: Iterable[str]) -> Iterator[dict[str, set[str]]]:
    """Yield a dictionary that in the end has the words in frames of WAN and mesh."""
    found: dict[str, set[str]] = {}
    sniffers = {"wan": lab.wan, "mesh": lab.mesh_sniffer}
    for sniffer in sniffers.values():
        sniffer.drain()
    yield found
    time.sleep(0.25)
    for name, sniffer in sniffers.items():
        payload = b"".join(frame.payload for frame in sniffer.frames())
        found[name] = {word for word in words if word.encode() in payload}


def message(kind: int, number: int, word: str, to: str, mark: int = 0) -> None:
    """Send one ICMP message by a ping socket (SOCK_DGRAM) or a raw one. Runs inside a namespace."""
    protocol = frames.ICMPV6 if ":" in to else frames.ICMP
    body = struct.pack("!HH", 1, 1) + word.encode()
    checksum = frames.checksum(struct.pack("!BBH", number, 0, 0) + body) if protocol == frames.ICMP else 0
    with socket.socket(DOMAIN[6 if ":" in to else 4], kind, protocol) as sender, contextlib.suppress(OSError):
        if mark:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sender.sendto(struct.pack("!BBH", number, 0, checksum) + body, (to, 0))


def pinged(lab: Lab, family: int) -> dict[str, set[str]]:
    """Send messages of several users, and return those that left by WAN and mesh."""
    server, echo, timestamp = at.SERVER[family], ECHO_REQUEST[family], TIMESTAMP[family]
    senders: dict[str, tuple[int, int, int, str, int]] = {  # user and group, kind of socket, type, destination, mark
        "<user>": (MONITOR, socket.SOCK_DGRAM, echo, server, 0),
        "<user-raw>": (MONITOR, socket.SOCK_RAW, echo, server, 0),
        "<group>": (PINGER, socket.SOCK_DGRAM, echo, server, 1),
        "<group-raw>": (PINGER, socket.SOCK_RAW, echo, server, 1),
        "<user-timestamp>": (MONITOR, socket.SOCK_RAW, timestamp, server, 0),
        "<group-timestamp>": (PINGER, socket.SOCK_RAW, timestamp, server, 1),
        "<group-elsewhere>": (PINGER, socket.SOCK_DGRAM, echo, at.NEIGHBOUR[family], 1),
        "<stranger-marked>": (OTHER_GID, socket.SOCK_DGRAM, echo, server, 1),
        "<group-unmarked>": (PINGER, socket.SOCK_DGRAM, echo, server, 0),
        "<stranger>": (OTHER_GID, socket.SOCK_DGRAM, echo, server, 0),
    }
    with sightings(lab, senders) as found:
        for word, (number, kind, icmp_type, to, mark) in senders.items():
            lab.node.call(message, kind, icmp_type, word, to, mark, uid=number, gid=number, keep_caps=True)
    return found


TUNNELS = {"<gre>", "<ipip>", "<6in4>", "<l2tp>", "<esp>", "<marked>", "<bound>"}
PINGS = {"<user>", "<user-raw>", "<group>", "<group-raw>"}
REFUSED = {"<user-timestamp>", "<group-timestamp>", "<group-elsewhere>", "<stranger-marked>"}
UNMARKED = {"<group-unmarked>", "<stranger>"}
REST = {
    "<esp-elsewhere>",
    "<other-to-ipsec>",
    "<l2tp-control>",
    "<l2tp-control-marked>",
    "<elsewhere>",
    "<elsewhere-marked>",
    "<other>",
    "<other-marked>",
}


def answered(lab: Lab, family: int) -> set[str]:
    """Return the hosts that a server of this machine answers: one in the uplink's own network, and one behind it."""
    to = lab.wan_address(family)
    spaces = {"home": lab.home, "server": lab.server}
    return {name for name, space in spaces.items() if space.call(inbound_clients.tcp, to, ANSWERED) == b"hello"}


Found = tuple[dict[str, set[str]], dict[str, set[str]], set[str]]


@dataclass
class Runs:
    """Results of `sent`, `pinged` and `answered` by family: with routes of the uplink in its own table, in main, and unguarded."""

    by_table: list[Found]
    by_main: list[Found]
    control: list[Found]


@pytest.fixture(scope="module")
def runs(made: Guarded) -> Runs:
    lab = made.lab

    def run() -> list[Found]:
        return [(sent(lab, family), pinged(lab, family), answered(lab, family)) for family in at.FAMILIES]

    with watching(lab) as watch, inbound_clients.listening(lab.node, ANSWERED):
        by_table = run()
        wan_routes_in_main(made.lab)
        by_main = run()
        assert (watch.unmarked, watch.stray) == (0, 0)
        with made.off():
            control = run()
        no_wan_routes_in_main(made.lab)
    return Runs(by_table, by_main, control)


@pytest.mark.parametrize("index", [0, 1], ids=["ipv4", "ipv6"])
def test_tunnels_leave_by_the_uplink_alone(runs: Runs, index: int) -> None:
    assert runs.by_table[index][0] == {"wan": TUNNELS, "mesh": {"<client>"}}
    assert runs.by_main[index][0] == {"wan": TUNNELS, "mesh": set()}
    assert runs.control[index][0] == {"wan": TUNNELS | REST | {"<client>"}, "mesh": {"<mesh>"}}, "the control"


@pytest.mark.parametrize("index", [0, 1], ids=["ipv4", "ipv6"])
def test_pings_of_services_leave_by_the_uplink(runs: Runs, index: int) -> None:
    assert runs.by_table[index][1] == {"wan": PINGS, "mesh": UNMARKED}
    assert runs.by_main[index][1] == {"wan": PINGS, "mesh": set()}
    assert runs.control[index][1] == {"wan": PINGS | REFUSED | UNMARKED, "mesh": set()}, "the control"


@pytest.mark.parametrize("index", [0, 1], ids=["ipv4", "ipv6"])
def test_answer_is_for_its_networks_alone(runs: Runs, index: int) -> None:
    assert runs.by_table[index][2] == runs.by_main[index][2] == {"home"}
    assert runs.control[index][2] == {"home", "server"}, "the control"


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
