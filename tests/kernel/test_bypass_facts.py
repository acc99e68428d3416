"""Rules and programs beside the IP hooks of nftables: the packet that they let leave, and the verdict of `verify`.

Each state has a guard. A state that leaks must not be proved; a state without an effect on marks must be.
"""

import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import frozen

from nftpolicy.kernel import xtables
from nftpolicy.kernel.linux import Linux
from nftpolicy.netstate.bypass import Actor
from nftpolicy.netstate.formats.xtables_decode import ARP, table_actors
from nftpolicy.policy.mark import Mark
from nftpolicy.runtime.snapshot import take_snapshot
from nftpolicy.runtime.verify import GivenUplink, verify_snapshot
from tests.lab import addresses as at
from tests.lab import packet_senders
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.packet_senders import Job

from . import bpf_programs
from .two_link_node import MESH, NODE_WAN, ONLY_MESH, ONLY_WAN, WAN, TwoLinkNode, default

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("egress")]

INSIDE = {4: "10.99.0.5"}  # a host behind the mesh
NEIGHBOUR = f"{at.SERVER[4]} lladdr 02:00:00:00:00:09"
UPLINK = GivenUplink("wan", (WAN,), Mark(1, 1))
NOTHING: set[str] = set()
GUARD = f"""
table inet hand {{
    chain c {{
        type filter hook postrouting priority 300; policy accept;
        oifname "{WAN}" meta mark & 1 == 0 drop
        oifname != {{ "{WAN}", "lo" }} meta mark & 1 == 1 drop
    }}
}}
table netdev hand {{
    chain c {{
        type filter hook egress device "{WAN}" priority 0; policy accept;
        meta mark & 1 == 0 drop
    }}
}}
"""
# A guard that lets a bridge forward the frames of other hosts.
BRIDGE_GUARD = "meta pkttype host drop".join(GUARD.rsplit("drop", 1))


@frozen
class Verdict:
    """Verdict of `verify --live` on P1, with all reasons and all assumptions as text."""

    p1: str
    p2: str
    reasons: str
    assumptions: str


def _verify() -> Verdict:
    proof = verify_snapshot("this kernel", take_snapshot(Linux()), (UPLINK,), (), lambda _: None).proof
    deciding = [finding for finding in proof.findings if finding.property == "P1" and finding.deciding]
    worst = max((finding.verdict for finding in deciding), key=("proved", "unknown", "refuted").index)
    reasons = [text for finding in proof.findings for text in (finding.detail, *finding.unsupported)]
    return Verdict(worst, proof.property_verdict("P2"), "\n".join(reasons), "\n".join(proof.assumptions))


class GuardedNode:
    """A node with a default route by the WAN, and a guard on it."""

    def __init__(self, two_links: TwoLinkNode) -> None:
        self.two_links, self.space = two_links, two_links.node
        self.space.ip(default(WAN, 4))
        self.space.nft(GUARD)

    def verify(self) -> Verdict:
        verdict = self.space.call(_verify)
        assert isinstance(verdict, Verdict)
        return verdict

    def run(self, *commands: str) -> None:
        for command in commands:
            self.space.run(command.split())

    def leaves(self, sender: Callable[[Job], None] = packet_senders.udp) -> tuple[str, set[str]]:
        return self.two_links.send(sender)


@pytest.fixture
def guarded(two_links: TwoLinkNode) -> GuardedNode:
    node = GuardedNode(two_links)
    assert node.leaves()[1] == NOTHING, "the guard must hold a packet before the state changes"
    assert node.verify().p1 == "proved"
    return node


@pytest.fixture
def legacy() -> None:
    if not shutil.which("iptables-legacy"):
        pytest.skip("iptables-legacy is not installed")


# --- a plain machine -----------------------------------------------------------------------------


def test_plain_machine_names_each_look(guarded: GuardedNode) -> None:
    (line,) = [line for line in guarded.verify().assumptions.splitlines() if "looked at: none now" in line]
    for subject in (
        "legacy iptables",
        "ebtables",
        "tc filters",
        "XDP programs",
        "AF_XDP",
        "tcx",
        "cgroup BPF",
        "IPsec",
    ):
        assert subject in line
    assert "tc, XDP or cgroup program" not in guarded.verify().assumptions


# --- legacy iptables -----------------------------------------------------------------------------

MARKING_RULES = {
    "set-mark": "iptables-legacy -t mangle -A OUTPUT -p udp -j MARK --set-mark 1",
    "or-mark": "iptables-legacy -t mangle -A OUTPUT -j MARK --or-mark 0x11",
    "xor-mark": "iptables-legacy -t mangle -A OUTPUT -j MARK --xor-mark 1",
    "raw": "iptables-legacy -t raw -A OUTPUT -j MARK --set-xmark 0x1/0x1",
    "filter": "iptables-legacy -A OUTPUT -j MARK --set-mark 1",
    "security": "iptables-legacy -t security -A OUTPUT -j MARK --set-mark 3",
    "postrouting": "iptables-legacy -t mangle -A POSTROUTING -j MARK --set-mark 1",
    # MASQUERADE switches connection tracking on, without which no packet passes table nat.
    "nat": "iptables-legacy -t nat -A OUTPUT -j MARK --set-mark 1; "
    "iptables-legacy -t nat -A POSTROUTING -o lo -j MASQUERADE",
    "chain": "iptables-legacy -t mangle -N user; iptables-legacy -t mangle -A user -j MARK --set-mark 1; "
    "iptables-legacy -t mangle -A OUTPUT -j user",
    "behind-a-match": "iptables-legacy -t mangle -A OUTPUT -m owner --uid-owner 65534 -j MARK --set-mark 1",
    "connmark": "iptables-legacy -t mangle -A OUTPUT -j CONNMARK --set-mark 1; "
    "iptables-legacy -t mangle -A OUTPUT -j CONNMARK --restore-mark",
}


@pytest.mark.parametrize("commands", MARKING_RULES.values(), ids=MARKING_RULES)
def test_legacy_rule_that_marks_leaks_and_is_unknown(guarded: GuardedNode, legacy: None, commands: str) -> None:
    guarded.run(*commands.split("; "))
    assert guarded.leaves() == ONLY_WAN, "the control: the marked packet must leave"
    verdict = guarded.verify()
    assert (verdict.p1, verdict.p2) == ("unknown", "unknown")
    assert "MARK" in verdict.reasons and "rule 1 of " in verdict.reasons


def test_legacy_rule_that_marks_IPv6_is_unknown(guarded: GuardedNode, legacy: None) -> None:
    guarded.space.ip(default(WAN, 6))
    guarded.run("ip6tables-legacy -t mangle -A OUTPUT -j MARK --set-mark 1")
    assert guarded.two_links.send(packet_senders.udp, 6) == ONLY_WAN, "the control: the marked packet must leave"
    assert guarded.verify().p1 == "unknown"


UNKNOWN_RULES = (
    "iptables-legacy -t mangle -A PREROUTING -j TEE --gateway 192.0.2.1",
    "iptables-legacy -t mangle -A PREROUTING -p udp -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1",
    "iptables-legacy -t mangle -A PREROUTING -p tcp -m socket --restore-skmark -j ACCEPT",
    "iptables-legacy -t mangle -A OUTPUT -j NFQUEUE --queue-num 0",
    "iptables-legacy -t mangle -A OUTPUT -j HMARK --hmark-tuple sport --hmark-mod 2 --hmark-rnd 1",
    "iptables-legacy -t mangle -A PREROUTING -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
)


@pytest.mark.parametrize("command", UNKNOWN_RULES, ids=lambda command: command.split(" -j ")[-1].split()[0])
def test_legacy_rule_that_may_mark_is_unknown(guarded: GuardedNode, legacy: None, command: str) -> None:
    guarded.run(command)
    assert guarded.verify().p1 == "unknown"


def _arp_filter() -> tuple[list[Actor], int]:
    table = xtables._read_table(ARP, "filter", socket.AF_INET, socket.IPPROTO_IP, 96)
    return table_actors(ARP, table)


def test_arptables_of_kernel_are_decoded(guarded: GuardedNode) -> None:
    try:
        assert guarded.space.call(_arp_filter) == ([], 3)  # the policies of INPUT, OUTPUT, FORWARD
    except OSError as error:
        pytest.skip(f"no legacy arptables here: {error}")
    verdict = guarded.verify()
    assert verdict.p1 == "proved"
    assert "arptables (1 tables with 3 rules)" in verdict.assumptions


HARMLESS_RULES = (
    "iptables-legacy -t mangle -L -n",  # an empty table
    "iptables-legacy -P FORWARD DROP",
    "iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
    "iptables-legacy -A OUTPUT -p tcp -j REJECT",
    "iptables-legacy -A INPUT -j LOG",
    "iptables-legacy -t nat -A POSTROUTING -o bat0 -j MASQUERADE",
    "iptables-legacy -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.9.0.9",
    "iptables-legacy -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
    "iptables-legacy -t mangle -A OUTPUT -j MARK --set-xmark 0x40000/0xff0000",  # bits of other programs
    "iptables-legacy -t mangle -A OUTPUT -j MARK --set-mark 0x4000",  # the uplink's bit becomes 0
    "iptables-legacy -t mangle -A PREROUTING -j CONNMARK --restore-mark --nfmask 0xf0 --ctmask 0xf0",
    "iptables-legacy -t raw -A PREROUTING -j CT --notrack",
    "ip6tables-legacy -A FORWARD -j DROP",
)


@pytest.mark.parametrize("command", HARMLESS_RULES, ids=lambda command: command.split(maxsplit=1)[1][:40])
def test_legacy_rule_without_effect_is_proved(guarded: GuardedNode, legacy: None, command: str) -> None:
    guarded.run(command)
    assert guarded.leaves()[1] == NOTHING
    assert (guarded.verify().p1, guarded.verify().p2) == ("proved", "proved")


# --- other families of nft -----------------------------------------------------------------------

BRIDGE_MARKS = "table bridge b {{\n chain c {{\n  type filter hook {}; policy accept;\n  {}\n }}\n}}\n"


def wait_for_ports(node: GuardedNode, *ports: str) -> None:
    """Wait until the bridge forwards the frames of these ports."""

    def forwards(port: str) -> bool:
        return " state forwarding" in node.space.run(["ip", "-d", "link", "show", port]).stdout

    for port in ports:
        wait_until(lambda port=port: forwards(port), 10, f"the forwarding of {port}")


def bridge_inside(node: GuardedNode) -> None:
    """Put the mesh behind a bridge, and forward its packets."""
    node.space.ip(
        "link add br0 type bridge",
        f"link set {MESH} master br0",
        "link set br0 up",
        f"route add {INSIDE[4]}/32 dev br0",
    )
    for device in ("all", "br0"):
        node.space.sysctl(f"net.ipv4.conf.{device}.rp_filter", 0)
    node.space.sysctl("net.ipv4.ip_forward", 1)
    wait_for_ports(node, MESH)


def send_by_mesh(node: GuardedNode) -> set[str]:
    """Send a packet from the far end of the mesh through the node; return the devices by which it left."""
    payload = os.urandom(12).hex().encode()
    header = struct.pack("!HHHH", 9, 9, 8 + len(payload), 0)
    packet = packet_senders.packet_of(Job(4, payload, 0, 0, INSIDE, "to-mesh"), at.SERVER, 17, header)
    mac = json.loads(node.space.run(["ip", "-j", "link", "show", "br0"]).stdout)[0]["address"]

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("to-mesh", 0))
            raw.send(bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("020000000009") + b"\x08\x00" + packet)

    node.two_links.far.call(send)
    return node.two_links.left_by(payload)


@pytest.mark.parametrize("hook", ["prerouting priority 0", "input priority -200", "prerouting priority -300"])
def test_bridge_table_that_marks_leaks_and_is_unknown(guarded: GuardedNode, hook: str) -> None:
    bridge_inside(guarded)
    assert guarded.verify().p1 == "proved"
    assert WAN not in send_by_mesh(guarded)
    guarded.space.nft(BRIDGE_MARKS.format(f"{hook}", "meta mark set 0x1"))
    assert WAN in send_by_mesh(guarded), "the control: the marked packet must leave"
    verdict = guarded.verify()
    assert (verdict.p1, verdict.p2) == ("unknown", "unknown")
    assert "table bridge b: meta mark set" in verdict.reasons


@pytest.mark.parametrize("rule", ["meta mark set meta mark or 0x3", "meta mark set ether type map { ip : 0x1 }"])
def test_bridge_table_that_may_mark_is_unknown(guarded: GuardedNode, rule: str) -> None:
    guarded.space.nft(BRIDGE_MARKS.format("forward priority 0", rule))
    assert guarded.verify().p1 == "unknown"


def test_arp_table_that_marks_is_unknown(guarded: GuardedNode) -> None:
    guarded.space.nft("table arp a {\n chain c {\n  type filter hook output priority 0;\n  meta mark set 1\n }\n}\n")
    assert guarded.verify().p1 == "unknown"


@pytest.mark.parametrize("rule", ["ip daddr 10.0.0.1 drop", "meta mark set 0x40", "meta mark set meta mark and 0xf0"])
def test_bridge_table_without_uplink_mark_is_proved(guarded: GuardedNode, rule: str) -> None:
    bridge_inside(guarded)
    guarded.space.nft(BRIDGE_MARKS.format("prerouting priority 0", rule))
    assert (guarded.verify().p1, guarded.verify().p2) == ("proved", "proved")


# --- tc ------------------------------------------------------------------------------------------

MATCH_ALL = "protocol all u32 match u32 0 0"


@pytest.fixture
def tc(guarded: GuardedNode) -> GuardedNode:
    if not shutil.which("tc"):
        pytest.skip("tc is not installed")
    try:
        guarded.run(f"tc qdisc add dev {MESH} clsact")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no clsact qdisc here: {error}")
    guarded.space.ip("route replace default dev " + MESH)
    return guarded


def test_tc_redirect_to_uplink_leaks_and_is_unknown(tc: GuardedNode) -> None:
    assert tc.leaves() == ONLY_MESH, "the control: the packet leaves by the mesh"
    assert tc.verify().p1 == "proved"
    tc.run(f"tc filter add dev {MESH} egress {MATCH_ALL} action mirred egress redirect dev {WAN}")
    assert tc.leaves() == ONLY_WAN, "the control: the redirected packet must leave"
    verdict = tc.verify()
    assert verdict.p1 == "unknown"
    assert f"tc filter at the egress of {MESH}: mirred to {WAN}" in verdict.reasons


def test_tc_mirror_to_uplink_leaks_and_is_unknown(tc: GuardedNode) -> None:
    tc.run(f"tc filter add dev {MESH} egress {MATCH_ALL} action mirred egress mirror dev {WAN}")
    assert tc.leaves()[1] == {WAN, MESH}, "the control: the copy must leave"
    assert tc.verify().p1 == "unknown"


def test_tc_filter_of_class_leaks_and_is_unknown(tc: GuardedNode) -> None:
    tc.run(
        f"tc qdisc add dev {MESH} root handle 1: htb default 10",
        f"tc class add dev {MESH} parent 1: classid 1:1 htb rate 100mbit",
        f"tc filter add dev {MESH} parent 1: {MATCH_ALL} flowid 1:1",
        f"tc filter add dev {MESH} parent 1:1 {MATCH_ALL} action mirred egress redirect dev {WAN}",
    )
    tc.leaves()
    assert tc.verify().p1 == "unknown"


def test_tc_filter_of_shared_block_leaks_and_is_unknown(tc: GuardedNode) -> None:
    tc.run(
        f"tc qdisc del dev {MESH} clsact",
        f"tc qdisc add dev {MESH} egress_block 7 clsact",
        f"tc filter add block 7 {MATCH_ALL} action mirred egress redirect dev {WAN}",
    )
    assert tc.leaves() == ONLY_WAN, "the control: the redirected packet must leave"
    assert tc.verify().p1 == "unknown"


def test_tc_redirect_of_uplink_to_mesh_is_P2_unknown(tc: GuardedNode) -> None:
    tc.run(f"tc qdisc add dev {WAN} clsact")
    tc.run(f"tc filter add dev {WAN} egress {MATCH_ALL} action mirred egress redirect dev {MESH}")
    tc.space.ip("route replace default dev " + WAN)
    sent = tc.two_links.send(packet_senders.udp, mark=1)
    assert sent == ONLY_MESH, "the control: the marked packet leaves by the mesh"
    verdict = tc.verify()
    assert (verdict.p1, verdict.p2) == ("proved", "unknown")


@pytest.mark.parametrize(
    "commands",
    [
        f"tc filter add dev {MESH} ingress {MATCH_ALL} action mirred egress redirect dev ifb0",
        f"tc filter add dev {MESH} egress {MATCH_ALL} action mirred egress mirror dev ifb0",
        f"tc qdisc add dev {MESH} root handle 1: htb; tc class add dev {MESH} parent 1: classid 1:1 htb rate 1mbit; "
        f"tc filter add dev {MESH} parent 1: {MATCH_ALL} flowid 1:1",
        f"tc qdisc add dev {WAN} root tbf rate 100mbit burst 32kbit latency 10ms",
        f"tc qdisc add dev {WAN} root pfifo limit 10",
    ],
)
def test_tc_without_effect_is_proved(tc: GuardedNode, commands: str) -> None:
    tc.space.ip("link add ifb0 type ifb", "link set ifb0 up")
    tc.run(*commands.split("; "))
    assert WAN not in tc.leaves()[1]
    assert (tc.verify().p1, tc.verify().p2) == ("proved", "proved")


# --- BPF -----------------------------------------------------------------------------------------


def index_of(space: Namespace, device: str) -> int:
    return int(space.run(["cat", f"/sys/class/net/{device}/ifindex"]).stdout)


def test_tcx_program_that_redirects_leaks_and_is_unknown(tc: GuardedNode) -> None:
    code = bpf_programs.redirect_program(index_of(tc.space, WAN))
    with bpf_programs.attached_to_device(tc.space, MESH, bpf_programs.TCX_EGRESS, code):
        assert tc.leaves() == ONLY_WAN, "the control: the redirected packet must leave"
        verdict = tc.verify()
    assert (verdict.p1, verdict.p2) == ("unknown", "unknown")
    assert f"BPF program at tcx egress of {MESH}" in verdict.reasons
    assert tc.verify().p1 == "proved"


def test_XDP_program_is_unknown(guarded: GuardedNode) -> None:
    code = bpf_programs.redirect_program(index_of(guarded.space, WAN))
    bridge_inside(guarded)
    with bpf_programs.attached_to_device(guarded.space, MESH, bpf_programs.XDP, code):
        assert WAN in send_by_mesh(guarded), "the control: the redirected packet must leave"
        verdict = guarded.verify()
    assert verdict.p1 == "unknown"
    assert f"XDP program on {MESH}" in verdict.reasons


@pytest.fixture
def cgroup() -> Iterator[str]:
    with bpf_programs.cgroup() as path:
        yield str(path)


def _inside(cgroup: str, work: Callable[[], object]) -> object:
    Path(cgroup, "cgroup.procs").write_text("0")
    return work()


@pytest.mark.parametrize("program", ["sock_create", "skb_egress", "lsm"])
def test_cgroup_program_that_marks_leaks_and_is_unknown(guarded: GuardedNode, cgroup: str, program: str) -> None:
    kind, write_code = {
        "sock_create": (bpf_programs.SOCK_CREATE, bpf_programs.mark_program),
        "skb_egress": (bpf_programs.SKB_EGRESS, bpf_programs.packet_mark_program),
        "lsm": (bpf_programs.LSM_CGROUP, bpf_programs.lsm_mark_program),
    }[program]
    code = write_code(1)
    guarded.space.nft("delete table inet hand")  # cgroup_skb runs behind postrouting
    assert guarded.verify().p1 == "proved"

    def send(job: Job) -> None:
        _inside(cgroup, lambda: packet_senders.udp(job))

    assert guarded.two_links.send(send, uid=None)[1] == NOTHING
    with bpf_programs.attached(Path(cgroup), kind, code):
        assert guarded.two_links.send(send, uid=None) == ONLY_WAN, "the control: the marked packet must leave"
        verdict = guarded.space.call(_inside, cgroup, _verify)
        elsewhere = guarded.verify()
    assert verdict.p1 == "unknown"
    assert f"at cgroup /{cgroup.rpartition('/')[2]}" in verdict.reasons
    # No process of this network namespace is in that cgroup.
    assert elsewhere.p1 == "proved"
    assert "has no socket of this network namespace" in elsewhere.assumptions


def test_cgroup_program_that_counts_is_proved(guarded: GuardedNode, cgroup: str) -> None:
    with bpf_programs.attached(Path(cgroup), bpf_programs.SKB_EGRESS, bpf_programs.allow_program()):
        assert guarded.space.call(_inside, cgroup, _verify).p1 == "proved"


def _with_xdp_socket() -> Verdict:
    with socket.socket(44, socket.SOCK_RAW):  # AF_XDP
        return _verify()


def test_AF_XDP_socket_is_unknown(guarded: GuardedNode) -> None:
    try:
        verdict = guarded.space.call(_with_xdp_socket)
    except OSError as error:
        pytest.skip(f"no AF_XDP here: {error}")
    assert (verdict.p1, "AF_XDP sockets: 1" in verdict.reasons) == ("unknown", True)


# --- devices -------------------------------------------------------------------------------------


def uplink_in_bridge(node: GuardedNode) -> None:
    node.space.ip("link add br0 type bridge", f"link set {WAN} master br0", "link set br0 up")


def veth_into_bridge(node: GuardedNode, inner: str = "v1") -> None:
    """Add a veth of this machine with an end in the uplink's bridge, and a default route by the other end."""
    node.space.ip(
        f"link add v0 type veth peer name {inner}",
        f"link set {inner} master br0",
        f"link set {inner} up",
        "link set v0 up",
        "addr add 203.0.113.2/24 dev v0",
        "route replace default dev v0",
        f"neigh replace {NEIGHBOUR} dev v0",
    )
    wait_for_ports(node, WAN, inner)


def test_veth_into_uplink_bridge_leaks_and_is_unknown(guarded: GuardedNode) -> None:
    uplink_in_bridge(guarded)
    assert guarded.verify().p1 == "proved"
    veth_into_bridge(guarded)
    assert guarded.leaves()[1] == NOTHING
    assert guarded.verify().p1 == "proved"  # this guard drops whatever comes by the bridge
    guarded.space.nft("delete table netdev hand\ndelete table inet hand\n" + BRIDGE_GUARD)
    assert guarded.leaves() == ONLY_WAN, "the control: the packet must leave by the bridge"
    verdict = guarded.verify()
    assert verdict.p1 == "unknown"
    assert f"frames of v0 arrive at this machine again and leave by {WAN}" in verdict.reasons


def test_veth_into_second_bridge_leaks_and_is_unknown(guarded: GuardedNode) -> None:
    guarded.space.nft("delete table netdev hand\ndelete table inet hand\n" + BRIDGE_GUARD)
    uplink_in_bridge(guarded)
    guarded.space.ip(
        "link add br1 type bridge",
        "link set br1 up",
        "link add w0 type veth peer name w1",
        "link set w0 master br0",
        "link set w1 master br1",
        "link set w0 up",
        "link set w1 up",
        "addr add 203.0.113.2/24 dev br1",
        "route replace default dev br1",
        f"neigh replace {NEIGHBOUR} dev br1",
    )
    wait_for_ports(guarded, WAN, "w0", "w1")
    assert guarded.leaves() == ONLY_WAN, "the control: the packet must leave by both bridges"
    assert guarded.verify().p1 == "unknown"


def test_bridge_over_uplink_is_held_and_proved(guarded: GuardedNode) -> None:
    guarded.space.nft("delete table netdev hand\ndelete table inet hand\n" + BRIDGE_GUARD)
    uplink_in_bridge(guarded)
    guarded.space.ip("addr add 203.0.113.2/24 dev br0", "route replace default dev br0")
    guarded.space.ip(f"neigh replace {NEIGHBOUR} dev br0")
    wait_for_ports(guarded, WAN)
    assert guarded.leaves()[1] == NOTHING
    assert guarded.verify().p1 == "proved"
    guarded.space.nft("delete table netdev hand")
    assert guarded.leaves() == ONLY_WAN, "the control: without the chain at egress the packet leaves"
    assert guarded.verify().p1 != "proved"


def test_bridge_beside_uplink_is_proved(guarded: GuardedNode) -> None:
    guarded.space.nft("delete table netdev hand\ndelete table inet hand\n" + BRIDGE_GUARD)
    with ExitStack() as stack:
        container = stack.enter_context(Namespace("container"))
        guarded.space.ip("link add docker0 type bridge", "link set docker0 up")
        veth(guarded.space, "c0", container, "eth0")
        guarded.space.ip("link set c0 master docker0", "link add v0 type veth peer name v1", "link set v1 up")
        guarded.space.ip("link set v1 master docker0", "link set v0 up")
        verdict = guarded.verify()
    assert (verdict.p1, verdict.p2) == ("proved", "proved")
    assert "c0" not in verdict.assumptions


def test_container_in_uplink_bridge_is_an_assumption(guarded: GuardedNode) -> None:
    guarded.space.nft("delete table netdev hand\ndelete table inet hand\n" + BRIDGE_GUARD)
    uplink_in_bridge(guarded)
    with Namespace("container") as container:
        veth(guarded.space, "c0", container, "eth0")
        guarded.space.ip("link set c0 master br0")
        verdict = guarded.verify()
    assert verdict.p1 == "proved"
    assert "the network namespace at the other end of c0 is another host" in verdict.assumptions


@pytest.mark.parametrize("mode", ["bridge", "private"])
def test_macvlan_of_uplink_is_held_and_proved(guarded: GuardedNode, mode: str) -> None:
    try:
        guarded.space.ip(f"link add link {WAN} mv0 type macvlan mode {mode}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no macvlan here: {error}")
    guarded.space.ip("link set mv0 up", "addr add 203.0.113.2/24 dev mv0")
    guarded.space.ip("route replace default dev mv0", f"neigh replace {NEIGHBOUR} dev mv0")
    assert guarded.leaves()[1] == NOTHING
    assert guarded.verify().p1 == "proved"
    guarded.space.nft("delete table netdev hand")
    assert guarded.leaves() == ONLY_WAN, "the control: without the chain at egress the packet leaves"
    assert guarded.verify().p1 != "proved"


def test_macvlan_of_another_namespace_passes_egress_hook(guarded: GuardedNode) -> None:
    with Namespace("container") as container:
        command = f"ip link add link {WAN} mv0 netns {container.pid} type macvlan mode bridge"
        with guarded.space._net():  # as veth() does
            if subprocess.run(command.split(), check=False).returncode:
                pytest.skip("no macvlan here")
        container.ip("link set mv0 up", "addr add 203.0.113.2/24 dev mv0", "route add default dev mv0")
        container.ip(f"neigh replace {NEIGHBOUR} dev mv0")

        def leaves(mark: int) -> set[str]:
            payload = os.urandom(12).hex().encode()
            container.call(packet_senders.udp, Job(4, payload, mark, 20000, NODE_WAN, "mv0"))
            return guarded.two_links.left_by(payload)

        assert leaves(0) == NOTHING
        assert leaves(1) == {WAN}, "the control: the marked packet leaves"
        line = f"no device of another network namespace on top of {WAN} sends frames with its mark"
        assert line in guarded.verify().assumptions
