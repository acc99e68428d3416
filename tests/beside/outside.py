"""Surroundings of the machine: the network of its uplink with all of the internet, and a host in its LAN.

    internet: out0 ------ eth0 :machine: eth1 ------ lan0 :lan

The machine lends its network namespace from here, so that senders and readers of the lab work in it.
"""

import contextlib
import http.server
import itertools
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.lab import addresses as at
from tests.lab import frames
from tests.lab.daemons import FOLDER, dnsmasq
from tests.lab.flooder import FRAME, RAW, TCP, UDP, Flood, Kind
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.port_counter import Tally

UPLINK, LAN = "eth0", "eth1"  # devices of the machine
MACHINE = {4: "192.0.2.10", 6: "2001:db8:1::10"}
MACHINE_LAN = {4: "192.168.50.1", 6: "2001:db8:50::1"}
LAN_HOST = {4: "192.168.50.2", 6: "2001:db8:50::2"}
WEB = {4: "203.0.113.80", 6: "2001:db8:99::80"}  # web.example
VPN = {4: "198.51.100.1", 6: "2001:db8:98::1"}  # vpn.example, which has an IPv4 address alone
FAR = {4: "203.0.113.9", 6: "2001:db8:99::9"}
LENGTH = {4: 24, 6: 64}
SERVICE_GID, OTHER_GID = 851, 4711
FOREIGN_MARK = 0x80000
_HOST_LENGTH = {4: 32, 6: 128}
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
_REST = 0.02  # seconds between two rounds of a flood


@dataclass(frozen=True)
class Outside:
    """The three network namespaces."""

    internet: Namespace
    machine: Namespace
    lan: Namespace


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """Yield the surroundings: DHCP, RA, DNS and a web server at the uplink, a web server in the LAN, whose router is the machine."""
    with contextlib.ExitStack() as stack:
        internet, machine, lan = (stack.enter_context(Namespace(name)) for name in ("internet", "machine", "lan"))
        veth(internet, "out0", machine, UPLINK, at.HOME_MAC, at.NODE_WAN_MAC)
        veth(lan, "lan0", machine, LAN, None, "02:00:5e:00:53:03")
        for device in (UPLINK, LAN):
            machine.ip(f"link set {device} down")
        for space in (internet, machine):
            for key in _FORWARDING:
                space.sysctl(key, 1)
        for family in at.FAMILIES:
            length, host = LENGTH[family], _HOST_LENGTH[family]
            internet.ip(f"addr add {at.HOME[family]}/{length} dev out0")
            internet.ip(*(f"addr add {one[family]}/{host} dev lo" for one in (WEB, VPN, FAR)))
            internet.ip(f"-{family} route add {LAN_HOST[family]}/{host} via {MACHINE[family]}")
            lan.ip(f"addr add {LAN_HOST[family]}/{length} dev lan0")
            lan.ip(f"-{family} route add default via {MACHINE_LAN[family]}")
        internet.ip(f"addr add {at.HOME_LINK_LOCAL}/64 dev out0")
        internet.outside(FOLDER).mkdir(exist_ok=True)
        internet.popen(_names_and_addresses())
        for space in (internet, lan):
            space.spawn(serve_web)
        wait_until(lambda: _answers(internet), 10, "the web server")
        yield Outside(internet, machine, lan)


def _names_and_addresses() -> list[str]:
    names = dnsmasq([at.HOME[4], at.HOME[6]], {"web.example": WEB})
    return [
        *names,
        f"--host-record=vpn.example,{VPN[4]}",
        "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0,2m",
        f"--dhcp-host={at.NODE_WAN_MAC},{MACHINE[4]}",
        f"--dhcp-option=3,{at.HOME[4]}",
        f"--dhcp-option=6,{at.HOME[4]}",
        f"--dhcp-leasefile={FOLDER}/leases",
        "--dhcp-authoritative",
        "--no-ping",
        "--enable-ra",
        "--dhcp-range=2001:db8:1::,ra-only",
        f"--dhcp-option=option6:dns-server,[{at.HOME[6]}]",
        "--interface=out0",
    ]


class _Seen(http.server.BaseHTTPRequestHandler):
    """Answer with the address of the client."""

    def do_GET(self) -> None:
        """Answer each path alike."""
        text = f"seen {self.client_address[0].removeprefix('::ffff:')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        """Listen for both families."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve_web() -> None:
    """Serve on port 80 without end: "seen ADDRESS"."""
    threading.stack_size(256 * 1024)
    _Server(("::", 80), _Seen).serve_forever()


def _answers(space: Namespace) -> bool:
    return space.run(["curl", "-s", "-m", "1", "http://[::1]/"], check=False).returncode == 0


class Leaks:
    """Floods of packets that no policy allows, from the machine and from the host in its LAN, and their arrivals.

    `mark` is the uplink's. `containers` are senders that the scenario starts: name -> the port to which they send.
    Ends with the namespaces.
    """

    def __init__(self, around: Outside, mark: int, containers: Mapping[str, int]) -> None:
        machine, lan = _machine_kinds(mark), _lan_kinds()
        first = [20_000, 20_500]
        self._floods = [
            Flood(around.machine, machine, _REST, first[0]),
            Flood(around.lan, lan, _REST, first[1]),
        ]
        self.names = [str(kind) for kind in (*machine, *lan)]
        wanted = {**self._floods[0].wanted()}
        wanted |= {key: len(machine) + index for key, index in self._floods[1].wanted().items()}
        for name, port in containers.items():
            for family, (how, protocol) in itertools.product(at.FAMILIES, ((UDP, frames.UDP), (TCP, frames.TCP))):
                wanted[family, protocol, port] = len(self.names)
                self.names.append(f"{name} {how}{family}")
        self._tally = Tally(around.internet, "out0", wanted)
        self._before: dict[int, int] = {}

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Send meanwhile, and count from here."""
        self._before = self._tally.counts()  # containers send without a pause
        for flood in self._floods:
            flood.resume(1)
        try:
            yield
        finally:
            for flood in self._floods:
                flood.pause()
            self.arrived()

    def arrived(self) -> dict[str, int]:
        """Return the number of frames that have arrived at the uplink's far end, by kind, without those of none."""
        since = {index: count - self._before.get(index, 0) for index, count in self._tally.counts().items()}
        return {self.names[index]: count for index, count in since.items() if count}

    @property
    def sent(self) -> int:
        """Return the number of packets that the kernel took from the senders."""
        return sum(sum(flood.counts().taken) for flood in self._floods)

    @property
    def lost(self) -> int:
        """Return the number of frames that the capture lost."""
        return self._tally.dropped


def _machine_kinds(mark: int) -> list[Kind]:
    kinds = [
        Kind(f"{name} host", how, family, FAR, OTHER_GID, number, device)
        for family in at.FAMILIES
        for how in (UDP, TCP, RAW)
        for name, number in (("unmarked", 0), ("uplink's mark, not its owner", mark), ("other mark", FOREIGN_MARK))
        for device in (None, UPLINK)
    ]
    kinds += [Kind("unmarked frame", FRAME, family, FAR, OTHER_GID, 0, UPLINK) for family in at.FAMILIES]
    return kinds + [Kind("unmarked service", how, family, FAR, SERVICE_GID) for family in (4, 6) for how in (UDP, TCP)]


def _lan_kinds() -> list[Kind]:
    return [Kind("LAN host", how, family, FAR, 0) for family in at.FAMILIES for how in (UDP, TCP, RAW)]
