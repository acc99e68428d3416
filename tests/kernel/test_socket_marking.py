"""Marking of sockets of a program: by its cgroup, and by answers to its socket calls."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy import loads
from nftpolicy.kernel.bpf.programs import mark_program
from nftpolicy.kernel.cgroup import MarkedCgroup, unmarked_sockets
from nftpolicy.kernel.errors import Unavailable
from nftpolicy.kernel.packet_capture import receive_only_from
from nftpolicy.kernel.seccomp import SocketCallMarker
from nftpolicy.runtime.resolver import dnsmasq
from tests.lab.limits import limit
from tests.lab.netns import Namespace, veth

VALUE, MASK, FOREIGN = 0x500, 0xFF00, 0x3

# What the program sees: the mark of each socket, and that other families still work.
PROGRAM = textwrap.dedent(
    """
    import os, socket
    os.setgid(65534); os.setuid(65534)
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM | socket.SOCK_NONBLOCK):
            one = socket.socket(family, kind)
            print(one.getsockopt(socket.SOL_SOCKET, 36), one.get_inheritable(), os.fstat(one.fileno()).st_uid)
    here, there = socket.socketpair()
    here.send(b"x")
    print(socket.socket(socket.AF_UNIX).family.name, there.recv(1))
    """
)
SEEN = [f"{VALUE} False 65534"] * 4 + ["AF_UNIX b'x'"]


def by_cgroup() -> MarkedCgroup:
    return MarkedCgroup(f"test-{os.getpid()}", VALUE, MASK)


def run(marking: MarkedCgroup | SocketCallMarker, text: str) -> list[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", text], preexec_fn=marking.before_exec, stdout=subprocess.PIPE, text=True
    )
    marking.after_start()
    output, _ = process.communicate(timeout=limit(20))
    assert process.returncode == 0
    return output.splitlines()


@pytest.mark.parametrize("make", [by_cgroup, lambda: SocketCallMarker(VALUE, MASK)], ids=["cgroup", "seccomp"])
def test_marker_without_capabilities_marks_sockets(make) -> None:  # type: ignore[no-untyped-def]
    try:
        marking = make().__enter__()
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        assert run(marking, PROGRAM) == SEEN
    finally:
        marking.__exit__(None, None, None)
    outside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with outside:
        assert outside.getsockopt(socket.SOL_SOCKET, 36) == 0  # the control: sockets outside have no mark


def test_marker_failing_socket_call_keeps_errno() -> None:
    text = textwrap.dedent(
        """
        import errno, socket
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, 17)
        except OSError as error:
            print(errno.errorcode[error.errno])
        """
    )
    with SocketCallMarker(VALUE, MASK) as marking:
        assert run(marking, text) == ["EPROTONOSUPPORT"]


# Opens sockets by system calls with arguments that the kernel cuts to 32 bits, and by the x32 ABI.
RAW = textwrap.dedent(
    """
    import ctypes, errno, os, platform, socket, sys
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.argtypes = [ctypes.c_long] * 4
    number = 41 if platform.machine() == "x86_64" else 198
    high = 1 << 32
    for start, family, kind, protocol in (
        (0, socket.AF_INET | high, socket.SOCK_DGRAM, 0),
        (0, socket.AF_INET6, socket.SOCK_DGRAM | high, high),
        (0, socket.AF_INET - high, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP | high),
        (0x40000000, socket.AF_INET, socket.SOCK_DGRAM, 0),
    ):
        opened = call(number | start, family, kind, protocol)
        if opened < 0:
            print(errno.errorcode[ctypes.get_errno()])
        else:
            opened = socket.socket(fileno=opened)
            print(opened.family.name, opened.type.name, opened.getsockopt(socket.SOL_SOCKET, 36))
    """
)


def test_seccomp_marker_reads_arguments_as_the_kernel() -> None:
    control = subprocess.run(
        [sys.executable, "-c", RAW], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    kinds = ["AF_INET SOCK_DGRAM", "AF_INET6 SOCK_DGRAM", "AF_INET SOCK_STREAM"]
    assert control[:3] == [f"{kind} 0" for kind in kinds], "the control: the kernel opens these"
    with SocketCallMarker(VALUE, MASK) as marking:
        assert run(marking, RAW) == [*(f"{kind} {VALUE}" for kind in kinds), "EPERM"]


PRIVILEGED = textwrap.dedent(
    """
    import socket
    for family, kind, protocol in (
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        (socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_UDP),
        (socket.AF_INET, 10, socket.htons(3)),  # SOCK_PACKET: AF_PACKET in old programs
    ):
        try:
            print(socket.socket(family, kind, protocol).type)
        except PermissionError:
            print("refused")
    """
)


def test_seccomp_marker_lends_no_capability() -> None:
    """The marker could open raw sockets, which the user of dnsmasq cannot."""
    control = subprocess.run([sys.executable, "-c", PRIVILEGED], capture_output=True, text=True, check=True).stdout
    assert "refused" not in control, "the control: root opens them"
    with SocketCallMarker(VALUE, MASK) as marking:
        assert run(marking, PRIVILEGED) == ["refused"] * 3


def test_marked_cgroup_verify_removes_cgroup() -> None:
    try:
        with by_cgroup() as group:
            assert group.verify()
            name = group.name
    except Unavailable as error:
        pytest.skip(str(error))
    with by_cgroup() as again:  # the name is free again
        assert again.name == name


def test_unmarked_sockets_names_bare_socket() -> None:
    """The control of `unmarked`: it names bare sockets, and none of marked ones."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bare:
        bare.bind(("127.0.0.1", 0))
        port = bare.getsockname()[1]
        assert f"SOCK_DGRAM socket, port {port}" in unmarked_sockets(os.getpid(), (VALUE, MASK))
        bare.setsockopt(socket.SOL_SOCKET, 36, VALUE | FOREIGN)
        assert f"SOCK_DGRAM socket, port {port}" not in unmarked_sockets(os.getpid(), (VALUE, MASK))


def test_mark_program_keeps_foreign_bits() -> None:
    """The program computes `ctx->mark & ~mask | value` in seven instructions."""
    code = mark_program(VALUE, MASK)
    assert len(code) == 7 * 8
    assert (~MASK & 0xFFFFFFFF).to_bytes(4, "little") in code and VALUE.to_bytes(4, "little") in code


def test_receive_only_from_lo_drops_packets_from_outside(node: Namespace, far: Namespace) -> None:
    """An answer that --check accepts did not arrive from outside, whatever its source address."""
    veth(node, "out", far, "in")
    node.ip("addr add 192.0.2.1/24 dev out")
    far.ip("addr add 192.0.2.2/24 dev in")

    def heard(filtered: bool) -> list[bytes]:
        with node.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            if filtered:
                receive_only_from(one, "lo")
            one.bind(("192.0.2.1", 4000))
            one.settimeout(5)
            far.call(_say, b"far")
            node.call(_say, b"near")
            found = [one.recv(10)]
            while found[-1] != b"near":
                found.append(one.recv(10))
            return found

    assert heard(False) == [b"far", b"near"], "the control"
    assert heard(True) == [b"near"]


def _say(word: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(word, ("192.0.2.1", 4000))


# Opens a socket in the cgroup, which it binds, and takes the mark away if told to.
BOUND = textwrap.dedent(
    """
    import os, socket, sys
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    if sys.argv[1] == "bare":
        one.setsockopt(socket.SOL_SOCKET, 36, 0)
    print(one.getsockname()[1], flush=True)
    sys.stdin.read()
    """
)


@pytest.mark.parametrize("which", ["marked", "bare"])
def test_resolver_sees_sockets_of_its_cgroup(tmp_path: Path, which: str) -> None:
    """Of the process of another user, of which it may not read the descriptors."""
    policy = loads(
        f"""name = "p"\ninside = ["lan"]\n[uplink.wan]\ndevices = ["wan"]\nmark = "{VALUE:#x}/{MASK:#x}"\ntable = 7
        [uplink.wan.resolver]\nlisten = ["127.0.0.1:54"]\nservers = ["192.0.2.1"]\nuser = 65534\n"""
    )
    uplink = policy.uplink["wan"]
    assert uplink.resolver is not None
    with by_cgroup() as marking:
        process = subprocess.Popen(
            [sys.executable, "-c", BOUND, which],
            preexec_fn=marking.before_exec, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            (found,) = marking.sockets()
            assert (found.sport, found.mark) == (port, VALUE if which == "marked" else 0)
            listen = (evolve(uplink.resolver.listen[0], port=port),)
            job = dnsmasq.ResolverJob("wan", uplink, evolve(uplink.resolver, listen=listen), tmp_path, print)
            if which == "marked":
                assert dnsmasq._verify_sockets(job, marking, process.pid)
                assert not dnsmasq._verify_sockets(evolve(job, resolver=uplink.resolver), marking, process.pid)
            else:
                with pytest.raises(dnsmasq.ResolverError, match=rf"lacks the mark 0x500/0xff00: udp .*:{port}"):
                    dnsmasq._verify_sockets(job, marking, process.pid)
            process.communicate(timeout=limit(20))
