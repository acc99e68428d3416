"""Slow DNS server that has one answer for every query, or an error that the name asks for."""

import ipaddress
import select
import socket
import struct
import time
from collections import deque


def serve(address: str, answer: str, delay: float) -> None:
    """Answer each query over UDP with that IPv4 address after `delay` seconds, until the process ends."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as channel:
        channel.bind((address, 53))
        waiting: deque[tuple[float, bytes, tuple]] = deque()
        while True:
            wait = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            if select.select([channel], [], [], wait)[0]:
                query, client = channel.recvfrom(4096)
                waiting.append((time.monotonic() + delay, reply(query, answer), client))
            while waiting and waiting[0][0] <= time.monotonic():
                _, answered, client = waiting.popleft()
                channel.sendto(answered, client)


def reply(query: bytes, answer: str) -> bytes:
    """Return the query with one A record for its name. If the query has DO (DNSSEC), the answer has AD.

    A name below "rcodeN" gets the error N, and one below "empty" no record.
    """
    end = query.index(b"\0", 12) + 5
    label = query[13 : 13 + query[12]].decode()
    if label == "empty" or label.startswith("rcode"):
        code = int(label.removeprefix("rcode") if label != "empty" else 0)
        return query[:2] + struct.pack("!5H", 0x8180 | code, 1, 0, 0, 0) + query[12:end]
    options = query[end : end + 11]  # OPT, RFC 6891: root, type 41, size, extended code, version, flags, length
    secure = len(options) == 11 and options[:3] == b"\0\0\x29" and options[7] & 0x80
    header = query[:2] + struct.pack("!5H", 0x85A0 if secure else 0x8580, 1, 1, 0, 1 if secure else 0)
    record = struct.pack("!3HIH", 0xC00C, 1, 1, 0, 4) + ipaddress.IPv4Address(answer).packed
    return header + query[12:end] + record + (struct.pack("!BHHBBHH", 0, 41, 1232, 0, 0, 0x8000, 0) if secure else b"")
