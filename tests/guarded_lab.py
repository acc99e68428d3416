"""Lab whose node has a shipped policy in force, and an independent count of leaving packets."""

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import addresses as at
from tests.lab import leak_probes
from tests.lab.frames import Frame, classify
from tests.lab.limits import limit
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

ROOT = Path(__file__).parents[1]
PROGRAM = str(Path(sys.executable).with_name("nftpolicy"))
GLUON = ROOT / "rulesets" / "gluon-fastd.toml"
SERVICE_GID, OTHER_GID, RESOLVER_UID = 800, 4711, 65534
POLICY, STATE = "/run/lab/policy.toml", "/run/lab/state"  # in the node
ENVIRONMENT = {"NFTPOLICY_STATE": STATE, "PYTHONDONTWRITEBYTECODE": "1"}

# What the shipped policy exempts, written a second time and by hand: the tests must not believe the compiler.
_EXEMPT = """
        IPV4 ip daddr 255.255.255.255 udp sport 68 udp dport 67 counter name exempt accept
        IPV4 ip protocol igmp ip ttl 1 ip daddr 224.0.0.22 counter name exempt accept
        IPV4 ip protocol igmp ip ttl 1 igmp type { 0x12, 0x16, 0x17 } counter name exempt accept
        IPV6 ip6 saddr fe80::/10 ip6 daddr ff02::1:2 udp sport 546 udp dport 547 counter name exempt accept
        IPV6 icmpv6 type { 133, 135, 136 } ip6 hoplimit 255 ip6 daddr { fe80::/10, ff02::/16 } counter name exempt accept
        IPV6 icmpv6 type { 135, 136 } ip6 hoplimit 255 meta skuid 0-4294967294 counter name unmarked accept
        IPV6 icmpv6 type { 135, 136 } ip6 hoplimit 255 counter name exempt accept
        IPV6 icmpv6 type { 131, 132, 143 } ip6 hoplimit 1 ip6 daddr ff02::/16 counter name exempt accept
        counter name unmarked"""
_WATCH = """
table inet watchtest {
    counter unmarked { }
    counter exempt { }
    counter stray { }
    chain watch {
        type filter hook postrouting priority 20000; policy accept;
        oifname "lo" accept
        oifname != "WAN" meta mark & MASK == VALUE counter name stray
        oifname != "WAN" accept
        meta mark & MASK == VALUE accept
        INET
    }
}
table netdev watchtest {
    counter unmarked { }
    counter exempt { }
    chain watch {
        type filter hook egress devices = { DEVICES } priority 20000; policy accept;
        meta mark & MASK == VALUE accept
        @ll,96,16 0x0806 counter name exempt accept
        NETDEV
    }
}
"""
_NO_WATCH = "delete table inet watchtest\ndelete table netdev watchtest\n"


class Guarded:
    """`nftpolicy` inside a lab's node, with the policy `text` as its file."""

    def __init__(self, lab: Lab, text: str) -> None:
        self.lab = lab
        self.file = lab.node.outside(POLICY)
        self.file.write_text(text)
        self._resolver: subprocess.Popen[str] | None = None

    def nftpolicy(
        self, *words: str, check: bool = True, uid: int | None = None, timeout: float = 20
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of nftpolicy in the node; CalledProcessError, with its words as a note, if it failed."""
        return self.lab.node.run([PROGRAM, *words], check=check, env=ENVIRONMENT, uid=uid, timeout=timeout)

    def start(self, command: str) -> "subprocess.Popen[bytes]":
        """Start a command of nftpolicy in the node, and do not wait for it."""
        return self.lab.node.popen([PROGRAM, command, POLICY], env=ENVIRONMENT)

    def apply(self) -> str:
        return self.nftpolicy("apply", POLICY).stdout

    def release(self) -> str:
        return self.nftpolicy("release", POLICY).stdout

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Yield the same host without the policy, for a positive control."""
        self.release()
        try:
            yield
        finally:
            self.apply()

    def start_resolver(self) -> None:
        """Start the resolver and wait until it says that it answers."""
        log = self.lab.node.outside("/run/lab/resolver.log")
        with log.open("w") as said:
            self._resolver = self.lab.node.popen(
                [PROGRAM, "resolver", POLICY], env=ENVIRONMENT, stderr=said, stdout=said, text=True
            )

        def ready() -> bool:
            assert self._resolver is not None
            if self._resolver.poll() is not None:
                raise AssertionError(f"the resolver ended with {self._resolver.returncode}: {log.read_text()}")
            return "answers on" in log.read_text()

        wait_until(ready, 10, "the resolver")

    def stop_resolver(self) -> int | None:
        """Ask the resolver to end; its exit status. It owns a cgroup, which only its own end takes away."""
        if self._resolver is None:
            return None
        self._resolver.send_signal(signal.SIGTERM)
        status, self._resolver = self._resolver.wait(limit(10)), None
        return status

    def resolver_log(self) -> str:
        return self.lab.node.outside("/run/lab/resolver.log").read_text()

    def counters(self, table: str = "nftpolicy") -> dict[str, int]:
        """Packets by counter: "inet/wan.dropped" and so on."""
        listed = json.loads(self.lab.node.run(["nft", "-j", "list", "counters"]).stdout)["nftables"]
        found = [entry["counter"] for entry in listed if "counter" in entry]
        return {f"{one['family']}/{one['name']}": one["packets"] for one in found if one["table"] == table}


@contextlib.contextmanager
def watching(lab: Lab, mark: str = "1/1") -> Iterator["Watch"]:
    """Count, with rules of the test after the guard, unmarked leaving and marked misrouted packets."""
    value, mask = mark.split("/")
    devices = ", ".join(sorted({at.WAN, lab.wan_port}))
    in_frame = {4: "@ll,96,16 0x0800 meta protocol ip", 6: "@ll,96,16 0x86dd meta protocol ip6"}
    text = _WATCH.replace("INET", _EXEMPT.replace("IPV4", "meta nfproto ipv4").replace("IPV6", "meta nfproto ipv6"))
    text = text.replace("NETDEV", _EXEMPT.replace("IPV4", in_frame[4]).replace("IPV6", in_frame[6]))
    for word, meaning in (("MASK", mask), ("VALUE", value), ("DEVICES", devices), ("WAN", at.WAN)):
        text = text.replace(word, meaning)
    lab.node.nft(text)
    try:
        yield Watch(lab)
    finally:
        lab.node.nft(_NO_WATCH)


class Watch:
    """The counters of `watching`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def _count(self, *which: str) -> int:
        listed = self._lab.node.run(["nft", "list", "counters"]).stdout
        tables = re.findall(r"table (\w+) watchtest \{(.*?)\n\}", listed, re.DOTALL)
        counts = {
            f"{family}/{name}": int(packets)
            for family, body in tables
            for name, packets in re.findall(r"counter (\w+) \{\s*packets (\d+)", body)
        }
        return sum(counts[one] for one in which)

    @property
    def unmarked(self) -> int:
        """Packets and frames that left by the WAN with neither mark nor exemption."""
        return self._count("inet/unmarked", "netdev/unmarked")

    @property
    def stray(self) -> int:
        """Marked packets that left by another device than the WAN and lo."""
        return self._count("inet/stray")


@contextlib.contextmanager
def guarded_lab(text: Callable[[Lab], str] | None = None, resolver: bool = False, **options: Any) -> Iterator[Guarded]:
    """Yield a lab (`options` are the Lab's) with the policy applied, and with its resolver if wanted."""
    with Lab(groups={"gluon-mesh-vpn": SERVICE_GID}, **options) as lab:
        guarded = Guarded(lab, (text or gluon)(lab))
        lab.node.sysctl("net.ipv4.tcp_synack_retries", 0)  # what one test began must not go on in the next
        guarded.apply()
        try:
            if resolver:
                guarded.start_resolver()
            yield guarded
        finally:
            guarded.stop_resolver()


@dataclass(frozen=True)
class Run:
    """Many probes at once: what was sent, what arrived where, and all that the node sent to the WAN meanwhile."""

    sents: tuple[leak_probes.Sent, ...]
    wan: frozenset[leak_probes.Sent]
    mesh: frozenset[leak_probes.Sent]
    frames: tuple[Frame, ...]

    def unmarked(self) -> list[str]:
        return sorted(str(sent.probe) for sent in self.wan if not sent.probe.marked)

    def unexplained(self) -> list[Frame]:
        """Frames on the WAN that are neither exempt nor part of a marked probe."""
        marked = [sent for sent in self.sents if sent.probe.marked]
        return [
            frame
            for frame in self.frames
            if classify(frame) not in EXEMPT_WORDS and not any(sent.matches(frame) for sent in marked)
        ]


EXEMPT_WORDS = {"arp", "dhcpv4", "dhcpv6", "ndp", "mld", "igmp"}


def run_probes(
    lab: Lab, which: Iterable[leak_probes.Probe] | None = None, mark: int = 1, gid: int = SERVICE_GID
) -> Run:
    """Send probes, the marked ones as the service and the others as another user, and collect the arrivals."""
    lab.wan.drain(), lab.mesh_sniffer.drain()
    sents = [
        sent
        for sent in leak_probes.send_all(lab, which, gid=gid, other_gid=OTHER_GID, mark=mark)
        if not sent.unsupported
    ]
    wan = leak_probes.sightings(lab.wan, sents, 0.25)
    mesh = leak_probes.sightings(lab.mesh_sniffer, sents, 0)
    assert lab.wan.dropped == lab.mesh_sniffer.dropped == 0, "inconclusive: the sniffers lost frames"
    return Run(tuple(sents), frozenset(wan), frozenset(mesh), tuple(lab.wan.frames()))


def gluon(lab: Lab) -> str:
    """Return the shipped policy with the lab's lease file."""
    return replaced(GLUON, {"lease": f'"{lab.wan_lease}"'})


def replaced(file: Path, values: Mapping[str, str]) -> str:
    """Return a shipped policy with the values of some keys replaced. Each key must exist exactly once."""
    text = file.read_text()
    for key, value in values.items():
        text, count = re.subn(rf"^({key}\s*=\s*)(\"[^\"]*\"|\[.*?\]|\d+)", rf"\g<1>{value}", text, flags=re.MULTILINE)
        assert count == 1, f"{file.name} has the key {key} {count} times"
    return text


def wan_routes_in_main(lab: Lab, metric: int = 5) -> None:
    """Add the routes of the WAN to the main table too, where they take precedence over the mesh's."""
    lab.node.ip(
        f"route add {at.HOME_NET[4]} dev {at.WAN} src {lab.wan_address(4)} metric {metric}",
        f"route add default via {at.HOME[4]} dev {at.WAN} metric {metric}",
        f"-6 route add {at.HOME_NET[6]} dev {at.WAN} metric {metric}",
        f"-6 route add default via {at.HOME_LINK_LOCAL} dev {at.WAN} metric {metric}",
    )


def no_wan_routes_in_main(lab: Lab, metric: int = 5) -> None:
    lab.node.ip(
        f"route del {at.HOME_NET[4]} dev {at.WAN} metric {metric}",
        f"route del default dev {at.WAN} metric {metric}",
        f"-6 route del {at.HOME_NET[6]} dev {at.WAN} metric {metric}",
        f"-6 route del default dev {at.WAN} metric {metric}",
    )


def needs_readers() -> None:
    """Skip the test if another user cannot read the checkout, as in root's home."""
    if subprocess.run(["test", "-r", __file__], user=65534, group=65534, extra_groups=[], check=False).returncode:
        pytest.skip("the checkout can't be read by another user than root")
