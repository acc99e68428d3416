"""Floods around a machine under `nftpolicy watch`: what a neighbour, a user and another program can cause.

Each function sends until its process is killed.
"""

import itertools
import random
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

TOKEN = b"TOKEN of a packet without the mark"
_ETH_IPV6 = 0x86DD
_ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
_BATCH = 50  # messages between two looks at the clock


def _paced(rate: int) -> Iterator[int]:
    """Yield numbers, that many a second."""
    start = time.monotonic()
    for number in itertools.count():
        if number % _BATCH == 0:
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
        yield number


def advertise(device: str, rate: int) -> None:
    """Send router advertisements of other routers all the time: prefixes, routes (RFC 4191), DNS servers and MTUs."""
    source = random.Random(1)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device, _ETH_IPV6))
        for _ in _paced(rate):
            frame = _frame(source)
            try:
                sender.send(frame)
            except OSError:
                time.sleep(0.001)


def _frame(source: random.Random) -> bytes:
    router = b"\xfe\x80" + bytes(6) + source.randbytes(8)
    options = b""
    for _ in range(2):
        options += (
            struct.pack("!BBHI", 25, 3, 0, source.choice((0, 600, 0xFFFFFFFF))) + b"\x20\x01" + source.randbytes(14)
        )
    for _ in range(3):
        lifetimes = source.choice((0, 5, 7200)), source.choice((0, 3, 3600))
        options += struct.pack("!BBBBIII", 3, 4, 64, 0xC0, *lifetimes, 0)
        options += b"\x20\x01\x0d\xb8" + source.randbytes(4) + bytes(8)
    for _ in range(6):
        options += struct.pack("!BBBBI", 24, 2, source.choice((0, 48, 64)), 0, source.choice((0, 9, 1800)))
        options += b"\x20\x01" + source.randbytes(6)
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + options
    pseudo = router + _ALL_NODES + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6) + body
    checksum = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while checksum >> 16:
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
    body = body[:2] + struct.pack("!H", ~checksum & 0xFFFF) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 255) + router + _ALL_NODES
    return bytes.fromhex("333300000001020000000099") + struct.pack("!H", _ETH_IPV6) + header + body


def send_unmarked(device: str, destination: str, rate: int) -> None:
    """Send UDP packets and frames without the mark by a device."""
    frame = bytes.fromhex("02000000000102000000000208004500") + struct.pack("!H", 28 + len(TOKEN))
    frame += bytes.fromhex("0001000040110000c0000202c000020113880009") + struct.pack("!HH", 8 + len(TOKEN), 0) + TOKEN
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw,
    ):
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        for _ in _paced(rate):
            for send, data, address in ((bound.sendto, TOKEN, (destination, 9)), (raw.sendto, frame, (device, 0x800))):
                try:
                    send(data, address)  # type: ignore[operator]
                except OSError:
                    continue


def _run_batches(*commands: str) -> None:
    """Run ip commands again and again, ten times in a batch."""
    text = "\n".join(commands * 10) + "\n"
    while True:
        subprocess.run(["ip", "-force", "-batch", "-"], input=text.encode(), capture_output=True, check=False)


def flap_links() -> None:
    """Bring a device up and down, and create and delete another one."""
    subprocess.run(["ip", "link", "add", "flap0", "type", "bridge"], check=True)
    _run_batches("link set flap0 up", "link set flap0 down", "link add flap1 type bridge", "link del flap1")


def change_addresses(device: str) -> None:
    """Add and delete addresses of a device."""
    _run_batches(f"addr add 192.0.2.77/24 dev {device}", f"addr del 192.0.2.77/24 dev {device}")


def change_neighbours(device: str) -> None:
    """Add neighbours of a device, and delete them."""
    added = [f"neigh replace 192.0.2.{number} lladdr 02:00:00:00:00:05 dev {device}" for number in range(100, 200)]
    _run_batches(*added, f"neigh flush dev {device} nud permanent")


def change_foreign_tables() -> None:
    """Load and delete a table of another program."""
    table = b"table inet other { chain c { tcp dport 1 accept; }; }; delete table inet other\n"
    while True:
        subprocess.run(["nft", "-f", "-"], input=table * 20, check=False, capture_output=True)


def open_sockets(number: int) -> None:
    """Hold sockets, and open and close others."""
    held = []
    for _ in range(number):
        try:
            held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            held[-1].bind(("127.0.0.1", 0))
        except OSError:
            break
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.bind(("127.0.0.1", 0))
        time.sleep(0.001)


def restore_times(count: int, pause: float, limit: float) -> list[float]:
    """Flush the ruleset a number of times; return the seconds until both tables of the guard are back, each time."""
    from nftpolicy.kernel.libnft import Nft
    from nftpolicy.kernel.netlink import constants as nl
    from nftpolicy.kernel.netlink.nft_counters import dump_table_names
    from nftpolicy.kernel.netlink.socket import NetlinkSocket
    from nftpolicy.kernel.session_priority import change_session_nice

    nft, wanted, times = Nft(), {("inet", "nftpolicy"), ("netdev", "nftpolicy")}, []
    change_session_nice(-10)  # it measures
    with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        for _ in range(count):
            time.sleep(pause)
            begin = time.monotonic()
            assert nft.load("flush ruleset\n") is None
            while not wanted <= dump_table_names(netlink):
                if time.monotonic() > begin + limit:
                    raise TimeoutError("the guard is not back")
                time.sleep(0.001)
            times.append(time.monotonic() - begin)
    return times
