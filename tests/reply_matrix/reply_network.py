"""A machine with one or two uplinks and a tunnel, and the hosts at the far ends of each."""

import contextlib
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.sniffer import Sniffer

from . import cells
from .cells import FAMILIES, Network

INSIDE_DEVICE, UPLINK_DEVICES = "tun9", ("eth0", "eth1")
TABLES = (51, 52)
PORTS = {cells.TCP: 5000, cells.UDP_WILDCARD: 5000, cells.UDP_BOUND: 5001, cells.UDP_PKTINFO: 5002, cells.SCTP: 5000}
_NETS = ({4: "192.168.77.", 6: "fd77::"}, {4: "192.168.88.", 6: "fd88::"})
_INSIDE_NET = {4: "203.0.113.", 6: "2001:db8:9::"}
_BEYOND = {4: "198.51.100.77", 6: "2001:db8:77::77"}
_LENGTH = {4: 24, 6: 64}
_OWN, _GATEWAY, _NEIGHBOUR = 2, 1, 50
_FLOW_SECONDS = 1  # of UDP, ICMP and established TCP while flows are short
PROGRAM = str(Path(sys.executable).with_name("nftpolicy"))
POLICY = "/run/lab/policy.toml"
ENVIRONMENT = {"NFTPOLICY_STATE": "/run/lab/state", "PYTHONDONTWRITEBYTECODE": "1"}
_TIMEOUTS = ("udp_timeout", "udp_timeout_stream", "icmp_timeout", "icmpv6_timeout", "tcp_timeout_established")


class ReplyNetwork:
    """The machine `node`, and `far`: device -> the namespace at its other end. A context manager."""

    def __init__(self, network: Network) -> None:
        self.network = network
        count = 1 if network.uplinks == cells.ONE else 2
        self.uplinks = UPLINK_DEVICES[:count]
        self.asked = self.uplinks[-1]  # by which the clients ask
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "ReplyNetwork":
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def short_flows(self) -> Iterator[float]:
        """Let flows end soon; yield the seconds after which an idle flow is gone. Without a policy there are none."""
        names = [f"net/netfilter/nf_conntrack_{name}" for name in _TIMEOUTS if self.network.has_policy]
        before = [self.node.sysctl(name, _FLOW_SECONDS) for name in names]
        yield _FLOW_SECONDS + 0.5
        for name, value in zip(names, before, strict=True):
            self.node.sysctl(name, value)

    def address(self, family: int) -> str:
        """Return the address of the machine that the clients ask."""
        return f"{self._net(self.asked)[family]}{_OWN}"

    def client(self, family: int, client: str) -> str:
        """Return the address of a client."""
        return f"{self._net(self.asked)[family]}{_NEIGHBOUR}" if client == cells.NEIGHBOUR else _BEYOND[family]

    def _net(self, device: str) -> Mapping[int, str]:
        same = self.network.uplinks == cells.SAME_ADDRESS
        return _INSIDE_NET if device == INSIDE_DEVICE else _NETS[0 if same else UPLINK_DEVICES.index(device)]

    def _build(self) -> None:
        self.node = self._stack.enter_context(Namespace("node"))
        self.far: dict[str, Namespace] = {}
        self.sniffers: dict[str, Sniffer] = {}
        for device in (INSIDE_DEVICE, *self.uplinks):
            space = self.far[device] = self._stack.enter_context(Namespace(f"far-{device}"))
            index = len(self.far)
            veth(self.node, device, space, "far", f"02:00:5e:00:53:{index:02x}", f"02:00:5e:00:53:{index + 64:02x}")
            self._connect(device, index)
            self.sniffers[device] = self._stack.enter_context(Sniffer(space, "far"))
        self._add_routes()
        if self.network.has_policy:
            self.node.outside(POLICY).write_text(self.policy())
            self.node.run([PROGRAM, "apply", POLICY], env=ENVIRONMENT)
            if self.network.default != cells.BY_UPLINK:  # `watch` would move that route
                self.node.popen([PROGRAM, "watch", POLICY], env=ENVIRONMENT)
                for family in FAMILIES:
                    wait_until(lambda family=family: self._closed_networks(family), 10, "the routes of `watch`")

    def _closed_networks(self, family: int) -> bool:
        """Return True if table main does not lead the networks of the uplinks inside."""
        routes = self.node.run(["ip", f"-{family}", "route"]).stdout
        return all(f"throw {self._prefix(family, device)} " in routes for device in self.uplinks)

    def _prefix(self, family: int, device: str) -> str:
        return f"{self._net(device)[family]}{'0' if family == 4 else ''}/{_LENGTH[family]}"

    def _connect(self, device: str, index: int) -> None:
        """Add the addresses of both ends, and neighbours that need no resolution."""
        space, route = self.far[device], "" if device == INSIDE_DEVICE else " noprefixroute"
        for family in FAMILIES:
            net, length = self._net(device)[family], _LENGTH[family]
            no_dad = " nodad" if family == 6 else ""
            self.node.ip(f"-{family} addr add {net}{_OWN}/{length} dev {device}{route}{no_dad}")
            space.ip(
                *(f"-{family} addr add {net}{host}/{length} dev far{no_dad}" for host in (_GATEWAY, _NEIGHBOUR)),
                f"-{family} addr add {_BEYOND[family]}/{128 if family == 6 else 32} dev lo{no_dad}",
                f"-{family} neigh replace {net}{_OWN} dev far lladdr 02:00:5e:00:53:{index:02x} nud permanent",
            )
            for host in (_GATEWAY, _NEIGHBOUR):
                mac = f"02:00:5e:00:53:{index + 64:02x}"
                self.node.ip(f"-{family} neigh replace {net}{host} dev {device} lladdr {mac} nud permanent")

    def _add_routes(self) -> None:
        """Add the routes of each uplink to its table, as `watch` does, and the default route of table main."""
        for family in FAMILIES:
            both = [self._routes(family, device) for device in self.uplinks]
            for table, (network, default) in zip(TABLES, both, strict=False):
                if not (self.network.first_is_dead and table == TABLES[0]):
                    self.node.ip(f"{network} table {table}", f"{default} table {table} onlink")
            if self.network.default == cells.BY_UPLINK:
                networks, defaults = zip(*both, strict=True)
                self.node.ip(
                    *(f"{route} metric {10 + index % len(both)}" for index, route in enumerate(networks + defaults))
                )
            if self.network.default == cells.INSIDE:
                gateway = f"{_INSIDE_NET[family]}{_GATEWAY}"
                self.node.ip(f"-{family} route add default via {gateway} dev {INSIDE_DEVICE}")

    def _routes(self, family: int, device: str) -> tuple[str, str]:
        """Return the commands that add the route of the network of an uplink, and a default route."""
        net = self._net(device)[family]
        return (
            f"-{family} route add {self._prefix(family, device)} dev {device} src {net}{_OWN}",
            f"-{family} route add default via {net}{_GATEWAY} dev {device}",
        )

    def policy(self) -> str:
        """Return the policy of this network."""
        text = 'name = "replies"\ninside = ["tun*"]\n'
        for index, (device, table) in enumerate(zip(self.uplinks, TABLES, strict=False), 1):
            text += f'[uplink.{device}]\ndevices = ["{device}"]\nmark = "{index}/0xf"\ntable = {table}\n'
            text += 'exempt = ["arp", "ndp"]\nanswer = ["ping", "tcp/5000", "udp/5000-5002"]\n'
            if self.network.uplinks == cells.SAME_ADDRESS:
                text += f'addresses = ["{_NETS[0][4]}{_OWN}", "{_NETS[0][6]}{_OWN}"]\n'
        return text


def has_protocol(protocol: str) -> bool:
    """Return True if the kernel has the protocol, that is SCTP if it has it."""
    if protocol != cells.SCTP:
        return True
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP):
        return True
    return False
