"""Uplinks of kinds that only drivers of a stock kernel have: what leaves by each, without and with a policy.

    node: br-wan (of a kind, on under0) ---------- far0 :far

The sniffer is at the far end of the lowest device, and finds a probe in whatever frame carries it.
"""

import contextlib
import json
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.guarded_lab import POLICY, Guarded
from tests.lab import addresses as at
from tests.lab import leak_probes
from tests.lab.daemons import FOLDER
from tests.lab.leak_probes import Probe, Sent
from tests.lab.limits import brief
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.packet_senders import DISCARD
from tests.lab.sniffer import Sniffer

MARK, GID, OTHER_GID = 0x51, 851, 4711
NODE = {4: "192.0.2.10", 6: "2001:db8:1::10"}
OUTER = {"node": "198.51.100.2", "far": "198.51.100.1"}  # ends of tunnels


@dataclass(frozen=True)
class Kind:
    """Commands of `ip` that make the uplink at both ends, and the device at the far end that gets addresses.

    `devices` are those of the uplink in the policy; packets of GRE keep the mark at the lower device, too. `tunnel` means
    that the ends need addresses of their own.
    """

    node: tuple[str, ...]
    far: tuple[str, ...] = ()
    far_device: str = "far0"
    devices: tuple[str, ...] = (at.WAN,)
    tunnel: bool = False
    inside: str = "tun*"
    keys: str = ""  # more keys of the uplink
    before_apply: tuple[str, ...] = ()  # commands of `ip`, after the control
    start: Callable[[Namespace, Namespace], None] | None = None


def _l2tp(device: str, mine: str, other: str) -> tuple[str, ...]:
    ends = f"encap udp local {mine} remote {other} udp_sport 1701 udp_dport 1701"
    return (
        f"l2tp add tunnel tunnel_id 1 peer_tunnel_id 1 {ends}",
        f"l2tp add session name {device} tunnel_id 1 session_id 1 peer_session_id 1",
    )


def _gre(device: str, mine: str, other: str) -> tuple[str, ...]:
    return (f"link add {device} type gre local {mine} remote {other}",)


def _pppoe(node: Namespace, far: Namespace) -> None:
    """Start both ends of PPPoE, and wait for their devices."""
    common = "noauth nodetach noipdefault +ipv6 lcp-echo-interval 0"
    far.outside(f"{FOLDER}/options").write_text("noauth\nnoproxyarp\n+ipv6\nifname in0\n")
    plugin = Path("/etc/ppp/plugins/rp-pppoe.so")  # where the server looks for it
    if not plugin.exists():
        plugin.parent.mkdir(parents=True, exist_ok=True)
        plugin.symlink_to(next(Path("/usr/lib/pppd").glob("*/pppoe.so")))
    server = f"pppoe-server -F -k -I far0 -L {at.HOME[4]} -R {NODE[4]} -N 1 -O {FOLDER}/options"
    far.popen(server.split())
    node.popen(f"pppd plugin pppoe.so under0 {common} ifname {at.WAN}".split())
    for space, device in ((far, "in0"), (node, at.WAN)):
        wait_until(partial(_is_up, space, device), 30, f"PPPoE: {device}")


def _is_up(space: Namespace, device: str) -> bool:
    done = space.run(["ip", "-j", "link", "show", device], check=False)
    return done.returncode == 0 and "LOWER_UP" in json.loads(done.stdout)[0]["flags"]


_ENDS = (OUTER["node"], OUTER["far"])
_WAN = at.WAN
KINDS: Mapping[str, Kind] = {
    "vlan": Kind(
        (f"link add link under0 name {_WAN} type vlan id 7",), ("link add link far0 name in0 type vlan id 7",), "in0"
    ),
    "macvlan": Kind((f"link add link under0 name {_WAN} type macvlan mode bridge",)),
    "vrf": Kind(
        (
            "link set under0 down",
            f"link set under0 name {_WAN}",
            "link add vrf0 type vrf table 51",
            "link set vrf0 up",
            f"link set {_WAN} master vrf0",
        ),
        devices=(_WAN, "vrf0"),
        keys=f"addresses = {json.dumps(list(NODE.values()))}",  # in a VRF, no device of the output has them
    ),
    "gre": Kind(_gre(_WAN, *_ENDS), _gre("in0", *reversed(_ENDS)), "in0", (_WAN, "under0"), tunnel=True),
    # Its packets have the mark of the tunnel's socket, which is none.
    "l2tp": Kind(
        _l2tp(_WAN, *_ENDS),
        _l2tp("in0", *reversed(_ENDS)),
        "in0",
        tunnel=True,
        inside="under0",
        before_apply=("-6 route add default dev under0 metric 1",),  # as a route inside has, or `watch` leaves
    ),
    "pppoe": Kind((), (), "in0", start=_pppoe),
}


class Link:
    """The part of a lab that probes and the policy need."""

    wan_port = at.WAN

    def __init__(self, node: Namespace) -> None:
        self.node = self.client = node  # a client sends nothing here

    def wan_address(self, family: int) -> str:
        return NODE[family]


@contextlib.contextmanager
def linked(kind: Kind) -> Iterator[tuple[Link, Sniffer]]:
    """Yield both ends with addresses, and default routes by the uplink in table main, and the sniffer."""
    with Namespace("node") as node, Namespace("far") as far:
        for space in (node, far):
            space.outside(FOLDER).mkdir(exist_ok=True)
        veth(node, "under0", far, "far0")
        if kind.tunnel:
            node.ip(f"addr add {OUTER['node']}/24 dev under0")
            far.ip(f"addr add {OUTER['far']}/24 dev far0")
        for space, commands in ((node, kind.node), (far, kind.far)):
            for command in commands:
                space.run(["ip", *command.split()])
        if kind.start:
            kind.start(node, far)
        for space, device, addresses in ((node, _WAN, NODE), (far, kind.far_device, at.HOME)):
            for family in at.FAMILIES:
                nodad = " nodad" if family == 6 else ""
                space.run(
                    ["ip", *f"addr replace {addresses[family]}/{[24, 64][family == 6]} dev {device}{nodad}".split()]
                )
            space.ip(f"link set {device} up")
        for family in at.FAMILIES:
            node.run(["ip", *f"-{family} route replace default via {at.HOME[family]} dev {_WAN} onlink".split()])
            for address in (at.HOME[family], at.NEIGHBOUR[family]):  # devices without addresses have no neighbours
                words = f"neigh replace {address} lladdr {at.HOME_MAC} dev {_WAN}"
                node.run(["ip", *words.split()], check=False)
        with Sniffer(far, "far0") as sniffer:
            yield Link(node), sniffer


def policy(kind: Kind) -> str:
    return f"""
name = "uplink-kind"
inside = ["{kind.inside}"]

[uplink.wan]
devices = {json.dumps(kind.devices)}
mark = "{MARK:#x}/0xff"
table = 51
exempt = ["arp", "ndp", "mld", "igmp"]
gateways = {json.dumps(list(at.HOME.values()))}
{kind.keys}

[service.program]
uplink = "wan"
group = {GID}
"""


def _probes() -> list[Probe]:
    return [probe for probe in leak_probes.matrix() if probe.origin == "node"]


def _arrived(link: Link, sniffer: Sniffer, rounds: int = 1) -> tuple[set[Sent], list[Sent]]:
    """Send the probes; return those that arrived, and all that were sent."""
    sniffer.drain()
    sents: list[Sent] = []
    lab: Any = link
    for _ in range(rounds):
        sents += leak_probes.send_all(lab, _probes(), gid=GID, other_gid=OTHER_GID, mark=MARK)
    sents = [sent for sent in sents if not sent.unsupported]
    time.sleep(brief(0.5))
    frames = sniffer.frames()
    assert sniffer.dropped == 0, "inconclusive: the sniffer lost frames"
    return {
        sent for sent in sents if any(_carries(frame.payload, sent) or sent.matches(frame) for frame in frames)
    }, sents


def _carries(payload: bytes, sent: Sent) -> bool:
    """Return True if a frame has the probe in it, behind the headers of a tunnel, too."""
    if "tcp" in sent.probe.kind:
        return struct.pack("!HH", sent.sport, DISCARD) in payload
    return sent.id in payload


def _counts(arrived: set[Sent], sents: Iterable[Sent], marked: bool) -> tuple[int, int]:
    return sum(sent.probe.marked is marked for sent in arrived), sum(sent.probe.marked is marked for sent in sents)


def uplink(name: str) -> str:
    """Try one kind: the control without a policy, then with it; the verdict of the live proof is part of the line."""
    with linked(KINDS[name]) as (link, sniffer):
        lab: Any = link
        before = _counts(*_arrived(link, sniffer), marked=False)
        assert before[0] * 2 > before[1], f"inconclusive: without a policy {before[0]} of {before[1]} arrived"
        link.node.ip(*KINDS[name].before_apply)
        made = Guarded(lab, policy(KINDS[name]))
        made.apply()
        arrived, sents = _arrived(link, sniffer, rounds=2)
        (left, unmarked), (passed, marked) = (_counts(arrived, sents, value) for value in (False, True))
        leaked = sorted({str(sent.probe) for sent in arrived if not sent.probe.marked})
        assert not leaked, f"{left} of {unmarked} unmarked packets left: {', '.join(leaked)}"
        assert passed * 2 > marked, f"{passed} of {marked} marked packets left"
        found = verdict(made)
        return f"{left} of {unmarked} unmarked packets left, {passed} of {marked} marked; without a policy {before[0]} of {before[1]} unmarked; {found}"


def verdict(made: Guarded) -> str:
    """Return the verdict of `verify --live`; AssertionError if it refutes, as no packet leaves here."""
    proof: subprocess.CompletedProcess[str] = made.nftpolicy(
        "verify", "--live", "--json", POLICY, check=False, timeout=60
    )
    report = json.loads(proof.stdout[proof.stdout.index("{") :])
    found = str(report["verdict"])
    refuted = [f"{one['property']} {one['subject']}" for one in report["findings"] if one["verdict"] == "refuted"]
    assert found != "refuted", f"verify: refuted: {', '.join(refuted)}"
    return found


TESTS: Mapping[str, Callable[[], str]] = {name: partial(uplink, name) for name in KINDS}
