# SPDX-License-Identifier: BSD-2-Clause
"""VPN programs of the shipped policies in a lab: OpenVPN, WireGuard in user space, and a tunneldigger stand-in.

One end is the lab's node, the other its server. Each tunnel has the addresses of `INSIDE`.
"""

import contextlib
import itertools
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests import tunneldigger_daemon
from tests.kernel import bpf_programs
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.daemons import FOLDER
from tests.lab.frames import Frame
from tests.lab.limits import limit
from tests.lab.netns import Namespace, wait_until
from tests.lab.sniffer import Sniffer
from tests.lab.topology import Lab

INSIDE = {4: ("198.18.8.1", "198.18.8.2"), 6: ("2001:db8:8::1", "2001:db8:8::2")}  # node, server
LENGTH = {4: 24, 6: 64}
OPENVPN, WIREGUARD, L2TP = 1194, 51820, 20000  # ports of the server, and of WireGuard on the node


class Program:
    """Program that runs in a namespace until it is ended, and its output."""

    def __init__(self, space: Namespace, argv: Sequence[str], **options: Any) -> None:
        self._log = space.outside(f"{FOLDER}/{Path(argv[0]).name}.log")
        with self._log.open("w") as said:
            self._process: subprocess.Popen[Any] = space.popen(argv, stdout=said, stderr=said, **options)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def says(self, words: str, seconds: float = 15) -> None:
        """Wait until it has said these words; AssertionError with all that it said otherwise."""
        try:
            wait_until(lambda: words in self.log, seconds, words)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.log}") from None

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(limit(5))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def running(space: Namespace, argv: Sequence[str], **options: Any) -> Iterator[Program]:
    """Yield the running program; `options` are those of Namespace.popen."""
    made = Program(space, argv, **options)
    try:
        yield made
    finally:
        made.end()


@contextlib.contextmanager
def cgroups() -> Iterator[Callable[[str], str]]:
    """Yield a function that places the cgroups of a policy's services in a cgroup of this test."""
    with bpf_programs.cgroup() as tree:
        numbers = itertools.count()

        def placed(text: str) -> str:
            return re.sub(r'^marks *= "cgroup"', lambda found: f"{found[0]}\n{_place(tree, numbers)}", text, flags=re.M)

        try:
            yield placed
        finally:
            for folder in filter(Path.is_dir, tree.iterdir()):
                wait_until(lambda folder=folder: not (folder / "cgroup.procs").read_text(), 10, "an empty cgroup")
                folder.rmdir()


def _place(tree: Path, numbers: Iterator[int]) -> str:
    return f'cgroup = "{tree.name}/{next(numbers)}"'


def echoes(lab: Lab, family: int, seconds: float = 1) -> bool:
    """Return True if the far end of the tunnel answers over UDP and TCP."""
    there = INSIDE[family][1]
    answers = [
        lab.node.call(knock, there, at.ECHO_PORT, b"hello", seconds)
        for knock in (inbound_clients.udp, inbound_clients.tcp)
    ]
    return answers == [b"hello", b"hello"]


def wait_for_echoes(lab: Lab, seconds: float = 15) -> None:
    """Wait until the tunnel carries both families."""
    wait_until(lambda: all(echoes(lab, family) for family in at.FAMILIES), seconds, "an answer through the tunnel")


def of(sniffer: Sniffer, port: int) -> list[Frame]:
    """Return the frames to the port of a tunnel."""
    return [frame for frame in sniffer.frames() if frame.dport == port]


# OpenVPN


class OpenVpn:
    """Running server and its clients. Each side knows the other by the fingerprint of its certificate."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._server = certificate(lab.server, "server")
        self._client = certificate(lab.node, "client")

    @contextlib.contextmanager
    def server(self) -> Iterator[Program]:
        words = ["--dev", "ovpn", "--proto", "udp6", "--lport", str(OPENVPN), "--tls-server", "--dh", "none"]
        words += ["--float"]  # one client after another, each from another port
        with running(self._lab.server, [*words_of("server", self._client), *words, *_ends(1)]) as made:
            yield made

    @contextlib.contextmanager
    def client(self, gid: int, mark: int, remote: str, proto: str = "udp", more: str = "") -> Iterator[Program]:
        """Yield the node's end, in this group; mark 0 means none. A failed client starts again after a second.

        `more` are further arguments.
        """
        words = ["--dev", "tun-vpn", "--proto", proto, "--remote", remote, str(OPENVPN), "--nobind", "--tls-client"]
        words += ["--connect-retry", "1", "1", *(["--mark", str(mark)] if mark else []), *more.split()]
        with running(self._lab.node, [*words_of("client", self._server), *words, *_ends(0)], gid=gid) as made:
            yield made


def words_of(name: str, peer: str) -> list[str]:
    """Return the arguments of both sides; `peer` is the fingerprint of the other certificate."""
    keys = ["--cert", f"{FOLDER}/{name}.crt", "--key", f"{FOLDER}/{name}.key", "--peer-fingerprint", peer]
    return ["openvpn", "--dev-type", "tun", "--verb", "4", "--keepalive", "1", "5", *keys]


def _ends(mine: int) -> list[str]:
    (four, six), (four_there, six_there) = ([INSIDE[family][end] for family in at.FAMILIES] for end in (mine, 1 - mine))
    return ["--ifconfig", four, four_there, "--ifconfig-ipv6", f"{six}/{LENGTH[6]}", six_there]


def certificate(space: Namespace, name: str) -> str:
    """Create a key and a self-signed certificate as files of the namespace; return the fingerprint."""
    path = f"{FOLDER}/{name}"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    space.run([*made.split(), "-subj", f"/CN={name}", "-keyout", f"{path}.key", "-out", f"{path}.crt"])
    return space.run(f"openssl x509 -in {path}.crt -noout -fingerprint -sha256".split()).stdout.strip().split("=")[1]


# WireGuard in user space


@contextlib.contextmanager
def wireguard(space: Namespace, device: str, gid: int | None = None) -> Iterator[Program]:
    """Yield wireguard-go with a device that has a key, listens, and has the tunnel's addresses, without a peer."""
    with running(space, ["wireguard-go", device], gid=gid, env={"WG_PROCESS_FOREGROUND": "1"}) as made:
        wait_until(lambda: space.outside(f"/run/wireguard/{device}.sock").exists(), 10, f"wireguard-go: {made.log}")
        space.outside(f"{FOLDER}/wg.key").write_text(space.run(["wg", "genkey"]).stdout)
        set_wg(space, device, "private-key", f"{FOLDER}/wg.key", "listen-port", str(WIREGUARD))
        addressed(space, device)
        yield made


def set_wg(space: Namespace, device: str, *words: str, gid: int | None = None) -> None:
    """Run `wg set`. Raises: CalledProcessError, as when the name of an endpoint has no address."""
    space.run(["wg", "set", device, *words], gid=gid)


def wg_key(space: Namespace, device: str) -> str:
    """Return the public key of a device."""
    return space.run(["wg", "show", device, "public-key"]).stdout.strip()


def addressed(space: Namespace, device: str) -> None:
    """Give a tunnel's device the addresses of its end, and set it up."""
    end = 1 if space.name == "server" else 0
    addresses = [f"addr add {INSIDE[family][end]}/{LENGTH[family]} dev {device}" for family in at.FAMILIES]
    space.ip(*(f"{one} nodad" if ":" in one else one for one in addresses), f"link set {device} up")


# Tunneldigger's way


@contextlib.contextmanager
def l2tp(space: Namespace, device: str, work: Any, *arguments: Any, gid: int | None = None) -> Iterator[str]:
    """Yield the path of the log of one end of `tests.tunneldigger_daemon`, with an addressed device."""
    log = f"{FOLDER}/l2tp.log"
    process = space.spawn(work, device, log, *arguments, gid=gid)
    try:
        wait_until(lambda: space.outside(f"/sys/class/net/{device}").exists(), 10, f"the device {device}")
        addressed(space, device)
        yield log
    finally:
        space.end(process)


def broker(lab: Lab) -> contextlib.AbstractContextManager[str]:
    return l2tp(lab.server, "l2tp0", tunneldigger_daemon.broker, L2TP)


def digger(lab: Lab, remote: str, mark: int, gid: int) -> contextlib.AbstractContextManager[str]:
    return l2tp(lab.node, "l2tp0", tunneldigger_daemon.client, remote, L2TP, mark, gid=gid)
