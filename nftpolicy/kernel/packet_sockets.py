# SPDX-License-Identifier: BSD-2-Clause
"""Users of frames that are not IP: AF_PACKET sockets (packet(7)) and protocols of the kernel, from /proc/net."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from .netlink.sock_diag import device_name

_PACKET, _PTYPE = Path("/proc/thread-self/net/packet"), Path("/proc/thread-self/net/ptype")
_OF_SOCKETS = ("packet_", "tpacket_")  # handlers of AF_PACKET sockets, which the other file lists (af_packet.c)


@frozen
class FrameUser:
    """Receiver of frames of an ethertype. `device`: None for all; `inode`: of its socket, 0 for the kernel."""

    ethertype: int
    device: str | None
    uid: int = 0
    inode: int = 0
    handler: str = ""  # function of the kernel


def frame_users() -> list[FrameUser]:
    """Return the receivers of frames in the network namespace of the calling thread; those that /proc shows."""
    users: list[FrameUser] = []
    for path, decode in ((_PACKET, decode_packet_sockets), (_PTYPE, decode_handlers)):
        with suppress(OSError, ValueError, IndexError):  # another form of the file
            users += decode(path.read_text(errors="surrogateescape"))
    return users


def decode_packet_sockets(text: str) -> Iterator[FrameUser]:
    """Yield the sockets in the text of /proc/net/packet (packet_seq_show in net/packet/af_packet.c)."""
    for line in text.splitlines()[1:]:
        _, _, _, ethertype, index, _, _, uid, inode = line.split()[:9]
        yield FrameUser(int(ethertype, 16), device_name(int(index)) if int(index) else None, int(uid), int(inode))


def decode_handlers(text: str) -> Iterator[FrameUser]:
    """Yield the kernel's protocols at one device, in the text of /proc/net/ptype (ptype_seq_show in net-procfs.c)."""
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) >= 3 and words[0] != "ALL" and not words[2].startswith(_OF_SOCKETS):
            yield FrameUser(int(words[0], 16), words[1], handler=words[2])
