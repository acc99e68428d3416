"""Sender without a mark, from the moment that programs may use the network; a unit of the virtual machine runs it."""

import contextlib
import socket
import struct
import subprocess
import time
from pathlib import Path

UNMARKED, MARKED, REMOVED = b"unmarked since the start", b"marked by the service", b"unmarked after the removal"
GUARDED = b"unmarked under the link guard"
FRAME_SOURCE = b"\x02\x00\x5e\x00\x53\x99"  # of the frames of packet sockets
ATTEMPTS = "/run/early-sender"  # the number of packets that it tried to send
DEVICE = "eth0"
_GATEWAY = "192.0.2.2"


def send_frame(payload: bytes) -> None:
    """Send a frame with an IPv4 datagram by a packet socket; OSError if the kernel refuses."""
    udp = struct.pack("!HHHH", 9, 9, 8 + len(payload), 0) + payload
    addresses = socket.inet_aton("192.0.2.99") + socket.inet_aton(_GATEWAY)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        made.bind((DEVICE, 0))
        made.send(b"\xff" * 6 + FRAME_SOURCE + struct.pack("!H", 0x0800) + header + udp)


def _send_datagram(payload: bytes, bound: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        if bound:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE.encode())
        made.sendto(payload, (_GATEWAY, 9))


def main() -> None:
    """Set the device up as soon as it exists, and send without end."""
    attempts = 0
    while subprocess.run(["ip", "link", "set", DEVICE, "up"], stderr=subprocess.DEVNULL, check=False).returncode:
        time.sleep(0.05)
    while True:
        for send in (
            send_frame,
            lambda payload: _send_datagram(payload, False),
            lambda payload: _send_datagram(payload, True),
        ):
            with contextlib.suppress(OSError):
                send(UNMARKED)
            attempts += 1
        Path(ATTEMPTS).write_text(str(attempts))
        time.sleep(0.1 if attempts < 300 else 1)


if __name__ == "__main__":
    main()
