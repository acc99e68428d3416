"""Changes of a policy with forwards while hosts of the LAN send: nothing leaves astray in between."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.guarded_lab import guarded_lab, watching
from tests.lab import addresses as at
from tests.lab.netns import wait_until
from tests.leaks.test_forward import DNAT, FORWARD, OTHER_HOST, PUBLISH, SPLIT, Forwarding, uplink_in_main, with_other

CHANGES = ((FORWARD,), (SPLIT,), (), (PUBLISH,), (SPLIT, PUBLISH), (FORWARD,), ())


@pytest.fixture
def forwarding() -> Iterator[Forwarding]:
    with contextlib.ExitStack() as stack:
        guarded = stack.enter_context(guarded_lab())
        with_other(guarded.lab, stack)
        yield Forwarding(guarded)


def keep_sending(word: bytes) -> None:
    """Send datagrams to two ports of the server until the process ends: one flow each, and new flows."""
    domains = {4: socket.AF_INET, 6: socket.AF_INET6}
    kept = {family: socket.socket(domain, socket.SOCK_DGRAM) for family, domain in domains.items()}
    while True:
        for family, domain in domains.items():
            with socket.socket(domain, socket.SOCK_DGRAM) as new:
                for made in (kept[family], new):
                    for port in (at.ECHO_PORT, 9):
                        with contextlib.suppress(OSError):
                            made.sendto(word, (at.SERVER[family], port))
        time.sleep(0.001)


def test_policy_change_under_flood_leaves_nothing_astray(forwarding: Forwarding) -> None:
    lab = forwarding.lab
    lab.node.nft(DNAT)
    senders = [(space, space.spawn(keep_sending, f"flood-{space.name}".encode())) for space in (lab.client, lab.other)]
    own = {lab.wan_address(family) for family in at.FAMILIES}
    try:
        with uplink_in_main(lab), watching(lab) as watch:
            seen = set()
            for parts in CHANGES:
                forwarding.drain()
                forwarding.policy(*parts)
                time.sleep(0.2)
                frames = [frame for frame in lab.wan.frames() if frame.payload.startswith(b"flood-")]
                seen |= {(frame.payload, frame.saddr in own) for frame in frames}
            assert seen == {(b"flood-client", True)}, "the client by a forward, with the uplink's address, and no other"
            assert (watch.unmarked, watch.stray) == (0, 0)
        with uplink_in_main(lab), forwarding.guarded.off():
            forwarding.drain()
            wait_until(lambda: {frame.saddr for frame in lab.wan.frames()} >= {*OTHER_HOST.values()}, 10, "the control")
    finally:
        for space, process in senders:
            space.end(process)
