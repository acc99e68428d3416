# SPDX-License-Identifier: BSD-2-Clause
"""Client and broker in the manner of tunneldigger: control messages and L2TP data are UDP of one socket.

Both carry IP packets between a TUN device and that socket. They run in a process of their own, until it is ended;
`python -m tests.tunneldigger_daemon DEVICE LOG REMOTE PORT` is a client that sets no mark.
The kernel's L2TP, to which tunneldigger hands its socket for the data, is not used.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

_MAGIC = b"\x80\x73\xa7\x01"
_COOKIE, _TUNNEL = 1, 4
_DATA = struct.pack("!HHI", 3, 0, 1)  # L2TPv3 over UDP (RFC 3931 4.1.2.1): a data message of session 1
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_SECONDS = 0.2  # between control messages

_Say = Callable[[str], None]


def client(device: str, log: str, remote: str, port: int, mark: int) -> None:
    """Request a cookie, then a tunnel, again and again; `remote` is an address or a name, mark 0 means none."""
    say, tun = _log(log), _tun(device)
    made = _connected(remote, port, mark, say)
    cookie = b""
    while True:
        _send(made, _control(_TUNNEL, cookie) if cookie else _control(_COOKIE), say)
        message = _carried(made, tun, say)
        if message.startswith(_control(_COOKIE)[:5]):
            cookie = cookie or message[6:]
        elif message.startswith(_control(_TUNNEL)[:5]):
            say("tunnel")


def broker(device: str, log: str, port: int) -> None:
    """Answer every client; the tunnel belongs to the last one that requested it with a cookie."""
    say, tun = _log(log), _tun(device)
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", port))
    cookie, peer = os.urandom(8), None
    while True:
        ready = select.select([made, tun], [], [])[0]
        if made in ready:
            message, sender = made.recvfrom(65535)
            if message == _control(_COOKIE):
                made.sendto(_control(_COOKIE, cookie), sender)
            elif message == _control(_TUNNEL, cookie):
                peer = sender
                made.sendto(_control(_TUNNEL), sender)
                say(f"tunnel {sender[0]}")
            elif message.startswith(_DATA) and sender == peer:
                os.write(tun, message[len(_DATA) :])
        if tun in ready:
            packet = os.read(tun, 65535)
            if peer:
                made.sendto(_DATA + packet, peer)


def _carried(made: socket.socket, tun: int, say: _Say) -> bytes:
    """Carry data both ways until it is time for the next control message; return the one that came, or b""."""
    end, answer = time.monotonic() + _SECONDS, b""
    while True:
        ready = select.select([made, tun], [], [], max(0.0, end - time.monotonic()))[0]
        if not ready:
            return answer
        if tun in ready:
            _send(made, _DATA + os.read(tun, 65535), say)
        if made in ready:
            try:
                message = made.recv(65535)
            except OSError as error:
                say(errno.errorcode[error.errno or 0])
                continue
            if message.startswith(_MAGIC):
                answer = message  # not answered at once: client and broker would never rest
            elif message.startswith(_DATA):
                os.write(tun, message[len(_DATA) :])


def _connected(remote: str, port: int, mark: int, say: _Say) -> socket.socket:
    """Return a marked socket connected to the broker. Names are looked up in this process, without
    a limit of tries.
    """
    while True:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(remote, port, type=socket.SOCK_DGRAM)[0]
            made = socket.socket(family, kind, protocol)
            if mark:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            made.connect(address)
            return made
        except OSError as error:
            say(str(error))
            select.select([], [], [], _SECONDS)


def _send(made: socket.socket, message: bytes, say: _Say) -> None:
    try:
        made.send(message)
    except OSError as error:
        say(errno.errorcode[error.errno or 0])


def _control(kind: int, payload: bytes = b"") -> bytes:
    return _MAGIC + bytes([kind, len(payload)]) + payload


def _tun(device: str) -> int:
    made = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(made, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
    return made


def _log(path: str) -> _Say:
    """Lines of a file, each once in a row."""
    last = [""]

    def say(words: str) -> None:
        if words != last[0]:
            last[0] = words
            with Path(path).open("a") as file:
                file.write(f"{words}\n")

    return say


if __name__ == "__main__":
    client(*sys.argv[1:4], int(sys.argv[4]), 0)
