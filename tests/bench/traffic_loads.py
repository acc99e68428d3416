"""Loads of the packet path inside a namespace. Every load returns a rate."""

import socket
import time
from pathlib import Path

from tests.lab import addresses as at

MARK = 1
TUNNEL_PORT = 10_001
_BATCH = 100
_SMALL, _LARGE = b"x" * 64, b"x" * 1200
_WINDOW, _ACKNOWLEDGED = 64, 8  # packets on their way at once; one acknowledgement for so many


def _marked() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    made.settimeout(5)
    return made


def _sent() -> int:
    return int(Path(f"/sys/class/net/{at.WAN}/statistics/tx_packets").read_text())


def flood(address: str, seconds: float) -> float:
    """Return packets for each second of CPU time, sent as fast as the kernel accepts them."""
    with _marked() as sender:
        place, send = (address, at.FASTD_PORT), sender.sendto
        for _ in range(_BATCH // 4):
            send(_SMALL, place)
        before, count, start = _sent(), 0, time.process_time()
        end = start + seconds
        while (now := time.process_time()) < end:
            for _ in range(_BATCH // 4):
                send(_SMALL, place)
            count += _BATCH // 4
        if _sent() - before < count:
            raise RuntimeError("some packets did not leave")
        return count / (now - start)


class Exchange:
    """Round trips for each second of CPU time; this process holds both ends, so no process waits to be woken.

    `other` is a socket of the peer's namespace.
    """

    def __init__(self, other: socket.socket) -> None:
        self._other = other

    def __call__(self, address: str, seconds: float) -> float:
        other = self._other
        with _marked() as sender:
            place = (address, at.ECHO_PORT)

            def rounds() -> None:
                for _ in range(_BATCH // 4):
                    sender.sendto(_SMALL, place)
                    data, back = other.recvfrom(100)
                    other.sendto(data, back)
                    sender.recv(100)

            rounds()
            count, start = 0, time.process_time()
            end = start + seconds
            while (now := time.process_time()) < end:
                rounds()
                count += _BATCH // 4
            return count / (now - start)


def acknowledge() -> None:
    """Count the packets of `stream` without end, and acknowledge them now and then."""
    receiver, count = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0
    receiver.bind(("", TUNNEL_PORT))
    while True:
        _, back = receiver.recvfrom(2000)
        count += 1
        if count % _ACKNOWLEDGED == 0:
            receiver.sendto(count.to_bytes(8), back)


def stream(address: str, seconds: float) -> tuple[int, float]:
    """Send large packets, a window of them at once; return the number that arrived, and the seconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((address, TUNNEL_PORT))
        sender.settimeout(0.2)
        for _ in range(_ACKNOWLEDGED):
            sender.send(_LARGE)
        first = arrived = int.from_bytes(sender.recv(8))
        sent, start = arrived, time.perf_counter()
        end = start + seconds
        while (now := time.perf_counter()) < end:
            while sent - arrived < _WINDOW:
                sender.send(_LARGE)
                sent += 1
            try:
                arrived = int.from_bytes(sender.recv(8))
            except TimeoutError:
                sent = arrived  # a packet or an acknowledgement was lost
        return arrived - first, now - start
