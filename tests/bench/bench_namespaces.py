"""Namespaces to send in, and their guards."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from nftpolicy.kernel.linux import Linux
from nftpolicy.policy.load import load
from nftpolicy.runtime.apply.executor import apply_change, plan_change
from nftpolicy.runtime.apply.state_dir import StateDir
from tests.lab import addresses as at
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.topology import Lab

from . import sized_policies, traffic_loads
from .namespace_worker import Worker

Guard = Callable[[Namespace], None]
PATIENCE = 60  # seconds, for 10,000 services on a slow machine
_FOLDER = Path("/run/nftpolicy")  # in the tmpfs of each namespace
_ROUTER, _ROUTER_MAC = "192.0.2.250", "02:00:5e:00:53:99"  # of policies.NOBODY; no device has this MAC address
_NODE_IN_TUNNEL, _SERVER_IN_TUNNEL = "10.77.0.1", "10.77.0.2"


def memory() -> StateDir:
    """Return a state directory in the namespace of this process."""
    _FOLDER.mkdir(exist_ok=True)
    return StateDir(_FOLDER)


def nothing(_: Namespace) -> None:
    """Set no guard."""


def services(number: int) -> Guard:
    """Apply a generated policy by nftpolicy."""
    text = sized_policies.generated(number).encode()

    def put() -> None:
        policy, _ = load(text)
        kernel, mine = Linux(), memory()
        apply_change(kernel, plan_change(kernel, policy, mine), mine)

    return lambda node: node.call(put, timeout=PATIENCE)


def naive(number: int) -> Guard:
    """Load the naive ruleset."""
    return lambda node: node.nft(sized_policies.naive(number)) and None


class Pair:
    """Node whose br-wan leads to a peer, and a worker in the node; a context manager.

    The node's routes are the same in the main table and in the uplink's. Packets to sized_policies.NOBODY leave, but no
    device takes them; packets to the lab's server reach a socket of the peer's namespace, which the worker holds.
    """

    def __init__(self, guard: Guard, group: int) -> None:
        with contextlib.ExitStack() as stack:
            self._node = stack.enter_context(Namespace("node"))
            self._peer = stack.enter_context(Namespace("peer"))
            self._wire()
            guard(self._node)
            other = stack.enter_context(self._peer.socket(socket.AF_INET, socket.SOCK_DGRAM))
            other.bind((at.SERVER[4], at.ECHO_PORT))
            functions = {"flood": traffic_loads.flood, "exchange": traffic_loads.Exchange(other)}
            self.run = Worker(self._node, functions, gid=group)
            self._stack = stack.pop_all()

    def _wire(self) -> None:
        veth(self._node, at.WAN, self._peer, "eth0")
        net = at.with_length
        self._peer.ip(f"addr add {net(at.HOME, 'home', 4)} dev eth0", f"addr add {at.SERVER[4]}/32 dev eth0")
        self._node.ip(
            f"addr add {net(at.NEIGHBOUR, 'home', 4)} dev {at.WAN}",
            f"neigh add {_ROUTER} lladdr {_ROUTER_MAC} dev {at.WAN} nud permanent",
            *(
                f"route add {to} via {by} dev {at.WAN} table {table}"
                for to, by in ((at.SERVER[4], at.HOME[4]), (sized_policies.NOBODY, _ROUTER))
                for table in ("main", "1")
            ),
        )

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Tunnel:
    """Lab with a fastd tunnel from the node to the server, through the guard; a context manager.

    The node's routes by br-wan are in table 1; an ip rule for it exists without a guard too.
    """

    def __init__(self, guard: Guard, group: int) -> None:
        with contextlib.ExitStack() as stack:
            lab = stack.enter_context(Lab())
            for sniffer in (lab.wan, lab.mesh_sniffer):
                sniffer.stop()
            lab.node.ip("-4 rule add fwmark 0x1/0x1 lookup 1 priority 600")
            guard(lab.node)
            lab.start_fastd_client(group)
            lab.wait_for_fastd()
            for space, device, address in (
                (lab.node, at.TUNNEL, _NODE_IN_TUNNEL),
                (lab.server, "fastd0", _SERVER_IN_TUNNEL),
            ):
                space.ip(f"addr add {address}/24 dev {device}", f"link set {device} up")
            lab.server.spawn(traffic_loads.acknowledge)
            self._fastd = _process_in(lab.node, "fastd")
            self._run = Worker(lab.node, {"stream": traffic_loads.stream})
            wait_until(self._works, 5, "a packet through the tunnel")
            self._stack = stack.pop_all()

    def _works(self) -> bool:
        with contextlib.suppress(RuntimeError):
            self._run("stream", _SERVER_IN_TUNNEL, 0.0)
            return True
        return False

    def stream(self, seconds: float) -> tuple[float, float]:
        """Return packets that arrived: for each second, and for each second of CPU time of the node's fastd."""
        before = _cpu_seconds(self._fastd)
        arrived, passed = self._run("stream", _SERVER_IN_TUNNEL, seconds)
        return arrived / passed, arrived / (_cpu_seconds(self._fastd) - before)

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _process_in(space: Namespace, name: str) -> int:
    wanted = Path(space.path).stat().st_ino
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().strip() == name and (folder / "ns/net").stat().st_ino == wanted:
                return int(folder.name)
    raise RuntimeError(f"no {name} in {space.name}")


def _cpu_seconds(process: int) -> float:
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
