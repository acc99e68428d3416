"""System log of a namespace: the lines that are written to /dev/log there."""

import socket
from collections.abc import Callable
from pathlib import Path

from .netns import Namespace, wait_until

_LOG = "/run/lab/syslog"
_OWN_DEV = """
mkdir -p /run/lab/dev
mount --rbind /dev /run/lab/dev
mount -t tmpfs tmpfs /dev
ln -s /run/lab/dev/* /dev
rm -f /dev/log
"""


def listen(space: Namespace) -> Callable[[], str]:
    """Make the namespace listen at a /dev/log of its own; the returned function returns all lines until now."""
    space.run(["sh", "-ec", _OWN_DEV])
    log = space.outside(_LOG)
    space.spawn(_serve)
    wait_until(log.exists, 5, "the log")
    return log.read_text


def _serve() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made, Path(_LOG + ".new").open("w", buffering=1) as log:
        made.bind("/dev/log")
        Path("/dev/log").chmod(0o666)
        Path(_LOG + ".new").rename(_LOG)
        while True:
            log.write(f"{made.recv(1000).decode()}\n")
