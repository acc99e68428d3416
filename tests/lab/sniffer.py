"""Capture of the frames that arrive at the far side of a link."""

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable

from . import frames
from .frames import Frame
from .limits import limit
from .netns import Namespace

_SOL_PACKET, _PACKET_AUXDATA, _PACKET_STATISTICS = 263, 8, 6
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_PACKET_OUTGOING = 4
_VLAN_VALID, _VLAN_TPID_VALID = 1 << 4, 1 << 6
_ETH_P_ALL = 3
_BUFFER = 64 << 20  # bytes; the kernel keeps the frames until they are read, so no thread is needed


class Sniffer:
    """Capture of the frames that a device receives from its peer; frames that this side sends are left out.

    Captures from its creation until `stop`. A context manager.
    """

    def __init__(self, namespace: Namespace, device: str) -> None:
        self.device = device
        self._frames: list[Frame] = []
        self._dropped = 0
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)  # protocol 0: deaf until it is bound
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:  # in a user namespace: what net.core.rmem_max allows; `dropped` tells if it was enough
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.bind((device, _ETH_P_ALL))

    def __enter__(self) -> "Sniffer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def frames(self) -> list[Frame]:
        """Return all frames since the start or the last `drain`."""
        self._collect()
        return list(self._frames)

    def drain(self) -> list[Frame]:
        """Return the same frames, and forget them."""
        self._collect()
        frames_, self._frames = self._frames, []
        return frames_

    def wait_for(self, predicate: Callable[[Frame], bool], seconds: float) -> Frame | None:
        """Return the first frame, old or new, for which `predicate` is true; None if none came in `limit(seconds)`."""
        end, done = time.monotonic() + limit(seconds), 0
        while True:
            is_last = time.monotonic() >= end
            self._collect()
            for frame in self._frames[done:]:
                if predicate(frame):
                    return frame
            done = len(self._frames)
            if is_last or self._socket.fileno() < 0:
                return None
            select.select([self._socket], [], [], max(end - time.monotonic(), 0))

    @property
    def dropped(self) -> int:
        """Return the number of frames that the kernel dropped (buffer full); if not 0, the capture is incomplete."""
        if self._socket.fileno() >= 0:
            counts = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)  # reading resets them
            self._dropped += struct.unpack("=II", counts)[1]
        return self._dropped

    def stop(self) -> None:
        """Stop the capture; captured frames can still be read. Can be called twice."""
        if self._socket.fileno() >= 0:
            self._collect()
            self._socket.close()

    def _collect(self) -> None:
        """Read the frames that were captured before this call: a flood may be quicker than the reader."""
        if self._socket.fileno() < 0:
            return
        now = time.clock_gettime_ns(time.CLOCK_REALTIME)
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    raw, ancillary, _, address = self._socket.recvmsg(65600, 256)
                except OSError as error:
                    if error.errno == 100:  # ENETDOWN, reported once when the device goes down
                        continue
                    raise
                if address[2] != _PACKET_OUTGOING and len(raw) >= 14:
                    self._frames.append(frames.parse(_with_vlan(raw, ancillary)))
                if _captured_at(ancillary) > now:
                    return


def _captured_at(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the time of the capture in nanoseconds since 1970."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("@ll", data)
            return seconds * 1_000_000_000 + nanoseconds
    return 0


def _with_vlan(raw: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """Put the VLAN tag back, which the kernel moves out of the frame."""
    for level, kind, data in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", data[:20])
            if status & _VLAN_VALID:
                tpid = tpid if status & _VLAN_TPID_VALID else frames.ETH_VLAN
                return raw[:12] + struct.pack("!HH", tpid, tci) + raw[12:]
    return raw
