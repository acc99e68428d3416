"""Exchanges: a client at the far end of an uplink, and a server of the machine that answers it."""

import contextlib
import itertools
import os
import select
import socket
import struct
from collections.abc import Iterable, Iterator

from tests.lab.frames import Frame, checksum
from tests.lab.limits import limit

from . import cells
from .cells import Cell
from .reply_network import PORTS, ReplyNetwork

DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
NUMBER = {cells.TCP: 6, cells.SCTP: 132, cells.UDP_WILDCARD: 17, cells.UDP_BOUND: 17, cells.UDP_PKTINFO: 17}
ECHO = {4: (socket.IPPROTO_ICMP, 8), 6: (socket.IPPROTO_ICMPV6, 128)}
ANY = {4: "0.0.0.0", 6: "::"}
_HANDSHAKE = 0.1  # seconds for a connection that may not be made
_CLIENT_PORTS = itertools.cycle(range(20000, 30000))


class Exchange:
    """One client and its server. `tokens` are the words of the replies, the last one that of the cell's reply."""

    def __init__(self, network: ReplyNetwork, cell: Cell) -> None:
        self.network, self.cell = network, cell
        self.address = network.address(cell.family)
        self.peer = network.client(cell.family, cell.client)
        self.client_port = next(_CLIENT_PORTS)
        self.tokens: list[bytes] = []
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        self._stack.close()

    def ask(self) -> None:
        """Send a request, which the server gets."""
        raise NotImplementedError

    def reply(self) -> None:
        """Send a reply with a new token. Nothing is an error: only the frames tell where it went."""
        raise NotImplementedError

    def owns(self, frame: Frame) -> bool:
        """Return True if the frame is a packet of this exchange."""
        if frame.family != self.cell.family:
            return False
        number = NUMBER.get(self.cell.protocol)
        is_of_ports = number is not None and (frame.l4proto, frame.dport) == (number, self.client_port)
        return is_of_ports or any(token in frame.payload for token in self.tokens)

    def _token(self) -> bytes:
        self.tokens.append(os.urandom(8).hex().encode())
        return self.tokens[-1]

    def _client(self, kind: int, protocol: int = 0) -> socket.socket:
        space = self.network.far[self.network.asked]
        made = self._stack.enter_context(space.socket(DOMAIN[self.cell.family], kind, protocol))
        made.bind((self.peer, 0 if kind == socket.SOCK_RAW else self.client_port))
        made.settimeout(limit(5))
        return made


class Datagrams(Exchange):
    """UDP: the server's socket belongs to all exchanges with its port."""

    def __init__(self, network: ReplyNetwork, cell: Cell, server: socket.socket) -> None:
        super().__init__(network, cell)
        self._server = server
        self._socket = self._client(socket.SOCK_DGRAM)

    def ask(self) -> None:
        word = os.urandom(8)
        self._socket.sendto(word, (self.address, PORTS[self.cell.protocol]))
        while self._server.recv(100) != word:
            pass

    def reply(self) -> None:
        target, token = (self.peer, self.client_port), self._token()
        with contextlib.suppress(OSError):
            if self.cell.protocol == cells.UDP_PKTINFO:
                self._server.sendmsg([token], [self._source()], 0, target)
            else:
                self._server.sendto(token, target)

    def _source(self) -> tuple[int, int, bytes]:
        """Return the control message that selects the source address, and no device."""
        raw = socket.inet_pton(DOMAIN[self.cell.family], self.address)
        if self.cell.family == 4:
            return socket.IPPROTO_IP, 8, bytes(4) + raw + bytes(4)  # IP_PKTINFO, struct in_pktinfo
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, raw + bytes(4)


class Connection(Exchange):
    """TCP or SCTP. Without a handshake there is no connection, and the frames of the handshake tell why."""

    def __init__(self, network: ReplyNetwork, cell: Cell, listener: socket.socket) -> None:
        super().__init__(network, cell)
        self._socket = self._client(socket.SOCK_STREAM, listener.proto)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        self._socket.setblocking(False)
        self._listener = listener
        self._server: socket.socket | None = None
        with contextlib.suppress(BlockingIOError):
            self._socket.connect((self.address, PORTS[cell.protocol]))

    def accept(self) -> None:
        """Accept the connection, if it is made in time."""
        if select.select([self._listener], [], [], limit(_HANDSHAKE))[0]:
            self._server = self._stack.enter_context(self._listener.accept()[0])
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            for each in (self._socket, self._server):
                each.settimeout(limit(5))

    def ask(self) -> None:
        if self._server is not None:
            self._socket.send(b"request")
            self._server.recv(100)

    def reply(self) -> None:
        token = self._token()
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._server.send(token)


class Echo(Exchange):
    """Ping: the kernel answers, so each reply has its own request."""

    def __init__(self, network: ReplyNetwork, cell: Cell) -> None:
        super().__init__(network, cell)
        self._number, self._kind = ECHO[cell.family]
        self._socket = self._client(socket.SOCK_RAW, self._number)

    def ask(self) -> None:
        self.reply()

    def reply(self) -> None:
        body = struct.pack("!HH", self.client_port, len(self.tokens)) + self._token()
        message = struct.pack("!BBH", self._kind, 0, 0) + body
        if self.cell.family == 4:
            message = struct.pack("!BBH", self._kind, 0, checksum(message)) + body
        self._socket.sendto(message, (self.address, 0))


@contextlib.contextmanager
def exchanges(network: ReplyNetwork, wanted: Iterable[Cell]) -> Iterator[list[Exchange]]:
    """Yield the exchanges of these cells; the connections are made, or cannot be."""
    with contextlib.ExitStack() as stack:
        servers: dict[tuple[int, str], socket.socket] = {}
        made: list[Exchange] = []
        for cell in wanted:
            key = cell.family, cell.protocol
            if cell.protocol != cells.PING and key not in servers:
                servers[key] = stack.enter_context(_server(network, *key))
            one = Echo(network, cell) if cell.protocol == cells.PING else _exchange(network, cell, servers[key])
            stack.callback(one.close)
            made.append(one)
            if isinstance(one, Connection):  # each alone, so that the accepted socket is its own
                one.accept()
        yield made


def _exchange(network: ReplyNetwork, cell: Cell, server: socket.socket) -> Exchange:
    return (Datagrams if server.type == socket.SOCK_DGRAM else Connection)(network, cell, server)


def _server(network: ReplyNetwork, family: int, protocol: str) -> socket.socket:
    is_stream = protocol in (cells.TCP, cells.SCTP)
    number = NUMBER[protocol] if protocol == cells.SCTP else 0
    made = network.node.socket(DOMAIN[family], socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM, number)
    if family == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((network.address(family) if protocol == cells.UDP_BOUND else ANY[family], PORTS[protocol]))
    made.settimeout(limit(5))
    if is_stream:
        made.listen(100)
    return made
