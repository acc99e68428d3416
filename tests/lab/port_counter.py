"""Sniffer that counts by destination port and does not keep the counted frames, for floods."""

import contextlib
from collections.abc import Mapping

from . import frames
from .netns import Namespace
from .sniffer import Sniffer

_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23  # the option: since Linux 4.20
_V4, _V6 = frames.ETH_IPV4 >> 8, frames.ETH_IPV6 >> 8  # the first byte tells them apart; what follows makes sure
# First byte of the EtherType -> the rest of it with version (and header length), the places of protocol and port.
_LAYOUT = {_V4: (b"\x00\x45", 23, 36), _V6: (b"\xdd\x60", 20, 56)}


class Tally(Sniffer):
    """Counter of the frames whose (address family, protocol, destination port) is in `wanted`, by the value there.

    Other frames are kept, as a sniffer's. About 2 µs a frame, so that `dropped` stays 0 at tens of thousands a second.
    """

    def __init__(self, namespace: Namespace, device: str, wanted: Mapping[tuple[int, int, int], int]) -> None:
        super().__init__(namespace, device)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._wanted = {
            ({4: _V4, 6: _V6}[family], protocol, port >> 8, port & 255): name
            for (family, protocol, port), name in wanted.items()
        }
        self._counts = dict.fromkeys(wanted.values(), 0)

    def counts(self) -> dict[int, int]:
        """Return the frames since the start, by the values of `wanted`."""
        self._collect()
        return dict(self._counts)

    def _collect(self) -> None:
        if self._socket.fileno() < 0:
            return
        buffer, wanted, counts = bytearray(65600), self._wanted, self._counts
        receive = self._socket.recv_into
        with contextlib.suppress(BlockingIOError):
            while True:
                length = receive(buffer)
                if layout := _LAYOUT.get(buffer[12]):
                    start, protocol, port = layout
                    name = wanted.get((buffer[12], buffer[protocol], buffer[port], buffer[port + 1]))
                    if name is not None and buffer[13:15] == start and length > port:
                        counts[name] += 1
                        continue
                if length >= 14:
                    self._frames.append(frames.parse(bytes(buffer[:length])))
