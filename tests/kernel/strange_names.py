"""Names that the kernel allows for devices, nft objects and processes, and objects with such names."""

import ctypes
import os
import random
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence

from nftpolicy.kernel.netlink import constants as nl
from nftpolicy.kernel.netlink.attributes import attribute, netfilter_header
from nftpolicy.kernel.netlink.socket import NetlinkSocket

_PR_SET_NAME = 15
_BATCH = struct.pack("!BBH", 0, 0, 10)
_NOT_IN_DEVICES = frozenset(b"/:\t\n\v\f\r \xa0\0%")  # dev_valid_name; "%d" would be replaced by a number
# Each of them has its own meaning somewhere: nft, JSON, a shell, a terminal, UTF-8, a path.
DEVICES = (
    b"c+d",
    b'c"d',
    b"c{d",
    b"\xc3\xa90",
    b"\xffx",
    b"c*",
    b"*",
    b"-x",
    b"12",
    b"a\\",
    b"a'$(b)`",
    b"\x1b[31mx",
    b"#;\x7f",
)
OBJECTS = (b"a b", b'a"b', b"a\nb", b"\xff", b"a;b", b"-", b"nftpolicy ", b"table", b"\x1b[2J", b"*", b"{", b"x" * 200)


def random_device(random_source: random.Random) -> bytes:
    """Return a valid name of a device."""
    allowed = [byte for byte in range(1, 256) if byte not in _NOT_IN_DEVICES]
    name = bytes(random_source.choices(allowed, k=random_source.randint(1, 15)))
    return b"x" if name in (b".", b"..") else name


def random_object(random_source: random.Random) -> bytes:
    """Return a valid name of an nft object."""
    return bytes(random_source.choices(range(1, 256), k=random_source.randint(1, 40)))


def add_devices(names: Sequence[bytes], bridge: str | None = None) -> None:
    """Add a veth for each name, in this network namespace; with a bridge as ports of it."""
    for name in names:
        commands = [[b"add", b"name", name, b"type", b"veth"], [b"set", b"dev", name, b"up"]]
        commands += [[b"set", b"dev", name, b"master", bridge.encode()]] if bridge else []
        for command in commands:
            subprocess.run([b"ip", b"link", *command], check=True, capture_output=True)


def add_tables(names: Sequence[bytes], devices: Sequence[bytes]) -> None:
    """Add a table with a chain and a counter for each name, and one with a chain at each device."""
    for name in names:
        _send(1, *_table(name), (nl.NFT_MSG_NEWCHAIN, _text(1, name) + _text(3, name[:100])))
        counter = (
            _text(1, name) + _text(2, name[:100]) + attribute(3, struct.pack("!I", 1)) + attribute(4 | 1 << 15, b"")
        )
        _send(1, (10 << 8 | 18, counter))
    for number, device in enumerate(devices):
        hook = attribute(1, struct.pack("!I", 1)) + attribute(2, struct.pack("!I", 7)) + _text(3, device)
        chain = _text(1, b"foreign") + _text(3, b"c%d" % number) + _text(7, b"filter") + attribute(4 | 1 << 15, hook)
        _send(5, *_table(b"foreign"), (nl.NFT_MSG_NEWCHAIN, chain + attribute(5, struct.pack("!I", 1))))


def add_to_guard(kind: str, name: bytes) -> None:
    """Add an object with a name to the guard, as another program can."""
    table, object_type = _text(1, b"nftpolicy"), attribute(3, struct.pack("!I", 1))
    if kind == "chain":
        _send(1, (nl.NFT_MSG_NEWCHAIN, table + _text(3, name)))
    elif kind == "counter":
        _send(1, (10 << 8 | 18, table + _text(2, name) + object_type + attribute(4 | 1 << 15, b"")))
    elif kind == "set":
        numbers = ((3, 0), (4, 7), (5, 4), (10, 1))  # flags, type and length of the key, identifier
        _send(
            1, (10 << 8 | 9, table + _text(2, name) + b"".join(attribute(k, struct.pack("!I", n)) for k, n in numbers))
        )
    else:
        hook = attribute(1, struct.pack("!I", 1)) + attribute(2, struct.pack("!I", 7)) + _text(3, b"any0")
        chain = table + _text(3, name) + _text(7, b"filter") + attribute(4 | 1 << 15, hook)
        _send(5, (nl.NFT_MSG_NEWCHAIN, chain))


def _table(name: bytes) -> Iterator[tuple[int, bytes]]:
    yield nl.NFT_MSG_NEWTABLE, _text(1, name)


def _text(kind: int, name: bytes) -> bytes:
    return attribute(kind, name + b"\0")


def _send(family: int, *messages: tuple[int, bytes]) -> None:
    batch = [(kind, nl.NLM_F_CREATE, netfilter_header(family) + body) for kind, body in messages]
    with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        code = netlink.transact((nl.NFNL_MSG_BATCH_BEGIN, _BATCH), batch, (nl.NFNL_MSG_BATCH_END, _BATCH))
    if code:
        raise OSError(code, os.strerror(code))


def hold_socket(name: bytes, mark: int) -> None:
    """Name this process, and hold a socket with a mark until it is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        held.bind(("", 0))
        held.connect(("192.0.2.1", 9))
        import signal

        signal.pause()


def list_ruleset() -> bytes:
    """Return the ruleset as nft prints it."""
    return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True).stdout
