"""A DNS query and its answer, over UDP or TCP, without a resolver library."""

import errno
import ipaddress
import os
import socket
import struct

from .limits import brief

TYPES = {4: 1, 6: 28}  # A, AAAA
_RCODES = {2: "servfail", 3: "nxdomain", 5: "refused"}


def query(name: str, family: int, identity: int) -> bytes:
    """Return the message that queries a name's addresses; recursion desired."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    return struct.pack("!6H", identity, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", TYPES[family], 1)


def addresses(message: bytes, family: int, identity: int) -> list[str] | str:
    """Return the addresses in an answer, or an error word: nxdomain, servfail, refused, rcode-N, truncated, garbled."""
    try:
        got, flags, questions, answers = struct.unpack("!4H", message[:8])
        if got != identity or not flags & 0x8000:
            return "garbled"
        if flags & 0x000F:
            return _RCODES.get(flags & 0x000F, f"rcode-{flags & 0x000F}")
        if flags & 0x0200:
            return "truncated"
        at, found = 12, []
        for _ in range(questions):
            at = _skip_name(message, at) + 4
        for _ in range(answers):
            at = _skip_name(message, at)
            kind, _, _, size = struct.unpack("!HHIH", message[at : at + 10])
            data = message[at + 10 : at + 10 + size]
            at += 10 + size
            if kind == TYPES[family]:
                found.append(str(ipaddress.ip_address(data)))
        return found
    except (struct.error, IndexError, ValueError):
        return "garbled"


def ask(
    server: str, name: str, family: int, port: int = 53, tcp: bool = False, seconds: float = 1.0
) -> list[str] | str:
    """Query one server once. Returns its addresses (none: the name has no such record) or an error word.

    Error words are those of `addresses`, "timeout" (also if an answer comes from a wrong address, as the socket is
    connected), or the name of the errno, such as "ECONNREFUSED" or "EPERM". Runs in the namespace
    of the calling process.
    """
    identity = int.from_bytes(os.urandom(2), "big")
    message = query(name, family, identity)
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind) as channel:
        channel.settimeout(brief(seconds))
        try:
            channel.connect((server, port))
            if tcp:
                channel.sendall(struct.pack("!H", len(message)) + message)
                size = struct.unpack("!H", _exactly(channel, 2))[0]
                answer = _exactly(channel, size)
            else:
                channel.send(message)
                answer = channel.recv(4096)
        except TimeoutError:
            return "timeout"
        except struct.error:
            return "garbled"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "error")
    return addresses(answer, family, identity)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := channel.recv(size - len(data))):
        data += part
    return data


def _skip_name(message: bytes, at: int) -> int:
    while message[at]:
        if message[at] >= 0xC0:
            return at + 2
        at += 1 + message[at]
    return at + 1
