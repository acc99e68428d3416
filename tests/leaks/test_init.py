"""First policy by `nftpolicy init`: its printed steps close the uplink, and the SSH session goes on."""

import contextlib
import re
import shlex
import socket
from collections.abc import Iterator

import pytest

from tests.lab.limits import brief, limit
from tests.lab.netns import Namespace, veth
from tests.reply_matrix.reply_network import PROGRAM

ENVIRONMENT = {"NFTPOLICY_STATE": "/run/state", "PYTHONDONTWRITEBYTECODE": "1"}
FILE = "/run/first.toml"
WG_FILE = "[Interface]\nPrivateKey = x\n[Peer]\nEndpoint = vpn.example:51820\nAllowedIPs = 0.0.0.0/0\n"


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Namespace, Namespace]]:
    """A server with a public device, and a management port without a gateway, whose network has `far`."""
    with contextlib.ExitStack() as stack:
        node, far, public = (stack.enter_context(Namespace(name)) for name in ("node", "far", "public"))
        veth(node, "eth0", public, "p0")
        veth(node, "eth1", far, "m0")
        node.ip("addr add 203.0.113.2/24 dev eth0", "route add default via 203.0.113.1")
        node.ip("addr add 192.0.2.10/24 dev eth1")
        far.ip("addr add 192.0.2.1/24 dev m0")
        yield node, far


def init(node: Namespace, *arguments: str, **options: int) -> tuple[int, list[str]]:
    """Exit status of `nftpolicy init`, and the lines that it prints."""
    done = node.run([PROGRAM, "init", *arguments], check=False, env=ENVIRONMENT, **options)
    return done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines()]


def receives(receiver: socket.socket) -> bool:
    receiver.settimeout(brief(0.3))
    try:
        return bool(receiver.recv(100))
    except TimeoutError:
        return False


def test_steps_close_a_management_port_and_keep_ssh(machines: tuple[Namespace, Namespace]) -> None:
    node, far = machines
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(node.socket(socket.AF_INET, socket.SOCK_STREAM))
        server.bind(("", 22))
        server.listen()
        client = stack.enter_context(far.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.settimeout(limit(5))
        client.connect(("192.0.2.10", 22))
        session = stack.enter_context(server.accept()[0])
        receiver = stack.enter_context(far.socket(socket.AF_INET, socket.SOCK_DGRAM))
        receiver.bind(("192.0.2.1", 5000))
        sender = stack.enter_context(node.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender.sendto(b"before", ("192.0.2.1", 5000))
        assert receives(receiver), "the control: without a policy the packet leaves"

        status, lines = init(node, "--uplink", "eth1", FILE)
        assert (status, lines[0]) == (0, f"{FILE}: a server, uplink eth1 (named by --uplink): proved")
        assert "note: the SSH session from 192.0.2.1 to port 22 comes by eth1, an uplink: 'answer' keeps it" in lines
        assert init(node, "--uplink", "eth1", FILE)[0] == 0  # the same policy
        steps = [re.sub(r"^\d+\. |    #.*| --confirm 60", "", line) for line in lines[lines.index("next steps:") + 1 :]]
        for step in steps:
            if step.startswith(("ip route", "nftpolicy apply")):
                node.run([PROGRAM if word == "nftpolicy" else word for word in shlex.split(step)], env=ENVIRONMENT)
        client.send(b"data")
        session.settimeout(limit(5))
        assert session.recv(100) == b"data"
        session.send(b"reply")
        assert client.recv(100) == b"reply"
        late = stack.enter_context(far.socket(socket.AF_INET, socket.SOCK_STREAM))
        late.settimeout(limit(5))
        late.connect(("192.0.2.10", 22))
        with contextlib.suppress(PermissionError):
            sender.sendto(b"after", ("192.0.2.1", 5000))
        assert not receives(receiver)

        assert init(node, FILE)[0] == 5  # another policy, and no --force


def test_reader_finds_tunnel_files_and_published_ports(machines: tuple[Namespace, Namespace]) -> None:
    """The policy of the test above is in force; its own mark and table are free ones for another draft."""
    node, _ = machines
    node.run(["mount", "-t", "tmpfs", "none", "/etc/wireguard"])
    node.run(["tee", "/etc/wireguard/vpn.conf"], input=WG_FILE)
    node.run(["chmod", "700", "/etc/wireguard"])
    node.run(["mount", "-t", "tmpfs", "none", "/etc/openvpn"])
    node.run(["tee", "/etc/openvpn/office.conf"], input="client\nremote 203.0.113.9 1194\n")
    node.ip("link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0")
    node.nft(
        "table ip docker { chain pre { type nat hook prerouting priority -100; tcp dport 8080 dnat to 172.17.0.2:80; }\n"
        "chain out { type filter hook output priority 0; meta mark set meta mark & 0xffffff0f | 0x10; }\n}"
    )
    status, lines = init(node, "-")
    assert status == 0
    assert {"[publish.tcp-8080]", 'to = "docker0"', 'devices = ["eth0"]'} <= set(lines)
    assert {'mark = "0xca6c"', 'mark = "0xca6d"'} & set(lines)  # with the kernel's WireGuard, or without it
    assert "table = 51  # routing table of the uplink: free on this machine" in lines
    assert "[service.office]  # /etc/openvpn/office.conf" in lines
    assert any("write into [Interface] of /etc/wireguard/vpn.conf: " in line for line in lines)
    assert 'mark = "0x1000/0xf000"' in init(node, "--for", "server", "-")[1]  # the other program's bits are 0xf0
    status, lines = init(node, "-", uid=65534, gid=65534)
    assert status == 0
    assert any(line.startswith("note: without root, ") for line in lines)
    assert "/etc/wireguard" not in " ".join(lines)
    assert init(node, "--for", "fastd", "-")[1][0].startswith("nftpolicy: --for fastd: ")


def test_machine_without_a_network_gets_no_policy() -> None:
    with Namespace("empty") as node:
        status, lines = init(node, "-")
    assert status == 2
    assert lines == [
        "nftpolicy: no device leads to another network: only lo has neither a default route nor an address; "
        "name one with --uplink DEVICE"
    ]
