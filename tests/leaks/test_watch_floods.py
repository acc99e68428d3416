"""All floods at once under `nftpolicy watch`, with flushes: nothing leaves, the guard is back soon, memory is flat.

NFTPOLICY_FLOOD_SECONDS (8) is the length.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guarded_lab import PROGRAM
from tests.lab.limits import limit
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.sniffer import Sniffer

from . import flood_senders as floods

pytestmark = [pytest.mark.kernel, pytest.mark.alone]

SECONDS = float(os.environ.get("NFTPOLICY_FLOOD_SECONDS", "8"))
PAUSE = 0.5  # seconds between two flushes
WAN, POLICY, LOG = "wan0", "/run/policy.toml", "/run/watch.log"
ENVIRONMENT = {"NFTPOLICY_STATE": "/run/state", "PYTHONDONTWRITEBYTECODE": "1"}
MAX_MEMORY = 80 << 10  # KiB
TEXT = f"""
name   = "floods"
inside = ["in0"]
[uplink.wan]
devices = ["{WAN}"]
mark    = "0x1/0x1"
table   = 1
exempt  = ["arp", "ndp", "dhcpv4"]
answer  = ["ping"]
learn   = ["ra"]
[service.vpn]
uplink = "wan"
group  = 800
"""


class Machine:
    """A node whose uplink leads to a neighbour, and a capture of what the neighbour receives."""

    def __init__(self, node: Namespace, neighbour: Namespace, sniffer: Sniffer) -> None:
        self.node, self.neighbour, self.sniffer = node, neighbour, sniffer

    def leaked(self) -> int:
        """Return the number of unmarked packets that the neighbour has received since the last `forget`."""
        return sum(floods.TOKEN in frame.payload for frame in self.sniffer.frames())

    def forget(self) -> None:
        self.sniffer.drain()


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Namespace("node") as node, Namespace("neighbour") as neighbour:
        veth(node, WAN, neighbour, "far0")
        neighbour.ip("addr add 192.0.2.1/24 dev far0")
        node.ip(f"addr add 192.0.2.2/24 dev {WAN}", "route add default via 192.0.2.1")
        node.sysctl(f"net/ipv6/conf/{WAN}/accept_ra", 2)
        node.sysctl(f"net/ipv6/conf/{WAN}/accept_ra_rt_info_max_plen", 64)
        node.outside(POLICY).write_text(TEXT)
        with Sniffer(neighbour, "far0") as sniffer:
            yield Machine(node, neighbour, sniffer)


def memory(process: int) -> int:
    """Return the most memory that a process has used so far (VmHWM), in KiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def started_watch(node: Namespace) -> subprocess.Popen[bytes]:
    """Apply the policy and start the daemon with the priority that its unit gives it; wait for the first proof."""
    node.run([PROGRAM, "apply", POLICY], env=ENVIRONMENT)
    log = node.outside(LOG)
    with log.open("wb") as file:
        watch = node.popen(["nice", "-n", "-10", PROGRAM, "watch", "--json"], env=ENVIRONMENT, stderr=file, stdout=file)
    wait_until(lambda: '"proof"' in log.read_text(), 20, "the first proof")
    return watch


def test_nothing_leaves_under_all_floods_at_once(machine: Machine) -> None:
    node = machine.node
    unmarked = node.spawn(floods.send_unmarked, WAN, "192.0.2.1", 300)
    wait_until(lambda: machine.leaked() > 100, 10, "the control: without the guard the flood leaves")
    watch = started_watch(node)
    log = node.outside(LOG)
    machine.forget()
    before = memory(watch.pid)
    senders: list[tuple[Namespace, Callable[..., None], tuple[object, ...], dict[str, int]]] = [
        (machine.neighbour, floods.advertise, ("far0", 1000), {}),
        (node, floods.flap_links, (), {}),
        (node, floods.change_addresses, (WAN,), {}),
        (node, floods.change_neighbours, (WAN,), {}),
        (node, floods.change_foreign_tables, (), {}),
        (node, floods.open_sockets, (5000,), {"uid": 65534, "gid": 65534}),
    ]
    processes = [(space, space.spawn(function, *args, **ids)) for space, function, args, ids in senders]
    count = max(3, int(SECONDS / PAUSE))
    times = node.call(floods.restore_times, count, PAUSE, limit(20), timeout=limit(20) + 10 * SECONDS)
    for space, process in processes:
        space.end(process)
    assert machine.leaked() == 0
    after = memory(watch.pid)
    lines = [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]
    exposures = [line["ms"] / 1000 for line in lines if line["event"] == "restored"]
    print(f"{distribution(times)}; by the log: {distribution(exposures)}", file=sys.stderr)
    print(f"memory: {before} KiB, then {after} KiB; {len(lines)} log lines", file=sys.stderr)
    assert watch.poll() is None
    assert next(line["what"] for line in lines if line["event"] == "routes-left") == f"IPv6 routes over {WAN}"
    node.end(unmarked)
    assert after < MAX_MEMORY
    assert len(lines) < 200 + SECONDS * 10
    assert statistics.median(times) < limit(0.1)
    watch.send_signal(signal.SIGTERM)
    assert watch.wait(limit(20)) == 0


def test_guard_is_back_soon_under_router_advertisements(machine: Machine) -> None:
    node = machine.node
    unmarked = node.spawn(floods.send_unmarked, WAN, "192.0.2.1", 300)
    wait_until(lambda: machine.leaked() > 100, 10, "the control: without the guard the flood leaves")
    watch = started_watch(node)
    machine.forget()
    advertiser = machine.neighbour.spawn(floods.advertise, "far0", 1000)
    count = max(10, int(SECONDS / PAUSE))
    times = node.call(floods.restore_times, count, PAUSE, limit(20), timeout=limit(20) + 10 * SECONDS)
    machine.neighbour.end(advertiser)
    node.end(unmarked)
    assert machine.leaked() == 0
    print(f"1,000 advertisements a second: {distribution(times)}; {memory(watch.pid)} KiB", file=sys.stderr)
    assert statistics.quantiles(times, n=10)[-1] < limit(0.1)
    assert memory(watch.pid) < MAX_MEMORY


def distribution(times: list[float]) -> str:
    """Return the times of repairs in words."""
    milliseconds = sorted(round(1000 * each, 1) for each in times)
    shares = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    values = {name: milliseconds[min(len(times) - 1, int(share * len(times)))] for name, share in shares.items()}
    return f"{len(times)} flushes, repaired after " + ", ".join(f"{name} {value} ms" for name, value in values.items())
