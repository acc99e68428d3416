"""fastd marks the packets that it sends, and needs few capabilities for that."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.lab import addresses as at
from tests.lab import daemons
from tests.lab.netns import Namespace, veth, wait_until

from .two_link_node import counters

pytestmark = pytest.mark.kernel

GROUP, MARK = 777, 1
COUNT = f"""
table inet vpn {{
    counter marked {{ }}
    counter others {{ }}
    chain c {{
        type filter hook postrouting priority 0; policy accept;
        udp dport {at.FASTD_PORT} meta skgid {GROUP} meta mark {MARK} counter name marked accept
        udp dport {at.FASTD_PORT} counter name others
    }}
}}
"""


@pytest.fixture
def server(node: Namespace, far: Namespace) -> Iterator[Namespace]:
    if not daemons.tool("fastd"):
        pytest.skip("fastd is not installed")
    veth(node, "eth0", far, "eth0")
    node.ip(f"addr add {at.HOME[4]}/24 dev eth0")
    far.ip(f"addr add {at.NEIGHBOUR[4]}/24 dev eth0")
    return far


def start(space: Namespace, text: str, group: int) -> None:
    space.run(["mkdir", "-p", daemons.FOLDER])
    path = f"{daemons.FOLDER}/fastd.conf"
    space.outside(path).write_text(text)
    with space.outside(f"{daemons.FOLDER}/fastd.log").open("a") as log:
        space.popen(["fastd", "--config", path], gid=group, stderr=log)


def connected(space: Namespace) -> bool:
    with socket.socket(socket.AF_UNIX) as channel:
        try:
            channel.connect(str(space.outside(daemons.STATUS)))
        except OSError:
            return False
        with channel.makefile() as text:
            return any(peer["connection"] for peer in json.load(text)["peers"].values())


@pytest.mark.parametrize("mark", [MARK, 0], ids=["marked", "unmarked"])
def test_K12_fastd_packets_carry_mark_and_group(node: Namespace, server: Namespace, mark: int) -> None:
    """With `packet mark` and a group, fastd connects over a tap, and its packets have both; otherwise they do not."""
    mine, theirs = daemons.keypair(), daemons.keypair()
    node.nft(COUNT)
    start(server, daemons.fastd_server(theirs[0], mine[1]), 0)
    start(node, daemons.fastd_client(mine[0], theirs[1], mark, at.NEIGHBOUR[4]), GROUP)
    wait_until(lambda: connected(server), 10, "a connection of fastd (the VPN cannot be tested here)")
    seen = {name for name, packets in counters(node).items() if packets}
    assert seen == ({"marked"} if mark else {"others"}), "fastd's packets cannot be known by mark and group"
