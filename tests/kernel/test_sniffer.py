"""The labs' sniffer beside a sender that is quicker than the reader."""

import time
from collections.abc import Iterator

import pytest

from tests.lab import frames, sniffer
from tests.lab.netns import Namespace, veth

pytestmark = pytest.mark.kernel
FRAME = bytes.fromhex("ffffffffffff02005e005377") + frames.ETH_PRIVATE.to_bytes(2, "big") + bytes(46)
SECONDS = 30


def flood() -> None:
    """Send a frame each millisecond for 30 s."""
    import socket

    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        for _ in range(SECONDS * 1000):
            made.sendto(FRAME, ("here", frames.ETH_PRIVATE))
            time.sleep(0.001)


@pytest.fixture
def far() -> Iterator[sniffer.Sniffer]:
    with Namespace("here") as here, Namespace("there") as there:
        veth(here, "here", there, "far")
        with sniffer.Sniffer(there, "far") as made:
            here.spawn(flood)
            yield made


def test_sniffer_returns_while_frames_arrive(far: sniffer.Sniffer, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(raw: bytes) -> frames.Frame:
        time.sleep(0.002)
        return parse(raw)

    parse = frames.parse
    monkeypatch.setattr(frames, "parse", slowly)
    time.sleep(0.2)
    assert far.drain(), "inconclusive"
    assert far.wait_for(lambda _: True, 5), "the sender has ended: the sniffer waited for its last frame"
