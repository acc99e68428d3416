"""`explain` on a kernel that holds a policy: outcome, lines, and agreement with packets that are really sent."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftpolicy.kernel import process_sockets
from nftpolicy.kernel.errors import Unavailable
from tests.lab import addresses as at
from tests.lab import forked_call, packet_senders, syscalls
from tests.lab.limits import limit
from tests.lab.netns import Namespace

from .two_link_node import MESH, WAN, TwoLinkNode, counted, default

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from nftpolicy.cli.main import main; main()"]
POLICY, STATE = "/run/policy.toml", "/run/state"  # in the node
ENVIRONMENT = {"NFTPOLICY_STATE": STATE, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
SERVICE, OTHER = 800, 4711
TEXT = (ROOT / "rulesets/gluon-fastd.toml").read_text()
FAR = {4: "198.51.100.10", 6: "2001:db8:2::10"}


def line(words: str) -> int:
    """Return the line number of the policy that begins with these words."""
    (found,) = [number for number, one in enumerate(TEXT.splitlines(), 1) if one.startswith(words)]
    return found


class Node:
    """A node with the shipped policy in force. Main has a default route by the mesh, and the WAN's own network."""

    def __init__(self, two_links: TwoLinkNode) -> None:
        self.two_links, self.space = two_links, two_links.node
        for family in at.FAMILIES:
            self.space.ip(default(MESH, family), default(WAN, family, "1"))
            self.space.ip(f"-{family} route add {at.HOME_NET[family]} dev {WAN}")
        self.space.outside(POLICY).write_text(TEXT)
        self.run("apply", POLICY)

    def run(self, *words: str, check: bool = True, uid: int | None = None):
        return self.space.run([*PROGRAM, *words], check=check, env=ENVIRONMENT, uid=uid)

    def explain(self, *words: object, status: int = 0) -> str:
        done = self.run("explain", *map(str, words), check=False)
        assert (done.returncode, done.stderr) == (status, ""), done.stdout
        return done.stdout

    def words(self, *words: object) -> str:
        """Return the outcome only."""
        return self.explain(*words).splitlines()[-1].removeprefix("=> ")


@pytest.fixture(scope="module")
def guarded_node(able: None) -> Iterator[Node]:
    with Namespace("node") as space, Namespace("far") as far, TwoLinkNode(space, far) as two_links:
        yield Node(two_links)


@pytest.mark.parametrize("family", at.FAMILIES)
def test_explain_unmarked_packet_to_uplink_is_dropped(guarded_node: Node, family: int) -> None:
    output = guarded_node.explain("--to", at.NEIGHBOUR[family], "--uid", 65534, "--gid", OTHER)
    assert output.splitlines()[-1] == "=> dropped by inet nftpolicy wan.guard: counter wan.dropped"
    assert f"{POLICY}:{line('[uplink.wan]')} uplink.wan" in output
    # and so it is
    to_neighbour = guarded_node.two_links.send(
        lambda job: job.udp().sendto(job.payload, job.neighbour), family, patience=0.1
    )
    assert to_neighbour == ("EPERM", set())


@pytest.mark.parametrize("family", at.FAMILIES)
def test_explain_bound_socket_uses_table_of_uplink(guarded_node: Node, family: int) -> None:
    output = guarded_node.explain("--to", FAR[family], "--uid", 65534, "--dev", WAN)
    assert f"priority 870 from all oif {WAN} lookup 1" in output
    assert output.splitlines()[-1] == "=> dropped by inet nftpolicy wan.guard: counter wan.dropped"

    def send(job: packet_senders.Job) -> None:
        made = job.udp()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, WAN.encode())
        made.sendto(job.payload, job.server)

    assert guarded_node.two_links.send(send, family, patience=0.1) == ("EPERM", set())


@pytest.mark.parametrize("family", at.FAMILIES)
def test_explain_unmarked_packet_leaves_by_mesh(guarded_node: Node, family: int) -> None:
    assert guarded_node.words("--to", FAR[family], "--uid", 65534) == f"leaves by {MESH} with mark 0x0"
    assert guarded_node.two_links.send(packet_senders.udp, family) == ("sent", {MESH})


@pytest.mark.parametrize("family", at.FAMILIES)
def test_explain_service_packet_leaves_by_uplink(guarded_node: Node, family: int) -> None:
    output = guarded_node.explain("--to", FAR[family], "--gid", SERVICE, "--mark", "0x1", "--dport", 10000)
    assert output.splitlines()[-1] == f"=> leaves by {WAN} with mark 0x1"
    assert f"{POLICY}:{line('[service.fastd]')} service.fastd" in output
    assert f"{POLICY}:{line('mark ')} uplink.wan.mark" in output


def test_explain_mark_without_entitlement_is_dropped(guarded_node: Node) -> None:
    output = guarded_node.words("--to", FAR[4], "--gid", OTHER, "--mark", 1)
    assert output == "dropped by inet nftpolicy wan.mark-owner: counter wan.unentitled"


@pytest.mark.parametrize(("family", "resolver"), [(4, "127.0.0.1:54"), (6, "[::1]:54")])
def test_explain_dns_query_of_service_reaches_resolver(guarded_node: Node, family: int, resolver: str) -> None:
    words = ("--to", FAR[family], "--gid", SERVICE, "--mark", 1, "--dport", 53)
    assert guarded_node.words(*words) == f"delivered locally with mark 0x1, to {resolver}"
    assert f"{POLICY}:{line('listen')} uplink.wan.resolver.listen" in guarded_node.explain(*words)


def test_explain_forwarded_packet_of_uplink_is_dropped(guarded_node: Node) -> None:
    guarded_node.space.sysctl("net.ipv4.ip_forward", 1)
    output = guarded_node.explain("--forward", WAN, "--from", "192.0.2.77", "--to", FAR[4])
    assert "dropped by" in output.splitlines()[-1]
    back = guarded_node.explain("--forward", MESH, "--from", "203.0.113.9", "--to", "192.0.2.77")
    assert back.splitlines()[-1] == "=> dropped by inet nftpolicy wan.guard: counter wan.foreign-source"


def test_explain_frame_leaves_only_with_mark(guarded_node: Node) -> None:
    words = ("--frame", "--dev", WAN, "--from", "192.0.2.2", "--to", FAR[4])
    assert guarded_node.words(*words).startswith("dropped by netdev nftpolicy wan.packets")
    assert guarded_node.words(*words, "--mark", 1) == f"leaves by {WAN} with mark 0x1"


def test_explain_answer_leaves_only_from_policy_port(guarded_node: Node) -> None:
    reply = (
        "--to",
        FAR[4],
        "--from",
        "192.0.2.2",
        "--proto",
        "tcp",
        "--state",
        "established",
        "--reply",
        "--ct-mark",
        1,
    )
    output = guarded_node.explain(*reply, "--sport", 22, "--mark", 1)
    assert output.splitlines()[-1] == f"=> leaves by {WAN} with mark 0x1"
    assert f"{POLICY}:{line('answer')} uplink.wan.answer" in output
    assert guarded_node.words(*reply, "--sport", 80, "--mark", 1).endswith("counter wan.unanswered")


def test_explain_exempt_packet_leaves_unmarked(guarded_node: Node) -> None:
    solicit = ("--kernel", "--proto", "ipv6-icmp", "--to", "ff02::1:ff00:1", "--dev", WAN)
    solicit = (*solicit, "--from", "::", "--field", "icmpv6.type=135", "--field", "ip6.hoplimit=255")
    output = guarded_node.explain(*solicit)
    assert output.splitlines()[-1] == f"=> leaves by {WAN} with mark 0x0"
    assert f"{POLICY}:{line('exempt')} uplink.wan.exempt" in output


def test_explain_shows_route_of_kernel(guarded_node: Node) -> None:
    output = guarded_node.explain("--to", FAR[4], "--mark", 1, "--gid", SERVICE)
    assert re.search(rf"^the kernel's own route: unicast dev {WAN}", output, re.MULTILINE)
    found = json.loads(guarded_node.explain("--to", FAR[4], "--mark", 1, "--gid", SERVICE, "--json"))
    (packet,) = found["packets"]
    assert packet["kernel"][0]["agrees"] is True
    assert packet["kernel"][0]["kernel"]["device"] == WAN
    assert (packet["outcome"], packet["device"], packet["mark"]) == ("leaves", WAN, 1)
    assert (found["judged"], found["faults"]) == ("this kernel", [])


@pytest.mark.parametrize(
    ("answer", "agrees"),
    [
        ({}, True),
        ({"device": MESH}, False),
        ({"gateway": "192.0.2.99"}, False),
        ({"kind": "local"}, False),
        ({"kind": "unreachable"}, False),
    ],
)
def test_explain_other_route_of_kernel_is_model_fault(
    guarded_node: Node, capsys: pytest.CaptureFixture, answer: dict, agrees: bool
) -> None:
    def explain_with_changed_route() -> tuple[int, str]:
        from attrs import evolve

        from nftpolicy.kernel.netlink.rtnetlink import RouteLookups

        honest = RouteLookups.get_route
        RouteLookups.get_route = lambda *words, **more: evolve(honest(*words, **more), **answer)
        return run_in_process("--to", FAR[4], "--mark", "1", "--gid", "800")

    status, said = guarded_node.space.call(explain_with_changed_route)
    assert status == (0 if agrees else 1)
    faults = [one for one in said.splitlines() if one.startswith("model/kernel mismatch (bug): the route: ")]
    assert bool(faults) != agrees
    if answer.get("device"):
        assert f"dev {WAN}" in faults[0] and f"dev {MESH}" in faults[0]


def run_in_process(*words: str) -> tuple[int, str]:
    """Run the command in this process; return exit status and output."""
    import io

    from nftpolicy.cli.main import application

    os.environ.update(ENVIRONMENT)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        sys.argv = ["nftpolicy", "explain", *words]
        try:
            return int(application(sys.argv[1:])() or 0), said.getvalue()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()


def test_explain_missing_device_is_reported(guarded_node: Node) -> None:
    done = guarded_node.run("explain", "--to", FAR[4], "--dev", "nowhere0", check=False)
    assert done.stderr == "nftpolicy: there is no device nowhere0 on this machine now\n"
    assert done.returncode == 0


def test_explain_without_policy_judges_kernel(two_links: TwoLinkNode) -> None:
    two_links.node.ip(default(WAN, 4))
    output = two_links.node.run([*PROGRAM, "explain", "--to", FAR[4]], env=ENVIRONMENT).stdout
    assert output.splitlines()[-1] == f"=> leaves by {WAN} with mark 0x0"


def test_explain_without_root_judges_compiled_policy(guarded_node: Node) -> None:
    done = guarded_node.run("explain", POLICY, "--to", FAR[4], "--mark", "1", "--gid", str(SERVICE), uid=65534)
    assert done.stderr.startswith("nftpolicy: this needs root")
    assert done.stdout.splitlines()[-1] == f"=> leaves by {WAN} with mark 0x1"
    assert f"assumption: table 1 has a default route by {WAN}" in done.stdout
    assert guarded_node.run("explain", "--to", FAR[4], check=False, uid=65534).returncode == 4


def test_explain_state_files_give_same_outcome(guarded_node: Node) -> None:
    asked = {
        "ruleset": ["nft", "-j", "list", "ruleset"],
        "rules": ["ip", "-j", "-N", "-4", "rule"],
        "routes": ["ip", "-j", "-N", "-4", "route", "show", "table", "all"],
    }
    for name, words in asked.items():
        guarded_node.space.outside(f"/run/{name}").write_text(guarded_node.space.run(words).stdout)
    files = ("--ruleset", "/run/ruleset", "--rules", "4:/run/rules", "--routes", "/run/routes")
    for words in (("--mark", 1, "--gid", SERVICE), ("--dev", WAN), ("--mark", 1)):
        there = [
            one
            for one in guarded_node.explain("--to", FAR[4], *words).splitlines()
            if not one.startswith("the kernel's own route")
        ]
        assert guarded_node.explain(POLICY, *files, "--to", FAR[4], *words).splitlines()[-1] == there[-1]
    output = guarded_node.explain(POLICY, *files, "--to", FAR[4], "--mark", 1, "--gid", SERVICE)
    for words in (f"{line('[service.fastd]')} service.fastd", f"{line('mark ')} uplink.wan.mark"):
        assert f"{POLICY}:{words}" in output


# --- the sockets of a program -------------------------------------------------------------------


def _hold_sockets(ready: int, passed: int, *openers) -> None:
    """Close inherited descriptors, open sockets, report, and wait for the end; runs in a child."""
    for entry in Path("/proc/self/fd").iterdir():
        if int(entry.name) not in (0, 1, 2, ready, passed):
            with contextlib.suppress(OSError):
                os.close(int(entry.name))
    kept = [one for opener in openers for one in opener()]
    os.write(ready, b"x")
    time.sleep(60)
    del kept


@contextlib.contextmanager
def program(space: Namespace, *openers, passed: int = -1, **ids: object) -> Iterator[int]:
    """Run a process inside that holds the sockets that `openers` make, and the descriptor `passed`."""
    receiver, sender = os.pipe()
    process = space.spawn(_hold_sockets, sender, passed, *openers, **ids)
    os.close(sender)
    try:
        assert os.read(receiver, 1) == b"x", "the program ended early"
        yield process
    finally:
        space.end(process)
        os.close(receiver)


def marked() -> list[socket.socket]:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
    one.connect((FAR[4], 10000))
    return [one]


def bare() -> list[socket.socket]:
    one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, WAN.encode())
    return [one]


def raw() -> list[socket.socket]:
    one = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    frames.bind((WAN, 0x0806))
    frames.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
    return [one, frames, socket.socket(socket.AF_UNIX), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)]


def connected() -> list[socket.socket]:
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.bind(("::", 0))
    listener.listen()
    client = socket.socket()
    client.connect(("127.0.0.1", listener.getsockname()[1]))
    return [listener, client, listener.accept()[0]]


def test_explain_pid_covers_marked_and_bound_sockets(guarded_node: Node) -> None:
    with program(guarded_node.space, marked, bare, gid=SERVICE, keep_caps=True) as pid:
        output = guarded_node.space.run([*PROGRAM, "explain", "--pid", "0"], check=False, env=ENVIRONMENT)
        assert output.returncode == 2
        output = explain_from_outside(guarded_node, "--pid", pid)
        assert f"process {pid} " in output and "2 IP or packet sockets" in output
        assert f"=> leaves by {WAN} with mark 0x1" in output
        assert f"{POLICY}:{line('[service.fastd]')} service.fastd" in output
        assert re.search(
            r"udp over IPv6 and IPv4.*bound to br-wan: not connected: name a destination with --to", output
        )
        assert "=> dropped by inet nftpolicy wan.guard: counter wan.dropped" in explain_from_outside(
            guarded_node, "--pid", pid, "--to", at.NEIGHBOUR[6]
        )
        found = json.loads(explain_from_outside(guarded_node, "--pid", pid, "--json"))
    first, second = found["packets"]
    assert (first["socket"]["mark"], first["socket"]["gid"], first["outcome"]) == (1, SERVICE, "leaves")
    assert first["packet"]["from"] == at.NODE_MESH[4] or first["packet"]["from"] == "192.0.2.2"
    assert (second["socket"]["bound"], second["note"][:13]) == (WAN, "not connected")
    assert found["process"]["entered"] is True


def explain_from_outside(node: Node, *words: object) -> str:
    """Run the command on this machine for a process in the node's network namespace."""
    environment = {**os.environ, **ENVIRONMENT, "NFTPOLICY_STATE": str(node.space.outside(STATE))}
    done = subprocess.run(
        [*PROGRAM, "explain", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=limit(20),
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def read_sockets(space: Namespace, pid: int) -> list[process_sockets.ProcessSocket]:
    """Return the sockets of a process, read from inside its network namespace, by its process id outside."""
    with space._net():
        return list(process_sockets.read_process_sockets(pid).sockets)


def test_process_sockets_lists_ip_and_packet_sockets_only(guarded_node: Node) -> None:
    with program(guarded_node.space, raw, connected, bare, marked) as pid:
        found = read_sockets(guarded_node.space, pid)
    output = [(one.family, one.kind, one.protocol, one.mark, one.bound, one.listens) for one in found]
    assert output == [
        (4, "raw", 1, 0, None, False),
        (0, "raw", 0x0806, 7, WAN, False),
        (6, "stream", 6, 0, None, True),
        (4, "stream", 6, 0, None, False),
        (4, "stream", 6, 0, None, False),
        (6, "dgram", 17, 0, WAN, False),
        (4, "dgram", 17, 1, None, False),
    ]
    client, server = found[3], found[4]
    assert (client.local, client.sport, client.remote, client.dport) == (
        "127.0.0.1",
        server.dport,
        "127.0.0.1",
        server.sport,
    )
    assert (found[6].local, found[6].remote, found[6].dport) == ("192.0.2.2", FAR[4], 10000)
    assert [one.both for one in found] == [False, False, True, False, False, True, False]
    assert not any(one.elsewhere for one in found)


def test_process_sockets_owner_is_opener_as_in_nft(guarded_node: Node) -> None:
    """A program changes its ids after it opened a socket, and before it opens another."""

    def opener() -> list[socket.socket]:
        first = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        os.setresgid(OTHER, OTHER, OTHER)
        os.setresuid(4712, 4712, 4712)
        second = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for one in (first, second):
            one.sendto(b"x", (FAR[4], 9))
        return [first, second]

    counters = "".join(f" counter u{uid} {{ }}\n counter g{gid} {{ }}\n" for uid, gid in ((0, SERVICE), (4712, OTHER)))
    rules = "".join(
        f"  meta skuid {uid} udp dport 9 counter name u{uid}\n  meta skgid {gid} udp dport 9 counter name g{gid}\n"
        for uid, gid in ((0, SERVICE), (4712, OTHER))
    )
    chain = f" chain c {{\n  type filter hook output priority 0\n{rules} }}\n"
    guarded_node.space.nft(f"table inet owners {{\n{counters}{chain}}}\n")
    try:
        found: list[process_sockets.ProcessSocket] = []

        def whole() -> None:
            with program(guarded_node.space, opener, gid=SERVICE) as pid:
                found.extend(read_sockets(guarded_node.space, pid))

        names = counted(guarded_node.space, whole)
    finally:
        guarded_node.space.nft("delete table inet owners\n")
    assert names >= {"u0", f"g{SERVICE}", "u4712", f"g{OTHER}"}
    assert [(one.uid, one.gid) for one in found] == [(0, SERVICE), (4712, OTHER)]


def test_process_sockets_owner_in_user_namespace_is_as_in_nft() -> None:
    """A child with a user and a network namespace of its own opens a socket as user 5 and group 8 of it."""
    ready, go = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        try:
            syscalls.unshare(0x10000000 | syscalls.CLONE_NEWNET)  # CLONE_NEWUSER
            os.write(ready[1], b"x"), os.read(go[0], 1)
            os.setgid(0), os.setuid(0)
            rules = "".join(f"  meta {key} {number} counter name {key}{number}\n" for key, number in _OWNERS)
            counters = "".join(f" counter {key}{number} {{ }}\n" for key, number in _OWNERS)
            chain = f" chain c {{\n  type filter hook output priority 0\n{rules} }}\n"
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            subprocess.run(["nft", "-f", "-"], input=f"table inet t {{\n{counters}{chain}}}\n", text=True, check=True)
            os.setresgid(8, 8, 8), os.setresuid(5, 5, 5)
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.sendto(b"x", ("127.0.0.1", 9))
            os.write(ready[1], b"x")
            time.sleep(60)
        finally:
            os._exit(0)
    os.close(ready[1]), os.close(go[0])
    try:
        os.read(ready[0], 1)
        for kind in ("uid", "gid"):
            Path(f"/proc/{process}/{kind}_map").write_text("0 100000 65536\n")
        os.write(go[1], b"x")
        assert os.read(ready[0], 1) == b"x", "the child ended early"
        (found,) = [one for one in process_sockets.read_process_sockets(process).sockets if one.sport]
        listed = ["nsenter", f"--net=/proc/{process}/ns/net", "nft", "-j", "list", "counters"]
        output = json.loads(subprocess.run(listed, capture_output=True, check=True).stdout)["nftables"]
    finally:
        os.kill(process, signal.SIGKILL), os.waitpid(process, 0)
        os.close(ready[0]), os.close(go[1])
    counted_there = {one["counter"]["name"] for one in output if one.get("counter", {}).get("packets")}
    assert counted_there == {"skuid5", "skgid8"}
    assert (found.uid, found.gid) == (5, 8)


_OWNERS = [("skuid", 5), ("skuid", 100005), ("skgid", 8), ("skgid", 100008)]


@pytest.mark.parametrize("family", at.FAMILIES)
def test_explain_accepted_connection_is_reply_with_flow_mark(guarded_node: Node, family: int) -> None:
    """A host at home connects to port 22; the answer of the program is explained."""
    near, length = {4: ("192.0.2.3", 24), 6: ("2001:db8:1::3", 64)}[family]
    # With its prefix: the policy has the node answer neighbours of the same network only.
    guarded_node.space.ip(f"link set {WAN} arp on", f"addr add {near}/{length} dev {WAN} noprefixroute")
    guarded_node.two_links.far.ip(f"addr add {at.with_length(at.HOME, 'home', family)} dev to-wan")

    def connect() -> None:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection((near, 22), timeout=1):
                time.sleep(60)
            time.sleep(0.01)

    def serve() -> list[socket.socket]:
        listener = socket.create_server((near, 22), family={4: socket.AF_INET, 6: socket.AF_INET6}[family])
        return [listener, listener.accept()[0]]

    client = guarded_node.two_links.far.spawn(connect)
    try:
        with program(guarded_node.space, serve) as pid:
            output = explain_from_outside(guarded_node, "--pid", pid)
    finally:
        guarded_node.two_links.far.end(client)
        guarded_node.space.ip(f"addr del {near}/{length} dev {WAN}", f"link set {WAN} arp off")
    assert "listens, and sends nothing itself" in output
    assert re.search(rf"^tcp \[?{re.escape(near)}\]?:22 -> \[?{re.escape(at.HOME[family])}\]?:", output, re.MULTILINE)
    assert "connection established, reply direction, mark 0x1" in output
    assert output.splitlines()[-1] == f"=> leaves by {WAN} with mark 0x1"
    assert f"{POLICY}:{line('answer')} uplink.wan.answer" in output


def test_explain_socket_of_other_namespace_is_skipped(guarded_node: Node) -> None:
    borrowed = guarded_node.two_links.far.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with borrowed, program(guarded_node.space, marked, passed=borrowed.fileno()) as pid:
        found = read_sockets(guarded_node.space, pid)
        assert sorted((one.elsewhere, one.remote) for one in found) == [(False, FAR[4]), (True, None)]
        assert "in another network namespace than the process: not explained" in explain_from_outside(
            guarded_node, "--pid", pid
        )


def test_process_sockets_of_ended_process_raises(guarded_node: Node) -> None:
    with program(guarded_node.space, marked) as pid:
        pass
    with pytest.raises(process_sockets.NoSuchProcess, match=f"there is no process {pid}"):
        process_sockets.read_process_sockets(pid)
    with pytest.raises(process_sockets.NoSuchProcess, match=f"there is no process {pid}"):
        process_sockets.enter_netns_of(pid)
    done = guarded_node.run("explain", "--pid", str(2**22 - 1), check=False)
    assert (done.returncode, done.stderr.startswith("nftpolicy: --pid: there is no process")) == (2, True)


def test_process_sockets_without_root_raises_unavailable(guarded_node: Node) -> None:
    with program(guarded_node.space, marked) as pid:
        receiver, sender = os.pipe()
        child_ = os.fork()
        if child_ == 0:
            try:
                os.setuid(65534)
                forked_call.answer(sender, lambda: process_sockets.read_process_sockets(pid))
            finally:
                os._exit(0)
        os.close(sender)
        try:
            with pytest.raises(Unavailable, match=rf"process {pid}: .* needs root"):
                forked_call.result(forked_call.read(receiver, 5))
        finally:
            os.close(receiver), os.waitpid(child_, 0)


def test_process_sockets_closes_its_descriptors(guarded_node: Node) -> None:
    with program(guarded_node.space, marked, raw) as pid:
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert len(read_sockets(guarded_node.space, pid)) == 3
        assert len(list(Path("/proc/self/fd").iterdir())) == before
