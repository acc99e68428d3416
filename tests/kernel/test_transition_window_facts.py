"""Windows: packets that leave by the wrong device while rules, routes and tables are replaced."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.lab import addresses as at
from tests.lab.netns import Namespace, wait_until
from tests.lab.packet_senders import DISCARD

from .two_link_node import MESH, WAN, counters, default, wire

pytestmark = pytest.mark.kernel
families = pytest.mark.parametrize("family", at.FAMILIES)

SWAPS, SECONDS = 20, 4  # and the end of a flood that no test stops
LIVE = 200  # packets that the stream must have sent during the swaps for them to mean anything
COUNT = f"""
table inet watch {{
    counter wan {{ }}
    counter mesh {{ }}
    chain c {{
        type filter hook postrouting priority 10000; policy accept;
        udp dport {DISCARD} oifname {WAN} counter name wan
        udp dport {DISCARD} oifname {MESH} counter name mesh
    }}
}}
"""


def _flood(family: int, mark: int) -> None:
    with socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_DGRAM) as made:
        if mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        made.connect((at.SERVER[family], DISCARD))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError):  # the guard's drop, or no route for a moment
                for _ in range(16):
                    made.send(b"flood")


@contextlib.contextmanager
def flood(node: Namespace, family: int, mark: int, counter: str) -> Iterator[None]:
    """Start a connected UDP socket that sends as fast as possible; returns when its packets are counted."""
    process = node.spawn(_flood, family, mark)
    try:
        wait_until(lambda: counters(node)[counter] > 0, 2, "the flood")
        yield
    finally:
        os.kill(process, signal.SIGKILL)


def swap(node: Namespace, commands: str) -> dict[str, int]:
    """Run shell commands repeatedly, one process each as scripts do; return the packets counted meanwhile."""
    before = counters(node)
    node.run(["sh", "-e", "-c", f"for i in $(seq {SWAPS}); do {commands}; done"])
    return {name: packets - before[name] for name, packets in counters(node).items()}


def load(path: str) -> str:
    return f"nft -f {path}"


@pytest.fixture
def space(node: Namespace, far: Namespace) -> Namespace:
    """Unmarked packets go to the mesh; nothing captures, as a flood would fill a sniffer."""
    wire(node, far)
    node.nft(COUNT)
    return node


@pytest.fixture
def marked(space: Namespace) -> Namespace:
    """Packets with mark 1 go to the WAN."""
    for family in at.FAMILIES:
        space.ip(
            default(MESH, family),
            default(WAN, family, "100"),
            f"-{family} rule add priority 100 fwmark 1/1 lookup 100",
        )
    return space


@families
def test_L9_ip_rules_added_before_delete_leak_nothing(marked: Namespace, family: int) -> None:
    """While ip rules are exchanged, add-before-delete sends nothing the wrong way; delete-then-add does."""
    rule = f"ip -{family} rule"
    with flood(marked, family, 1, "wan"):
        safe = swap(
            marked,
            f"{rule} add fwmark 1/1 lookup 100 priority 101; {rule} del priority 100;"
            f"{rule} add fwmark 1/1 lookup 100 priority 100; {rule} del priority 101",
        )
        unsafe = swap(marked, f"{rule} del priority 100; {rule} add fwmark 1/1 lookup 100 priority 100")
    assert safe["wan"] > LIVE, "the positive control: the stream did not flow"
    assert safe["mesh"] == 0, "add-before-delete is not enough here: the planner needs another order"
    assert unsafe["mesh"] > 0, "no window was seen: the other order may be as good here, or the stream too thin"


@families
def test_L10_routes_replaced_without_flush_leak_nothing(marked: Namespace, family: int) -> None:
    """`ip route replace` sends nothing the wrong way; flush and add does."""
    route = f"ip -{family} route"
    with flood(marked, family, 1, "wan"):
        safe = swap(marked, f"{route} replace default dev {WAN} table 100")
        unsafe = swap(marked, f"{route} flush table 100; {route} add default dev {WAN} table 100")
    assert safe["wan"] > LIVE, "the positive control: the stream did not flow"
    assert safe["mesh"] == 0, "replace is no single step here: the planner needs a second table"
    assert unsafe["mesh"] > 0, "no window was seen: flushing may be as good here, or the stream too thin"


GUARD = f"""
table inet guard {{
    counter dropped {{ }}
    chain guard {{
        type filter hook postrouting priority 9000; policy accept;
        oifname {WAN} meta mark & 1 != 1 counter name dropped drop
    }}
}}
"""
IDIOMS = {
    "delete": "table inet guard\ndelete table inet guard\n",
    "flush": "table inet guard\nflush table inet guard\n",
}


def test_L11_table_replaced_in_one_transaction_leaks_nothing(space: Namespace) -> None:
    """A guard that is deleted (or flushed) and loaded in one transaction lets nothing by; in two it leaks."""
    space.ip(default(WAN, 4))
    files = {"guard": GUARD, **{name: idiom + GUARD for name, idiom in IDIOMS.items()}}
    for name, text in files.items():
        space.outside(f"/run/{name}.nft").write_text(text)
    space.nft(GUARD)
    with flood(space, 4, 0, "dropped"):
        safe = {idiom: swap(space, f"{load(f'/run/{idiom}.nft')}") for idiom in IDIOMS}
        assert counters(space)["dropped"] > 0, "the positive control: the stream does not flow"
        unsafe = swap(space, f"nft delete table inet guard; {load('/run/guard.nft')}")
    assert {idiom: now["wan"] for idiom, now in safe.items()} == {"delete": 0, "flush": 0}, (
        "a transaction of nft is not atomic for packets here: the guard must be exchanged beside a second one"
    )
    assert unsafe["wan"] > 0, "the positive control: without a guard for a moment the stream must leak"
