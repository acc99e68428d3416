"""Program of a container: a web server, and packets to the internet without a pause.

python3 -m tests.beside.container PORT     PORT is their destination, by UDP and TCP
"""

import contextlib
import itertools
import socket
import sys
import threading
import time
from collections.abc import Iterator

from .outside import FAR, serve_web

_REST = 0.02  # seconds between two rounds
_DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}


def send(port: int) -> None:
    """Send datagrams of one flow and of new ones, and requests for connections, without end."""
    flows = {family: socket.socket(domain, socket.SOCK_DGRAM) for family, domain in _DOMAIN.items()}
    for _ in itertools.count():
        for family, flow in flows.items():
            with contextlib.suppress(OSError):
                flow.sendto(b"container", (FAR[family], port))
            for made in _new_sockets(family):
                with contextlib.suppress(OSError):
                    made.connect((FAR[family], port))
                    made.send(b"container")
        time.sleep(_REST)


def _new_sockets(family: int) -> Iterator[socket.socket]:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(_DOMAIN[family], kind | socket.SOCK_NONBLOCK) as made:
            yield made


if __name__ == "__main__":
    threading.Thread(target=send, args=[int(sys.argv[1])], daemon=True).start()
    serve_web()
