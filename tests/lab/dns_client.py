"""Client that sends DNS queries at a steady rate, and counts its answers."""

import select
import socket
import struct
import time
from dataclasses import dataclass

from . import dns_message


@dataclass
class Asked:
    """Query: its time (seconds, monotonic), its source, the time of its answer, and the result."""

    sent: float
    server: str
    answered: float | None = None
    answer: list[str] | str = "timeout"


def ask_often(
    servers: list[str], domain: str, rate: float, seconds: float, patience: float, port: int = 53
) -> list[Asked]:
    """Query the servers in turn for names below `domain`, `rate` queries a second, and wait `patience` for the last.

    Each query has a name of its own, so that no cache answers it. Runs in the namespace of the calling process.
    """
    channels = [_channel(server, port) for server in servers]
    asked: list[Asked] = []
    begin = time.monotonic()
    count = int(rate * seconds)
    try:
        while True:
            now = time.monotonic()
            due = begin + len(asked) / rate
            if len(asked) < count and now >= due:
                number = len(asked)
                asked.append(Asked(now, servers[number % len(servers)]))
                _send(channels[number % len(servers)], dns_message.query(f"q{number}.{domain}", 4, number & 0xFFFF))
                continue
            end = asked[-1].sent + patience if len(asked) == count else due
            if now >= end or (len(asked) == count and all(one.answered for one in asked)):
                return asked
            for ready in select.select(channels, [], [], end - now)[0]:
                _take(ready, asked)
    finally:
        for one in channels:
            one.close()


def _channel(server: str, port: int) -> socket.socket:
    channel = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    channel.setblocking(False)
    channel.connect((server, port))
    return channel


def _send(channel: socket.socket, message: bytes) -> None:
    try:
        channel.send(message)
    except OSError:  # what became of the one before, or a guard: no answer then
        return


def _take(channel: socket.socket, asked: list[Asked]) -> None:
    try:
        message = channel.recv(4096)
    except OSError:
        return
    (number,) = struct.unpack("!H", message[:2])
    if number < len(asked) and asked[number].answered is None:
        asked[number].answered = time.monotonic()
        asked[number].answer = dns_message.addresses(message, 4, number)
